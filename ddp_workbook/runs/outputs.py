"""The output files of a run: locked while it runs, written when it has finished, found when it is asked for again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from ddp_workbook import devices
from ddp_workbook.config import PATHS, TrainConfig, first_difference
from ddp_workbook.distributed.collectives import from_main, gather_objects
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import lock, require_writable, save_record
from ddp_workbook.records.run import (
    HistoryRecord,
    RunKind,
    RunRecord,
    WorldInfo,
    load_run,
    pack_bits,
    record_paths,
)
from ddp_workbook.runs.checkpoint import checkpoint_folder, has_seal, model_path, saved_checkpoints, write_checkpoint
from ddp_workbook.training.datasets import Dataset, load_dataset
from ddp_workbook.training.loader import evaluation_shard
from ddp_workbook.training.loop import Evaluation, accuracy
from ddp_workbook.training.models import count_parameters
from ddp_workbook.training.state import TrainingState


class RunOutputs:
    """The files of one run. Raises InputError when their folders cannot be created or written to."""

    def __init__(self, config: TrainConfig, world: World, backend: str) -> None:
        self.config, self.world, self.backend = config, world, backend
        self.model = model_path(config, world.kind)
        for folder in (config.run_dir, config.checkpoint_dir):
            require_writable(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Rank 0 locks the folders for the block, so that no other run of this kind and recipe writes there.

        Raises InputError on every rank, naming the process that holds the lock, when they are taken.
        """
        locks = (self.config.run_dir / f".{self.world.kind}.lock", self.model.with_name(f".{self.model.stem}.lock"))
        advice = "wait for it, or give this run its own folders: --results-dir DIR --checkpoint-dir DIR"
        with ExitStack() as stack:

            def take() -> None:
                for path in locks if self.world.is_main else ():
                    stack.enter_context(lock(path, advice))

            from_main(take)
            yield

    def is_finished(self, resume: bool, data: Dataset) -> bool:
        """Whether --resume has nothing to do because this very run has finished on these images. Call it on rank 0.

        Prints that, or which earlier run this one is going to replace. An interrupted run with the same settings,
        started after one that finished, is still there to resume.
        """
        interrupted = saved_checkpoints(checkpoint_folder(self.config, self.world.kind))
        if resume and not interrupted:
            same = finished_run(self.config, self.world.kind, self.world.size, data)
            if same:
                print(
                    f"this run finished at {same[0].finished_at}; to train it again leave out --resume (in a notebook: "
                    f"RETRAIN = True)",
                    flush=True,
                )
                return True
        with suppress(InputError):
            earlier, _ = load_run(self.config.run_dir, self.world.kind)
            print(
                f"when it has finished, this run replaces that of {earlier.finished_at} "
                f"({earlier.world.processes} process(es), {earlier.test_accuracy:.2%}) in {self.config.run_dir}",
                flush=True,
            )
        return False

    def save(self, state: TrainingState, tested: Evaluation, data: Dataset) -> RunRecord | None:
        """Write the model, the history and, last, the metrics: a run whose metrics exist is complete.

        All ranks must call it, to report their memory and which of their test images they recognized; rank 0 writes.
        Returns the record on rank 0, None on the others.
        """
        shards = gather_objects(tested.correct.numpy())
        memory = gather_objects((devices.peak_memory_bytes(), devices.accelerator_peak_bytes(state.device)))
        history, model = state.history, unwrap(state.model)
        threads = devices.choose_threads(self.config.threads, self.world.local_size)
        train_seconds = sum(epoch.train_seconds for epoch in history)

        def write() -> RunRecord:
            record = RunRecord(
                kind=self.world.kind,
                recipe=self.config.recipe,
                finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
                config=self.config,
                world=WorldInfo(
                    processes=self.world.size,
                    backend=self.backend if self.world.launched else None,
                    threads_per_process=threads,
                    oversubscribed=threads * self.world.local_size > devices.available_cores(),
                    global_batch=self.config.global_batch(self.world.size),
                    precision=state.precision.name,
                ),
                environment=devices.describe_environment(state.device),
                dataset=data.info(),
                parameters=count_parameters(model),
                train_seconds=train_seconds,
                evaluation_seconds=sum(epoch.evaluation_seconds for epoch in history),
                images_per_second=sum(e.images_per_second * e.train_seconds for e in history) / train_seconds,
                test_accuracy=accuracy(tested.confusion),
                test_loss=history[-1].test_loss,
                peak_memory_bytes=[host for host, _ in memory],
                accelerator_peak_bytes=[accelerator for _, accelerator in memory],
                confusion=tested.confusion.tolist(),
                correct_images=pack_bits(self._in_order(shards)),
            )
            write_checkpoint(self.model, self.config, data.fingerprint, model)
            metrics, epochs = record_paths(self.config.run_dir, self.world.kind)
            metrics.unlink(missing_ok=True)
            save_record(HistoryRecord(kind=self.world.kind, recipe=self.config.recipe, epochs=history), epochs)
            save_record(record, metrics)
            return record

        record = from_main(write)
        return record if self.world.is_main else None

    def _in_order(self, shards: Sequence[np.ndarray]) -> np.ndarray:
        """Every rank's right and wrong answers, put together in the order of the test images."""
        correct = np.empty(sum(map(len, shards)), dtype=bool)
        for rank, shard in enumerate(shards):
            correct[evaluation_shard(len(correct), replace(self.world, rank=rank))] = shard
        return correct


def finished_run(
    config: TrainConfig, kind: RunKind, processes: int, data: Dataset | None = None
) -> tuple[RunRecord, HistoryRecord] | None:
    """An earlier run with this configuration, on the images that are there now, whose files are complete; else None.

    Folders may differ, and a device that was found (auto) counts as the one that was asked for by name. The images are
    loaded, unless `data` has them, when everything else fits. Raises InputError when that fails.
    """
    try:
        run, history = load_run(config.run_dir, kind)
    except InputError:
        return None
    same_device = run.environment.device == devices.choose_device(config.device, processes).type
    same = same_device and first_difference(run.config, config, PATHS | {"device"}) is None
    complete = run.world.processes == processes and has_seal(model_path(config, kind))
    if not (same and complete):
        return None
    return (run, history) if (data or load_dataset(config)).info() == run.dataset else None
