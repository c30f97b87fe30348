"""The workbook's own run: what distributed_train.py does, on the job's share of the images and with a stopwatch.

On several processes with --averaging shared-memory, the fastest that it offers for one machine.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from common import Stopwatch, read_options
from ddp_workbook.checkpoint import TrainingState
from ddp_workbook.datasets import Dataset, ImageSet, load_dataset
from ddp_workbook.engine import build_optimizer, build_schedule, fit
from ddp_workbook.loader import TrainLoader
from ddp_workbook.models import build_model

from ddp_workbook.devices import Arithmetic, choose_precision, set_threads
from ddp_workbook.distributed import process_group, read_world, wrap_ddp


class Clock:
    """Tells the stopwatch where fit is; one epoch a call, so that the epoch's begin is known."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_step(self, progress) -> None:
        self.watch.step_done()

    def on_epoch(self, epoch) -> None:
        """fit keeps both times itself; the stopwatch takes them over."""
        begin = 0.0
        self.watch.epochs.append(
            {
                "begin": begin,
                "trained": epoch.train_seconds,
                "images": epoch.images_per_second * epoch.train_seconds,
                "done": epoch.train_seconds + epoch.evaluation_seconds,
                "accuracy": epoch.test_accuracy,
            }
        )


def first(images: ImageSet, count: int) -> ImageSet:
    return ImageSet(images.images[:count], images.labels[:count])


def main() -> None:
    options, watch, world = read_options(), Stopwatch(), read_world()
    config = replace(options.config, averaging="shared-memory" if world.launched else "all-reduce")
    amp = Arithmetic(torch.device("cpu"), choose_precision(config.precision, torch.device("cpu")))
    set_threads(config, world.local_size)
    whole = load_dataset(config)
    data: Dataset = replace(
        whole,
        train=first(whole.train, options.job.train_images),
        test=first(whole.test, options.job.test_images),
    )
    loader = TrainLoader(data, config, world, amp.device)
    with process_group(world, "gloo", amp.device):
        train(config, watch, world, amp, data, loader)
    watch.report()


def train(config, watch, world, amp, data, loader) -> None:
    """A function of its own, so that the model is gone before the group (distributed.process_group)."""
    torch.manual_seed(config.seed)
    model = build_model(config, len(data.classes)).to(memory_format=torch.channels_last)
    if world.launched:
        model = wrap_ddp(model, amp.device, config)
    optimizer = build_optimizer(model, config, processes=world.size)
    state = TrainingState(model, optimizer, build_schedule(optimizer, config, loader.steps), amp)
    fit(state, loader, data, config, world, [Clock(watch)])


if __name__ == "__main__":
    main()
