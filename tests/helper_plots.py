"""What the tests of figures share: records to draw, and what can be read from a figure."""

from __future__ import annotations

from dataclasses import replace

from helper_records import make_benchmark, make_breakdown, make_run, make_steps

from ddp_workbook.records.rank_bytes import RankBytes, StepTraffic
from ddp_workbook.records.run import Communication


def make_shared():
    """The breakdown with 1 ms of exposed communication instead of 3."""
    return make_breakdown().model_copy(update={"synced": [make_steps(0.011, collectives=0.002, waited=0.001)] * 2})


def make_weak():
    """Every process gets 64 images, through shared memory; 1.2 times as fast as in the benchmark of the split batch."""
    record = make_benchmark()
    config = replace(record.config, comm_hook="shared-memory")
    configurations = [
        each.model_copy(update={
            "batch_size": 64,
            "images_per_second": [(1.2 if each.processes > 1 else 1) * rate for rate in each.images_per_second],
        })
        for each in record.configurations
    ]  # fmt: skip
    return record.model_copy(update={"scaling": "weak", "config": config, "configurations": configurations})


def make_waiting():
    """The distributed run's history with 2 s of waiting in each epoch of 10 s."""
    _, history = make_run("distributed", correct=88)
    waited = Communication(waited_seconds=2.0, collective_seconds=7.0, gradient_bytes=100, collectives=5)
    epochs = [epoch.model_copy(update={"communication": waited}) for epoch in history.epochs]
    return history.model_copy(update={"epochs": epochs})


def finding(figure):
    """The figure's title in one line."""
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def points(ax, colour):
    """{(x, y)} of the markers of error bars in this colour, rounded."""
    lines = [bar.lines[0] for bar in ax.containers if bar.lines[0].get_color() == colour]
    return {(round(float(x), 4), round(float(y), 4)) for line in lines for x, y in zip(*line.get_data(), strict=True)}


def with_outlier(sweep):
    """The first point's distributed steps are a hundred times as fast in two of three rounds: the median is absurd."""
    first = sweep.points[0]
    outlier = first.model_copy(update={"synced": [first.synced[0] / 100] * 2 + first.synced[2:]})
    return sweep.model_copy(update={"points": [outlier, *sweep.points[1:]]})


def make_rank_bytes():
    """What one and two ranks keep and send for 4 MiB of parameters with Adam, as predicted; two ranks 1 MiB apart."""
    mib = 2**20
    kept = {"none": (4, 4, 8), "optimizer": (4, 4, 4), "full": (2, 2, 4)}
    sent = {"none": 4, "optimizer": 6, "full": 8}
    measured = {("none", 1): [RankBytes(parameters=4 * mib, gradients=4 * mib, optimizer=8 * mib, traffic=None)]}
    for shard, (parameters, gradients, optimizer) in kept.items():
        traffic = StepTraffic(collectives={}, sent=sent[shard] * mib)
        measured[shard, 2] = [
            RankBytes(
                parameters=parameters * mib, gradients=gradients * mib, optimizer=optimizer * mib + more,
                traffic=traffic,
            )
            for more in (-mib // 2, mib // 2)
        ]  # fmt: skip
    return measured
