"""A rank that is killed in the middle of an epoch, and what torchrun makes of it: the lab of notebook 03."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch

from ddp_workbook.checkpoint import checkpoint_path, load_checkpoint
from ddp_workbook.config import TrainConfig
from ddp_workbook.flags import to_flags
from ddp_workbook.launch import torchrun
from ddp_workbook.plots_elastic import Life

EPOCH = re.compile(r"epoch +(\d+)/")
SIGNS = {  # what a line of output tells, by words in it
    "lost contact": "the other rank notices",
    "going on after": "restarted",
    "starting afresh": "restarted without a checkpoint",
}


@dataclass
class Observer:
    """Reads a run's output as it comes; kills its last rank when `kill_after` epochs are done (0: never)."""

    kill_after: int = 0
    life: Life = field(default_factory=Life)
    started: float = field(default_factory=time.perf_counter)

    def on_line(self, line: str) -> None:
        now = time.perf_counter() - self.started
        found = EPOCH.match(line)
        if found:
            self.life.epochs.append((now, int(found[1])))
            if int(found[1]) == self.kill_after and "killed" not in self.life.events:
                time.sleep((now - self.life.epochs[-2][0]) / 2 if len(self.life.epochs) > 1 else 0)  # half an epoch
                self._kill()
        for sign, meaning in SIGNS.items():
            if sign in line and "killed" in self.life.events:
                where = f", {line.split(',')[0]}" if meaning == "restarted" else ""  # after which step of which epoch
                self.life.events.setdefault(meaning + where, now)

    def _kill(self) -> None:
        ranks = {}
        for process in psutil.Process().children(recursive=True):
            try:
                ranks[int(process.environ()["RANK"])] = process
            except (KeyError, ValueError, psutil.Error):  # torchrun itself, or gone
                continue
        ranks[max(ranks)].kill()
        self.life.events["killed"] = time.perf_counter() - self.started


def run_observed(
    config: TrainConfig, processes: int, folder: Path, every: int, kill_after: int = 0
) -> tuple[Life, dict[str, torch.Tensor]]:
    """One run under torchrun, with a checkpoint every so many steps and one restart allowed; its life and weights.

    `kill_after`: kill the last rank when that many epochs are done and half of the next one is, too.
    """
    config = replace(config, results_dir=folder / "results", checkpoint_dir=folder / "checkpoints")
    observer = Observer(kill_after)
    flags = [*to_flags(config), "--checkpoint-every", str(every)]
    torchrun(flags, processes, on_line=observer.on_line, restarts=1)
    observer.life.seconds = time.perf_counter() - observer.started
    content, _ = load_checkpoint(checkpoint_path(config, "distributed"))
    return observer.life, content["model"]


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
