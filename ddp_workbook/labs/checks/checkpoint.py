"""L12: write a training into one file, and resume it as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_workbook.labs.checks.small_training import BATCH, EPOCHS, LAST, STEPS, Moment, Training, differing
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

OLD = b"an older file"


def resumes(rank: Rank) -> int:
    """Stopped at a random step of each epoch, and gone on with in new objects."""
    path, draw = rank.folder / f"{rank.size} ranks" / "training.pt", random.Random(rank.seed)
    path.parent.mkdir(exist_ok=True)
    stops = [epoch * STEPS + draw.randint(1, STEPS - 1) for epoch in range(EPOCHS)]
    undisturbed = Training(rank, rank.seed).run(0, LAST, stops)
    changes = _watch(path)
    if rank.rank == 0:
        path.write_bytes(OLD)
    for stop in stops:
        training = Training(rank, rank.seed)
        training.run(0, stop, stops)
        _save(rank, path, training, stop, changes)
        training = Training(rank, rank.seed + 1000)
        returned = rank.names["load"](path, training.model, training.optimizer, training.scheduler)
        _compare_place(rank.gather(returned), stop, rank.size)
        now = training.now()
        _compare_moment(rank, now, undisturbed[stop - 1])
        _compare_rest(rank, [now, *training.run(stop, LAST, stops)], undisturbed[stop - 1 :])
    if rank.rank == 0:
        dist.destroy_process_group()
        _load_alone(rank, path, stop, undisturbed[stop - 1])
    return 2 * len(stops)


def _watch(path: Path) -> list[str]:
    """A list that grows by 'rename' or 'remove' whenever this process does that to the file at `path`."""
    changes: list[str] = []
    target = os.path.realpath(path)

    def watch(event: str, arguments: tuple) -> None:
        if event in ("os.rename", "os.remove"):
            changed = arguments[1 if event == "os.rename" else 0]
            if isinstance(changed, str | bytes | os.PathLike) and os.path.realpath(os.fsdecode(changed)) == target:
                changes.append(event.removeprefix("os."))

    sys.addaudithook(watch)
    return changes


def _save(rank: Rank, path: Path, training: Training, stop: int, changes: list[str]) -> None:
    """save(), and what it must leave behind: one file, replaced in one move, and an unchanged training.

    A file that is written in place keeps its number in the file system. That shows it for certain; a reader that polls
    the file would see a truncated one only now and then.
    """
    before, failure = training.now(), None
    changes.clear()
    old = rank.gather(path.stat().st_ino)  # gathered: nobody writes before all have looked
    try:
        rank.names["save"](path, training.model, training.optimizer, training.scheduler, *divmod(stop, STEPS))
    except OSError as error:
        failure = error
    writers = [number for number, each in enumerate(rank.gather(changes)) if "rename" in each]
    if len(writers) > 1:
        raise Wrong(
            "all-ranks-write",
            f"ranks {' and '.join(map(str, writers))} each write the file and move it into place: what happens when "
            f"one of them is still writing?",
        )
    if any(rank.gather(failure is not None)):
        raise failure or Wrong("error", "save() failed on another rank")
    if not path.exists() or path.read_bytes() == OLD:
        others = _names(path.parent).replace(path.name, "").strip(", ") or "nothing"
        raise Wrong("no-file", f"save() did not write {path.name}; what it left in the folder beside it: {others}")
    if path.stat().st_ino in old or any("remove" in each for each in rank.gather(changes)):
        raise Wrong(
            "in-place",
            "save() destroys the old file before the new one is complete: killed at that moment, the training would "
            "have no file at all",
        )
    if _names(path.parent) != path.name:
        raise Wrong("more-files", f"save() left more than one file behind: {_names(path.parent)}")
    _read(path)
    now = training.now()
    if (now.numbers, now.mode) != (before.numbers, before.mode) or differing(now.weights, before.weights):
        raise Wrong("disturbed", "save() itself changed the training: the generator, the mode, or the weights")


def _names(folder: Path) -> str:
    return ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"


def _read(path: Path) -> None:
    """The file must be readable without running code from it."""
    try:
        torch.load(path, weights_only=True)
    except Exception as error:
        objects = re.search(r"GLOBAL (\S+)", str(error))
        if not objects:
            raise Wrong("unreadable", f"torch.load cannot read the file: {str(error).splitlines()[0][:150]}") from None
        raise Wrong(
            "not-weights-only",
            f"torch.load(path, weights_only=True) refuses the file, since it contains an object of {objects[1]}: "
            f"whoever loads such a file runs code from it. Tensors, numbers, texts, lists and dicts are accepted",
        ) from None


def _compare_place(returned: list[object], stop: int, size: int) -> None:
    """What load() returned on each rank."""
    epoch, position = divmod(stop, STEPS)
    for number, each in enumerate(returned):
        if not (isinstance(each, tuple | list) and len(each) == 2 and all(type(part) is int for part in each)):
            raise Wrong("no-place", f"load() returned {each!r:.60} on rank {number}; it must return (epoch, position)")
        words = f"saved in epoch {epoch} after {position} step(s); load() returned {tuple(each)} on rank {number}"
        if tuple(each) == (epoch, 0):
            # wyim-pgl/transgenic#59: 15 of 20 steps were trained again
            twice = position * BATCH * size
            raise Wrong("epoch-starts-over", f"{words}: {twice} samples would be visited twice in this epoch")
        if each[0] != epoch and each[1] == position:
            # shuffled again: huggingface/accelerate#2016, #2823
            raise Wrong(
                "other-epoch", f"{words}, and that epoch has another order: some samples come twice, some never"
            )
        if tuple(each) != (epoch, position):
            raise Wrong("other-place", words)


def _compare_moment(rank: Rank, now: Moment, right: Moment) -> None:
    """What load() has brought back, on all ranks."""
    skipped = set() if rank.rank == 0 else {name for name in right.weights if "running" in name}  # DDP sends rank 0's
    _compare_weights(
        rank.gather([name for name in differing(now.weights, right.weights) if name not in skipped]), len(right.weights)
    )
    lost = sum(a is None or not torch.equal(a, b) for a, b in zip(now.momentum, right.momentum, strict=True))
    for number, each in enumerate(rank.gather(lost)):
        if each:
            raise Wrong(
                "momentum-lost",
                f"all weights are back, but on rank {number} only {len(right.momentum) - each} of "
                f"{len(right.momentum)} momentum buffers: the next step would have the right gradients and yet "
                f"another update",
            )
    found, expected = rank.gather(now.numbers), rank.gather(right.numbers)
    for number, numbers in enumerate(found):
        if numbers != expected[number] and numbers in expected:
            raise Wrong(
                "same-generator",
                f"rank {number} now draws the random numbers of rank {expected.index(numbers)}: their dropout masks "
                f"and augmentations are alike from here on",
            )
        if numbers != expected[number]:
            raise Wrong(
                "generator-lost",
                f"weights and momentum are back, but rank {number} draws {numbers[0]:.4f} as its next random number; "
                f"without the interruption it would be {expected[number][0]:.4f}",
            )


def _compare_weights(missing: list[list[str]], total: int) -> None:
    """By rank, the names of the tensors that are not as saved."""
    if all(len(each) > total // 2 for each in missing):
        # strict=False and other names: why strict is the default, pytorch/pytorch#6086, mosaicml/composer#2216
        raise Wrong(
            "nothing-loaded",
            f"load() raised no error, but only {total - len(missing[0])} of the model's {total} tensors are as saved",
        )
    if not missing[0] and any(missing):
        number = next(number for number, each in enumerate(missing) if each)
        raise Wrong("one-rank-loads", f"rank 0 has the saved weights, rank {number} does not: {missing[number][0]}")
    for number, each in enumerate(missing):
        if each:
            raise Wrong("incomplete", f"after load() rank {number} does not have what it had: {', '.join(each)}")


def _compare_rest(rank: Rank, found: list[Moment], right: list[Moment]) -> None:
    """From the restart to the end of the training."""
    for step, (now, then) in enumerate(zip(found, right, strict=True), start=1):
        if any(rank.gather(now.rate != then.rate)):
            raise Wrong(
                "wrong-rate",
                f"step {step} after the restart has the learning rate {now.rate:.4g}; without the interruption it "
                f"would have {then.rate:.4g}",
            )
    for step in range(1, len(found)):
        for number, names in enumerate(rank.gather(differing(found[step].weights, right[step].weights))):
            if names:
                raise Wrong(
                    "drifts",
                    f"all is right after load(), but after {step} more step(s) {names[0]} of rank {number} is not as "
                    f"without the interruption: does the optimizer move the model's own tensors, in training mode?",
                )


def _load_alone(rank: Rank, path: Path, stop: int, right: Moment) -> None:
    """In a process without a group, into a model without DDP."""
    training = Training(rank, rank.seed + 2000, wrapped=False)
    words = f"right on {rank.size} ranks, but one process without DDP and without a group cannot load the file"
    try:
        returned = rank.names["load"](path, training.model, training.optimizer, training.scheduler)
    except Exception as error:
        raise Wrong("not-alone", f"{words}: {type(error).__name__}: {' '.join(str(error).split())[:150]}") from None
    missing = differing(training.now().weights, right.weights)
    if missing:
        loaded = len(right.weights) - len(missing)
        raise Wrong("not-alone", f"{words}: no error, but only {loaded} of {len(right.weights)} tensors are as saved")
    _compare_place([returned], stop, rank.size)


LAB = Lab(
    number=12,
    name="checkpoint",
    title="Resume exactly",
    minutes=45,
    difficulty=2,
    defines=("save", "load"),
    parts=(Part(resumes, 2), Part(resumes, 3)),
)
