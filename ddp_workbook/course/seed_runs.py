"""Several seeds of a recipe, serial and distributed: finished runs are used, interrupted ones resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ddp_workbook.analysis import plots, plots_seeds
from ddp_workbook.analysis.speedup import HARDWARE
from ddp_workbook.config import CheckpointOptions, TrainConfig
from ddp_workbook.course.interrupts import Interrupted
from ddp_workbook.course.notebook import distributed_config
from ddp_workbook.devices import choose_device
from ddp_workbook.distributed.launch import torchrun, training_script
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.errors import InputError
from ddp_workbook.flags import to_flags
from ddp_workbook.records.files import require_replaceable, save_record
from ddp_workbook.records.run import RunKind, RunRecord, load_run
from ddp_workbook.records.seeds import SeedPair, SeedRun, SeedStudy
from ddp_workbook.runs.outputs import finished_run
from ddp_workbook.runs.stopping import Stopped

FILE, FIGURE = "seeds.json", "seeds.png"
MOST_SEEDS = 1000


def study_seeds(
    config: TrainConfig,
    seeds: int,
    processes: int,
    output_dir: Path,
    report: Callable[[str], None] = lambda line: print(line, flush=True),
) -> tuple[SeedStudy, Path]:
    """Both runs with `seeds` seeds, from config.seed on; the record and its folder output_dir/<recipe>.

    `config` is the baseline's, with the whole global batch. Raises InputError for numbers that make no sense.
    """
    if not 2 <= seeds <= MOST_SEEDS:
        raise InputError(f"--seeds must be from 2 to {MOST_SEEDS}, not {seeds}: one seed has no spread")
    if not 2 <= processes <= MOST_PROCESSES:
        raise InputError(f"a process count must be from 2 to {MOST_PROCESSES}, not {processes}")
    config = replace(config, device=choose_device(config.device, processes).type)
    ways: dict[RunKind, tuple[TrainConfig, int]] = {
        "baseline": (config, 1),
        "distributed": (distributed_config(config, processes), processes),
    }
    folder = output_dir / config.recipe
    for name in (FILE, FIGURE):
        require_replaceable(folder / name)
    pairs, runs, first = [], {}, None
    for seed in range(config.seed, config.seed + seeds):
        for kind, (settings, count) in ways.items():
            report(f"seed {seed}, {count} process{'es' if count > 1 else ''}:")
            runs[kind] = _run(replace(settings, seed=seed), kind, count, output_dir, report)
            first = first or runs[kind]
            _require_alike(first, runs[kind], seed)
        pairs.append(SeedPair(seed=seed, **{kind: _result(run) for kind, run in runs.items()}))
    run = runs["distributed"]
    study = SeedStudy(
        recipe=config.recipe,
        epochs=config.epochs,
        global_batch=run.world.global_batch,
        processes=processes,
        dataset=run.dataset,
        environment=run.environment,
        pairs=pairs,
    )
    save_record(study, folder / FILE)
    plots.write_png(plots_seeds.seeds(study), folder / FIGURE)
    return study, folder


def _run(
    config: TrainConfig, kind: RunKind, processes: int, output_dir: Path, report: Callable[[str], None]
) -> RunRecord:
    """A run of the course with this seed, else one in the seed's own folder: finished, resumed, or trained."""
    own = output_dir / "seeds" / f"seed_{config.seed}"
    config = replace(config, results_dir=output_dir)
    own_config = replace(config, results_dir=own, checkpoint_dir=own / "checkpoints")
    for each in (config, own_config):
        found = finished_run(each, kind, processes)
        if found and found[0].correct_images:  # runs of earlier versions lack them
            report(f"the finished run of {found[0].finished_at} is used: {found[0].test_accuracy:.2%}")
            return found[0]
    try:
        if kind == "baseline":
            training_script().run(own_config, CheckpointOptions(resume=True), World())
        else:
            torchrun([*to_flags(own_config), "--resume"], processes, on_line=report)
    except Stopped as stop:
        raise Interrupted(stop.number, "stopped; to resume: the same command") from None
    except KeyboardInterrupt as stop:
        stop.args = ("stopped; to resume: the same command",)  # the command's last line
        raise
    return load_run(own_config.run_dir, kind)[0]


def _require_alike(first: RunRecord, run: RunRecord, seed: int) -> None:
    """Raise InputError unless both come from one kind of machine: rounding and precision are no luck of a seed."""
    facts = [(name, getattr(first.environment, name), getattr(run.environment, name)) for name in HARDWARE]
    facts.append(("precision", first.world.precision, run.world.precision))
    for name, expected, found in facts:
        if found != expected:
            raise InputError(
                f"seed {seed} was trained with {name} {found!r:.40}, seed {first.config.seed} with {expected!r:.40}: a "
                f"study is of one machine; give it another folder, --output-dir DIR"
            )


def _result(run: RunRecord) -> SeedRun:
    return SeedRun(**{name: getattr(run, name) for name in SeedRun.model_fields})
