"""The restart lab of notebook 03: a rank is killed in the middle of an epoch, and torchrun restarts the run.

Run as a script, this file is a rank of that run: distributed_train.py with one more callback, which logs what happens
to the rank and kills it at the chosen step.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from matplotlib.figure import Figure
from torch.distributed.elastic.multiprocessing.errors import record

from ddp_workbook.analysis.plots_style import GREY, LIGHT_ORANGE, ORANGE, new_figure, set_finding
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.agent import end_with_torchrun
from ddp_workbook.distributed.launch import torchrun, training_script
from ddp_workbook.distributed.process_group import LostConnection, World, read_world
from ddp_workbook.flags import parse_run, to_flags
from ddp_workbook.runs.checkpoint import model_path, read_checkpoint
from ddp_workbook.training.state import TrainingState


class EventLog:
    """Callback that appends events to a file, one JSON object a line, and kills the last rank when it is told to.

    `kill_after`: the epoch after which, in the middle of the next one, the rank is killed; 0: never.
    """

    def __init__(self, path: Path, world: World, kill_after: int) -> None:
        self.path, self.world = path, world
        self.kill_after = 0 if world.restarts or world.rank < world.size - 1 else kill_after
        self.started = False

    def log(self, event: str, epoch: int | None = None) -> None:
        line = json.dumps({"time": time.monotonic(), "event": event, "epoch": epoch})
        with self.path.open("a", encoding="utf-8") as file:  # one short write: lines of several ranks do not mix
            file.write(line + "\n")

    def after_step(self, state: TrainingState) -> None:
        if not self.started and self.world.restarts and self.world.is_main:
            before = state.step - 1  # where this process began
            self.log(f"restarted, resuming after step {before}" if before else "restarted without a checkpoint")
        self.started = True
        if self.kill_after and state.epoch == self.kill_after and state.partial.step >= state.steps_per_epoch // 2:
            self.log("killed")
            psutil.Process().kill()

    def after_epoch(self, state: TrainingState) -> None:
        if self.world.is_main:
            self.log("epoch done", state.epoch)


@dataclass
class Timeline:
    """What happened to a run, in seconds since it was started."""

    seconds: float
    """Until its end."""
    epochs: list[tuple[float, int]] = field(default_factory=list)
    """When each epoch was done; an epoch that was done twice is there twice."""
    events: dict[str, float] = field(default_factory=dict)
    """When something happened to a rank, in words."""


def run_logged(
    config: TrainConfig, processes: int, folder: Path, every: int, kill_after: int = 0
) -> tuple[Timeline, dict[str, torch.Tensor]]:
    """A run under torchrun with a checkpoint every `every` steps and one restart allowed: its timeline and weights.

    `kill_after`: kill the last rank in the middle of the epoch after this one; 0: never.
    """
    folder.mkdir(parents=True)
    config = replace(config, results_dir=folder / "results", checkpoint_dir=folder / "checkpoints")
    log, started = folder / "events.jsonl", time.monotonic()
    arguments = [str(log), str(kill_after), *to_flags(config), "--checkpoint-every", str(every)]
    torchrun(arguments, processes, Path(__file__), on_line=lambda _: None, restarts=1)
    timeline = read_timeline(log, started, time.monotonic() - started)
    return timeline, read_checkpoint(model_path(config, "distributed"))["model"]


def read_timeline(log: Path, started: float, seconds: float) -> Timeline:
    """The timeline from the events in the file; `started` on their clock, time.monotonic(), which processes share."""
    timeline = Timeline(seconds)
    for line in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        when = line["time"] - started
        if line["epoch"] is None:
            timeline.events.setdefault(line["event"], when)  # the first of several ranks that notice
        else:
            timeline.epochs.append((when, line["epoch"]))
    return timeline


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether both are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def plot_timelines(disturbed: Timeline, undisturbed: Timeline) -> Figure:
    """Epochs done over time, of a run whose rank was killed and of an undisturbed one."""
    figure, [[ax]] = new_figure(1, 1, height=3.2)
    for timeline, colour, marker, name in (
        (undisturbed, LIGHT_ORANGE, "o", "undisturbed"),
        (disturbed, ORANGE, "s", "one rank killed"),
    ):
        times, epochs = zip(*timeline.epochs, strict=True)
        ax.step(times, epochs, where="post", color=colour, marker=marker, label=name)
    top = max(epoch for _, epoch in undisturbed.epochs)
    labels: dict[str, list[str]] = {}  # what happens within a tenth of a second has one
    for what, when in disturbed.events.items():
        ax.axvline(when, color=GREY, linestyle=":", linewidth=1)
        labels.setdefault(f"{when:.1f}", []).append(what)
    for number, (when, whats) in enumerate(labels.items()):
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        place = float(when) + 0.012 * disturbed.seconds, top * (0.33 - 0.12 * number)
        ax.text(*place, f"{when} s: {', '.join(whats)}", fontsize=8, va="center", bbox=paper, zorder=5)
    starts = [(0.0, max(disturbed.epochs[0][0] - epoch_seconds(undisturbed), 0))]
    starts += [(disturbed.events["killed"], when) for what, when in disturbed.events.items() if "restarted" in what]
    for number, (begin, end) in enumerate(starts):
        ax.axvspan(
            begin, end, color=GREY, alpha=0.15, linewidth=0, label=None if number else "start-up of the processes"
        )
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(
        xlabel="time since the start of the run (s)",
        ylabel="epochs done",
        xlim=(0, 1.25 * max(disturbed.seconds, 1)),
        ylim=(0, 1.05 * top),
    )
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    later = disturbed.seconds - undisturbed.seconds
    set_finding(figure, f"A rank is killed; torchrun restarts the run, which ends {later:.1f} s later")
    return figure


def epoch_seconds(timeline: Timeline) -> float:
    """Median seconds from one epoch's end to the next; 0 for a single epoch."""
    times = [when for when, _ in timeline.epochs]
    return statistics.median(later - earlier for earlier, later in pairwise(times)) if len(times) > 1 else 0.0


@record  # torchrun then shows the error of the rank that failed first
def main() -> None:
    """One rank of the run; the arguments are the event log, kill_after, and flags of distributed_train.py."""
    path, kill_after, *flags = sys.argv[1:]
    config, options = parse_run(flags, __doc__)
    world = read_world()
    end_with_torchrun(world)
    log = EventLog(Path(path), world, int(kill_after))
    signal.signal(signal.SIGTERM, lambda *_: None)  # torchrun's, on the way from the lost connection to its event
    try:
        training_script().run(config, options, world, [log])
    except LostConnection:
        log.log("the other rank notices")
        raise


if __name__ == "__main__":
    main()
