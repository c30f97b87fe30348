"""From a finished run to its files: checkpoint, history, metrics."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from ddp_workbook.checkpoint import TrainingState, checkpoint_path, save_checkpoint
from ddp_workbook.config import TrainConfig
from ddp_workbook.datasets import Dataset
from ddp_workbook.devices import (
    accelerator_peak_bytes,
    available_cores,
    choose_device,
    choose_threads,
    describe_environment,
    peak_memory_bytes,
)
from ddp_workbook.distributed import World, from_main, gather_objects, unwrap
from ddp_workbook.engine import accuracy
from ddp_workbook.errors import InputError
from ddp_workbook.files import hold, save_record
from ddp_workbook.models import count_parameters
from ddp_workbook.record import (
    EpochRecord,
    HistoryRecord,
    RunKind,
    RunRecord,
    WorldInfo,
    load_run,
    record_paths,
)
from ddp_workbook.resume import resume_dir, saved_steps


def run_kind(world: World) -> RunKind:
    """A run under torchrun is the distributed one, whatever its size."""
    return "distributed" if world.launched else "baseline"


def check_writable(config: TrainConfig) -> None:
    """Raise InputError now, not after the training, when a folder for the results cannot be written."""
    for folder in (config.run_dir, config.checkpoint_dir):
        require_writable(folder)


def require_writable(folder: Path) -> None:
    """Make the folder if it is not there. Raises InputError when it cannot be written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {folder} ({error.strerror}); choose a writable folder") from error


@contextmanager
def hold_folders(config: TrainConfig, kind: RunKind, world: World) -> Iterator[None]:
    """In the block no other run of this kind and recipe writes into the same folders.

    Rank 0 holds them for all. Raises InputError that names the holder when there is one.
    """
    names = (config.run_dir / f".{kind}.lock", config.checkpoint_dir / f".{checkpoint_path(config, kind).stem}.lock")
    advice = "wait for it, or give this run folders of its own: --results-dir DIR --checkpoint-dir DIR"
    with ExitStack() as held:
        for lock in names if world.is_main else ():
            held.enter_context(hold(lock, advice))
        yield


def tell_finished(config: TrainConfig, world: World, resume: bool) -> bool:
    """Whether there is nothing to resume because this very run has finished. For rank 0, which has the files.

    Says so, and otherwise which earlier run this one is going to replace. An interrupted run with the same settings,
    begun after one that finished, is there to go on with.
    """
    kind = run_kind(world)
    if not resume:
        with suppress(InputError):
            earlier, _ = load_run(config.run_dir, kind)
            print(
                f"when it has finished, this run replaces that of {earlier.finished_at} "
                f"({earlier.world.processes} process(es), {earlier.test_accuracy:.2%}) in {config.run_dir}",
                flush=True,
            )
        return False
    found = None if saved_steps(resume_dir(config, kind)) else finished_run(config, kind, world.size)
    if found:
        print(f"this run finished at {found[0].finished_at}; without --resume it would be trained again", flush=True)
    return found is not None


def describe_world(config: TrainConfig, world: World, backend: str, precision: str) -> WorldInfo:
    """The world part of the record."""
    threads = choose_threads(config.threads, world.local_size)
    return WorldInfo(
        processes=world.size,
        backend=backend if world.launched else None,
        threads_per_process=threads,
        oversubscribed=threads * world.local_size > available_cores(),
        global_batch=config.global_batch(world.size),
        precision=precision,
    )


def save_run(
    state: TrainingState,
    history: list[EpochRecord],
    confusion: Tensor,
    data: Dataset,
    config: TrainConfig,
    world: World,
    backend: str,
) -> RunRecord | None:
    """Write checkpoint, history and, last, metrics: a run whose metrics are there is complete.

    Every rank must call it, to tell its memory; rank 0 writes. Returns the record on rank 0, None elsewhere.
    """
    memory = gather_objects((peak_memory_bytes(), accelerator_peak_bytes(state.amp.device)))
    record = from_main(lambda: _write_run(state, history, confusion, data, config, world, backend, memory))
    return record if world.is_main else None


def _write_run(
    state: TrainingState,
    history: list[EpochRecord],
    confusion: Tensor,
    data: Dataset,
    config: TrainConfig,
    world: World,
    backend: str,
    memory: list[tuple[int, int | None]],
) -> RunRecord:
    device = state.amp.device
    kind, train_seconds = run_kind(world), sum(epoch.train_seconds for epoch in history)
    record = RunRecord(
        kind=kind,
        recipe=config.recipe,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config,
        world=describe_world(config, world, backend, state.amp.precision),
        environment=describe_environment(device),
        dataset=data.info(),
        parameters=count_parameters(unwrap(state.model)),
        train_seconds=train_seconds,
        evaluation_seconds=sum(epoch.evaluation_seconds for epoch in history),
        images_per_second=sum(e.images_per_second * e.train_seconds for e in history) / train_seconds,
        test_accuracy=accuracy(confusion),
        test_loss=history[-1].test_loss,
        peak_memory_bytes=[host for host, _ in memory],
        accelerator_peak_bytes=[accelerator for _, accelerator in memory],
        confusion=confusion.tolist(),
    )
    save_checkpoint(checkpoint_path(config, kind), state, config, kind)
    metrics, epochs = record_paths(config.run_dir, kind)
    metrics.unlink(missing_ok=True)
    save_record(HistoryRecord(kind=kind, recipe=config.recipe, epochs=history), epochs)
    save_record(record, metrics)
    if kind == "distributed":
        _draw_training(record, HistoryRecord(kind=kind, recipe=config.recipe, epochs=history), config)
    return record


def _draw_training(run: RunRecord, history: HistoryRecord, config: TrainConfig) -> None:
    from ddp_workbook import plots  # here, so that a rank that trains does not import it first

    figure = plots.training_plots(run, history)
    plots.save_png(figure, config.run_dir / f"training_plots_worldsize_{run.world.processes}.png")
    plots.close(figure)


def finished_run(config: TrainConfig, kind: RunKind, processes: int) -> tuple[RunRecord, HistoryRecord] | None:
    """An earlier run with this very configuration, if its files are there and whole.

    Folders may differ, and a device that was found (auto) is as good as one that was asked for by name.
    """

    def computed(c: TrainConfig, device: str) -> TrainConfig:
        return replace(c, data_dir=Path(), results_dir=Path(), checkpoint_dir=Path(), device=device)

    try:
        run, history = load_run(config.run_dir, kind)
    except InputError:
        return None
    device = choose_device(config.device, processes).type
    same = computed(run.config, run.environment.device) == computed(config, device)
    return (
        (run, history) if same and run.world.processes == processes and checkpoint_path(config, kind).exists() else None
    )
