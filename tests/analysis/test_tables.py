"""Tables: two runs side by side, the summary of the course, common claims beside measurements."""

import pytest
import torch
from helper_records import make_benchmark, make_breakdown, make_run, make_sweep

from ddp_workbook.analysis.speedup import speedup_table
from ddp_workbook.analysis.statistics import wilson
from ddp_workbook.analysis.tables import (
    claims_table,
    class_accuracies,
    comparison_table,
    memory_table,
    summarize,
)
from ddp_workbook.records.course import CourseSummary

RUNS = [make_run()[0], make_run("distributed", correct=88)[0]]


def test_the_table_has_a_column_per_run_and_reference():
    table = comparison_table(RUNS, RUNS)
    assert list(table.columns) == ["baseline", "distributed", "baseline, reference", "distributed, reference"]
    assert table.loc["test accuracy", "baseline"] == "90.00%"
    assert table.loc["parameters", "distributed"] == "23,520,842"


def test_the_summary_holds_what_the_runs_and_the_benchmark_say():
    summary = summarize(*RUNS, make_benchmark(), disagreements=2)
    assert CourseSummary.model_validate_json(summary.model_dump_json()) == summary
    assert summary.baseline.accuracy == wilson(180, 200)
    assert (summary.baseline.accuracy.value, summary.distributed.accuracy.value) == (0.9, 0.88)
    assert summary.accuracy_difference.value == pytest.approx(-0.02)
    assert (summary.test_images, summary.rechecked_disagreements) == (200, 2)
    assert [each.baseline for each in summary.speedups] == ["1 process, 1 thread", "1 process, 2 threads"]
    assert [each.speedup for each in summary.speedups] == [row.speedup for row in speedup_table(make_benchmark())]
    assert [each.efficiency for each in summary.speedups] == pytest.approx([0.75, 0.9])


def test_the_worst_class_is_the_one_that_is_recognized_least():
    run = RUNS[0].model_copy(update={"confusion": [[95, 5], [15, 85]]})
    assert class_accuracies(run) == [0.95, 0.85]
    summary = summarize(run, RUNS[1], make_benchmark(), 0)
    assert (summary.baseline.worst_class, summary.baseline.worst_class_accuracy) == ("one", 0.85)


@pytest.mark.parametrize(
    ("name", "optimizer", "state"),
    [("SGD", torch.optim.SGD, ["momentum_buffer"]), ("Adam or AdamW", torch.optim.AdamW, ["exp_avg", "exp_avg_sq"])],
)
def test_a_ddp_process_holds_what_torch_allocates_for_it(name, optimizer, state):
    """Against the tensors of a network that took a step, and of DDP's buckets: one more copy of the gradients."""
    model = torch.nn.Linear(1000, 2000)
    options = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = optimizer(model.parameters(), lr=0.1, **options)
    model(torch.ones(1, 1000)).sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    states = [optimizer.state[p][key] for p in parameters for key in state]
    tensors = [*parameters, *(p.grad for p in parameters), *states]
    held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    rows = dict(memory_table(sum(p.numel() for p in parameters)))
    buckets = 4 * sum(p.numel() for p in parameters)
    together = f"{held / 2**20:.1f} MiB with views, as here; else {(held + buckets) / 2**20:.1f} MiB"
    assert rows[f"together, with {name}"] == together
    assert rows["weights, fp32: 4 bytes per parameter"] == f"{2_002_000 * 4 / 2**20:.1f} MiB"
    assert list(rows.values())[-2:] == ["30.5 MiB", "30.5 MiB / N"]  # 2,002,000 x 16 bytes


def test_the_claims_carry_what_was_measured():
    rows = claims_table(make_breakdown(), make_sweep(), make_benchmark())
    assert len(rows) == 5
    text = " ".join(" ".join(row) for row in rows)
    assert "section 3.4" in text and "section 3.8" in text
    assert "summed 6.0 ms a step, exposed 3.0 [2.9, 3.1] ms" in text
    assert "1.50 [1.50, 1.50] over 1 process, 1 thread" in text
    assert "switches add up the gradients in the network" in text
    assert "2.9 MiB with 2, 4.3 MiB with 4, 5.4 MiB with 16 processes for 2.9 MiB of gradients" in text
