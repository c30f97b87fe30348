"""Shared by all tests: small data, a fake finished run, and functions run on several real processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from ddp_workbook.datasets import Dataset, ImageSet
from ddp_workbook.record import DatasetInfo, Environment, EpochRecord, HistoryRecord, RunRecord, WorldInfo
from ddp_workbook.team import process_context
from ddp_workbook.timings import (
    AllReduceTimes,
    AnatomyRecord,
    Arrangement,
    BenchmarkRecord,
    Bucket,
    StepTimes,
    SurveyPoint,
    SurveyRecord,
    SweepRecord,
    Timeline,
)

from ddp_workbook.config import TrainConfig
from ddp_workbook.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("MPLBACKEND", "agg")


def make_data(train: int = 48, test: int = 21, classes: int = 3, size: int = 32) -> Dataset:
    """Random images, each with its own index in its first pixel (low byte red, high byte green)."""
    draws = torch.Generator().manual_seed(0)

    def part(count: int) -> ImageSet:
        images = torch.randint(0, 256, (count, size, size, 3), generator=draws, dtype=torch.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) % 256, torch.arange(count) // 256
        return ImageSet(images, torch.randint(classes, (count,), generator=draws))

    names = tuple(f"class {i}" for i in range(classes))
    return Dataset("cifar10", names, part(train), part(test), True, torch.full((3,), 0.5), torch.full((3,), 0.25))


@pytest.fixture
def data() -> Dataset:
    return make_data()


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """refuse(main, program, arguments): run `main` in this process; its exit code and what it said on stderr."""

    def call(main: Callable[[], None], program: str, arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [program, *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A short run that writes into the test's own folder."""
    return replace(
        RECIPES["resnet50-digits"],
        epochs=1,
        results_dir=tmp_path / "results",
        checkpoint_dir=tmp_path / "checkpoints",
        device="cpu",
    )


def run_on_ranks(function: Callable, ranks: int, *args: object) -> list:
    """function(rank, *args) on `ranks` Gloo processes; their results in rank order. A rank's error fails the test."""
    context = process_context()
    with tempfile.TemporaryDirectory() as folder:
        queue = context.Queue()
        workers = [
            context.Process(target=_rank, args=(function, rank, ranks, str(Path(folder) / "store"), queue, args))
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        try:
            answers = [queue.get(timeout=120) for _ in workers]
        finally:
            for worker in workers:
                worker.join(10)
                worker.kill()
    failed = [text for _, ok, text in answers if not ok]
    assert not failed, "\n".join(failed)
    return [value for _, _, value in sorted(answers, key=lambda answer: answer[0])]


def _rank(function: Callable, rank: int, ranks: int, store: str, queue: multiprocessing.Queue, args: tuple) -> None:
    import torch.distributed as dist

    from ddp_workbook.distributed import bind_to_loopback

    bind_to_loopback()
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=60),
        )
        value = function(rank, *args)
        gc.collect()  # see distributed.process_group
        dist.barrier()
        dist.destroy_process_group()
        queue.put((rank, True, value))
    except Exception:
        queue.put((rank, False, f"rank {rank}:\n{traceback.format_exc()}"))


def make_run(kind: str = "baseline", right: int = 90, **changes: object) -> tuple[RunRecord, HistoryRecord]:
    """A finished run of two classes and 2 x 100 test images, without training one."""
    processes = 1 if kind == "baseline" else 2
    config = replace(RECIPES["resnet50-digits"], epochs=2, batch_size=64 // processes)
    accuracy = 2 * right / 200
    run = RunRecord(
        kind=kind,
        recipe=config.recipe,
        finished_at="2026-01-02T03:04:05+00:00",
        config=config,
        world=WorldInfo(
            processes=processes,
            backend=None if processes == 1 else "gloo",
            threads_per_process=2 // processes,
            oversubscribed=False,
            global_batch=64,
            precision="fp32",
        ),
        environment=Environment(
            cpu="A processor",
            cores=2,
            memory_bytes=8 * 2**30,
            os="Linux",
            python="3.11",
            torch="2.9",
            torchvision="0.24",
            device="cpu",
            accelerator=None,
            accelerator_count=0,
            git_commit="0123456789",
        ),
        dataset=DatasetInfo(
            name="digits", classes=["zero", "one"], train_images=800, test_images=200, fingerprint="0" * 64
        ),
        parameters=23_520_842,
        train_seconds=20.0,
        evaluation_seconds=1.0,
        images_per_second=80.0,
        test_accuracy=accuracy,
        test_loss=0.4,
        peak_memory_bytes=[2**30] * processes,
        accelerator_peak_bytes=[None] * processes,
        confusion=[[right, 100 - right], [100 - right, right]],
    )
    epochs = [
        EpochRecord(
            epoch=number,
            train_loss=1.0 / number,
            train_accuracy=0.4 * number,
            test_loss=0.8 / number,
            test_accuracy=accuracy,
            learning_rate=0.1,
            train_seconds=10.0,
            evaluation_seconds=0.5,
            images_per_second=80.0,
        )
        for number in (1, 2)
    ]
    history = HistoryRecord(kind=kind, recipe=config.recipe, epochs=epochs)
    return run.model_copy(update=changes), history


def make_benchmark() -> BenchmarkRecord:
    """Interleaved timings in which two processes are 1.5 times one thread, 0.9 times all cores, 0.75 of the bound."""
    noise = [1.0, 1.1, 0.95, 1.02, 0.99]
    rates = {
        ("1 process, 1 thread", "serial", 1, 1): 100,
        ("1 process, 2 threads", "serial", 1, 2): 500 / 3,
        ("2 processes, 1 thread each, not communicating", "bound", 2, 1): 200,
        ("2 processes, 1 thread each", "distributed", 2, 1): 150,
    }
    return BenchmarkRecord(
        recipe="resnet50-digits",
        config=RECIPES["resnet50-digits"],
        environment=make_run()[0].environment,
        precision="fp32",
        scaling="strong",
        steps=4,
        arrangements=[
            Arrangement(
                name=name,
                role=role,
                processes=processes,
                threads=threads,
                batch_size=64 // processes,
                images_per_round=256,
                images_per_second=[rate * x for x in noise],
                losses=[[2.0 * x, 1.5 * x, 1.2 * x, 1.1 * x] for x in noise],
                accuracies=[],
            )
            for (name, role, processes, threads), rate in rates.items()
        ],
    )


def make_steps(total: float, count: int = 6, **more: float) -> list[StepTimes]:
    """Steps of so many seconds with a little noise: a tenth data, 0.4 forward, 0.4 backward, a tenth optimizer."""
    noise = [1.0, 1.02, 0.99, 1.01, 1.03, 0.98][:count]
    return [
        StepTimes(
            data=0.1 * total * x, forward=0.4 * total * x, backward=0.4 * total * x, optimizer=0.1 * total * x, **more
        )
        for x in noise
    ]


def make_anatomy() -> AnatomyRecord:
    """Two ranks whose steps take 10 ms alone and 13 ms with averaging; two buckets, the second one exposed."""
    return AnatomyRecord(
        recipe="resnet50-digits",
        config=RECIPES["resnet50-digits"],
        environment=make_run()[0].environment,
        processes=2,
        threads=1,
        precision="fp32",
        parameters=750_000,
        averaged=[make_steps(0.013, collectives=0.006, waited=0.002)] * 2,
        alone=[make_steps(0.010)] * 2,
        timeline=Timeline(
            marks=[0.0, 0.001, 0.005, 0.012, 0.013],
            buckets=[
                Bucket(ready=0.006, done=0.009, bytes=2_000_000),
                Bucket(ready=0.010, done=0.012, bytes=1_000_000),
            ],
        ),
    )


def make_survey() -> SurveyRecord:
    """Steps and all-reduces that follow the cost model exactly: 1 ms + 0.1 ms per image, 20 us, 1 GB/s, 2 processes."""

    def all_reduce(size: int) -> float:
        return size / 1e9 + 2 * 20e-6

    points = []
    for model, size in (("mlp", 2_000_000), ("resnet50", 90_000_000)):
        for images in (8, 32, 128):
            alone = 1e-3 + 1e-4 * images
            points.append(
                SurveyPoint(
                    model=model,
                    images=images,
                    gradient_bytes=size,
                    buckets=1,
                    serial=[1e-3 + 5e-5 * 2 * images] * 3,
                    averaged=[alone + all_reduce(size)] * 3,
                    alone=[alone] * 3,
                )
            )
    return SurveyRecord(
        dataset="digits",
        environment=make_run()[0].environment,
        processes=2,
        threads=1,
        sweep=SweepRecord(
            processes=2,
            samples=[AllReduceTimes(bytes=size, seconds=[all_reduce(size)] * 3) for size in (2**10, 2**20, 2**27)],
        ),
        points=points,
    )


@pytest.fixture
def course_folder(tmp_path: Path) -> Path:
    """Where a course was finished: records, a report, a checkpoint, report.toml."""
    from invocations import finish_course

    finish_course(tmp_path / "results" / "resnet50-digits")
    (tmp_path / "results" / "resnet50-digits" / "report.pdf").write_text("an earlier report")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "baseline_mlp_digits.pth").write_text("an earlier model")
    (tmp_path / "report.toml").write_bytes((ROOT / "report.toml").read_bytes())
    return tmp_path


needs_real_data = pytest.mark.skipif(
    not (ROOT / "data" / "cifar-10-batches-py").exists() or not (ROOT / "data" / "MNIST").exists(),
    reason="CIFAR-10 and MNIST are not under data/ (download them with notebook 01)",
)
