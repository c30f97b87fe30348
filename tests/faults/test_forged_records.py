"""Records that were edited, or that are of different runs: what does not agree is refused, not printed."""

import json
import re

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_records import make_benchmark, make_breakdown, make_run
from pypdf import PdfReader

from ddp_workbook.course.notebook import latest_experiment
from ddp_workbook.errors import InputError
from ddp_workbook.measurement.experiment import load_experiment, save_experiment
from ddp_workbook.records.files import save_record
from ddp_workbook.records.run import load_run, pack_bits
from ddp_workbook.report.build import build_report
from ddp_workbook.report.inputs import load_inputs

METRICS = ["baseline_metrics.json", "distributed_metrics.json"]
HISTORIES = ["baseline_history.json", "distributed_history.json"]

# Numbers that nothing else decides. All others are refused when they are changed.
ALONE = {
    "metrics": [
        r"peak_memory_bytes\.\d+",  # printed in the table of both runs
        r"world\.threads_per_process",  # printed there; it follows from the cores only where one machine has all ranks
        r"config\.tensorboard",
    ],
    "history": [
        r"epochs\.\d+\.(train_loss|train_accuracy|learning_rate)",  # points of the curves
        r"epochs\.0\.(test_loss|test_accuracy)",  # the last epoch's are the run's
    ],
    "summary": [],
}


@pytest.fixture
def course(tmp_path):
    finish_course(tmp_path)
    return tmp_path


def numbers(content, place=()):
    """Where the numbers are in a record."""
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from numbers(value, (*place, key))
    elif isinstance(content, (int, float)):
        yield place


def with_other_number(content, place):
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    value = inner[place[-1]]
    inner[place[-1]] = not value if isinstance(value, bool) else value + 3 if isinstance(value, int) else value + 0.01
    return copy


@pytest.mark.parametrize("name", [*METRICS, *HISTORIES, "test_summary.json"])
def test_every_number_that_follows_from_others_is_refused_when_it_is_changed(course, name):
    content = json.loads((course / name).read_text())
    alone = ALONE[name.removesuffix(".json").split("_")[1]]
    accepted, places = [], list(numbers(content))
    for place in places:
        (course / name).write_text(json.dumps(with_other_number(content, place)))
        try:
            load_inputs(course)
            accepted.append(".".join(map(str, place)))
        except InputError as refusal:
            assert "\n" not in str(refusal)
            assert name in str(refusal) or "these runs cannot be compared" in str(refusal)
    assert len(places) > 15
    assert [place for place in accepted if not any(re.fullmatch(pattern, place) for pattern in alone)] == []
    assert [pattern for pattern in alone if not any(re.fullmatch(pattern, place) for place in accepted)] == []


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def all_right(folder, name):
    """Every answer right, in metrics that agree with themselves."""
    edit(folder / name, test_accuracy=1.0, confusion=[[100, 0], [0, 100]], correct_images=pack_bits([True] * 200))


def test_metrics_that_the_history_contradicts(course):
    for name in METRICS:
        all_right(course, name)
    with pytest.raises(InputError, match=r"baseline_metrics.json .*baseline_history.json: test_accuracy is 1 .*0\.9 "):
        build_report(course, ROOT / "report.toml")


def test_metrics_and_history_that_the_summary_contradicts(course):
    for name, history in zip(METRICS, HISTORIES, strict=True):
        all_right(course, name)
        epochs = json.loads((course / history).read_text())["epochs"]
        epochs[-1]["test_accuracy"] = 1.0
        edit(course / history, epochs=epochs)
    assert load_run(course, "baseline")[0].test_accuracy == 1
    expected = r"test_summary.json .*baseline_metrics.json: baseline.accuracy.value is 0\.9 in one, 1\.0 in the other"
    with pytest.raises(InputError, match=expected):
        build_report(course, ROOT / "report.toml")


def test_answers_to_other_images(course):
    """As many right ones, but other ones: the paired comparison in the summary was of those before."""
    edit(course / METRICS[1], correct_images=pack_bits([False] * 24 + [True] * 176))
    with pytest.raises(InputError, match=r"test_summary.json .*distributed_metrics.json: accuracy_difference"):
        load_inputs(course)


def test_a_summary_of_another_checkpoint(course):
    edit(course / "test_summary.json", rechecked_disagreements=40)
    with pytest.raises(InputError, match=r"rechecked_disagreements must be at most 2; more belong to another run"):
        load_inputs(course)


def test_of_a_key_that_is_there_twice_the_last_one_counts(course):
    path = course / METRICS[0]
    complete = path.read_text().rstrip().removesuffix("}")
    path.write_text(f'{complete}, "test_accuracy": 0.9}}')
    assert load_run(course, "baseline")[0].test_accuracy == 0.9
    path.write_text(f'{complete}, "test_accuracy": 1.0}}')
    with pytest.raises(InputError, match="test_accuracy does not follow from confusion"):
        load_run(course, "baseline")


MACHINE = make_run()[0].environment
MIXED = {
    "benchmark.json": [
        ({"recipe": "mlp-mnist"}, "recipe is 'mlp-mnist' in one, 'resnet50-digits' in the other"),
        ({"configurations": make_benchmark().configurations[:3]}, r"number of processes is set\(\) in one, \{2\} in"),
    ],
    "step_breakdown.json": [
        ({"parameters": 421642}, "number of parameters is 421642 in one, 23520842 in the other"),
        (
            {"processes": 3, "timelines": [make_breakdown().timelines[0].model_dump()]},
            r"number of processes is \{3\} in one, \{2\} in the other",
        ),
        (
            {"environment": make_run()[0].environment.model_copy(update={"cores": 4})},
            "environment.cores is 4 in one, 2",
        ),
    ],
    "batch_sweep.json": [
        ({"dataset": "mnist"}, "data set is 'mnist' in one, 'digits' in the other"),
        ({"environment": MACHINE.model_copy(update={"cpu": "B"})}, "environment.cpu is 'B' in one, 'A processor' in"),
    ],
}


@pytest.mark.parametrize("name", MIXED)
def test_measurements_of_another_course(course, name):
    content = json.loads((course / name).read_text())
    for changes, expected in MIXED[name]:
        plain = {key: getattr(value, "model_dump", lambda value=value: value)() for key, value in changes.items()}
        if "configurations" in plain:
            plain["configurations"] = [each.model_dump() for each in plain["configurations"]]
        (course / name).write_text(json.dumps(content | plain))
        with pytest.raises(InputError, match=rf"{name} does not agree with \w+\.json: {expected}"):
            load_inputs(course)


def test_timings_of_another_machine_than_the_runs_are_said_to_be(course):
    for name in METRICS:
        content = json.loads((course / name).read_text())
        edit(course / name, environment=content["environment"] | {"cores": 64, "torch": "2.99"})
    pages = PdfReader(build_report(course, ROOT / "report.toml")).pages
    text = " ".join(" ".join(page.extract_text() for page in pages).split())
    assert "the timings on another one (cores 2 instead of 64; torch 2.9 instead of 2.99)" in text
    assert "In short interleaved timings on another machine, the distributed run is" in text


def test_an_older_breakdown_of_shared_memory_is_not_shown(course):
    """Notebook 04 found no shared memory this time, so that weak scaling used the ordinary all-reduce."""
    save_record(make_breakdown(), course / "step_breakdown_shared_memory.json")
    weak = make_benchmark().model_copy(update={"scaling": "weak"})
    save_record(weak, course / "benchmark_weak.json")
    assert load_inputs(course).shared is None


def test_a_file_among_the_parts_of_an_experiment_that_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "experiment_x"
    save_experiment(make_benchmark(), folder)
    part = folder / "parallel_2p_results.json"
    (folder / "parallel_xp_results.json").write_bytes(part.read_bytes())
    with pytest.raises(InputError, match=r"parallel_xp_results.json does not belong to the experiment in .*; remove"):
        load_experiment(folder)
    assert latest_experiment("resnet50-digits") is None
    assert capsys.readouterr().out.startswith("left out: results/experiment_x/parallel_xp_results.json does not")
    (folder / "parallel_xp_results.json").unlink()
    assert latest_experiment("resnet50-digits")[1] == make_benchmark()
    edit(part, steps=5)
    with pytest.raises(InputError, match=r"parallel_2p_results.json does not belong to the experiment"):
        load_experiment(folder)
