"""The tutorial way: torchvision transforms, DataLoader, a plain loop; DDP and DistributedSampler on several processes.

Follows torch's own tutorials: "Training a Classifier" and "Getting Started with Distributed Data Parallel".
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from common import (
    Stopwatch,
    data_loader,
    image_sets,
    plain_model,
    plain_optimizer,
    plain_schedule,
    read_options,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler


def main() -> None:
    options, watch = read_options(), Stopwatch()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        dist.init_process_group("gloo")
    train, test = image_sets(options)
    sampler = DistributedSampler(train) if processes > 1 else None
    train_loader = data_loader(train, options, True, sampler)
    test_loader = data_loader(test, options, False, DistributedSampler(test, shuffle=False) if processes > 1 else None)
    model = plain_model(options)
    if processes > 1:
        model = DistributedDataParallel(model)
    if options.compiled:
        model = torch.compile(model)
    optimizer = plain_optimizer(model, options)
    schedule = plain_schedule(optimizer, options, len(train_loader))
    criterion = nn.CrossEntropyLoss(label_smoothing=options.config.label_smoothing)
    for epoch in range(options.config.epochs):
        watch.epoch_begins()
        if sampler is not None:
            sampler.set_epoch(epoch)
        model.train()
        running_loss, steps = 0.0, 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
                loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            running_loss += loss.item()
            steps += 1
            watch.step_done()
        watch.training_done(steps * options.batch_size * processes)
        watch.epoch_done(test_accuracy(model, test_loader))
    watch.report()
    if processes > 1:
        dist.destroy_process_group()


def test_accuracy(model: nn.Module, loader: torch.utils.data.DataLoader) -> float:
    """Share of correct predictions over all processes."""
    model.eval()
    counts = torch.zeros(2)
    with torch.no_grad():
        for images, labels in loader:
            counts += torch.tensor([(model(images).argmax(1) == labels).sum().item(), len(labels)])
    if dist.is_initialized():
        dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    main()
