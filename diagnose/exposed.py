"""How much of a DDP step is exposed communication? One file that needs torch alone: copy it into your project.

    report = measure(model, batches, loss_fn, optimizer)   # on every rank, at the same point of the script
    print(report)                                          # on one rank
    report.save_trace("step.json")                         # open it in ui.perfetto.dev or chrome://tracing

`torchrun --nproc-per-node=2 exposed.py` measures a small model, then plants a delay of known size and finds it again.
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import re
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.optim import Optimizer
from torch.profiler import profile, record_function

WARM_UP_PAIRS = 3  # DDP rebuilds its buckets after the first step; caches and memory pools fill
SAMPLES_NEEDED = 6  # the range of 6 samples holds the median with probability 97 %; that of 5 only with 94 %
COLOURS = {"data": "#c7c7c7", "forward": "#aec7e8", "backward": "#98df8a", "optimizer": "#ffbb78"}


class MeasureError(ValueError):
    """Nothing can be measured. The message is one line and says what to do."""


Interval = namedtuple("Interval", "median low high")  # seconds, as everywhere; fewer than SAMPLES_NEEDED: the range
Times = namedtuple("Times", "data forward backward optimizer compute")  # one step of one rank; compute: all but data
Span = namedtuple("Span", "name start end size", defaults=[0])  # since the start of forward; size: bytes, 0 if unknown
Rank = namedtuple("Rank", "rank threads cores synced alone parts collectives")  # alone: the same steps under no_sync


def measure(model: DDP, batches: Iterable, loss_fn: Callable, optimizer: Optimizer, steps: int = 20) -> Report:
    """Time `steps` pairs of a step with gradient synchronization and the same step under no_sync. All ranks call it.

    `loss_fn(model, batch)` must call the `model` it is given. Every step fetches a batch, so that the loader works at
    its real pace, but both steps of a pair compute on the same one. Ranks meet before forward, outside the timed part.

    The model really trains, and without synchronization its copies drift apart. At the end parameters, buffers and the
    optimizer's state are put back from copies in host memory, and gradients are cleared. Random generators and batches
    have moved on. The model's communication hook, if it has one, is measured with it; none is added. SyncBatchNorm
    communicates under no_sync too and counts as computing. On CUDA "data" is the most that waiting can cost: the device
    is idle meanwhile. Raises MeasureError.
    """
    _check(model, steps)
    source, needed = iter(batches), 2 * (WARM_UP_PAIRS + steps) + 1
    times: dict[bool, list[Times]] = {True: [], False: []}
    with _put_back(model, optimizer):
        for pair in range(WARM_UP_PAIRS + steps):
            batch = None
            for synced in (True, False) if pair % 2 == 0 else (False, True):  # neither kind is always second
                fetched, data = _fetch(model, source, needed)
                batch = fetched if batch is None else batch
                parts = _step(model, batch, loss_fn, optimizer, synced)
                if pair >= WARM_UP_PAIRS:
                    times[synced].append(Times(data, *parts, sum(parts)))
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler complains where there is no GPU
        with profile(record_shapes=True) as profiler:  # it sees collectives without a communication hook
            batch, data = _fetch(model, source, needed)
            with record_function("exposed.step"):
                parts = _step(model, batch, loss_fn, optimizer, synced=True)
    ends = [-data, *(sum(parts[:i]) for i in range(4))]
    timeline = [Span(name, *bar) for name, bar in zip(COLOURS, pairwise(ends), strict=True)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine = (dist.get_rank(), torch.get_num_threads(), cores, times[True], times[False], timeline)
    ranks: list = [None] * dist.get_world_size(model.process_group)
    dist.all_gather_object(ranks, Rank(*mine, _collectives(profiler.events())), group=model.process_group)
    return Report(ranks, f"{dist.get_backend(model.process_group)}, {model.device.type}")


def median_interval(samples: list[float]) -> Interval:
    """The exact interval from order statistics, which holds for any distribution (Conover 1999, section 3.2).

    The k-th smallest and k-th largest of n samples miss the median with probability 2 P(X < k), X ~ binomial(n, 1/2).
    """
    ordered, n, k = sorted(samples), len(samples), 1
    while 40 * sum(math.comb(n, i) for i in range(k + 1)) <= 2**n:
        k += 1
    return Interval(median(ordered), ordered[k - 1], ordered[n - k])


def _check(model: object, steps: int) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise MeasureError("the process group is not initialised: start with torchrun and call init_process_group()")
    if not isinstance(model, DDP):
        raise MeasureError(f"the model is a {type(model).__name__}, not a DistributedDataParallel: wrap it first")
    if dist.get_world_size(model.process_group) < 2:
        raise MeasureError("one rank has no communication to measure: start 2 or more (torchrun --nproc-per-node=2)")
    if steps < 2:
        raise MeasureError(f"steps must be at least 2, not {steps}; {SAMPLES_NEEDED} or more give a 95 % interval")


@contextmanager
def _put_back(model: DDP, optimizer: Optimizer) -> Iterator[None]:
    tensors = [*model.module.parameters(), *model.module.buffers()]
    copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    state = io.BytesIO()
    torch.save(optimizer.state_dict(), state)
    optimizer.zero_grad()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        state.seek(0)
        optimizer.load_state_dict(torch.load(state, map_location="cpu", weights_only=False))  # written just above
        optimizer.zero_grad()


def _now(device: torch.device) -> float:
    if device.type != "cpu":  # CUDA: its work is done when the clock is read; the host cannot run ahead as in training
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _fetch(model: DDP, batches: Iterator[object], needed: int) -> tuple[object, float]:
    """The next batch and the seconds it took. Then all ranks meet, and stop together if one of them has none."""
    start = _now(model.device)
    batch = next(batches, None)
    seconds = _now(model.device) - start
    vote = torch.tensor(int(batch is not None), device=model.device)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN, group=model.process_group)
    if not vote.item():
        where = f"on rank {dist.get_rank()}" if batch is None else "on another rank"
        raise MeasureError(f"batches ran out {where}: {needed} are needed; give more, or measure fewer steps")
    return batch, seconds


def _step(model: DDP, batch: object, loss_fn: Callable, optimizer: Optimizer, synced: bool) -> list[float]:
    """Seconds of forward, backward and optimizer."""
    # A forward pass broadcasts buffers unless the forward pass *before* it was under no_sync: in turns, the wrong steps
    # would pay for it. DDP keeps the decision in this attribute.
    model.require_forward_param_sync = synced
    marks = [_now(model.device)]
    with nullcontext() if synced else model.no_sync():
        loss = loss_fn(model, batch)
        marks.append(_now(model.device))
        loss.backward()
    marks.append(_now(model.device))
    optimizer.step()
    optimizer.zero_grad()  # under no_sync gradients would add up
    marks.append(_now(model.device))
    return [after - before for before, after in pairwise(marks)]


def _collectives(events: list) -> list[Span]:
    """The backend's spans (gloo:all_reduce, nccl:broadcast, ...) since the profiled step began."""
    begin = next(event.time_range.start for event in events if event.name == "exposed.step")
    events = sorted((e for e in events if e.time_range.start >= begin), key=lambda e: e.time_range.start)
    spans = [e for e in events if re.fullmatch("[a-z]+:[a-z_]+", e.name) and e.device_type.name == "CPU"]
    sizes = [_bytes(e.input_shapes or [], getattr(e, "input_dtypes", None) or []) for e in spans]
    if kernels := [e for e in events if e.name.startswith("ncclDev")]:  # CUDA: the spans above end when work is queued
        spans, sizes = kernels, sizes if len(kernels) == len(spans) else [0] * len(kernels)
    times = [((e.time_range.start - begin) / 1e6, (e.time_range.end - begin) / 1e6) for e in spans]
    return [Span(e.name.split("(")[0], *time, size) for e, time, size in zip(spans, times, sizes, strict=True)]


def _bytes(shapes: list, dtypes: list) -> int:
    widths = {"double": 8, "long int": 8, "float": 4, "int": 4, "c10::Half": 2, "c10::BFloat16": 2}
    return sum(math.prod(shape) * widths.get(kind, 1) for shape, kind in zip(shapes, dtypes, strict=False) if shape)


@dataclass(frozen=True)
class Report:
    """What all ranks measured; the same on every rank. Times are seconds, medians over the steps."""

    ranks: list[Rank]
    where: str

    def slowest(self, synced: bool) -> list[Times]:
        """For every step the times of the rank that computed longest: the others have to wait for it."""
        steps = zip(*(rank.synced if synced else rank.alone for rank in self.ranks), strict=True)
        return [max(step, key=lambda times: times.compute) for step in steps]

    def exposed(self, part: str = "compute") -> Interval:
        """Paired differences, for the step or a part of it. The wait for a slow rank is in neither kind of step."""
        pairs = zip(self.slowest(True), self.slowest(False), strict=True)
        return median_interval([getattr(synced, part) - getattr(alone, part) for synced, alone in pairs])

    def data(self, *ranks: Rank) -> float:
        """Seconds in next(batches), each time of the rank that waited longest."""
        steps = zip(*(rank.synced + rank.alone for rank in ranks or self.ranks), strict=True)
        return median(max(times.data for times in step) for step in steps)

    def step(self, synced: bool = True) -> float:
        """A whole step; synced=False: the bound, a step without communication."""
        return self.data() + median(times.compute for times in self.slowest(synced))

    def straggler(self) -> tuple[Rank, Rank, Interval]:
        """The rank that computes longest under no_sync, the median rank, and how much longer the first one takes."""
        order = sorted(self.ranks, key=lambda rank: median(times.compute for times in rank.alone))
        last, middle = order[-1], order[(len(order) - 1) // 2]
        pairs = zip(last.alone, middle.alone, strict=True)
        return last, middle, median_interval([slow.compute - usual.compute for slow, usual in pairs])

    def __str__(self) -> str:
        rank, data, step, bound, exposed = self.ranks[0], self.data(), self.step(), self.step(False), self.exposed()
        pairs = len(rank.alone)
        spread = "95 % intervals" if pairs >= SAMPLES_NEEDED else f"[range of {pairs}]"
        parts = [f"{p} {_ms(median(getattr(t, p) for t in self.slowest(False)))}" for p in list(COLOURS)[1:]]
        waits, (last, middle, longer) = max(self.ranks, key=self.data), self.straggler()
        bars, in_sum = rank.collectives, sum(span.end - span.start for span in rank.collectives)
        size = sum(span.size for span in bars)  # torch before 2.12 does not record the types, hence no sizes
        sent = f"{size / 2**20:.1f} MiB" if size else "size unknown"
        return f"""\
{len(self.ranks)} ranks ({self.where}), threads of each: {rank.threads}, cores: {rank.cores}; {pairs} pairs, {spread}
step {_ms(step)} ms = data {_ms(data)} + {" + ".join(parts)} + exposed communication {_ms(*exposed)} ms
exposed communication: {exposed.median / step:.0%} of the step; the bound, a step without it, is {_ms(bound)} ms
it lies in forward: {_ms(*self.exposed("forward"))} ms, and in backward: {_ms(*self.exposed("backward"))} ms
waiting for data: {data / step:.0%} of the step; longest on rank {waits.rank}, {_ms(self.data(waits))} ms
slowest rank: rank {last.rank} computes {_ms(*longer)} ms longer than the median rank (rank {middle.rank})
collectives: {len(bars)}, {sent}, {_ms(in_sum)} ms in sum, part of it hidden"""

    def save_trace(self, path: str | Path) -> None:
        """One synchronized step as Chrome trace: a process for each rank, a row for each collective."""
        events, zero = [], min(rank.parts[0].start for rank in self.ranks)
        for rank in self.ranks:
            events.append({"name": "process_name", "ph": "M", "pid": rank.rank, "args": {"name": f"rank {rank.rank}"}})
            for row, span in [(0, part) for part in rank.parts] + list(enumerate(rank.collectives, 1)):
                times = {"ts": 1e6 * (span.start - zero), "dur": 1e6 * (span.end - span.start)}
                bar = {"ph": "X", "pid": rank.rank, "tid": row, **times, "args": {"size": span.size}}
                events.append({"name": span.name, **bar})
        Path(path).write_text(json.dumps({"traceEvents": events}))

    def save_picture(self, path: str | Path) -> None:
        """The same step as a picture; without matplotlib the trace, and a line that says so."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            self.save_trace(trace := Path(path).with_suffix(".json"))
            print(f"no picture was drawn (matplotlib is not installed); {trace} has the same")
            return
        figure = Figure(figsize=(10, 1 + 0.9 * len(self.ranks)), layout="constrained")
        axes, names = figure.subplots(), [f"rank {rank.rank}" for rank in self.ranks]
        for y, rank in enumerate(self.ranks):
            bars = [(span, 0.2 - y, 0.4, COLOURS[span.name]) for span in rank.parts]
            bars += [(span, -0.1 - 0.2 * (i % 2) - y, 0.18, "rebeccapurple") for i, span in enumerate(rank.collectives)]
            for span, middle, height, colour in bars:
                axes.barh(middle, 1000 * (span.end - span.start), height, left=1000 * span.start, color=colour)
        handles = [axes.scatter([], [], marker="s", color=colour) for colour in (*COLOURS.values(), "rebeccapurple")]
        figure.legend(handles, [*COLOURS, "collectives"], loc="outside upper center", ncols=5, frameon=False)
        axes.set(xlabel="milliseconds", yticks=range(0, -len(self.ranks), -1), yticklabels=names)
        figure.savefig(path, dpi=150)


def _ms(*seconds: float) -> str:
    texts = [f"{round(1000 * s, 1) + 0.0:.{int(abs(s) < 0.01)}f}" for s in seconds]
    return texts[0] if len(texts) == 1 else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def _demo() -> None:
    """A small model, first as it is, then with 50 ms of delay after the all-reduce of its last bucket."""
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")  # CUDA
    on_nccl = gpus >= int(os.environ["LOCAL_WORLD_SIZE"])  # not run so far; ranks that share a GPU can only use Gloo
    dist.init_process_group("nccl" if on_nccl else "gloo", device_id=device if on_nccl else None)

    def slow_hook(delay, bucket):  # without annotations: DDP wants classes there, and in this file they are strings
        work = dist.all_reduce(bucket.buffer() / dist.get_world_size(), async_op=True)
        seconds = delay if bucket.is_last() else 0
        return work.get_future().then(lambda future: (time.sleep(seconds), future.value()[0])[1])

    batch, reports = torch.randn(64, 1024, device=device), []
    for delay in (0.0, 0.05):
        net = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU()))).to(device)
        model = DDP(net, bucket_cap_mb=5)
        model.register_comm_hook(delay, slow_hook)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        reports.append(measure(model, cycle([batch]), lambda model, batch: model(batch).square().mean(), optimizer))
    if dist.get_rank() == 0:
        print(reports[0])
        print(f"self-test: with 50 ms of planted delay exposed communication is {_ms(*reports[1].exposed())} ms")
        reports[0].save_trace("step.json")
        reports[0].save_picture("step.png")


if __name__ == "__main__":
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit("error: start 2 ranks or more: torchrun --nproc-per-node=2 exposed.py")
    _demo()
    gc.collect()  # Gloo can abort where a DDP model, which is in a reference cycle, outlives the group
    dist.destroy_process_group()
