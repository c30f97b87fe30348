"""bench --seeds: real runs of two seeds, used again, and what is refused."""

import shutil
from dataclasses import replace

import pytest
from conftest import ROOT

from ddp_workbook.course import seed_runs
from ddp_workbook.course.interrupts import Interrupted
from ddp_workbook.course.seed_runs import FIGURE, FILE, study_seeds
from ddp_workbook.distributed.ranks import run_on_ranks
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import serial_recipe
from ddp_workbook.records.files import load_record
from ddp_workbook.records.run import load_run
from ddp_workbook.records.seeds import SeedStudy
from ddp_workbook.runs.stopping import Stopped

CONFIG = replace(serial_recipe("mlp-digits"), epochs=1, dropout=0.0, device="cpu")


CODE = """
import sys
sys.path.insert(0, {root!r})
from distributed_train import run
from ddp_workbook.distributed.process_group import read_world
from ddp_workbook.flags import parse_run
run(*parse_run({arguments!r}, ""), read_world())
"""


def forked(arguments, processes, on_line):
    """What torchrun would start, in a second instead of eight."""
    assert "--resume" in arguments
    run_on_ranks(CODE.format(root=str(ROOT), arguments=list(map(str, arguments))), processes, on_line)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of one epoch, serial and on two processes."""
    folder, printed = tmp_path_factory.mktemp("seeds"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed_runs, "torchrun", forked)
        found = study_seeds(CONFIG, 2, 2, folder, printed.append)
    return *found, printed


def test_a_study_has_both_runs_of_every_seed(study):
    record, place, _ = study
    assert [pair.seed for pair in record.pairs] == [0, 1]
    assert (record.epochs, record.global_batch, record.processes, record.dataset.test_images) == (1, 64, 2, 360)
    for pair in record.pairs:
        for kind in ("baseline", "distributed"):
            run, _ = load_run(place.parent / "seeds" / f"seed_{pair.seed}" / "mlp-digits", kind)
            assert run.config.seed == pair.seed
            assert run.test_accuracy == getattr(pair, kind).test_accuracy
            assert run.world.global_batch == 64
            assert run.world.processes == (1 if kind == "baseline" else 2)
    assert record.answers("baseline")[0] != record.answers("baseline")[1]
    assert load_record(SeedStudy, place / FILE) == record
    assert (place / FIGURE).stat().st_size > 5000


def test_finished_runs_are_used_again(study, monkeypatch):
    record, place, _ = study
    monkeypatch.setattr(seed_runs, "torchrun", None)  # anything that trains would fail
    monkeypatch.setattr("distributed_train.run", None)
    printed = []
    again, _ = study_seeds(CONFIG, 2, 2, place.parent, printed.append)
    assert again == record
    assert sum("is used" in line for line in printed) == 4


def test_a_run_of_the_course_is_used(study, monkeypatch, tmp_path):
    """The course's own seed lies in results/<recipe>, its model in checkpoints/."""
    record, place, _ = study
    seed = place.parent / "seeds" / "seed_0"
    shutil.copytree(seed / "mlp-digits", tmp_path / "results" / "mlp-digits")
    shutil.copytree(seed / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(place.parent / "seeds" / "seed_1", tmp_path / "results" / "seeds" / "seed_1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seed_runs, "torchrun", None)
    monkeypatch.setattr("distributed_train.run", None)
    again, _ = study_seeds(CONFIG, 2, 2, tmp_path / "results", lambda line: None)
    assert again.pairs == record.pairs


@pytest.mark.parametrize(("part", "name", "value"), [("environment", "torch", "2.9"), ("world", "precision", "fp16")])
def test_a_run_of_another_machine_is_refused(study, monkeypatch, part, name, value):
    _, place, _ = study
    load = seed_runs.finished_run

    def foreign(config, kind, processes):
        found = load(config, kind, processes)
        if not found or config.seed == 0:
            return found
        run, history = found
        return run.model_copy(update={part: getattr(run, part).model_copy(update={name: value})}), history

    monkeypatch.setattr(seed_runs, "finished_run", foreign)
    before = (place / FILE).read_bytes()
    with pytest.raises(InputError, match=f"seed 1 was trained with {name} '{value}', seed 0 with .* --output-dir DIR$"):
        study_seeds(CONFIG, 2, 2, place.parent, lambda line: None)
    assert (place / FILE).read_bytes() == before


def test_a_stop_says_how_to_resume(tmp_path, monkeypatch):
    import distributed_train

    def stop(*_):
        raise Stopped(2, "epoch 1; to resume: the same command with --resume")

    monkeypatch.setattr(distributed_train, "run", stop)
    with pytest.raises(Interrupted, match=r"to resume: the same command$") as end:
        study_seeds(CONFIG, 2, 2, tmp_path, lambda line: None)
    assert end.value.number == 2
