"""Published scaling results beside the predictions of the cost model: writes bench/CLUSTERS.md. No timing.

python bench/clusters.py
"""

from __future__ import annotations

from pathlib import Path

from ddp_workbook.analysis.fits import Link
from ddp_workbook.analysis.published import NETWORK_US, OLD_TABLE, PAYLOAD, SAVED_BY_OVERLAP, SETUPS
from ddp_workbook.analysis.published_check import (
    TARGET,
    Compared,
    Known,
    compare,
    fit_setup,
    judge_old_table,
    most_saved_by_overlap,
)
from ddp_workbook.records.files import save_text

PAGE = Path(__file__).with_name("CLUSTERS.md")
TEXT = """<!-- Written by bench/clusters.py. Do not edit. -->
# The cost model against published clusters

`ddp_workbook/analysis/clusters.py` simulates one step: backward fills buckets, and beside it the network all-reduces
them one after another, by rings inside each node and rings between nodes. Here are published results beside its
predictions (as data: `ddp_workbook/analysis/published.py`). Where the sources leave one number open, it was fitted on
one row; the other rows of that cluster had no part in it.

{close} of {tested} rows that were not fitted are predicted within {target}; the errors go from {lowest} to {highest}.
Most are positive: real clusters lose more than the simulation, which knows no slow process and no collective that
slows down computing. Efficiencies near 1 are easy to predict: "nothing is lost" would be within {target}, too, except
for {hard}.

{rows}

Efficiency is the images/s of N processes over N times those of one process (Goyal et al.: of 8 processes, by
eighths). Every process keeps its batch: weak scaling.

## What had to be assumed

{setups}

Everywhere: backward takes two thirds of a step, unless the source says its seconds; it is spread over the layers as
their multiply-adds are. Buckets are of equal size. A link carries gradients at {payload} of its nominal rate, unless
that was fitted. A message costs what NCCL's tuning table has for a ring: 3.4 us over NVLink, 5.7 over PCIe,
{network_us} over a network. The optimizer's step is part of the one process's step.

The pages of Horovod and TensorFlow, the report of DLPerf, and section 4.3 and the abstract of Goyal et al. were read.
The numbers of Li et al. were read in a quotation, without batch sizes and seconds: nothing can be predicted from
them. But overlap saves at most {most_saved} of a step in this model, on a network whose all-reduces last as long as
backward, and what they report is less. (Their word is speedup: if that is a ratio of rates, it is less still.)

## The table of the older courseworks

It gives, for an epoch on one GPU, {forward:.0f} s of forward, {backward:.0f} s of backward, {optimizer:.0f} s of the
optimizer, {steps} steps, and {megabytes:.0f} MB of gradients a step. Its speedups are in the second column. (The
optimizer's step looks like none of a GPU: {optimizer_ms:.0f} ms to go through {megabytes:.0f} MB of weights, which a
memory of 500 GB/s reads in {read_ms:.1f} ms.)

{old_rows}

As **strong scaling** it contradicts itself. Every GPU does the whole optimizer step; only forward and backward get
shorter. So even a free network allows no more than the third column, and the table claims more in {beaten} of
{old_count} rows.

As **weak scaling** (every GPU keeps its batch, and an epoch has fewer steps) it agrees with itself: one link for all
rows leaves the errors in brackets. If nothing is hidden, that link has {plain}: a message costs {times:.0f} times as
much as NCCL assumes. If the all-reduces run beside backward, as in DDP, it has {overlapped}. (Buckets of {bucket:.0f}
MB are assumed.) The first is no network for GPUs; the second is one between Ethernet of 1 and of 10 Gbit/s. Three
rows cannot decide between them.
"""


def page() -> str:
    """The whole page; every number in it that is not a source's own is computed here."""
    compared = compare()
    tested = [each for each in compared if not each.row.fitted]
    errors = [each.error for each in tested]
    hard = [each.row for each in tested if abs(1 / each.row.published - 1) > TARGET]
    old = judge_old_table(OLD_TABLE)
    return TEXT.format(
        close=sum(abs(error) <= TARGET for error in errors),
        tested=len(tested),
        target=f"{TARGET:.0%}",
        lowest=f"{min(errors):+.1%}",
        highest=f"{max(errors):+.1%}",
        hard="; ".join(f"{row.model} on {row.processes} processes with {row.images} images each" for row in hard),
        rows=_table(
            ("cluster", "network", "images each", "processes", "published", "predicted", "error", "remark"),
            [*map(_row, compared), *(_saved(name, share) for name, share in SAVED_BY_OVERLAP.items())],
        ),
        setups=_table(
            ("cluster", "nodes", "fitted", "assumed", "source"),
            [(each.title, each.node, _fitted(fit_setup(name), each.unknown), each.assumed, each.source)
             for name, each in SETUPS.items()],
        ),
        payload=f"{PAYLOAD:.0%}",
        network_us=NETWORK_US,
        most_saved=f"{most_saved_by_overlap():.0%}",
        forward=OLD_TABLE.forward,
        backward=OLD_TABLE.backward,
        optimizer=OLD_TABLE.optimizer,
        steps=OLD_TABLE.steps,
        megabytes=OLD_TABLE.step_bytes / 1e6,
        optimizer_ms=1000 * OLD_TABLE.optimizer / OLD_TABLE.steps,
        read_ms=1000 * OLD_TABLE.step_bytes / 500e9,
        bucket=OLD_TABLE.bucket_bytes / 1e6,
        old_rows=_table(
            ("GPUs", "speedup", "strong, at most", "weak: added a step (ms)", "weak, nothing hidden", "weak, overlap"),
            [(str(row.processes), f"{row.published:.2f}", f"{row.strong_bound:.2f}", f"{1000 * row.added:.0f}",
              _beside(row.plain, row.published), _beside(row.overlapped, row.published)) for row in old.rows],
        ),
        beaten=sum(row.published > row.strong_bound for row in old.rows),
        old_count=len(old.rows),
        plain=_link(old.plain),
        times=1e6 * old.plain.latency / NETWORK_US,
        overlapped=_link(old.overlapped),
    )  # fmt: skip


def _row(compared: Compared) -> tuple[str, ...]:
    row = compared.row
    number = "{:.0f} images/s" if row.quantity == "images/s" else "{:.1%}"
    error = "fitted" if row.fitted else f"{compared.error:+.1%}"
    published, predicted = number.format(row.published), number.format(compared.predicted)
    title = SETUPS[row.setup].title
    return title, row.model, str(row.images), str(row.processes), published, predicted, error, row.note


def _saved(name: str, share: float) -> tuple[str, ...]:
    bound = f"at most {most_saved_by_overlap():.0%}"
    return "Li et al.", name, "not known", "not known", f"overlap saves {share:.1%}", bound, "none", "see below"


def _fitted(known: Known, unknown: str | None) -> str:
    if unknown is None:
        return "nothing"
    if unknown == "speed":
        return f"its GPUs have {known.speed:.0%} of the speed of TensorFlow's P100"
    return f"gradients get {known.payload:.0%} of the network's nominal rate"


def _beside(predicted: float, published: float) -> str:
    return f"{predicted:.2f} ({predicted / published - 1:+.1%})"


def _link(link: Link) -> str:
    return f"{8 * link.bandwidth / 1e9:.1f} Gbit/s and {1e6 * link.latency:.0f} us a message"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows))


if __name__ == "__main__":
    save_text(page(), PAGE)
    print(PAGE.name)
