"""What a recipe should take on a network that the reader describes. All of it is predicted, and says so."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ddp_workbook import plots, plots_cost
from ddp_workbook.config import IMAGES, TrainConfig
from ddp_workbook.costmodel import Link, ModelCosts, parse_bandwidth, parse_latency, predict_step
from ddp_workbook.errors import InputError
from ddp_workbook.files import load_record
from ddp_workbook.timings import SurveyRecord

MOST_MACHINES = 4096


def cost_table(
    costs: ModelCosts, config: TrainConfig, images: int, link: Link, processes: int, price: float | None = None
) -> pd.DataFrame:
    """Predicted by number of machines (powers of two), which share the recipe's reference batch.

    `images` are those of the training set; `price` is that of one machine for an hour; hours are of training alone.
    """
    batch = config.lr_batch
    steps = config.epochs * (images // batch)
    rows = {}
    for count in (2**power for power in range(int(math.log2(processes)) + 1)):
        if count > batch:
            break  # a machine must get at least one image of the batch
        step = predict_step(costs.serial, batch / count, link, count)
        row = {
            "step (ms)": 1000 * step,
            "speedup": costs.speedup_on_network(batch, count, link),
            "efficiency (%)": 100 * costs.speedup_on_network(batch, count, link) / count,
            "hours": steps * step / 3600,
        }
        rows[count] = row if price is None else row | {"cost": count * price * steps * step / 3600}
    return pd.DataFrame(rows).T.rename_axis("machines")


def predict_network(
    config: TrainConfig, run_dir: Path, bandwidth: str, latency: str, processes: int, price: float | None
) -> str:
    """The table as text; the curves go to prediction.png. Raises InputError for input that makes no sense."""
    if not 1 <= processes <= MOST_MACHINES:
        raise InputError(f"--processes must be from 1 to {MOST_MACHINES}, not {processes}")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price must be at least 0, not {price}")
    if config.dataset not in IMAGES:
        raise InputError(f"how many images {config.recipe} has is unknown; choose one of: {', '.join(IMAGES)}")
    link = Link(parse_latency(latency), parse_bandwidth(bandwidth))
    path = run_dir / "survey.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; run notebook 04 of {config.recipe} first: it measures this machine")
    survey = load_record(SurveyRecord, path)
    costs = ModelCosts(survey, config.model)
    table = cost_table(costs, config, IMAGES[config.dataset][0], link, processes, price)
    machine, rate = survey.environment.cpu, bandwidth.removesuffix("/s")
    title = f"predicted: {config.recipe} on {rate}/s, {latency}, machines like: {machine}"
    figure = plots_cost.predicted_on_network(costs, config.lr_batch, link, processes, title)
    plots.save_png(figure, run_dir / "prediction.png")
    plots.close(figure)
    lines = [title, f"global batch {config.lr_batch}, shared out", table.round(3).to_string()]
    return "\n".join([*lines, str(run_dir / "prediction.png")])
