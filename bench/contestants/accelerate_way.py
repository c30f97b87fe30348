"""Hugging Face Accelerate as its documentation shows it: prepare() everything, accelerator.backward()."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from common import Stopwatch, data_loader, image_sets, plain_model, plain_optimizer, read_options
from torch import nn


def main() -> None:
    options, watch = read_options(), Stopwatch()
    accelerator = Accelerator(
        cpu=True,
        mixed_precision="bf16" if options.precision == "bf16" else "no",
        dynamo_backend="inductor" if options.compiled else None,
    )
    train, test = image_sets(options)
    model = plain_model(options)
    model, optimizer, train_loader, test_loader = accelerator.prepare(
        model,
        plain_optimizer(model, options),
        data_loader(train, options, True),
        data_loader(test, options, False),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=options.config.label_smoothing)
    for _ in range(options.config.epochs):
        watch.epoch_begins()
        model.train()
        total_loss, steps = 0.0, 0
        for images, labels in train_loader:
            optimizer.zero_grad()
            with accelerator.autocast():
                loss = criterion(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            total_loss += loss.item()
            steps += 1
            watch.step_done()
        watch.training_done(steps * options.batch_size * accelerator.num_processes)
        model.eval()
        right = total = 0
        for images, labels in test_loader:
            with torch.no_grad():
                predictions = model(images).argmax(dim=-1)
            predictions, labels = accelerator.gather_for_metrics((predictions, labels))
            right += (predictions == labels).sum().item()
            total += len(labels)
        watch.epoch_done(right / total)
    watch.report()
    accelerator.end_training()


if __name__ == "__main__":
    main()
