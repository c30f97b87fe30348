"""From records to results/<recipe>/report.pdf: Python computes all numbers and verdicts, *.typ is prose."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import typst
from matplotlib.figure import Figure

from ddp_workbook.analysis import plots, plots_cost, plots_map, plots_speed
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import write_atomically
from ddp_workbook.report.costs import costs_content
from ddp_workbook.report.inputs import Inputs, load_inputs
from ddp_workbook.report.labs import labs_content
from ddp_workbook.report.members import TEAM_FILE, Team, load_team
from ddp_workbook.report.runs import runs_content

HERE = Path(__file__).resolve().parent
UNUSABLE = (
    ValueError,
    LookupError,
    ArithmeticError,
    typst.TypstError,
)  # raised while drawing numbers that make no sense


def build_report(run_dir: Path, team_file: Path = TEAM_FILE) -> Path:
    """Write run_dir/report.pdf from the records in run_dir and those of the labs beside it; return its path.

    Raises InputError when a record or report.toml is missing or does not fit.
    """
    team = load_team(team_file)
    inputs, labs = load_inputs(run_dir), labs_content(run_dir.parent)
    try:
        pdf = _compile(team, inputs, labs)
    except UNUSABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"no report can be made from {run_dir}/*.json ({reason}); run notebook 04 again") from error
    target = run_dir / "report.pdf"
    write_atomically(target, lambda file: file.write(pdf))
    return target


def _compile(team: Team, inputs: Inputs, labs: dict | None) -> bytes:
    """The PDF. typst reads nothing outside HERE and what it is given, and writes no file that could be left behind."""
    files = {f"{name}.svg": plots.to_svg(figure) for name, figure in _figures(inputs).items()}
    content = json.dumps(_content(team, inputs) | {"labs": labs}, default=str).encode()
    return typst.compile(
        {"main.typ": HERE / "report.typ", "data.json": content} | files,
        root=str(HERE),
        ignore_system_fonts=True,
        pdf_standards="ua-1",
        timestamp=int(datetime.fromisoformat(inputs.distributed.finished_at).timestamp()),
    )


def _content(team: Team, inputs: Inputs) -> dict:
    """Everything that the *.typ files print, as text: they neither compute nor round."""
    return {"team": team.model_dump()} | runs_content(inputs) | costs_content(inputs)


def _figures(inputs: Inputs) -> dict[str, Figure]:
    """The figures by name; those of weak scaling and of the batch map only where they were measured."""
    runs = [inputs.baseline, inputs.distributed]
    histories = [inputs.baseline_history, inputs.distributed_history]
    figures = {
        "curves": plots.training_curves(histories),
        "confusion": plots.confusion_matrices(runs),
        "per_class": plots.per_class_accuracy(runs),
        "comparison": plots.baseline_vs_distributed(runs, histories),
        "speedup": plots_speed.speedup_analysis(inputs.benchmark),
        "sync_cost": plots_cost.sync_cost(inputs.breakdowns),
        "timeline": plots_cost.timeline(inputs.breakdown),
        "pay": plots_cost.pay_panels(inputs.sweep, inputs.baseline.config.model, inputs.shared, inputs.weak),
    }
    if inputs.batch_map and not inputs.other_map:
        figures["map"] = plots_map.batch_map(inputs.batch_map)
    if inputs.weak:
        figures["scaling"] = plots_speed.scaling_comparison(inputs.benchmark, inputs.weak)
    return figures
