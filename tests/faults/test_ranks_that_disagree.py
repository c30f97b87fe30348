"""Ranks whose flags, code, versions or data differ are all refused, before one of them trains."""

import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import make_data, run_on_ranks

import distributed_train
from ddp_workbook.config import PATHS, PLACEMENT, CheckpointOptions, TrainConfig, flag
from ddp_workbook.distributed import agreement
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import lock
from ddp_workbook.training.datasets import ImageSet

PLAIN = TrainConfig(model="mlp", dataset="digits", device="cpu", precision="fp32", threads=1, batch_size=4)
OPTIONS = CheckpointOptions()
AGREED = ("Trains", "")


class Trains(Exception):
    """A rank has passed all checks."""


def ends_on_rank(rank, cases, folder):
    """What the whole of run() ends with on this rank in each case, up to the training, and the seconds until then.

    A case has for each rank its configuration, its options, and what some functions return there. The ranks have met
    already, once for all cases.
    """
    world, found = World(rank, 2, rank, 2, launched=True), []
    here = {"results_dir": folder / str(rank), "checkpoint_dir": folder / str(rank)}
    for case in cases:
        config, options, answers = case[rank]
        begun = time.perf_counter()
        with pytest.MonkeyPatch.context() as patch, pytest.raises((InputError, Trains)) as end:
            patch.setattr(distributed_train, "process_group", lambda *_: nullcontext())
            for name, answer in {"load_dataset": make_data(), "train": Trains(), **answers}.items():
                place = distributed_train if hasattr(distributed_train, name) else agreement
                patch.setattr(place, name, lambda *_, answer=answer: give(answer))
            distributed_train.run(replace(config, **here), options, world)
        found.append(((type(end.value).__name__, str(end.value)), time.perf_counter() - begun))
    return found


def give(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


def ends(folder, cases):
    """The pair of ends of each case. After each, the ranks agree, which shows that they are still in step."""
    pairs = [pair for case in cases for pair in (case, ((PLAIN, OPTIONS, {}),) * 2)]
    first, second = run_on_ranks(ends_on_rank, 2, pairs, folder)
    assert max(seconds for _, seconds in first + second) < 10
    found = [(one, other) for (one, _), (other, _) in zip(first, second, strict=True)]
    assert set(found[1::2]) == {(AGREED, AGREED)}
    return found[::2]


def with_another(name, settings):
    """The same settings with another valid value of this field, whatever its type."""
    hint, value = get_type_hints(type(settings))[name], getattr(settings, name)
    if get_origin(hint) is Literal:
        candidates = get_args(hint)
    elif hint in (bool, bool | None):
        candidates = (True, False)
    elif hint is str:
        candidates = ("auto",)
    elif hint is Path:
        candidates = (value / "elsewhere",)
    else:
        candidates = (hint(2 * value), hint(value + 1), hint(0.5))
    for other in candidates:
        try:
            changed = replace(settings, **{name: other})
        except InputError:  # not beside the other fields
            continue
        if other != value:
            return changed
    raise AssertionError(f"no other value is known for {name}")


def test_every_flag_that_decides_the_result_must_be_the_same(tmp_path):
    """The fields are read from the class: one that is added later is covered."""
    changed = {field.name: with_another(field.name, PLAIN) for field in fields(TrainConfig)}
    changed.pop("device")  # auto may find another one
    found = ends(tmp_path, [((PLAIN, OPTIONS, {}), (other, OPTIONS, {})) for other in changed.values()])
    for name, pair in zip(changed, found, strict=True):
        values = f"{getattr(PLAIN, name)} on rank 0, {getattr(changed[name], name)} on rank 1"
        advice = "start all of them with the same flags, code, versions and data"
        refused = ("InputError", f"the ranks differ in {flag(name)}: {values}; {advice}")
        assert pair == ((AGREED,) * 2 if name in PATHS | PLACEMENT else (refused,) * 2)


DATA = make_data()
OTHER_LABELS = ImageSet(DATA.test.images, DATA.test.labels.roll(1))
ONE_LESS = ImageSet(DATA.test.images[:-1], DATA.test.labels[:-1])
DIFFERENCES = {  # what the message says; the options of rank 1, and what functions return there
    "--resume: False on rank 0, True on rank 1": (CheckpointOptions(resume=True), {}),
    "--checkpoint-every: 0 on rank 0, 5 on rank 1": (CheckpointOptions(checkpoint_every=5), {}),
    "the version of torch: ": (OPTIONS, {"version": "1.13.1"}),
    "the workbook's code (checksum): ": (OPTIONS, {"code_checksum": "0000"}),
    "the precision: fp32 on rank 0, bf16 on rank 1": (OPTIONS, {"choose_precision": "bf16"}),
    "the images (fingerprint): ": (OPTIONS, {"load_dataset": replace(DATA, test=OTHER_LABELS)}),
    "48 training and 20 test images) on rank 1": (OPTIONS, {"load_dataset": replace(DATA, test=ONE_LESS)}),
    "class 2 on rank 0, a, b, c on rank 1": (OPTIONS, {"load_dataset": replace(DATA, classes=("a", "b", "c"))}),
}


def test_options_versions_code_and_data_must_be_the_same(tmp_path):
    found = ends(tmp_path, [((PLAIN, OPTIONS, {}), (PLAIN, *other)) for other in DIFFERENCES.values()])
    for message, ((kind, first), second) in zip(DIFFERENCES, found, strict=True):
        assert (kind, first) == second
        assert kind == "InputError"
        assert first.startswith("the ranks differ in ") and message in first


def test_what_one_rank_refuses_all_refuse(tmp_path):
    """Its data are missing, or the folder is in use: the others would wait for it until the time-out."""
    no_data = {"load_dataset": InputError("no data")}
    found = ends(tmp_path, [((PLAIN, OPTIONS, {}), (PLAIN, OPTIONS, no_data)), ((PLAIN, OPTIONS, no_data),) * 2])
    assert found[0] == (("InputError", "rank 1: no data"), ("InputError", "no data"))
    assert found[1] == (("InputError", "no data"),) * 2
    with lock(tmp_path / "0" / PLAIN.recipe / ".distributed.lock", "wait"):
        [[(first, _)], [(second, _)]] = run_on_ranks(ends_on_rank, 2, [((PLAIN, OPTIONS, {}),) * 2], tmp_path)
    assert first == second
    assert "is in use by another run" in first[1]
