"""Changes of a finished course's records that leave them in agreement with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ddp_workbook.analysis.tables import summarize
from ddp_workbook.config import TrainConfig
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.records.run import HistoryRecord, RunRecord, record_paths
from ddp_workbook.records.timing import BatchSweep, BenchmarkRecord, StepBreakdown


def save_summary(folder: Path) -> None:
    """The summary of the records in the folder, as notebook 04 writes it: one image was classified differently."""
    runs = (load_record(RunRecord, record_paths(folder, kind)[0]) for kind in ("baseline", "distributed"))
    benchmark = load_record(BenchmarkRecord, folder / "benchmark.json")
    save_record(summarize(*runs, benchmark, 1), folder / "test_summary.json")


def change_config(folder: Path, new: TrainConfig) -> None:
    """All records with another configuration, of two epochs; the global batch of 64 stays."""
    for kind, processes in (("baseline", 1), ("distributed", 2)):
        metrics, history = record_paths(folder, kind)
        run, epochs = load_record(RunRecord, metrics), load_record(HistoryRecord, history)
        config = replace(new, batch_size=64 // processes, epochs=2)
        dataset = run.dataset.model_copy(update={"name": new.dataset})
        save_record(run.model_copy(update={"config": config, "recipe": config.recipe, "dataset": dataset}), metrics)
        save_record(epochs.model_copy(update={"recipe": config.recipe}), history)
    timings = {"benchmark.json": BenchmarkRecord, "step_breakdown.json": StepBreakdown, "batch_sweep.json": BatchSweep}
    for name, schema in timings.items():
        record = load_record(schema, folder / name)
        changes = {"recipe": new.recipe, "config": new, "dataset": new.dataset}
        changes = {name: value for name, value in changes.items() if name in schema.model_fields}
        save_record(record.model_copy(update=changes), folder / name)
    save_summary(folder)
