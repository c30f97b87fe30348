"""Seconds of training and testing until a test accuracy is reached, by the workbook and by the tutorial way.

    python bench/time_to_accuracy.py [--goal 0.6258] [--epochs 3]

ResNet-50 on all of CIFAR-10, one process on all cores. Both have the recipe's optimizer, peak rate and decay; the
tutorial's is one group of parameters (the recipe has a smaller rate for the last layer, and does not decay biases and
BatchNorm), its schedule torch's own one-cycle, its precision fp32. A run that misses the goal is repeated from scratch
with one epoch more. One after the other, one seed each: the seconds have no interval. Writes
results/reference/bench/time_to_accuracy.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from compare import OUT, Contestant, facts, launch

from ddp_workbook.devices import choose_device, choose_precision
from ddp_workbook.records.files import save_text

MOST_EPOCHS = 6


@dataclass(frozen=True)
class Options:
    goal: float = 0.6258  # about three epochs of the recipe
    epochs: int = 3
    data_dir: Path = Path("data")


def time_to(contestant: Contestant, options: Options) -> dict:
    """The run that reached the goal, with all that it printed; its last seconds are the answer."""
    for epochs in range(options.epochs, MOST_EPOCHS + 1):
        found = launch(contestant, "resnet50", 1, 0, options.data_dir, epochs)
        seconds, accuracy = found["seconds_and_accuracy"][-1]
        print(f"{contestant.title}: {epochs} epochs, {accuracy:.2%} after {seconds:.0f} s", flush=True)
        if accuracy >= options.goal:
            return {"contestant": contestant.title, "epochs": epochs} | found
    raise SystemExit(f"{contestant.title} did not reach {options.goal:.2%} in {MOST_EPOCHS} epochs")


def main(options: Options) -> None:
    own = choose_precision("auto", choose_device("cpu"))
    field = [Contestant("workbook", "ours.py", own), Contestant("tutorial", "tutorial.py", "fp32")]
    content = {"facts": facts(), "goal": options.goal, "runs": [time_to(one, options) for one in field]}
    save_text(json.dumps(content, indent=1) + "\n", OUT / "time_to_accuracy.json")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
