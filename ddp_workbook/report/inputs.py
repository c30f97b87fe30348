"""What the report reads: the records of one recipe's finished course."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ddp_workbook.analysis.speedup import require_comparable
from ddp_workbook.errors import InputError
from ddp_workbook.records.course import CourseSummary
from ddp_workbook.records.files import load_record
from ddp_workbook.records.run import HistoryRecord, RunRecord, load_run
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, StepBreakdown

BACKENDS = {"gloo": "Gloo", "nccl": "NCCL", None: "no backend"}
SHARED_MEMORY = "shared memory"
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

    @property
    def breakdown(self) -> StepBreakdown:
        """That of the ordinary all-reduce."""
        return next(iter(self.breakdowns.values()))

    @property
    def shared(self) -> StepBreakdown | None:
        """That of the all-reduce in shared memory, where it was measured."""
        return self.breakdowns.get(SHARED_MEMORY)


def backend_name(run: RunRecord) -> str:
    """The backend of a run as its makers spell it."""
    return BACKENDS.get(run.world.backend, run.world.backend)


def load_inputs(run_dir: Path) -> Inputs:
    """Every record of the folder; the two that older folders lack may be absent.

    Raises InputError when another record is missing, or one is corrupt or does not fit the others.
    """
    (baseline, baseline_history), (distributed, distributed_history) = (
        load_run(run_dir, kind) for kind in ("baseline", "distributed")
    )
    require_comparable(baseline, distributed)
    weak = _load_if_there(BenchmarkRecord, run_dir / "benchmark_weak.json")
    if weak and weak.scaling != "weak":
        raise InputError(f"{run_dir / 'benchmark_weak.json'} is not of weak scaling; run notebook 04 again")
    breakdowns = {backend_name(distributed): load_record(StepBreakdown, run_dir / "step_breakdown.json")}
    shared = _load_if_there(StepBreakdown, run_dir / "step_breakdown_shared_memory.json")
    return Inputs(
        baseline=baseline,
        baseline_history=baseline_history,
        distributed=distributed,
        distributed_history=distributed_history,
        summary=load_record(CourseSummary, run_dir / "test_summary.json"),
        benchmark=load_record(BenchmarkRecord, run_dir / "benchmark.json"),
        weak=weak,
        breakdowns=breakdowns | ({SHARED_MEMORY: shared} if shared else {}),
        sweep=load_record(BatchSweep, run_dir / "batch_sweep.json"),
    )


def _load_if_there(schema: type[R], path: Path) -> R | None:
    return load_record(schema, path) if path.exists() else None
