"""What a recipe should take on a network that the reader describes: everything here is predicted, and says so."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ddp_workbook.analysis import plots, plots_cost
from ddp_workbook.analysis.costmodel import FEWEST_IMAGES, ModelCosts
from ddp_workbook.analysis.fits import Link, predict_step
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record
from ddp_workbook.records.timing import BatchSweep
from ddp_workbook.specs import DATASETS

MOST_MACHINES = 4096
COST = "cost, in the currency of --price"


def network_link(bandwidth_gbit: float, latency_us: float) -> Link:
    """The link of a network, in Gbit/s and microseconds. Raises InputError for numbers that are not above 0."""
    for flag, value in (("--bandwidth-gbit", bandwidth_gbit), ("--latency-us", latency_us)):
        if not 0 < value < math.inf:
            raise InputError(f"{flag} must be above 0, not {value:g}")
    return Link(latency=1e-6 * latency_us, bandwidth=1e9 / 8 * bandwidth_gbit)


def cost_table(
    costs: ModelCosts, config: TrainConfig, images: int, link: Link, processes: int, price: float | None = None
) -> pd.DataFrame:
    """Predicted by number of machines (powers of two), which split the recipe's base batch. Nothing is hidden.

    The rows end where a machine would have fewer than FEWEST_IMAGES images of the batch. `images` are those of the
    training set; `price` is that of one machine for an hour, in any currency; hours are of training only.
    """
    batch = config.base_batch_size
    steps = config.epochs * (images // batch)
    rows = {}
    for count in (2**power for power in range(int(math.log2(processes)) + 1)):
        if count > 1 and batch / count < FEWEST_IMAGES:
            break
        speedup = costs.speedup_on_network(batch, count, link)
        step = predict_step(costs.serial, batch / count, link, count)
        hours = steps * step / 3600
        row = {"images per machine": batch / count, "step (ms)": 1000 * step, "speedup": speedup}
        row |= {"efficiency (%)": 100 * speedup / count, "hours": hours}
        rows[count] = row if price is None else row | {COST: count * price * hours}
    return pd.DataFrame(rows).T.rename_axis("machines")


def predict_network(
    config: TrainConfig, run_dir: Path, bandwidth_gbit: float, latency_us: float, processes: int, price: float | None
) -> str:
    """The table as text; the curves go to prediction.png. Raises InputError for input that makes no sense."""
    if not 1 <= processes <= MOST_MACHINES:
        raise InputError(f"--processes must be from 1 to {MOST_MACHINES}, not {processes}")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price must be at least 0, not {price}")
    images = DATASETS[config.dataset].images
    if images is None:
        known = ", ".join(name for name, spec in DATASETS.items() if spec.images)
        raise InputError(f"the number of images of {config.recipe} is unknown; choose a recipe on one of: {known}")
    link = network_link(bandwidth_gbit, latency_us)
    path = run_dir / "batch_sweep.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; run notebook 04 of {config.recipe} first: it measures this machine")
    sweep = load_record(BatchSweep, path)
    costs = ModelCosts(sweep, config.model)
    table = cost_table(costs, config, images[0], link, processes, price)
    network = f"{bandwidth_gbit:g} Gbit/s, {latency_us:g} us"
    title = f"predicted: {config.recipe} on {network}, machines like: {sweep.environment.cpu}"
    figure = plots_cost.predicted_on_network(costs, config.base_batch_size, link, processes, title)
    plots.write_png(figure, run_dir / "prediction.png")
    lines = [
        title,
        f"global batch {config.base_batch_size}, split among the machines; all communication is added, none hidden",
        table.round(3).to_string(),
    ]
    if table.index[-1] * 2 <= processes:
        lines.append(f"no row for more: a machine would have fewer than {FEWEST_IMAGES} images of the batch")
    return "\n".join([*lines, str(run_dir / "prediction.png")])
