"""The report: made from records only, the same bytes each time, and safe with text from strangers."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from pypdf import PdfReader

from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import HistoryRecord, RunRecord, record_paths
from ddp_workbook.records.timing import Interval
from ddp_workbook.report import build
from ddp_workbook.report.build import agreement, build_report
from ddp_workbook.report.members import load_team


@pytest.fixture
def finished(tmp_path):
    """The records of a finished course: accuracies 90 % and 88 %, speedups 1.5 and 0.9."""
    finish_course(tmp_path)
    return tmp_path


def change_config(folder, new):
    """Both runs with another configuration, of two epochs; the global batch of 64 stays."""
    for kind, processes in (("baseline", 1), ("distributed", 2)):
        path = record_paths(folder, kind)[0]
        run = load_record(RunRecord, path)
        config = replace(new, batch_size=64 // processes, epochs=2)
        save_record(run.model_copy(update={"config": config, "recipe": config.recipe}), path)
        history = load_record(HistoryRecord, path.with_name(f"{kind}_history.json"))
        save_record(history.model_copy(update={"recipe": config.recipe}), path.with_name(f"{kind}_history.json"))


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
    change_config(finished, RECIPES[recipe])
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "ResNet" not in text.split("A cost model")[0]
    assert {"mlp-mnist": "Adam", "cnn-mnist": "Nesterov"}[recipe] in text


@pytest.mark.parametrize(
    ("optimizer", "named", "others"),
    [("adam", "Adam", ["Nesterov"]), ("sgd", "Nesterov momentum 0.9", ["Adam"])],
)
def test_the_report_names_the_optimizer(finished, optimizer, named, others):
    change_config(finished, replace(RECIPES["resnet50-digits"], optimizer=optimizer))
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert named in text
    assert not [other for other in others if other in text.split("References")[-2]]


def test_an_optimizer_that_the_report_does_not_know_is_printed_by_its_name(finished, monkeypatch):
    """Records allow no other yet: so the content that the text is made of is changed."""
    content = build._content

    def with_other_optimizer(*arguments):
        found = content(*arguments)
        return found | {"config": found["config"] | {"optimizer": "shampoo"}}

    monkeypatch.setattr(build, "_content", with_other_optimizer)
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "the optimizer shampoo" in text
    assert not [name for name in ("Adam", "Nesterov", "momentum") if name in text.split("References")[-2]]


def test_agreement_follows_the_numbers():
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
