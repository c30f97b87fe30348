"""What a recipe should take on a network that the reader describes: everything here is predicted, and says so."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from ddp_workbook.analysis import plots, plots_cost
from ddp_workbook.analysis.clusters import BACKWARD_SHARE, Cluster, node_size_of, unit_of
from ddp_workbook.analysis.costmodel import FEWEST_IMAGES, ModelCosts
from ddp_workbook.analysis.fits import Link
from ddp_workbook.config import TrainConfig
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import load_record
from ddp_workbook.records.timing import BatchSweep
from ddp_workbook.specs import DATASETS

MOST_MACHINES = 4096
COST = "cost, in the currency of --price"
LARGEST_TRIED = 8192  # images in a step: up to here Goyal et al. 2017 saw the linear scaling rule hold, on ImageNet


def network_link(
    bandwidth_gbit: float, latency_us: float, flags: tuple[str, str] = ("--bandwidth-gbit", "--latency-us")
) -> Link:
    """The link of a network, in Gbit/s and microseconds. Raises InputError for numbers that are not above 0."""
    for flag, value in zip(flags, (bandwidth_gbit, latency_us), strict=True):
        _check_above_0(flag, value)
    return Link(latency=1e-6 * latency_us, bandwidth=1e9 / 8 * bandwidth_gbit)


def _check_above_0(flag: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{flag} must be above 0, not {value:g}")


def cluster_of(between: Link, node_size: int, intra_gbit: float | None, intra_us: float | None) -> Link | Cluster:
    """A link between nodes, and one inside them where they have several processes. Raises InputError."""
    if node_size < 1:
        raise InputError(f"--node-size must be at least 1, not {node_size}")
    if node_size == 1:
        if intra_gbit is not None or intra_us is not None:
            raise InputError("--intra-gbit and --intra-us are for nodes of several processes; give --node-size too")
        return between
    if intra_gbit is None or intra_us is None:
        raise InputError(f"--node-size {node_size} needs --intra-gbit and --intra-us, the link inside a node")
    return Cluster(node_size, network_link(intra_gbit, intra_us, ("--intra-gbit", "--intra-us")), between)


def _counts(network: Link | Cluster, processes: int) -> list[int]:
    """Powers of two within a node, then whole nodes by powers of two."""
    node = node_size_of(network)
    inside = [2**power for power in range(node.bit_length()) if 2**power < node]
    return [*inside, *(node * 2**power for power in range((processes // node).bit_length()))]


def cost_table(
    costs: ModelCosts,
    config: TrainConfig,
    images: int,
    network: Link | Cluster,
    processes: int,
    price: float | None = None,
) -> pd.DataFrame:
    """Predicted by number of machines (powers of two), which split the recipe's base batch.

    The rows end where a machine would have fewer than FEWEST_IMAGES images of the batch. `images` are those of the
    training set; `price` is that of one machine (of a cluster: of one node) for an hour, in any currency; hours are of
    training only.
    """
    batch = config.base_batch_size
    steps = config.epochs * (images // batch)
    rows = {}
    for count in _counts(network, processes):
        if count > 1 and batch / count < FEWEST_IMAGES:
            break
        speedup = costs.speedup_on_network(batch, count, network)
        step = costs.step_on_network(batch / count, count, network)
        row = {"images per machine": batch / count, "step (ms)": 1000 * step, "speedup": speedup}
        rows[count] = row | _duration(count, speedup, steps * step / 3600, network, price)
    return pd.DataFrame(rows).T.rename_axis(unit_of(network))


def weak_table(
    costs: ModelCosts,
    config: TrainConfig,
    images: int,
    network: Link | Cluster,
    processes: int,
    price: float | None = None,
    noise_scale: float | None = None,
) -> pd.DataFrame:
    """Predicted by number of machines, each with a whole base batch: the global batch grows with their number.

    The learning rate is that of the linear scaling rule, with which the epochs stay the same. With `noise_scale`
    B_noise, the epochs grow as B + B_noise with the global batch B (McCandlish et al. 2018, arXiv:1812.06162: S steps
    and E images to the same loss, S = S_min (1 + B_noise / B), E = B S). The rows end at one step an epoch.
    """
    base = config.base_batch_size
    rows = {}
    for count in _counts(network, processes):
        batch = count * base
        if count > 1 and batch > images:
            break
        epochs = config.epochs * (1.0 if noise_scale is None else (batch + noise_scale) / (base + noise_scale))
        speedup = costs.weak_speedup_on_network(base, count, network)
        step = costs.step_on_network(base, count, network)
        row = {"global batch": batch, "learning rate": config.lr * count, "epochs": epochs, "step (ms)": 1000 * step}
        hours = epochs * (images // batch) * step / 3600
        rows[count] = row | {"speedup": speedup} | _duration(count, speedup, hours, network, price)
    return pd.DataFrame(rows).T.rename_axis(unit_of(network))


def _duration(count: int, speedup: float, hours: float, network: Link | Cluster, price: float | None) -> dict:
    row = {"efficiency (%)": 100 * speedup / count, "hours": hours}
    return row if price is None else row | {COST: math.ceil(count / node_size_of(network)) * price * hours}


def predict_network(
    config: TrainConfig,
    run_dir: Path,
    bandwidth_gbit: float,
    latency_us: float,
    processes: int,
    price: float | None,
    *,
    node_size: int = 1,
    intra_gbit: float | None = None,
    intra_us: float | None = None,
    noise_scale: float | None = None,
) -> str:
    """Both tables as text; the curves go to prediction.png. Raises InputError for input that makes no sense."""
    if not 1 <= processes <= MOST_MACHINES:
        raise InputError(f"--processes must be from 1 to {MOST_MACHINES}, not {processes}")
    if price is not None and not 0 <= price < math.inf:
        raise InputError(f"--price must be at least 0, not {price}")
    if noise_scale is not None:
        _check_above_0("--noise-scale", noise_scale)
    network = cluster_of(network_link(bandwidth_gbit, latency_us), node_size, intra_gbit, intra_us)
    if processes % node_size:
        raise InputError(f"--node-size {node_size} does not divide --processes {processes}")
    images = DATASETS[config.dataset].images
    if images is None:
        known = ", ".join(name for name, spec in DATASETS.items() if spec.images)
        raise InputError(f"the number of images of {config.recipe} is unknown; choose a recipe on one of: {known}")
    path = run_dir / "batch_sweep.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; run notebook 04 of {config.recipe} first: it measures this machine")
    sweep = load_record(BatchSweep, path)
    costs = ModelCosts(sweep, config.model)
    strong = cost_table(costs, config, images[0], network, processes, price)
    weak = weak_table(costs, config, images[0], network, processes, price, noise_scale)
    words = f"{bandwidth_gbit:g} Gbit/s, {latency_us:g} us"
    if node_size > 1:
        words += f" between nodes of {node_size} with {intra_gbit:g} Gbit/s, {intra_us:g} us inside"
    title = f"predicted: {config.recipe} on {words}, machines like: {sweep.environment.cpu}"
    figure = plots_cost.predicted_on_network(costs, config.base_batch_size, network, processes, title)
    plots.write_png(figure, run_dir / "prediction.png")
    hidden = "none hidden" if costs.on_cpu else f"but what backward hides ({BACKWARD_SHARE:.0%} of a step's computing)"
    unit = unit_of(network)
    lines = [
        title,
        f"global batch {config.base_batch_size}, split among the {unit}; all communication is added, {hidden}",
        strong.round(3).to_string(),
    ]
    most = _counts(network, processes)[-1]
    if strong.index[-1] < most:
        lines.append(f"no row for more: a machine would have fewer than {FEWEST_IMAGES} images of the batch")
    lines += [f"a batch of {config.base_batch_size} each (weak scaling)", weak.round(3).to_string()]
    if weak.index[-1] < most:
        lines.append(f"no row for more: the global batch would be larger than the {images[0]} training images")
    return "\n".join([*lines, _limits(weak, noise_scale), str(run_dir / "prediction.png")])


def _limits(weak: pd.DataFrame, noise_scale: float | None) -> str:
    """What the weak table's epochs rest on."""
    if noise_scale is not None:
        return (
            f"epochs by a noise scale of {noise_scale:g} images (McCandlish et al. 2018): a global batch of that size "
            "needs twice the images of a small one; its learning rate is no longer the one of the linear scaling rule"
        )
    text = "epochs and learning rate by the linear scaling rule (Goyal et al. 2017); where it ends depends on the data"
    beyond = weak.index[weak["global batch"] > LARGEST_TRIED]
    if len(beyond):
        text += f"; from {beyond[0]} on, the batch is above the {LARGEST_TRIED} images up to which they saw it hold"
    return f"{text} (--noise-scale predicts it)"
