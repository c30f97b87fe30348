"""Figures and report: made from records alone, the same bytes each time, safe against what strangers write."""

import json
import re
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep
from ddp_workbook.analysis.tables import claims_table
from ddp_workbook.analysis.costmodel import Link, ModelCosts
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import RunRecord, record_paths
from ddp_workbook.analysis.speedup import verdict
from ddp_workbook.records.timing import Interval
from ddp_workbook.analysis.tables import comparison_table, summarize
from ddp_workbook.summary import insert_table, readme_table
from pypdf import PdfReader

from ddp_workbook import plots, plots_cost, plots_speed
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES
from ddp_workbook.report import diagrams
from ddp_workbook.report.build import agreement, build_report
from ddp_workbook.report.members import load_team

RUNS, HISTORIES = zip(make_run(), make_run("distributed", correct=88), strict=True)
FIGURES = {
    "curves": lambda: plots.training_curves(HISTORIES),
    "one run": lambda: plots.training_curves(HISTORIES[:1]),
    "confusion": lambda: plots.confusion_matrices(RUNS),
    "classes": lambda: plots.per_class_accuracy(RUNS),
    "comparison": lambda: plots.baseline_vs_distributed(RUNS, HISTORIES),
    "speedup": lambda: plots_speed.speedup_analysis(make_benchmark()),
    "experiment, speedup": lambda: plots_speed.speedup_by_processes(make_benchmark()),
    "experiment, efficiency": lambda: plots_speed.efficiency_by_processes(make_benchmark()),
    "experiment, losses": lambda: plots_speed.loss_curves(make_benchmark()),
    "experiment, comparison": lambda: plots_speed.training_comparison(make_benchmark()),
    "one run's plots": lambda: plots.training_plots(RUNS[1], HISTORIES[1]),
    "anatomy": lambda: plots_cost.step_breakdown(make_breakdown()),
    "timeline": lambda: plots_cost.timeline(make_breakdown().timeline, "one step"),
    "all-reduce": lambda: plots_cost.all_reduce_fit(make_sweep().sweep),
    "map": lambda: plots_cost.pay_map(make_sweep()),
    "predicted here": lambda: plots_cost.predicted_here(make_sweep(), 64, [(2, Interval(0.9, 0.8, 1.1))]),
    "predicted on a network": lambda: plots_cost.predicted_on_network(
        ModelCosts(make_sweep(), "mlp"), 64, Link(5e-5, 1e9), 16, "predicted"
    ),
    "schedule": lambda: plots.schedule([0.1, 0.2, 0.1], 1),
    "shards": lambda: plots.sampler_shards(np.arange(24).reshape(2, 2, 6), 3),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_the_same_bytes_twice_and_its_axes_are_labelled(name):
    figure = FIGURES[name]()
    for ax in figure.axes:
        assert ax.get_ylabel() or ax.get_xlabel() or ax.get_title(), name
    assert plots.to_svg(figure) == plots.to_svg(FIGURES[name]())
    assert not plt.get_fignums()


def test_diagrams_for_any_number_of_processes():
    for processes in (2, 7):
        for figure in (diagrams.architecture(processes, "gloo"), diagrams.data_flow(processes)):
            assert plots.to_svg(figure).startswith(b"<?xml")


def test_a_figure_appears_as_png(tmp_path):
    plots.save_png(FIGURES["schedule"](), tmp_path / "a" / "figure.png")
    assert (tmp_path / "a" / "figure.png").read_bytes().startswith(b"\x89PNG")
    plt.close("all")


@pytest.fixture
def finished(tmp_path):
    for run, history in zip(RUNS, HISTORIES, strict=True):
        metrics, epochs = record_paths(tmp_path, run.kind)
        save_record(run, metrics)
        save_record(history, epochs)
    save_record(make_benchmark(), tmp_path / "benchmark.json")
    save_record(summarize(*RUNS, make_benchmark(), disagreements=1), tmp_path / "test_summary.json")
    save_record(make_breakdown(), tmp_path / "anatomy.json")
    save_record(make_sweep(), tmp_path / "survey.json")
    return tmp_path


def text_of(path):
    return " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())


def test_report_says_what_the_records_say(finished):
    path = build_report(finished, ROOT / "report.toml")
    reader, text = PdfReader(path), text_of(path)
    for number in ("90.00 %", "88.00 %", "-2.00", "1.50", "0.90", "23,520,842", "0123456789", "A processor"):
        assert number in text.replace("\N{MINUS SIGN}", "-"), number
    for heading in (
        "Contents", "Abstract", "Introduction", "Design", "Parallelisation strategy", "Implementation",
        "Development environment", "Results and discussion", "Performance analysis", "Challenges", "Conclusion",
        "References", "Team and repository",
    ):  # fmt: skip
        assert heading in text, heading
    assert "classified 1 of 200 images" in text
    assert re.search(r"lengthens a step of 10\.[01] ms by 3\.0 ms", text)
    assert "20 \N{MICRO SIGN}s" in text.replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
    assert "median error of 0.0 %" in text
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]  # tagged, as PDF/UA-1 requires
    assert b"pdfuaid" in reader.xmp_metadata.stream.get_data()
    fonts = [f.get_object() for page in reader.pages for f in page["/Resources"].get("/Font", {}).values()]
    inner = [f["/DescendantFonts"][0].get_object() if "/DescendantFonts" in f else f for f in fonts]
    assert inner
    assert all({"/FontFile", "/FontFile2", "/FontFile3"} & set(f["/FontDescriptor"]) for f in inner)


def test_report_is_the_same_bytes_twice(finished):
    first = build_report(finished, ROOT / "report.toml").read_bytes()
    assert build_report(finished, ROOT / "report.toml").read_bytes() == first


@pytest.mark.parametrize("recipe", ["mlp-mnist", "cnn-mnist"])
def test_report_of_the_small_networks(finished, recipe):
    for kind, processes in (("baseline", 1), ("distributed", 2)):
        path = record_paths(finished, kind)[0]
        run = load_record(RunRecord, path)
        config = replace(RECIPES[recipe], batch_size=64 // processes, epochs=2)
        save_record(run.model_copy(update={"config": config}), path)
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "ResNet" not in text.split("A cost model")[0]
    assert {"mlp-mnist": "Adam", "cnn-mnist": "Nesterov"}[recipe] in text


def test_the_claims_carry_what_was_measured():
    rows = claims_table(make_breakdown(), make_sweep(), make_benchmark())
    assert len(rows) == 5
    text = " ".join(" ".join(row) for row in rows)
    assert "summed 6.0 ms a step, exposed 3.0 ms" in text
    assert "1.50 [1.50, 1.50] over 1 process, 1 thread" in text
    assert "2.9 MiB with 2, 4.3 MiB with 4, 5.4 MiB with 16 processes for 2.9 MiB of gradients" in text


def test_verdicts_follow_the_numbers(finished):
    assert verdict(Interval(1.2, 1.1, 1.3)) == "faster"
    assert verdict(Interval(0.9, 0.8, 0.95)) == "slower"
    assert verdict(Interval(1.1, 0.9, 1.3)) == "not distinguishable"
    assert "could be chance" in agreement(Interval(0.01, -0.01, 0.03))
    assert "within 1.5 points" in agreement(Interval(0.01, -0.01, 0.03))
    assert "more than 1.5 points" in agreement(Interval(0.02, -0.01, 0.05))
    assert "less accurate" in agreement(Interval(-0.04, -0.06, -0.02))


HOSTILE = 'Robert"); #panic("x") $x$ *b* @ref <l> \\ #import "/etc/passwd" `'


def test_a_strangers_text_is_only_text(finished, tmp_path):
    team = tmp_path / "team.toml"
    lines = [f"{key} = {json.dumps(HOSTILE)}" for key in ("title", "course", "institution", "repository")]
    team.write_text(
        "\n".join([*lines, "[[members]]", *(f"{k} = {json.dumps(HOSTILE)}" for k in ("name", "contribution"))])
    )
    path = record_paths(finished, "baseline")[0]
    for kind in ("baseline", "distributed"):
        path = record_paths(finished, kind)[0]
        content = json.loads(path.read_text())
        content["dataset"]["classes"] = [HOSTILE, "one"]
        path.write_text(json.dumps(content))
    text = text_of(build_report(finished, team))
    assert text.count("#panic") >= 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title = ", "not valid TOML"),
        ('title = "x"', "does not fit: course"),
        ((ROOT / "report.toml").read_text().replace("title =", "titel ="), "titel|title"),
        ("#" * 200_000, "larger than"),
    ],
)
def test_a_bad_report_toml_is_refused(tmp_path, content, message):
    (tmp_path / "report.toml").write_text(content)
    with pytest.raises(InputError, match=message):
        load_team(tmp_path / "report.toml")


def test_a_missing_report_toml_is_named(tmp_path):
    with pytest.raises(InputError, match=r"report.toml .*restore it"):
        load_team(tmp_path / "report.toml")


def test_a_failed_report_leaves_the_earlier_one(finished):
    earlier = build_report(finished, ROOT / "report.toml").read_bytes()
    shutil.move(finished / "benchmark.json", finished / "elsewhere.json")
    with pytest.raises(InputError, match=r"benchmark\.json does not exist"):
        build_report(finished, ROOT / "report.toml")
    assert (finished / "report.pdf").read_bytes() == earlier


def test_the_readme_shows_the_reference_runs():
    readme = (ROOT / "README.md").read_text()
    assert insert_table(readme, readme_table(ROOT / "results" / "reference")) == readme


def test_table_has_a_column_per_run_and_reference():
    table = comparison_table(RUNS, RUNS)
    assert list(table.columns) == ["baseline", "distributed", "baseline, reference", "distributed, reference"]
    assert table.loc["test accuracy", "baseline"] == "90.00%"
    assert table.loc["parameters", "distributed"] == "23,520,842"
