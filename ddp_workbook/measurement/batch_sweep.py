"""When does it pay? Steps of several models at several batch sizes, serial and on several processes, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ddp_workbook.analysis.costmodel import is_settled, slowest
from ddp_workbook.analysis.statistics import SAMPLES_NEEDED
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import available_cores, choose_device, choose_threads, describe_environment
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.benchmark import WARM_UP_STEPS, time_training
from ddp_workbook.measurement.step_breakdown import benchmark_all_reduce, describe_session, time_session_steps
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.timing import BatchSweep, SweepPoint
from ddp_workbook.specs import MODELS
from ddp_workbook.training.datasets import load_dataset

ROUNDS = SAMPLES_NEEDED  # of a point: the smallest number whose range is a 95 % interval of the median
ROUNDS_AT_MOST = 2  # times the rounds asked for
SECONDS_AT_MOST = 8  # for a point; on a busy machine it is marked as not settled instead


def swept_models(config: TrainConfig) -> list[str]:
    """Three networks that span little to much computation per gradient byte, and the model of `config`.

    The cost model is checked network by network, so a further one would add time to every course and no evidence.
    """
    return [name for name, spec in MODELS.items() if spec.in_every_sweep or name == config.model]


def sweep_config(config: TrainConfig, model: str) -> TrainConfig:
    """The model's own recipe, on the data set and device of `config`."""
    recipe = next(recipe for recipe in RECIPES.values() if recipe.model == model)
    return replace(recipe, dataset=config.dataset, data_dir=config.data_dir, device=config.device, grad_accum_steps=1)


def sweep_batch_sizes(
    config: TrainConfig,
    processes: int,
    batch_sizes: Sequence[int],
    rounds: int = ROUNDS,
    on_point: Callable[[SweepPoint], None] = lambda _: None,
) -> BatchSweep:
    """Each of swept_models() at every batch size (images per process): rounds of serial and distributed steps.

    `rounds` rounds for a point (at least two), and as many again while its speedup is not settled: up to ROUNDS_AT_MOST
    times, and none after SECONDS_AT_MOST seconds. Looking after every round would stop at a lucky moment too often:
    simulated, the interval would then hold the true speedup in 94 % of the cases instead of 95 %.
    """
    rounds = max(rounds, 2)
    device = choose_device(config.device, processes)
    threads = choose_threads(config.threads, processes)
    points = []
    available = len(load_dataset(config).train)
    fitting = [images for images in batch_sizes if images * processes <= available]
    if len(fitting) < 2:
        raise InputError(
            f"{available} training images leave fewer than two of the batch sizes {tuple(batch_sizes)} for {processes} "
            f"processes; choose smaller ones"
        )
    with (
        WorkerPool("all cores", config, 1, available_cores()) as serial,
        WorkerPool(f"{processes} processes", config, processes, threads) as distributed,
    ):
        for model in swept_models(config):
            for images in fitting:
                points.append(_measure_point(sweep_config(config, model), images, serial, distributed, rounds))
                on_point(points[-1])
                for pool in (serial, distributed):
                    pool.call(Worker.forget)
        all_reduce = benchmark_all_reduce(distributed)
    return BatchSweep(
        dataset=config.dataset,
        environment=describe_environment(device),
        processes=processes,
        threads=threads,
        all_reduce=all_reduce,
        points=points,
    )


def _measure_point(
    config: TrainConfig, images: int, serial: WorkerPool, distributed: WorkerPool, rounds: int
) -> SweepPoint:
    whole, split = replace(config, batch_size=images * distributed.processes), replace(config, batch_size=images)
    steps = MODELS[config.model].sweep_steps
    parameters, _ = distributed.call(describe_session, split)[0]
    serial.call(time_training, whole, False, WARM_UP_STEPS, None)
    point = SweepPoint.model_construct(
        model=config.model, images=images, gradient_bytes=4 * parameters, buckets=1, serial=[], synced=[], no_sync=[]
    )
    started = time.perf_counter()
    for number in range(ROUNDS_AT_MOST * rounds):
        late = time.perf_counter() - started > SECONDS_AT_MOST
        if number >= rounds and (late or (number % rounds == 0 and is_settled(point))):
            break
        [(seconds, _)] = serial.call(time_training, whole, False, steps, None)
        answers = distributed.call(time_session_steps, split, steps, WARM_UP_STEPS if number == 0 else 0)
        synced, no_sync, timelines = zip(*answers, strict=True)
        point = point.model_copy(
            update={
                "buckets": len(timelines[0].buckets),
                "serial": [*point.serial, seconds / steps],
                "synced": [*point.synced, *slowest(synced).tolist()],
                "no_sync": [*point.no_sync, *slowest(no_sync).tolist()],
            }
        )
    return SweepPoint.model_validate(point.model_dump())
