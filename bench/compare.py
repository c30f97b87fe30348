"""The same work by this workbook and by what people use instead, side by side.

    python bench/compare.py [--jobs mlp cnn resnet50] [--processes 1 2] [--rounds 5] [--no-compiled]
    python bench/compare.py --jobs                    (measure nothing; table and picture from what is there)

Every measurement is a fresh start of a contestant (bench/contestants/), which trains two epochs and reports the second.
Contestants take turns. Before the first round the tutorial way tries 0, 1 and 2 workers in its DataLoader; the fastest
number holds for all that have the same DataLoader. Writes compare_<job>_<processes>p.json for each job, and from all
that are there compare.csv and compare.png, into results/reference/bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import pandas as pd
import tyro

from ddp_workbook.analysis.plots import BLUE, GREY, error_bars, new_figure, save_png
from ddp_workbook.analysis.statistics import median_interval, spread_words
from ddp_workbook.devices import available_cores, choose_device, describe_environment
from ddp_workbook.records.files import save_text

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "results" / "reference" / "bench"
WORKERS = (0, 1, 2)
MOST_FAILURES = 3
FIGURES = {
    "images_per_second": ("training (images/s)", 1, ".0f"),
    "epoch_seconds": ("epoch with evaluation (s)", 1, ".2f"),
    "first_step_seconds": ("start to first step (s)", 1, ".1f"),
    "peak_memory_bytes": ("peak memory (MiB)", 2**-20, ".0f"),
}


@dataclass(frozen=True)
class Contestant:
    """A script, in which precision it computes, and whether torch.compile makes its own kernels for the model."""

    name: str
    script: str
    precision: str
    compiled: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.precision}" + ", compiled" * self.compiled


def contestants(compiled: bool) -> list[Contestant]:
    """All in fp32, and in bf16 those that have a switch for it; it is the workbook's default where hardware has it.

    `compiled`: each one also with torch.compile, which the workbook offers no switch for.
    """
    names = {
        "workbook": "ours.py",
        "tutorial": "tutorial.py",
        "Lightning": "lightning_way.py",
        "Accelerate": "accelerate_way.py",
    }
    return [
        Contestant(name, script, precision, by_compiler)
        for precision, by_compiler in product(("fp32", "bf16"), (False, True) if compiled else (False,))
        for name, script in names.items()
        if (name, precision) != ("tutorial", "bf16")
    ]


@dataclass(frozen=True)
class Options:
    jobs: tuple[str, ...] = ("mlp", "cnn", "resnet50")
    processes: tuple[int, ...] = (1, 2)
    rounds: int = 5
    compiled: bool = True
    data_dir: Path = Path("data")


BATCH = {"mlp": 32, "cnn": 64, "resnet50": 128}


def launch(
    contestant: Contestant, job: str, processes: int, workers: int, data_dir: Path, epochs: int | None = None
) -> dict:
    """One measurement: the contestant's own line of JSON, and how many launches failed before.

    Under Gloo some abort at their exit, work done or not (distributed.process_group says why): they may try again.
    """
    script = [str(HERE / "contestants" / contestant.script)]
    flags = ["--job", job, "--batch-size", str(BATCH[job]), "--workers", str(workers)]
    flags += ["--precision", contestant.precision, "--data-dir", str(data_dir)]
    if contestant.compiled:
        flags.append("--compile")
    if epochs:
        flags += ["--epochs", str(epochs)]
    if processes > 1:
        script = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *script]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, available_cores() // processes)),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for failed in range(MOST_FAILURES):
        environment["COMPARE_LAUNCHED"] = str(time.time())
        ended = subprocess.run(
            [sys.executable, *script, *flags], capture_output=True, text=True, env=environment, check=False
        )
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        if ended.returncode == 0 and lines:
            return json.loads(lines[-1]) | {"failed_launches": failed}
        print(f"{contestant.title} on {job}: exit code {ended.returncode}", flush=True)
    raise SystemExit(f"{contestant.title} on {job} failed:\n{ended.stderr[-3000:]}")


def compare(job: str, processes: int, options: Options) -> pd.DataFrame:
    """A row for every contestant and round."""
    field = contestants(options.compiled)
    tutorial = next(one for one in field if one.script == "tutorial.py")
    seconds = {n: launch(tutorial, job, processes, n, options.data_dir)["epoch_seconds"] for n in WORKERS}
    best = min(seconds, key=seconds.get)
    print(f"{job}, {processes} process(es): seconds of an epoch by number of workers {seconds}", flush=True)
    rows = []
    for number in range(options.rounds):
        turn = number % len(field)
        for one in [*field[turn:], *field[:turn]]:
            workers = 0 if one.script == "ours.py" else best
            found = launch(one, job, processes, workers, options.data_dir)
            del found["seconds_and_accuracy"]  # of two short epochs: says nothing
            place = {"job": job, "processes": processes, "round": number, "contestant": one.title, "workers": workers}
            rows.append(place | found)
            print(f"round {number + 1}: {one.title:<18} {found['images_per_second']:8.0f} images/s", flush=True)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians with their intervals; ratios of rates are medians of the ratios within a round.

    The workbook's rate over each, and the rate with torch.compile over that without.
    """
    table = []
    for (job, processes), part in rows.groupby(["job", "processes"], sort=False):
        rates = part.pivot(index="round", columns="contestant", values="images_per_second")
        for name in part["contestant"].unique():
            mine = part[part["contestant"] == name]
            row = {"job": job, "processes": processes, "contestant": name, "workers": int(mine["workers"].iloc[0])}
            for figure, (title, scale, spec) in FIGURES.items():
                row[title] = median_interval(scale * mine[figure]).text(spec)
            for precision in ("fp32", "bf16"):
                ours = f"workbook, {precision}"
                if ours in rates and not name.startswith("workbook"):
                    row[f"{ours}, over it"] = median_interval(rates[ours] / rates[name]).text(".2f")
            if name.endswith(", compiled"):
                plain = rates[name.removesuffix(", compiled")]
                row["over itself not compiled"] = median_interval(rates[name] / plain).text(".2f")
            table.append(row)
    return pd.DataFrame(table).fillna("")


def picture(rows: pd.DataFrame):
    """Rates of all contestants: a row of panels for each number of processes, a column for each job."""
    jobs, counts = sorted(set(rows["job"]), key=list(BATCH).index), sorted(set(rows["processes"].tolist()))
    figure, axes = new_figure(len(counts), len(jobs), 4.2 * len(jobs), 3.4 * len(counts))
    for ax, (processes, job) in zip(axes.flat, product(counts, jobs), strict=True):
        part = rows[(rows["job"] == job) & (rows["processes"] == processes)]
        ax.set_visible(not part.empty)
        if part.empty:
            continue
        names = list(part["contestant"].unique())
        for row, name in enumerate(names):
            rates = part.loc[part["contestant"] == name, "images_per_second"]
            median = median_interval(rates)
            ax.barh(row, median.value, color=BLUE if name.startswith("workbook") else GREY, alpha=0.8)
            ax.errorbar(median.value, row, xerr=error_bars([median]), color="black", capsize=3)
        ax.set(yticks=range(len(names)), yticklabels=names, xlabel="training, images/s")
        title = f"{job}, {processes} process" + "es" * (processes > 1)
        ax.set_title(f"{title}\nmedian and {spread_words(len(rates))}", fontsize=10)
        ax.invert_yaxis()
    return figure


def main(options: Options) -> None:
    for job in options.jobs:
        for processes in options.processes:
            rows = compare(job, processes, options)
            repeated = f"{options.rounds} rounds, median and {spread_words(options.rounds)}"
            content = {"facts": f"{facts()}; {repeated}", "rows": rows.to_dict("records")}
            save_text(json.dumps(content, indent=1) + "\n", OUT / f"compare_{job}_{processes}p.json")
    found = [json.loads(path.read_text()) for path in sorted(OUT.glob("compare_*.json"))]
    rows = pd.concat([pd.DataFrame(one["rows"]) for one in found], ignore_index=True)
    table = summary(rows)
    save_text(table.to_csv(index=False), OUT / "compare.csv")
    save_png(picture(rows), OUT / "compare.png")
    print(f"\n{table.to_string(index=False)}\n", *dict.fromkeys(one["facts"] for one in found), sep="\n")


def facts() -> str:
    """Hardware, versions, commit."""
    machine = describe_environment(choose_device("cpu"))
    used = [f"{name} {version(name)}" for name in ("torch", "torchvision", "lightning", "accelerate")]
    return f"{machine.cpu}, {machine.cores} cores, {', '.join(used)}, commit {machine.git_commit}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
