"""The output files of a run: locked while it runs, written when it has finished, found when it is asked for again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch import Tensor

from ddp_workbook import devices
from ddp_workbook.config import PATHS, TrainConfig, first_difference
from ddp_workbook.distributed.collectives import from_main, gather_objects
from ddp_workbook.distributed.ddp import unwrap
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.sharding import local_bytes, whole_weights
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import (
    load_record,
    lock,
    remove_temporary,
    require_file,
    require_replaceable,
    require_writable,
    save_record,
    save_text,
    sha256,
    staged,
    to_json,
)
from ddp_workbook.records.rank_bytes import RankBytes
from ddp_workbook.records.run import (
    HistoryRecord,
    RunKind,
    RunRecord,
    WorldInfo,
    complete_saving,
    load_run,
    model_path,
    pack_bits,
    record_paths,
)
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_seal, saved_checkpoints, write_checkpoint
from ddp_workbook.training.datasets import Dataset, load_dataset
from ddp_workbook.training.loader import evaluation_shard
from ddp_workbook.training.loop import Evaluation, accuracy
from ddp_workbook.training.models import count_parameters
from ddp_workbook.training.state import TrainingState


class RunOutputs:
    """The files of one run. Raises InputError when one of them could not be written at the end."""

    def __init__(self, config: TrainConfig, world: World, backend: str) -> None:
        self.config, self.world, self.backend = config, world, backend
        self.model = model_path(config, world.kind)
        self.metrics, self.history = record_paths(config.run_dir, world.kind)
        self.figure = config.run_dir / f"training_plots_worldsize_{world.size}.png"
        self.locks = (config.run_dir / f".{world.kind}.lock", self.model.with_name(f".{self.model.stem}.lock"))
        folder = checkpoint_folder(config, world.kind)
        if folder.exists():
            require_writable(folder)
        for path in (*self._replaced(), *folder.glob("*step-*")):
            require_replaceable(path)
        for path in self.locks:  # not replaced, but opened: it may be another user's who lets everybody write
            with suppress(FileNotFoundError):
                require_file(path)

    def _replaced(self) -> tuple[Path, ...]:
        """The files that the run writes at its end."""
        return self.model, self.history, self.metrics, self.figure

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Rank 0 locks the folders for the block, so that no other run of this kind and recipe writes there.

        Raises InputError on every rank, naming the process that holds the lock, when they are taken.
        """
        advice = "wait for it, or give this run its own folders: --results-dir DIR --checkpoint-dir DIR"
        with ExitStack() as stack:

            def take() -> None:
                if self.world.is_main:
                    for path in self.locks:
                        stack.enter_context(lock(path, advice))
                    self._clean_up()

            from_main(take)
            yield

    def _clean_up(self) -> None:
        """After a run that ended while it was saved: its files are put in place if its metrics exist, else removed."""
        try:
            earlier = load_record(RunRecord, self.metrics)
        except InputError:  # there is none, or it cannot be read
            earlier = None
        if earlier:
            complete_saving(earlier, self.config.run_dir)
        for path in self._replaced():
            remove_temporary(path)

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
        """Write model, history and metrics; at any moment of it, the earlier run is complete on disk or this one.

        All ranks must call it, to report their memory and which of their test images they recognized; rank 0 writes.
        Returns the record on rank 0, None on the others. Raises InputError when a file cannot be written.
        """
        shards = gather_objects(tested.correct.numpy())
        memory = gather_objects(
            (devices.peak_memory_bytes(), devices.accelerator_peak_bytes(state.device), bytes_of_rank(state))
        )
        weights = whole_weights(unwrap(state.model))

        def describe_and_write() -> RunRecord:
            run = self._describe(state, tested, data, shards, memory)
            try:
                return self._write(run, state, data, weights)
            except InputError:
                self._clean_up()
                raise

        run = from_main(describe_and_write)
        return run if self.world.is_main else None

    def _describe(
        self, state: TrainingState, tested: Evaluation, data: Dataset, shards: list[np.ndarray], memory: list[tuple]
    ) -> RunRecord:
        threads = devices.choose_threads(self.config.threads, self.world.local_size)
        train_seconds = sum(epoch.train_seconds for epoch in state.history)
        return RunRecord(
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
                batch_sizes=state.batch_sizes,
            ),
            environment=devices.describe_environment(state.device),
            dataset=data.info(),
            parameters=count_parameters(unwrap(state.model)),
            train_seconds=train_seconds,
            evaluation_seconds=sum(epoch.evaluation_seconds for epoch in state.history),
            images_per_second=sum(e.images_per_second * e.train_seconds for e in state.history) / train_seconds,
            test_accuracy=accuracy(tested.confusion),
            test_loss=state.history[-1].test_loss,
            peak_memory_bytes=[host for host, _, _ in memory],
            accelerator_peak_bytes=[accelerator for _, accelerator, _ in memory],
            rank_bytes=[counted for _, _, counted in memory],
            confusion=tested.confusion.tolist(),
            correct_images=pack_bits(self._in_order(shards)),
        )

    def _write(self, run: RunRecord, state: TrainingState, data: Dataset, weights: dict[str, Tensor]) -> RunRecord:
        """Until its metrics are written, the run does not count: its model and history wait beside the earlier ones."""
        epochs = to_json(HistoryRecord(kind=run.kind, recipe=run.recipe, epochs=state.history))
        digest = sha256(epochs.encode())
        model_digest = write_checkpoint(staged(self.model, digest), self.config, data.fingerprint, weights)
        save_text(epochs, staged(self.history, digest))
        run = run.model_copy(update={"history_sha256": digest, "model_sha256": model_digest})
        save_record(run, self.metrics)
        complete_saving(run, self.config.run_dir)
        return run

    def _in_order(self, shards: Sequence[np.ndarray]) -> np.ndarray:
        """Every rank's right and wrong answers, put together in the order of the test images."""
        correct = np.empty(sum(map(len, shards)), dtype=bool)
        for rank, shard in enumerate(shards):
            correct[evaluation_shard(len(correct), replace(self.world, rank=rank))] = shard
        return correct


def bytes_of_rank(state: TrainingState) -> RankBytes:
    """What this rank keeps after an optimizer step, and what it communicated in the step that was measured."""
    parameters = list(state.model.parameters())
    kept = [value for values in state.optimizer.state.values() for value in values.values()]
    return RankBytes(
        parameters=local_bytes(parameters),
        gradients=local_bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        optimizer=local_bytes(value for value in kept if isinstance(value, Tensor)),
        traffic=state.traffic.measured,
    )


def finished_run(
    config: TrainConfig, kind: RunKind, processes: int, data: Dataset | None = None
) -> tuple[RunRecord, HistoryRecord] | None:
    """An earlier run with this configuration, on the images that are there now, whose files are complete; else None.

    Folders may differ, and a device that was found (auto) counts as the one that was asked for by name. The images are
    loaded, unless `data` has them, when everything else fits. Raises InputError when that fails.
    """
    try:
        run, history = load_run(config.run_dir, kind)
        seal = read_seal(model_path(config, kind))
    except InputError:
        return None
    same_device = run.environment.device == devices.choose_device(config.device, processes).type
    same = same_device and first_difference(run.config, config, PATHS | {"device"}) is None
    complete = run.world.processes == processes and seal is not None and run.model_sha256 in (None, seal)
    if not (same and complete):
        return None
    return (run, history) if (data or load_dataset(config)).info() == run.dataset else None
