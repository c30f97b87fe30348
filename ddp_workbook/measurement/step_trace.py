"""`ddp-workbook trace`: one training step of all ranks, recorded as a Chrome trace and as a figure."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ddp_workbook.analysis import plots, plots_cost
from ddp_workbook.analysis.trace import save_trace
from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_device, choose_threads
from ddp_workbook.distributed.comm_hooks import check_comm_hook
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.alone import measuring_alone
from ddp_workbook.measurement.step_breakdown import measure_step_breakdown, slowed
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.records.files import require_writable
from ddp_workbook.records.timing import StepBreakdown

PAIRS = 10  # of a synced step and one under no_sync; the last synced one is drawn
LONGEST_SLEEP = 10_000  # milliseconds
TRACE, FIGURE, PROFILE = "step_trace.json", "step_timeline.png", "profile_rank{}.json"


def record_step(config: TrainConfig, processes: int, slow_ms: float, profiler: bool) -> tuple[StepBreakdown, Path]:
    """Measure steps of config.batch_size images, split among the processes. Returns the record and <run_dir>/trace.

    The folder gets the trace and the figure. The last rank sleeps `slow_ms` milliseconds in each forward pass. With
    `profiler`, torch.profiler records one more step, into a file for each rank. Raises InputError.
    """
    if not 2 <= processes <= MOST_PROCESSES:
        raise InputError(f"--processes must be from 2 to {MOST_PROCESSES}, not {processes}")
    if config.batch_size % processes:
        raise InputError(
            f"a batch of {config.batch_size} cannot be split evenly among {processes} processes; choose another number"
        )
    if not 0 <= slow_ms <= LONGEST_SLEEP:
        raise InputError(f"--slow-ms must be from 0 to {LONGEST_SLEEP}, not {slow_ms:g}")
    folder, slow = config.run_dir / "trace", slow_ms / 1000
    device = choose_device(config.device, processes)
    config = replace(config, device=device.type, batch_size=config.batch_size // processes)
    check_comm_hook(config.comm_hook, device, World(size=processes, local_size=processes))
    require_writable(folder)
    with (
        measuring_alone(config.results_dir),
        WorkerPool("trace", config, processes, choose_threads(config.threads, processes)) as pool,
    ):
        breakdown = measure_step_breakdown(config, pool, PAIRS, slow)
        for old in folder.glob(PROFILE.format("*")):
            old.unlink()
        if profiler:
            pool.call(profile_step, config, slow, folder)
    save_trace(breakdown, folder / TRACE)
    plots.write_png(plots_cost.timeline(breakdown), folder / FIGURE)
    return breakdown, folder


def profile_step(worker: Worker, config: TrainConfig, slow: float, folder: Path) -> None:
    """On every rank: one step under torch.profiler, as a Chrome trace of its operators."""
    from torch.profiler import profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler complains where there is no GPU
    session = worker.session(replace(config, grad_accum_steps=1), True)
    worker.barrier()
    with slowed(worker, session.state.model, slow), profile() as profiler:
        session.step()
    profiler.export_chrome_trace(str(folder / PROFILE.format(worker.world.rank)))
