"""bench/publish.py: the README's tables say what the reference runs say."""

import importlib.util

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_records import make_benchmark
from helper_seeds import count_study

from ddp_workbook.analysis.speedup import over_all_cores
from ddp_workbook.course.runner import COURSE
from ddp_workbook.measurement.experiment import METRICS, metrics
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.timing import BenchmarkRecord, PerformanceMetrics


@pytest.fixture(scope="module")
def publish():
    """The script as a module."""
    place = importlib.util.spec_from_file_location("publish", ROOT / "bench" / "publish.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


@pytest.fixture
def reference(tmp_path):
    """References of the full course and of one coursework: 90 % and 88 %, speedups 1.5 and 0.9."""
    finish_course(tmp_path / "resnet50-cifar10")
    finish_course(tmp_path / "cnn-mnist")
    save_record(metrics(make_benchmark()), tmp_path / "cnn-mnist" / "experiment" / METRICS)
    return tmp_path


def test_the_readme_shows_the_reference_runs(publish):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert publish.insert_table(readme, publish.readme_table(ROOT / "results" / "reference")) == readme


@pytest.mark.parametrize("name", ["README.md", *COURSE])
def test_numbers_in_prose_are_those_of_the_reference_runs(publish, name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert publish.fill(text, publish.reference_facts(ROOT / "results" / "reference")) == text


def test_the_first_page_says_loss_and_gain_where_the_intervals_say_so(publish):
    folder = ROOT / "results" / "reference"
    strong = load_record(BenchmarkRecord, folder / "resnet50-cifar10" / "benchmark.json")
    weak = load_record(
        PerformanceMetrics, folder / "bench" / "resnet50-cifar10_weak_shared-memory" / "performance_metrics.json"
    )
    over_one, over_all = (each.speedup for each in weak.process_counts[0].speedups)
    assert over_all_cores(strong)[0][1].high < 1  # a loss
    assert over_all.low < 1 < over_all.high < over_one.high and over_one.low > 1  # no gain is shown; a gain
    pays = publish.reference_facts(folder)
    assert "inf" not in pays["pays_resnet50"] + pays["pays_cnn"]


def test_a_fact_goes_between_its_marks_and_an_unknown_one_is_an_error(publish):
    text = "takes <!--ref:a-->?<!--/ref-->, not <!--ref:b-->3<!--/ref-->."
    assert (
        publish.fill(text, {"a": "1 s", "b": "2"}) == "takes <!--ref:a-->1 s<!--/ref-->, not <!--ref:b-->2<!--/ref-->."
    )
    with pytest.raises(KeyError):
        publish.fill(text, {"a": "1 s"})


def test_the_table_says_what_the_records_say(publish, reference):
    lines = publish.readme_table(reference).splitlines()
    assert "| test accuracy | 90.00% | 88.00% |" in lines
    assert "| processes x threads | 1 x 2 | 2 x 1 |" in lines
    assert "| speedup in short runs, over 1 process, 1 thread (range of 5) | | 1.50 [1.50, 1.50] |" in lines
    assert "| speedup in short runs, over 1 process, 2 threads (range of 5) | | 0.90 [0.90, 0.90] |" in lines
    assert any("A processor, 2 cores, 8 GiB, torch 2.9, at commit 0123456789" in line for line in lines)
    assert any("5 rounds of 4 steps" in line for line in lines)


def test_a_coursework_has_a_row_where_there_is_a_reference(publish, reference):
    lines = publish.courseworks_table(reference)
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == ["| `cnn-mnist` | 90.00% | 88.00% | 2: 0.90 [0.90, 0.90] |"]
    assert lines[-1] == "Speedups timed: `cnn-mnist` in 5 rounds of 4 steps (range of 5) at 0123456789, torch 2.9."
    (reference / "cnn-mnist" / "experiment" / METRICS).unlink()
    assert publish.courseworks_table(reference) == []


def test_seeds_stand_in_the_table_as_mean_and_range(publish, reference):
    assert publish.seeds_table(reference) == []
    save_record(count_study(), reference / "cnn-mnist" / "seeds.json")
    *_, row, _, read = publish.seeds_table(reference)
    assert read == "Intervals of the difference that leave out 0: 0 of 1."
    assert row.startswith("| `cnn-digits` | 3 | 92.00 % (90.00 to 94.00) | 93.00 % (91.00 to 96.00) | +1.00 [")
    assert row.endswith("| 2.71 |")
    assert row in publish.readme_table(reference).splitlines()


def test_only_what_is_between_the_markers_is_replaced(publish):
    before = f"# Title\n{publish.BEGIN}\nold\n{publish.END}\nrest\n"
    assert publish.insert_table(before, "new") == before.replace("old", "new")
