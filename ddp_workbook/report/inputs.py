"""What the report reads: the records of one recipe's finished course."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from ddp_workbook.analysis.speedup import HARDWARE, require_comparable
from ddp_workbook.analysis.tables import summarize
from ddp_workbook.config import PATHS, SPLIT, first_difference
from ddp_workbook.errors import InputError
from ddp_workbook.records.batch_map import BatchMap
from ddp_workbook.records.course import CourseSummary
from ddp_workbook.records.files import load_record
from ddp_workbook.records.run import HistoryRecord, RunRecord, is_close, load_run, record_paths
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, StepBreakdown

BACKENDS = {"gloo": "Gloo", "nccl": "NCCL", None: "no backend"}
SHARED_MEMORY = "shared memory"
SUMMARY, BENCHMARK, WEAK, SWEEP = "test_summary.json", "benchmark.json", "benchmark_weak.json", "batch_sweep.json"
MAP = "batch_map.json"
BREAKDOWN, SHARED_BREAKDOWN = "step_breakdown.json", "step_breakdown_shared_memory.json"
BASELINE, DISTRIBUTED = (record_paths(Path(), kind)[0].name for kind in ("baseline", "distributed"))
MAY_DIFFER = PATHS | SPLIT | {"comm_hook"}
"""Settings that are not the same in all measurements of notebook 04."""
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All records. `breakdowns`: by the road that gradients take, the ordinary all-reduce first."""

    baseline: RunRecord
    baseline_history: HistoryRecord
    distributed: RunRecord
    distributed_history: HistoryRecord
    summary: CourseSummary
    benchmark: BenchmarkRecord
    weak: BenchmarkRecord | None
    breakdowns: dict[str, StepBreakdown]
    sweep: BatchSweep
    batch_map: BatchMap | None

    @property
    def breakdown(self) -> StepBreakdown:
        """That of the ordinary all-reduce."""
        return next(iter(self.breakdowns.values()))

    @property
    def shared(self) -> StepBreakdown | None:
        """That of the all-reduce in shared memory, where it was measured."""
        return self.breakdowns.get(SHARED_MEMORY)

    @property
    def other_machine(self) -> list[str]:
        """How the machine of the timings differs from that of the two runs; empty for one machine."""
        runs, timings = self.baseline.environment, self.benchmark.environment
        return [
            f"{name.replace('_', ' ')} {getattr(timings, name)} instead of {getattr(runs, name)}"
            for name in HARDWARE
            if getattr(timings, name) != getattr(runs, name)
        ]

    @property
    def other_map(self) -> list[str]:
        """In what the batch map differs from the other timings: it is measured on its own, at another time."""
        if self.batch_map is None:
            return []
        ours, theirs = self.batch_map, self.sweep
        names = [name for name in ("dataset", "processes", "threads") if getattr(ours, name) != getattr(theirs, name)]
        names += [name for name in HARDWARE if getattr(ours.environment, name) != getattr(theirs.environment, name)]
        return [name.replace("_", " ") for name in names]


def backend_name(run: RunRecord) -> str:
    """The backend of a run as its makers spell it."""
    return BACKENDS.get(run.world.backend, run.world.backend)


def load_inputs(run_dir: Path) -> Inputs:
    """Every record of the folder; weak scaling, shared memory and the batch map may be absent.

    Raises InputError when another record is missing, or one is corrupt or does not agree with the others.
    """
    (baseline, baseline_history), (distributed, distributed_history) = (
        load_run(run_dir, kind) for kind in ("baseline", "distributed")
    )
    require_comparable(baseline, distributed)
    if distributed.world.batch_sizes:
        raise InputError(
            f"{run_dir / DISTRIBUTED} is of a run with --balance {distributed.config.balance}, and the report can only "
            f"describe one with equal batches; train it again without --balance"
        )
    if distributed.config.shard != "none":
        raise InputError(
            f"{run_dir / DISTRIBUTED} is of a run with --shard {distributed.config.shard}, and the report describes "
            f"DDP; train it again without --shard"
        )
    weak = _load_if_there(BenchmarkRecord, run_dir / WEAK)
    if weak and weak.scaling != "weak":
        raise InputError(f"{run_dir / WEAK} is not of weak scaling; run notebook 04 again")
    breakdowns = {backend_name(distributed): load_record(StepBreakdown, run_dir / BREAKDOWN)}
    if weak and weak.config.comm_hook == "shared-memory":  # else notebook 04 found none, and what is there is older
        shared = _load_if_there(StepBreakdown, run_dir / SHARED_BREAKDOWN)
        breakdowns |= {SHARED_MEMORY: shared} if shared else {}
    inputs = Inputs(
        baseline=baseline,
        baseline_history=baseline_history,
        distributed=distributed,
        distributed_history=distributed_history,
        summary=load_record(CourseSummary, run_dir / SUMMARY),
        benchmark=load_record(BenchmarkRecord, run_dir / BENCHMARK),
        weak=weak,
        breakdowns=breakdowns,
        sweep=load_record(BatchSweep, run_dir / SWEEP),
        batch_map=_load_if_there(BatchMap, run_dir / MAP),
    )
    require_one_course(inputs, run_dir)
    return inputs


def _load_if_there(schema: type[R], path: Path) -> R | None:
    return load_record(schema, path) if path.exists() else None


class Claim(NamedTuple):
    """What two files say of the same thing."""

    what: str
    file: str
    value: object
    other_file: str
    other_value: object


def require_one_course(inputs: Inputs, run_dir: Path) -> None:
    """Raise InputError, naming two files and what they say, unless all records are of one course."""
    for what, file, value, other_file, other in (
        *_same_course(inputs), *_same_measurement(inputs), *_same_conclusions(inputs)
    ):  # fmt: skip
        both_floats = isinstance(value, float) and isinstance(other, float)
        if not (is_close(value, other) if both_floats else value == other):
            raise InputError(
                f"{run_dir / file} does not agree with {other_file}: {what} is {value!r:.50} in one, {other!r:.50} in "
                f"the other; run notebook 04 again"
            )


def _same_course(inputs: Inputs) -> Iterator[Claim]:
    """What was measured is what the two runs did."""
    benchmark, run, ranks = inputs.benchmark, inputs.baseline, inputs.distributed.world.processes
    batches = {each.global_batch for each in benchmark.configurations}
    yield Claim("recipe", BENCHMARK, benchmark.recipe, BASELINE, run.recipe)
    yield Claim("global batch", BENCHMARK, batches, BASELINE, {run.world.global_batch})
    yield Claim("number of processes", BENCHMARK, _processes(benchmark), DISTRIBUTED, {ranks})
    yield Claim("number of parameters", BREAKDOWN, inputs.breakdown.parameters, BASELINE, run.parameters)
    yield Claim("data set", SWEEP, inputs.sweep.dataset, BASELINE, run.dataset.name)


def _same_measurement(inputs: Inputs) -> Iterator[Claim]:
    """What is compared with the benchmark was measured on the same machine, with the same settings."""
    benchmark = inputs.benchmark
    others = {WEAK: inputs.weak, BREAKDOWN: inputs.breakdown, SHARED_BREAKDOWN: inputs.shared, SWEEP: inputs.sweep}
    for file, record in others.items():
        if record is None:
            continue
        yield Claim("number of processes", file, _processes(record), BENCHMARK, _processes(benchmark))
        for name in HARDWARE:
            values = (getattr(each.environment, name) for each in (record, benchmark))
            yield Claim(f"environment.{name}", file, next(values), BENCHMARK, next(values))
        name = None if isinstance(record, BatchSweep) else first_difference(record.config, benchmark.config, MAY_DIFFER)
        if name:
            yield Claim(
                f"config.{name}", file, getattr(record.config, name), BENCHMARK, getattr(benchmark.config, name)
            )


def _processes(record: BenchmarkRecord | StepBreakdown | BatchSweep) -> set[int]:
    """How many processes were measured together."""
    if isinstance(record, BenchmarkRecord):
        return {each.processes for each in record.by_role("distributed")}
    return {record.processes}


def _same_conclusions(inputs: Inputs) -> Iterator[Claim]:
    """The summary follows from the records that it was made of."""
    summary = inputs.summary
    expected = summarize(inputs.baseline, inputs.distributed, inputs.benchmark, summary.rechecked_disagreements)
    said, follows = (dict(_numbers(each.model_dump())) for each in (summary, expected))
    sources = {"distributed": DISTRIBUTED, "accuracy_difference": DISTRIBUTED, "speedups": BENCHMARK}
    for name in said | follows:
        source = sources.get(name.partition(".")[0], BASELINE)
        yield Claim(name, SUMMARY, said.get(name), source, follows.get(name))


def _numbers(content: object, name: str = "") -> Iterator[tuple[str, object]]:
    """(name, value) of all that is in nested dictionaries and lists."""
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content
