"""One course and one benchmark in a folder: a second one is refused, with the process that is at work."""

import os
from dataclasses import replace

import pytest
from helper_small_course import make_small_course

from ddp_workbook.course import notebook
from ddp_workbook.course.one_course import IN_COURSE, course_of
from ddp_workbook.course.runner import run_course
from ddp_workbook.errors import InputError
from ddp_workbook.measurement import experiment
from ddp_workbook.measurement.alone import measuring_alone
from ddp_workbook.measurement.experiment import new_folder, run_experiment, save_experiment
from ddp_workbook.recipes import RECIPES

HERE = rf"in use by another run \(process {os.getpid()}, since "
CONFIG = replace(RECIPES["mlp-digits"], device="cpu")


def bench(output_dir):
    return run_experiment(CONFIG, [2], 2, 3, "strong", output_dir, lambda line: None)


def test_a_second_course_is_refused(tmp_path):
    """Else both would go on with the choice of the one that wrote results/course.json last."""
    make_small_course(tmp_path, "2 + 2")
    with course_of(tmp_path / "results"), pytest.raises(InputError, match=rf"results is {HERE}.*in a copy of the"):
        run_course(tmp_path, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    with course_of(tmp_path / "results"):  # it is free again
        pass


def test_a_notebook_opened_by_hand_cannot_change_the_choice_of_a_running_course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook.choose("mlp-digits", "data", 2, 1)
    before = notebook.CHOICE_FILE.read_bytes()
    with course_of(tmp_path / "results"):
        with pytest.raises(InputError, match=HERE):
            notebook.choose("cnn-digits", "data", 2, 1)
        assert notebook.CHOICE_FILE.read_bytes() == before
        assert notebook.load_choice()[0].recipe == "mlp-digits"  # the other notebooks can be read and run by hand
        monkeypatch.setenv(IN_COURSE, "1")  # in a kernel of that course
        notebook.choose("cnn-digits", "data", 2, 1)
    assert notebook.load_choice()[0].recipe == "cnn-digits"


def test_course_and_benchmark_do_not_disturb_each_others_timings(tmp_path):
    make_small_course(tmp_path, "2 + 2")
    with course_of(tmp_path / "results"), pytest.raises(InputError, match=rf"{HERE}.*disturb each other's timings"):
        bench(tmp_path / "results")
    assert not list((tmp_path / "results").glob("experiment_*"))
    with measuring_alone(tmp_path / "results"), pytest.raises(InputError, match=HERE):
        run_course(tmp_path, tmp_path / "out", {})


def test_a_second_benchmark_is_refused_whether_new_or_continued(tmp_path):
    folder = tmp_path / "experiment_1"
    first = experiment.empty_record(CONFIG, [2], 3, "strong", new_processes=True)
    rounds = [
        each.model_copy(update={"images_per_second": [1.0] * 2, "losses": [[1.0]] * 2}) for each in first.configurations
    ]
    save_experiment(first.model_copy(update={"configurations": rounds}), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with measuring_alone(tmp_path):
        for output_dir in (tmp_path, folder):
            with pytest.raises(InputError, match=HERE):
                bench(output_dir)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.glob("experiment_*")] == ["experiment_1"]


def test_experiments_of_the_same_second_get_folders_of_their_own(tmp_path):
    folders = [new_folder(tmp_path) for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.is_dir() for folder in folders)
    assert sorted(folders) == folders  # the newest one is the last by name


def test_a_benchmark_stopped_in_its_first_round_leaves_no_folder(tmp_path, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "measure_together", stopped)
    with pytest.raises(KeyboardInterrupt, match="stopped in round 1"):
        bench(tmp_path)
    assert not list(tmp_path.glob("experiment_*"))
