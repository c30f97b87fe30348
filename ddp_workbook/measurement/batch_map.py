"""The batch map: steps of every network at growing global batches, serial and distributed, in turns.

Its file is complete after every point, so that a map can be continued.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from ddp_workbook.analysis import plots, plots_map
from ddp_workbook.analysis.break_even import curves, needs_no_more_rounds
from ddp_workbook.analysis.speedup import HARDWARE
from ddp_workbook.analysis.statistics import SAMPLES_NEEDED
from ddp_workbook.config import CommHookName, TrainConfig
from ddp_workbook.devices import (
    accelerator_peak_bytes,
    available_cores,
    choose_backend,
    choose_device,
    choose_threads,
    describe_environment,
    peak_memory_bytes,
)
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.distributed.shared_memory import require_shared_memory
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.alone import measuring_alone
from ddp_workbook.measurement.batch_sweep import sweep_config
from ddp_workbook.measurement.benchmark import time_training
from ddp_workbook.measurement.map_search import FEWEST_EACH, complete_network, end_at, next_batch
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.records.batch_map import Baseline, BatchMap, MapPoint, NetworkMap
from ddp_workbook.records.files import load_record, require_replaceable, save_record
from ddp_workbook.specs import MODELS
from ddp_workbook.training.datasets import load_dataset
from ddp_workbook.training.models import build_model, count_parameters

FILE, UNFINISHED, FIGURE = "batch_map.json", "batch_map_unfinished.json", "batch_map.png"
ROUNDS = SAMPLES_NEEDED
ROUNDS_AT_MOST = 4 * ROUNDS
SECONDS_AT_MOST = 60  # for a point; then it gets no further rounds, and may be marked as not settled
SECONDS_PER_PART = 0.25  # a configuration's part of a round
STEPS_AT_MOST = 50
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Pools:
    """The worker processes of one network's map, all alive at once."""

    serial: dict[Baseline, WorkerPool]
    distributed: WorkerPool
    hooks: list[CommHookName]

    def __iter__(self) -> Iterator[WorkerPool]:
        yield from (*self.serial.values(), self.distributed)

    def memory(self) -> tuple[int, int, int]:
        """Of the pool whose ranks together had the largest peak: (peak, held now, available) bytes."""
        reports = [list(zip(*pool.call(report_memory), strict=True)) for pool in self]
        peaks, held, available = max(reports, key=lambda report: sum(report[0]))
        return sum(peaks), sum(held), min(available)


@contextmanager
def worker_pools(config: TrainConfig, processes: int, hooks: list[CommHookName]) -> Iterator[Pools]:
    """One process with the threads of a rank, on a CPU one with all cores too, and `processes` ranks."""
    device, threads = choose_device(config.device, processes), choose_threads(config.threads, processes)
    sizes: dict[Baseline, int] = {"one worker": threads}
    if device.type == "cpu":
        sizes["all cores"] = available_cores()
    with ExitStack() as stack:
        serial = {
            name: stack.enter_context(WorkerPool(f"1 process, {size} threads", config, 1, size))
            for name, size in sizes.items()
        }
        distributed = stack.enter_context(WorkerPool(f"{processes} processes", config, processes, threads))
        yield Pools(serial, distributed, hooks)


def report_memory(worker: Worker) -> tuple[int, int, int]:
    """Of this process: (largest memory so far, memory held now, memory available to it beside that) in bytes."""
    if worker.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(worker.device)
        return accelerator_peak_bytes(worker.device), torch.cuda.memory_reserved(worker.device), free
    return peak_memory_bytes(), psutil.Process().memory_info().rss, psutil.virtual_memory().available


def measure_point(pools: Pools, config: TrainConfig, batch: int) -> MapPoint:
    """Rounds in which every baseline and every way to send takes its turn, `batch` images in a step of each.

    ROUNDS rounds, and as many again while a speedup is not known well enough: up to ROUNDS_AT_MOST, and none after
    SECONDS_AT_MOST seconds. Looking after every round would stop at a lucky moment too often.
    """
    whole = replace(config, batch_size=batch, comm_hook="allreduce")
    split = replace(whole, batch_size=batch // pools.distributed.processes)
    parts = [(("serial", name), pool, whole, False) for name, pool in pools.serial.items()]
    parts += [(("distributed", hook), pools.distributed, replace(split, comm_hook=hook), True) for hook in pools.hooks]

    def take(number: int, steps: int) -> float:
        _, pool, settings, communicate = parts[number]
        return max(seconds for seconds, _ in pool.call(time_training, settings, communicate, steps, None)) / steps

    warm = statistics.fmean(take(number, WARM_UP_STEPS) for number in range(len(parts)))
    steps = max(1, min(round(SECONDS_PER_PART / warm), STEPS_AT_MOST))
    seconds: list[list[float]] = [[] for _ in parts]
    started = time.perf_counter()
    point = None
    while point is None or len(seconds[0]) < ROUNDS_AT_MOST:
        for turn in range(len(seconds[0]), len(seconds[0]) + ROUNDS):
            for each in range(len(parts)):
                number = (turn + each) % len(parts)  # no configuration always goes first
                seconds[number].append(take(number, steps))
        times: dict[str, dict] = {"serial": {}, "distributed": {}}
        for ((kind, name), *_), values in zip(parts, seconds, strict=True):
            times[kind][name] = values
        point = MapPoint(batch=batch, steps=steps, peak_bytes=pools.memory()[0], **times)
        if needs_no_more_rounds(point) or time.perf_counter() - started > SECONDS_AT_MOST:
            break
    for pool in pools:
        pool.call(Worker.forget)
    return point


def map_batches(
    config: TrainConfig,
    processes: int,
    largest: int | None,
    output_dir: Path,
    report: Callable[[str], None] = lambda line: print(line, flush=True),
) -> tuple[BatchMap, Path]:
    """The map of every network on config's data set, or the rest of an unfinished one; the record and its folder.

    A finished map is measured again, and replaced when the new one is complete. Raises InputError for numbers that make
    no sense, and when the unfinished map in the folder is another one.
    """
    if not 2 <= processes <= MOST_PROCESSES:
        raise InputError(f"a process count must be from 2 to {MOST_PROCESSES}, not {processes}")
    if largest is not None and largest < FEWEST_EACH * processes:
        raise InputError(
            f"--largest-batch must be at least {FEWEST_EACH * processes} ({FEWEST_EACH} images for each of {processes} "
            f"processes), not {largest}"
        )
    device = choose_device(config.device, processes)
    config = replace(config, device=device.type)
    images = len(load_dataset(config).train)
    if images < FEWEST_EACH * processes:
        raise InputError(f"{images} training images are too few for {processes} processes; choose fewer processes")
    empty = BatchMap(
        dataset=config.dataset,
        environment=describe_environment(device),
        processes=processes,
        threads=choose_threads(config.threads, processes),
        backend=choose_backend(config.backend, device, processes),
        largest_batch=largest,
        networks=[NetworkMap(model=model, points=[]) for model in MODELS],
    )
    folder = output_dir / config.recipe
    for name in (FILE, UNFINISHED, FIGURE):
        require_replaceable(folder / name)
    with measuring_alone(output_dir):
        hooks = _hooks(config, processes)
        record = _begun(folder / UNFINISHED, empty, hooks, report)
        try:
            record = _measure(record, config, images, hooks, folder / UNFINISHED, report)
        except KeyboardInterrupt as stop:
            stop.args = ("stopped; to continue: the same command",)  # the command's last line
            raise
        save_record(record, folder / FILE)
        plots.write_png(plots_map.batch_map(record), folder / FIGURE)
        (folder / UNFINISHED).unlink()
    return record, folder


def _begun(path: Path, empty: BatchMap, hooks: list[CommHookName], report: Callable[[str], None]) -> BatchMap:
    """The unfinished map in this file, if there is one, else the empty one. Raises InputError for another map.

    It is another one where its environment, its settings, its networks or its ways to send gradients are not today's.
    """
    if not path.exists():
        return empty
    found = load_record(BatchMap, path)
    names = [
        f"environment.{name}"
        for name in HARDWARE
        if getattr(found.environment, name) != getattr(empty.environment, name)
    ]
    names += [
        name
        for name in ("dataset", "processes", "threads", "backend", "largest_batch")
        if getattr(found, name) != getattr(empty, name)
    ]
    if [network.model for network in found.networks] != [network.model for network in empty.networks]:
        names.append("list of networks")
    if any(list(point.distributed) != hooks for network in found.networks for point in network.points):
        names.append("list of communication hooks")
    if names:
        raise InputError(
            f"{path} is an unfinished map whose {names[0]} differs; finish it with its own flags, or remove it"
        )
    report(f"continuing {path} with {sum(len(network.points) for network in found.networks)} points")
    return found


def _measure(
    record: BatchMap,
    config: TrainConfig,
    images: int,
    hooks: list[CommHookName],
    path: Path,
    report: Callable[[str], None],
) -> BatchMap:
    """The complete map; the file has every point as soon as it is measured."""
    networks = list(record.networks)
    for number, network in enumerate(networks):
        if next_batch(network, record.processes) is None:
            continue
        settings = sweep_config(config, network.model)

        def on_point(network: NetworkMap, point: MapPoint, number: int = number) -> None:
            networks[number] = network
            save_record(record.model_copy(update={"networks": networks}), path)
            report(_describe(network, point))

        with worker_pools(settings, record.processes, hooks) as pools:
            complete_network(
                network,
                record.processes,
                lambda batch, pools=pools, settings=settings: measure_point(pools, settings, batch),
                lambda network, pools=pools: end_at(network, images, record.largest_batch, pools.memory()[1:]),
                on_point,
            )
    return record.model_copy(update={"networks": networks})


def _hooks(config: TrainConfig, processes: int) -> list[CommHookName]:
    """The ordinary all-reduce, and shared memory where it works for all networks."""
    networks = [sweep_config(config, model) for model in MODELS]
    classes = len(load_dataset(config).classes)
    largest = max(count_parameters(build_model(network, classes)) for network in networks)
    try:
        require_shared_memory(choose_device(config.device, processes), processes, processes, largest)
    except InputError:
        return ["allreduce"]
    return ["allreduce", "shared-memory"]


def _describe(network: NetworkMap, point: MapPoint) -> str:
    at = network.points.index(point)
    found = ", ".join(
        f"{curve.hook} over {curve.baseline} {curve.speedups[at].text('.2f')}" for curve in curves(network)
    )
    return f"{network.model:<9} {point.batch:>6} images, {point.rounds:>2} rounds: {found}"
