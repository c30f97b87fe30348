"""The report: made from records only, the same bytes each time, and safe with text from strangers."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT
from helper_bad_invocations import finish_course
from helper_course import save_summary
from helper_records import make_benchmark, make_breakdown, make_steps
from pypdf import PdfReader

from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import RunRecord, record_paths
from ddp_workbook.records.timing import BenchmarkRecord, Interval
from ddp_workbook.report.build import HERE, build_report
from ddp_workbook.report.runs import agreement

pytestmark = pytest.mark.usefixtures("small_figures")

GENERATED, OWN = "generated from the records", "by the team"


@pytest.fixture
def finished(tmp_path):
    """The records of a finished course: accuracies 90 % and 88 %, speedups 1.5 and 0.9."""
    finish_course(tmp_path)
    return tmp_path


@pytest.fixture
def with_shared_memory(finished):
    """And of shared memory: 11 ms a step instead of 13, and 1.8 times one thread in weak scaling."""
    shared = make_breakdown().model_copy(update={"synced": [make_steps(0.011, collectives=0.002, waited=0.001)] * 2})
    save_record(shared, finished / "step_breakdown_shared_memory.json")
    strong = make_benchmark()
    runs = [
        each.model_copy(
            update={
                "batch_size": 64,
                "images_per_second": [
                    rate * (1.2 if each.role == "distributed" else 1.0) for rate in each.images_per_second
                ],
            }
        )
        for each in strong.configurations
    ]
    config = replace(strong.config, comm_hook="shared-memory")
    weak = strong.model_copy(update={"scaling": "weak", "config": config, "configurations": runs})
    save_record(weak, finished / "benchmark_weak.json")
    return finished


def text_of(path):
    """The text of the PDF on one line, with ordinary minus signs and micro signs."""
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(path).pages).split())
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")


def implementation_of(path):
    """The text of the section on network, optimizer and schedule."""
    return text_of(path).split(f"Implementation {GENERATED}")[1].split(f"Results and discussion {GENERATED}")[0]


def write_team(path, **thoughts):
    """report.toml as it ships, with these thoughts written."""
    text = (ROOT / "report.toml").read_text()
    for name, thought in thoughts.items():
        text = re.sub(rf'^{name} = ""', f"{name} = {json.dumps(thought)}", text, flags=re.MULTILINE)
    path.write_text(text)
    return path


@pytest.mark.figures
def test_report_says_what_the_records_say(finished):
    text = text_of(build_report(finished, ROOT / "report.toml"))
    for number in ("90.00 %", "88.00 %", "-2.00 [", "1.50 [", "0.90 [", "23,520,842", "0123456789", "A processor"):
        assert number in text, number
    for heading in (
        "Abstract", "Introduction", "Design", "Parallelization strategy", "Memory", "Implementation",
        "Development environment", "Results and discussion", "Performance analysis", "Challenges",
        "Our reading of the results", "Conclusion", "References", "Team and repository",
    ):  # fmt: skip
        assert heading in text, heading
    assert "classified 1 of 200 images" in text
    assert "20 \N{MICRO SIGN}s and a rate" in text
    assert "1.00 GB/s" in text


@pytest.mark.figures
def test_report_is_tagged_and_has_all_its_fonts(finished):
    reader = PdfReader(build_report(finished, ROOT / "report.toml"))
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]  # tagged, as PDF/UA-1 requires
    assert b"pdfuaid" in reader.xmp_metadata.stream.get_data()
    fonts = [f.get_object() for page in reader.pages for f in page["/Resources"].get("/Font", {}).values()]
    inner = [f["/DescendantFonts"][0].get_object() if "/DescendantFonts" in f else f for f in fonts]
    assert inner
    assert all({"/FontFile", "/FontFile2", "/FontFile3"} & set(f["/FontDescriptor"]) for f in inner)


SECTIONS = (
    "Abstract", "Introduction", "Design", "Development environment and execution platform", "Implementation",
    "Results and discussion", "Performance analysis", "Challenges", "Conclusion",
)  # fmt: skip


def test_every_section_says_who_wrote_it(finished):
    text = text_of(build_report(finished, ROOT / "report.toml"))
    for section in SECTIONS:
        assert f"{section} {GENERATED}" in text, section
    for section in ("Our reading of the results", "Team and repository"):
        assert f"{section} {OWN}" in text, section
    assert text.count(GENERATED) == len(SECTIONS) + 1  # and once where the marks are explained


THOUGHTS = ("surprise", "largest_gap", "next_change")


def is_red(path):
    """Whether anything in the PDF is filled with layout.typ's red."""
    red = bytes.fromhex(re.search(r'red = rgb\("#(\w+)"\)', (HERE / "layout.typ").read_text())[1])
    colours = [
        [round(255 * float(share)) for share in fill.split()[:3]]
        for page in PdfReader(path).pages
        for fill in re.findall(rb"([0-9.]+ [0-9.]+ [0-9.]+) scn", page.get_contents().get_data())
    ]
    return list(red) in colours


def test_what_the_team_has_not_written_stands_in_red(finished, tmp_path):
    team = write_team(tmp_path / "team.toml", surprise="That 60 ms are not 9 ms.")
    path = build_report(finished, team)
    text = text_of(path)
    assert "What surprised us. That 60 ms are not 9 ms." in text
    assert "not filled in: what surprised us" not in text
    for topic in ("our explanation of the largest gap between expectation and measurement", "what we would change"):
        assert f"not filled in: {topic}" in text
    assert is_red(path)
    assert not is_red(build_report(finished, write_team(tmp_path / "team.toml", **dict.fromkeys(THOUGHTS, "x"))))


def test_a_report_toml_of_an_earlier_version_still_loads(finished, tmp_path):
    lines = (ROOT / "report.toml").read_text().splitlines()
    old = [line for line in lines if not line.startswith(THOUGHTS)]
    assert len(old) == len(lines) - 3
    (tmp_path / "old.toml").write_text("\n".join(old))
    assert text_of(build_report(finished, tmp_path / "old.toml")).count("not filled in: ") == 3


@pytest.mark.figures
def test_shared_memory_and_weak_scaling(with_shared_memory):
    text = text_of(build_report(with_shared_memory, ROOT / "report.toml"))
    assert "More computing for each all-reduce" in text
    assert "it computes 1.80 [1.80, 1.80] times as many images/s as 1 process with 1 thread" in text
    assert "the global batch grows to 128 images" in text
    assert "left out" not in text


def test_weak_scaling_with_the_ordinary_hook_changes_one_thing(with_shared_memory):
    path = with_shared_memory / "benchmark_weak.json"
    both = text_of(build_report(with_shared_memory, ROOT / "report.toml"))
    assert "Two things change" in both and "each of the two changes brings" in both
    record = load_record(BenchmarkRecord, path)
    save_record(record.model_copy(update={"config": replace(record.config, comm_hook="allreduce")}), path)
    one = text_of(build_report(with_shared_memory, ROOT / "report.toml"))
    assert "One thing changes" in one
    assert "two changes" not in one


def test_records_that_are_absent_are_named(finished):
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "More computing for each all-reduce" not in text
    assert "Weak scaling was not measured for this report, so that it is left out." in text
    assert "The all-reduce in shared memory was not measured, so that it is left out here." in text


def test_the_interval_of_the_accuracies_names_its_method(finished):
    assert "Simple Improved Confidence Intervals" in text_of(build_report(finished, ROOT / "report.toml"))
    path = record_paths(finished, "distributed")[0]
    save_record(load_record(RunRecord, path).model_copy(update={"correct_images": None}), path)
    save_summary(finished)
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "Simple Improved Confidence Intervals" not in text
    assert "do not say which images were right" in text


def test_on_an_accelerator_nothing_is_said_of_cores(finished):
    for kind in ("baseline", "distributed"):
        path = record_paths(finished, kind)[0]
        content = json.loads(path.read_text())
        content["environment"] |= {"device": "cuda", "accelerator": "A card", "accelerator_count": 2}
        path.write_text(json.dumps(content))
    text = text_of(build_report(finished, ROOT / "report.toml"))
    assert "the accelerators of the run over those of the baseline" in text
    assert "a further core" not in text


def test_strong_scaling_is_not_taken_for_weak(with_shared_memory):
    save_record(make_benchmark(), with_shared_memory / "benchmark_weak.json")
    with pytest.raises(InputError, match=r"benchmark_weak\.json is not of weak scaling"):
        build_report(with_shared_memory, ROOT / "report.toml")


def test_every_figure_and_table_is_referred_to():
    source = "".join(path.read_text() for path in HERE.glob("*.typ"))
    labels = set(re.findall(r"^\s*\) <([a-z-]+)>$", source, re.MULTILINE))
    assert len(labels) == 19
    assert labels <= set(re.findall(r"@([a-z-]+)", source))


@pytest.mark.figures
def test_no_number_is_parted_from_its_unit(with_shared_memory):
    """Lines as they stand on the page: none begins with a unit or breaks an interval."""
    reader = PdfReader(build_report(with_shared_memory, ROOT / "report.toml"))
    lines = [line.strip() for page in reader.pages for line in page.extract_text().splitlines()]
    assert not [line for line in lines if re.match(r"(%|ms|GB/s|s)( |$)", line)]
    assert not [line for line in lines if re.search(r"\[[-+\N{MINUS SIGN}0-9.]+,$", line)]


@pytest.mark.figures
def test_report_is_the_same_bytes_twice(finished):
    first = build_report(finished, ROOT / "report.toml").read_bytes()
    assert build_report(finished, ROOT / "report.toml").read_bytes() == first


def test_agreement_follows_the_whole_interval():
    assert "within 1.5 points: by that margin" in agreement(Interval(0.001, -0.01, 0.012))
    unknown = agreement(Interval(-0.0065, -0.0172, 0.0042))
    assert "not shown either: a loss of up to 1.7 points" in unknown
    assert "a gain of up to 5.0 points" in agreement(Interval(0.02, -0.01, 0.05))
    assert "less accurate" in agreement(Interval(-0.04, -0.06, -0.02))
    assert "more accurate" in agreement(Interval(0.04, 0.02, 0.06))


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
    save_summary(finished)
    text = text_of(build_report(finished, team))
    assert text.count("#panic") >= 3


def test_a_failed_report_leaves_the_earlier_one(finished):
    earlier = build_report(finished, ROOT / "report.toml").read_bytes()
    shutil.move(finished / "benchmark.json", finished / "elsewhere.json")
    with pytest.raises(InputError, match=r"benchmark\.json does not exist"):
        build_report(finished, ROOT / "report.toml")
    assert (finished / "report.pdf").read_bytes() == earlier
