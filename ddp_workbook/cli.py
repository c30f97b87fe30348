"""`ddp-workbook run | bench | trace | predict | report | doctor | labs`: the course from a shell."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ddp_workbook.config import CommHookName, TrainConfig, flag
from ddp_workbook.course.interrupts import Interrupted, stop_signals_raise
from ddp_workbook.errors import InputError, error_line
from ddp_workbook.flags import parse_command
from ddp_workbook.labs.commands import COMMANDS as LABS
from ddp_workbook.labs.commands import labs
from ddp_workbook.recipes import EMBEDDED, get_recipe, serial_recipe
from ddp_workbook.runs.streams import WatchedOutput, open_standard_streams

REPEATS = 5  # rounds of an experiment


def run(
    recipe: str = EMBEDDED,
    data_dir: Path = Path("data"),
    epochs: int | None = None,
    retrain: bool = False,
    in_place: bool = False,
) -> None:
    """Execute notebooks 01 to 04 in order, which train both runs, compare them and write the report.

    Args:
        recipe: Named run; resnet50-cifar10 is the full course.
        data_dir: Folder with CIFAR-10 and MNIST.
        epochs: Epochs of both runs, instead of the recipe's.
        retrain: Train both runs from scratch, even where a finished or interrupted one could be used.
        in_place: For authors of notebooks: run all with their own defaults and keep the outputs in the notebooks.
    """
    import pandas as pd

    from ddp_workbook.course.runner import run_course

    run_dir = get_recipe(recipe).run_dir
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs must be at least 1, not {epochs}")
    if in_place:
        run_course(Path(), Path(), {})
        return
    parameters: dict[str, object] = {"RECIPE": recipe, "DATA_DIR": str(data_dir)}
    if epochs is not None:
        parameters["EPOCHS"] = epochs
    if retrain:
        parameters["RETRAIN"] = True
    run_course(Path(), run_dir / "notebooks", parameters)
    print()
    print(pd.read_csv(run_dir / "performance_comparison.csv", index_col=0).fillna("").to_string())
    print(f"\nexecuted notebooks: {run_dir / 'notebooks'}")
    print(f"report:             {run_dir / 'report.pdf'}")


def bench(
    recipe: str = "cnn-digits",
    process_counts: tuple[int, ...] | None = None,
    repeats: int = REPEATS,
    steps: int | None = None,
    epochs: int | None = None,
    scaling: Literal["strong", "weak"] = "strong",
    comm_hook: CommHookName = "allreduce",
    map: bool = False,
    largest_batch: int | None = None,
    seeds: int | None = None,
    output_dir: Path = Path("results"),
    data_dir: Path = Path("data"),
) -> None:
    """Time a recipe on several process counts, interleaved with serial baselines and a no-communication upper bound.

    With --map: from which global batch on do several processes pay? With --seeds: how much do accuracies vary?

    Args:
        recipe: Named run. All processes live at once; a ResNet-50 takes 1 to 2 GB in each.
        process_counts: Numbers of processes to time (default: 2 4 8; with --map or --seeds one number, 2).
        repeats: Rounds; in each of them every configuration takes its turn, with new weights.
        steps: Optimizer steps of each configuration per round (default: about half a second of them).
        epochs: Instead of steps: train this many whole epochs per round, and test. With --seeds: epochs of each run.
        scaling: Strong: the recipe's global batch is split among the processes; weak: each process gets all of it.
        comm_hook: How gradients are all-reduced; shared-memory works on CPUs.
        map: Instead: every network on the recipe's data set at growing batches; takes long, and can be continued.
        largest_batch: End of the map, in images (default: where all of it pays, or memory or the images end).
        seeds: Instead: train so many seeds to their end, serial and distributed, and compare the accuracies.
        output_dir: Gets a new folder experiment_<time>; or the folder of an unfinished experiment, to continue it.
            A map and a study of seeds go to <recipe>/ in it; the same command continues them.
        data_dir: Folder with CIFAR-10 and MNIST.
    """
    if steps is not None and epochs is not None:
        raise InputError("give either --steps or --epochs, not both")
    config = replace(serial_recipe(recipe), data_dir=data_dir)
    of_rounds = {"repeats": repeats != REPEATS, "steps": steps is not None, "scaling": scaling != "strong"}
    of_rounds["comm_hook"] = comm_hook != "allreduce"
    if map:
        _refuse("--map", seeds=seeds is not None, epochs=epochs is not None, **of_rounds)
        _bench_map(config, _one_count("--map", process_counts), largest_batch, output_dir)
        return
    _refuse("anything but --map", largest_batch=largest_batch is not None)
    if seeds is not None:
        _refuse("--seeds", **of_rounds)
        config = config if epochs is None else replace(config, epochs=epochs)
        _bench_seeds(config, seeds, _one_count("--seeds", process_counts), output_dir)
        return
    from ddp_workbook.measurement.benchmark import steps_per_round
    from ddp_workbook.measurement.experiment import describe, metrics, run_experiment

    config = replace(config, comm_hook=comm_hook)
    if epochs is not None:
        config = replace(config, epochs=epochs)
    elif steps is None:
        steps = steps_per_round(config.model)
    elif steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    counts = (2, 4, 8) if process_counts is None else process_counts
    record, folder = run_experiment(config, counts, repeats, steps, scaling, output_dir)
    print(f"\n{describe(metrics(record))}\n\nresults and figures: {folder}")


def trace(
    recipe: str = "cnn-digits",
    processes: int = 2,
    slow_ms: float = 0.0,
    profiler: bool = False,
    comm_hook: CommHookName = "allreduce",
    data_dir: Path = Path("data"),
    results_dir: Path = Path("results"),
) -> None:
    """Record one training step of all ranks: a timeline for ui.perfetto.dev, and the same as a figure.

    Args:
        recipe: Named run; its global batch is split among the processes.
        processes: Processes on this machine, at least 2.
        slow_ms: Milliseconds that the last rank sleeps in each forward pass: see how the others wait for it.
        profiler: Also record the operators of one step with torch.profiler, in a file for each rank.
        comm_hook: How gradients are all-reduced; shared-memory works on CPUs.
        data_dir: Folder with CIFAR-10 and MNIST.
        results_dir: Folder in which <recipe>/trace is written.
    """
    from ddp_workbook.analysis.trace import describe
    from ddp_workbook.measurement.step_trace import TRACE, record_step

    config = replace(serial_recipe(recipe), data_dir=data_dir, results_dir=results_dir, comm_hook=comm_hook)
    breakdown, folder = record_step(config, processes, slow_ms, profiler)
    print(f"{describe(breakdown)}\n\nopen in ui.perfetto.dev: {folder / TRACE}")


def _one_count(what: str, process_counts: tuple[int, ...] | None) -> int:
    """The only number of processes. Raises InputError for several."""
    counts = (2,) if process_counts is None else process_counts
    if len(counts) != 1:
        raise InputError(f"{what} takes one process count, not {len(counts)}, as in --process-counts 2")
    return counts[0]


def _bench_map(config: TrainConfig, processes: int, largest: int | None, output_dir: Path) -> None:
    from ddp_workbook.analysis.break_even import read_map
    from ddp_workbook.measurement.batch_map import FIGURE, map_batches

    record, folder = map_batches(config, processes, largest, output_dir)
    print(f"\n{read_map(record)}\n\nfigure: {folder / FIGURE}")


def _bench_seeds(config: TrainConfig, seeds: int, processes: int, output_dir: Path) -> None:
    from ddp_workbook.analysis.seeds import read_seeds
    from ddp_workbook.course.seed_runs import FIGURE, study_seeds

    study, folder = study_seeds(config, seeds, processes, output_dir)
    print(f"\n{read_seeds(study)}\n\nfigure: {folder / FIGURE}")


def _refuse(what: str, **given: bool) -> None:
    """Raise InputError for a flag that was given and that `what` cannot use."""
    for name in given:
        if given[name]:
            raise InputError(f"{flag(name)} has no meaning for {what}; leave it out")


def predict(
    bandwidth_gbit: float,
    latency_us: float,
    recipe: str = EMBEDDED,
    processes: int = 64,
    node_size: int = 1,
    intra_gbit: float | None = None,
    intra_us: float | None = None,
    noise_scale: float | None = None,
    price: float | None = None,
    results_dir: Path = Path("results"),
) -> None:
    """Predict speedup, duration and cost of a recipe on a network of machines like this one.

    Args:
        bandwidth_gbit: Bandwidth of the network in Gbit/s; between nodes, if they have several processes.
        latency_us: Latency of one message in microseconds.
        recipe: Named run; notebook 04 must have measured it on this machine.
        processes: Largest number of machines to predict for; with --node-size, of processes.
        node_size: Processes of a node, each as fast as this machine's one process; they share the network.
        intra_gbit: Bandwidth inside a node in Gbit/s.
        intra_us: Latency of one message inside a node in microseconds.
        noise_scale: Gradient noise scale in images, if you measured it: how many more epochs a larger batch needs.
        price: Price of one machine (node) for an hour, in any currency; costs are then in that currency.
        results_dir: Folder that holds <recipe>/batch_sweep.json, and gets <recipe>/prediction.png.
    """
    from ddp_workbook.analysis.prediction import predict_network

    config = get_recipe(recipe)
    print(
        predict_network(
            config, results_dir / recipe, bandwidth_gbit, latency_us, processes, price,
            node_size=node_size, intra_gbit=intra_gbit, intra_us=intra_us, noise_scale=noise_scale,
        )
    )  # fmt: skip


def report(recipe: str = EMBEDDED, results_dir: Path = Path("results")) -> None:
    """Write results/<recipe>/report.pdf from the records of finished runs.

    Args:
        recipe: Named run whose records to read.
        results_dir: Folder that holds <recipe>/*.json.
    """
    from ddp_workbook.report.build import build_report

    get_recipe(recipe)
    print(build_report(results_dir / recipe))


def doctor(
    data_dir: Path = Path("data"), results_dir: Path = Path("results"), checkpoint_dir: Path = Path("checkpoints")
) -> None:
    """Check whether a run can work on this machine and suggest fixes; exit code 1 when something must be fixed.

    Args:
        data_dir: Folder with CIFAR-10 and MNIST.
        results_dir: Folder that a run writes its results into.
        checkpoint_dir: Folder that a run writes its model into.
    """
    from ddp_workbook.course.doctor import describe, examine

    findings = examine(data_dir, results_dir, checkpoint_dir)
    print(describe(findings))
    if any(finding.state == "fault" for finding in findings):
        sys.exit(1)


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run, "bench": bench, "trace": trace, "predict": predict, "report": report, "doctor": doctor, "labs": labs,
}  # fmt: skip


def main() -> None:
    open_standard_streams()
    output = WatchedOutput(sys.stdout, on_loss=lambda: signal.raise_signal(signal.SIGTERM))  # nobody can read it
    try:
        with stop_signals_raise(), redirect_stdout(output):
            if sys.argv[1:2] == ["labs"]:
                parse_command(LABS, sys.argv[2:], prog="ddp-workbook labs", description=labs.__doc__)()
            else:
                parse_command(COMMANDS, sys.argv[1:], prog="ddp-workbook", description=__doc__)()
    except InputError as error:
        print(error_line("ddp-workbook", error), file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        sys.exit(128 + stop.number)
    except RuntimeError as error:  # a cell failed and its own error was shown; a traceback from here would hide it
        print(f"ddp-workbook: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
