"""The workbook's own run: what distributed_train.py does, on the job's share of the images and with a stopwatch.

On several processes with --comm-hook shared-memory, the fastest that it offers for one machine.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from common import Stopwatch, read_options

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import prepare_cpu
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World, process_group, read_world
from ddp_workbook.training.datasets import Dataset, ImageSet, load_dataset
from ddp_workbook.training.loader import TrainLoader
from ddp_workbook.training.loop import fit
from ddp_workbook.training.state import TrainingState, build_state

CPU = torch.device("cpu")


class Clock:
    """Callback that tells the stopwatch where fit() is, which keeps both times of an epoch itself."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def after_step(self, state: TrainingState) -> None:
        self.watch.step_done()

    def after_epoch(self, state: TrainingState) -> None:
        epoch = state.history[-1]
        self.watch.epochs.append(
            {
                "begin": 0.0,
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
    config = replace(options.config, comm_hook="shared-memory" if world.launched else "allreduce")
    prepare_cpu(config, world.local_size)
    all_images = load_dataset(config)
    data = replace(
        all_images,
        train=first(all_images.train, options.job.train_images),
        test=first(all_images.test, options.job.test_images),
    )
    with process_group(world, "gloo", CPU):
        train(config, data, world, watch, options.compiled)
    watch.report()


def train(config: TrainConfig, data: Dataset, world: World, watch: Stopwatch, compiled: bool) -> None:
    """A function of its own, so that the model is released before the group ends (see process_group)."""
    state = build_state(config, data, world, CPU)
    if compiled:
        unwrap(state.model).compile()  # in place: what asks for DDP still finds it
    fit(state, TrainLoader(data, config, world, CPU), data, config, world, [Clock(watch)])


if __name__ == "__main__":
    main()
