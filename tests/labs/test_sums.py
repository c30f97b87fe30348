"""The figure of lab 3 draws what the lab's wire counts."""

import pytest
import torch

from ddp_workbook.analysis import plots_sums
from ddp_workbook.labs import catalogue
from ddp_workbook.labs.wire import Simulation


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("way", plots_sums.WAYS)
def test_the_closed_forms_are_those_of_the_meter(way, ranks):
    costs, ring = (catalogue.answer(catalogue.find(name), None).load() for name in ("costs", "ring_all_reduce"))
    function = ring["ring_all_reduce"] if way == "ring" else costs[way]
    tensors = [torch.full((2 * ranks,), 1.0) for _ in range(ranks)]
    simulation = Simulation(ranks, seed=1)
    simulation.run(lambda wire: function(tensors[wire.rank], wire))
    meters = [wire.meter for wire in simulation.wires]
    number, share, steps = plots_sums.messages(way, ranks)
    assert max(meter.sent for meter in meters) == number * share * tensors[0].nbytes
    assert max(meter.messages for meter in meters) == number
    assert max(meter.steps for meter in meters) == steps


def test_the_figure_has_both_panels_with_units():
    left, right = plots_sums.sums().axes
    assert [len(ax.get_lines()) for ax in (left, right)] == [3, 3]
    assert "tensors" in left.get_ylabel() and "ms" in right.get_ylabel()
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["100 B", "10 kB", "1 MB", "100 MB"]
    ring = right.get_lines()[list(plots_sums.WAYS).index("ring")]
    size, milliseconds = (float(values[-1]) for values in ring.get_data())
    assert milliseconds == pytest.approx(1000 * 14 * (50e-6 + 8e-9 * size / 8))
