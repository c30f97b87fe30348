"""exposed.py finds what was planted: delays of known size in communication, on a rank, in the data."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import astuple
from itertools import count, cycle, islice
from statistics import median

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, run_on_ranks
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.analysis import statistics
from ddp_workbook.distributed.quiet_gloo import GLOO_LINE
from diagnose.exposed import MeasureError, Report, measure, median_interval

SOURCE = ROOT / "diagnose" / "exposed.py"
SLACK = 0.002  # seconds that waking up and the collectives themselves may take from or add to a planted delay


def build(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model and a batch for it."""
    torch.manual_seed(0)
    labels = torch.randint(5, (16,))
    if name == "mlp":
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))
        return net, {"x": torch.randn(16, 64), "y": labels}
    if name == "cnn":
        features = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        return nn.Sequential(*features, nn.Linear(64, 5)), {"x": torch.randn(16, 3, 16, 16), "y": labels}
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    net = nn.Sequential(nn.Embedding(50, 32), layer, nn.Flatten(), nn.Linear(12 * 32, 5))
    return net, {"x": torch.randint(50, (16, 12)), "y": labels}


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return cross_entropy(model(batch["x"]), batch["y"])


def measured(model: nn.Module, batches: object, steps: int = 12) -> Report:
    return measure(model, batches, loss_fn, torch.optim.Adam(model.parameters(), lr=1e-3), steps)


def plant(model: DistributedDataParallel, delay: float) -> list[float]:
    """Let the last bucket's all-reduce end `delay` seconds late, as on a slow network; the real delays come back."""
    real = []

    def hook(_, bucket):
        last, work = bucket.is_last(), dist.all_reduce(bucket.buffer() / dist.get_world_size(), async_op=True)

        def finish(future):
            start = time.perf_counter()
            time.sleep(delay * last)
            real.append(time.perf_counter() - start)
            return future.value()[0]

        return work.get_future().then(finish)

    hook.__annotations__ = {}  # DDP wants classes, and annotations are strings in this file
    model.register_comm_hook(None, hook)
    return real


def with_delays(_: int, name: str, delays: tuple[float, ...]) -> list[tuple[float, Report]]:
    """For each delay what it really was, and the report."""
    results = []
    for delay in delays:
        net, batch = build(name)
        model = DistributedDataParallel(
            net, bucket_cap_mb=0.05, static_graph=name == "mlp", gradient_as_bucket_view=True
        )
        real = plant(model, delay)
        report = measured(model, cycle([batch]))
        results.append((median(seconds for seconds in real if seconds >= delay), report))
    return results


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder"])
def test_a_planted_delay_is_found_at_its_size(name):
    (_, none), *delayed = run_on_ranks(with_delays, 2, name, (0.0, 0.05, 0.1))[0]
    for real, report in delayed:
        low, high = report.exposed().low - none.exposed().high, report.exposed().high - none.exposed().low
        assert low - SLACK <= real <= high + SLACK, (real, none.exposed(), report.exposed())
        assert low > real / 2  # told from none, also beside other work, where ranks wait for a processor
        assert report.exposed("backward").median > report.exposed("forward").median + real / 2


class SlowBackward(torch.autograd.Function):
    """The identity; its backward takes 160 ms, as a long layer would, and leaves the processor free."""

    @staticmethod
    def forward(_, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_, gradient: Tensor) -> Tensor:
        time.sleep(0.16)
        return gradient


def with_hidden_delay(rank: int) -> Report:
    """Rank 1 joins the all-reduce of the first bucket 80 ms late, while both ranks compute for 160 ms."""

    def hook(_, bucket):
        buffer, late = bucket.buffer() / 2, rank == 1 and not bucket.is_last()
        if not late:
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda future: future.value()[0])

        def average() -> None:
            time.sleep(0.08)
            dist.all_reduce(buffer)
            averaged.set_result(buffer)

        averaged = torch.futures.Future()
        threading.Thread(target=average).start()
        return averaged

    hook.__annotations__ = {}
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 5))
    net[0].register_forward_hook(lambda _, inputs, output: SlowBackward.apply(output))
    model = DistributedDataParallel(net, bucket_cap_mb=0.001)
    model.register_comm_hook(None, hook)
    return measured(model, cycle([build("mlp")[1]]))


def test_a_hidden_delay_is_not_reported():
    report = run_on_ranks(with_hidden_delay, 2)[0]
    in_sum = sum(span.end - span.start for span in report.ranks[0].collectives)
    assert in_sum > 0.078  # this is what a profiler shows, and it is not the cost
    assert report.exposed().median < 0.03
    first = report.ranks[0].collectives[0]
    forward, backward = report.ranks[0].parts[1:3]
    assert forward.end <= first.start and first.end < backward.end  # the timeline shows the overlap


def with_slow(rank: int, part: str) -> Report:
    """Rank 1 sleeps 80 ms in each forward pass, or for each batch."""
    net, batch = build("mlp")
    if part == "forward":
        net.register_forward_hook(lambda *_: time.sleep(0.08 * rank))
    delay = 0.08 * rank if part == "data" else 0
    batches = ((time.sleep(delay), batch)[1] for _ in count())
    return measured(DistributedDataParallel(net), batches)


def test_a_slow_rank_is_named_and_its_wait_is_not_communication():
    report = run_on_ranks(with_slow, 2, "forward")[0]
    last, middle, longer = report.straggler()
    assert (last.rank, middle.rank) == (1, 0) and "slowest rank: rank 1" in str(report)
    assert 0.07 < longer.median < 0.12
    assert report.exposed().median < 0.03 and report.data() < 0.02


def test_slow_data_are_found():
    report = run_on_ranks(with_slow, 2, "data")[0]
    assert 0.079 < report.data() < 0.12 and report.data(report.ranks[0]) < 0.02
    assert "longest on rank 1" in str(report)
    assert report.exposed().median < 0.03 and report.straggler()[2].median < 0.03


class SlowBuffers(DistributedDataParallel):
    def _sync_buffers(self) -> None:
        time.sleep(0.06)
        super()._sync_buffers()


def with_slow_buffers(_: int) -> tuple[Report, bool]:
    model = SlowBuffers(build("cnn")[0])
    batch = build("cnn")[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn(model, batch).backward()
    optimizer.step()

    def state() -> list[Tensor]:
        moments = [tensor for tensors in optimizer.state.values() for tensor in tensors.values()]
        return [tensor.clone() for tensor in (*model.state_dict().values(), *moments)]

    before = state()
    report = measure(model, cycle([batch]), loss_fn, optimizer, steps=6)
    return report, all(torch.equal(old, new) for old, new in zip(before, state(), strict=True))


def test_the_broadcast_of_buffers_belongs_to_synchronized_steps_and_the_state_is_put_back():
    results = run_on_ranks(with_slow_buffers, 2)
    report = results[0][0]
    assert report.exposed("forward").low > 0.04
    assert "gloo:broadcast" in {span.name for span in report.ranks[0].collectives}
    assert all(put_back for _, put_back in results)


def sent_bytes(_: int) -> list[int]:
    """Of fp32 gradients, of bf16 gradients, and of the parameters."""
    sizes = []
    for hook in (None, bf16_compress_hook):
        net, batch = build("mlp")
        model = DistributedDataParallel(net)
        if hook:
            model.register_comm_hook(None, hook)
        spans = measured(model, cycle([batch]), steps=2).ranks[1].collectives
        sizes.append(sum(span.size for span in spans if span.name == "gloo:all_reduce"))
    return [*sizes, sum(4 * parameter.numel() for parameter in net.parameters())]


def test_collectives_have_the_size_that_is_sent():
    full, half, parameters = run_on_ranks(sent_bytes, 2)[0]
    assert full == 2 * half == (parameters if torch.__version__ >= (2, 12) else 0)  # earlier ones record no types


def refusals(rank: int) -> list[str]:
    net, batch = build("mlp")
    model, answers = DistributedDataParallel(net), []
    short = [batch] * (10 + 50 * (rank == 0))  # rank 1 runs out first
    for arguments in ((net, short), (model, short, 1), (model, short)):
        with pytest.raises(MeasureError) as error:
            measured(*arguments)
        answers.append(str(error.value))
    return answers


def test_bad_input_gets_one_clear_line():
    first, second = run_on_ranks(refusals, 2)
    assert "is a Sequential, not a DistributedDataParallel" in first[0] and "at least 2, not 1" in first[1]
    assert "ran out on another rank: 31 are needed" in first[2] and "ran out on rank 1: 31" in second[2]
    [alone] = run_on_ranks(refusals, 1)
    assert "one rank has no communication" in alone[1]
    with pytest.raises(MeasureError, match="not initialised") as error:
        measured(build("mlp")[0], [])
    assert all("\n" not in line for line in (*first, *second, *alone, str(error.value)))


def test_the_interval_is_the_packages_own():
    draws = torch.Generator().manual_seed(0)
    for size in (*range(2, 41), 100, 1500):
        samples = torch.rand(size, generator=draws, dtype=torch.float64).tolist()
        assert tuple(median_interval(samples)) == astuple(statistics.median_interval(samples))


def test_it_runs_elsewhere_with_torch_alone(tmp_path):
    """Copied out of the repository, under plain torchrun: report, self-test, trace and picture."""
    shutil.copy(SOURCE, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "exposed.py"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    streams = {"capture_output": True, "text": True}
    run = subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=120, **streams)
    assert run.returncode == 0, run.stderr
    *report, last = (line for line in run.stdout.splitlines() if not GLOO_LINE.search(line))  # torch 2.9 and 2.10
    assert len(report) == 7 and report[0].startswith("2 ranks (gloo, cpu), threads of each: 1") and "step " in report[1]
    assert ("MiB" if torch.__version__ >= (2, 12) else "size unknown") in report[-1]
    plain, planted = (
        [float(number) / 1000 for number in re.search(r"communication (?:is )?(\S+) \[(\S+), (\S+)\]", line).groups()]
        for line in (report[1], last)
    )
    assert planted[1] - plain[2] - 0.01 <= 0.05 <= planted[2] - plain[1] + 0.01  # large collectives: some noise
    events = json.loads((tmp_path / "step.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert {"data", "forward", "backward", "optimizer", "gloo:all_reduce"} <= {event["name"] for event in events}
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_short_and_imports_torch_alone():
    tree = ast.parse(SOURCE.read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}
    assert len(SOURCE.read_text().splitlines()) <= 300


def few(_: int) -> Report:
    """Exactly as many batches as two pairs need."""
    net, batch = build("mlp")
    return measured(DistributedDataParallel(net, find_unused_parameters=True), islice(cycle([batch]), 11), steps=2)


def test_few_pairs_are_called_a_range_and_without_matplotlib_the_trace_is_written(tmp_path, monkeypatch, capsys):
    report = run_on_ranks(few, 2)[0]
    assert "[range of 2]" in str(report).splitlines()[0]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.save_picture(tmp_path / "step.png")
    assert capsys.readouterr().out.startswith("no picture was drawn")
    assert json.loads((tmp_path / "step.json").read_text())["traceEvents"]
