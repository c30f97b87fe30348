"""Records as finished runs and measurements write them, made without running anything."""

from __future__ import annotations

from dataclasses import replace

from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.run import (
    DatasetInfo,
    Environment,
    EpochRecord,
    HistoryRecord,
    RunRecord,
    WorldInfo,
    pack_bits,
)
from ddp_workbook.records.timing import (
    AllReduceBenchmark,
    AllReduceTimes,
    BatchSweep,
    BenchmarkRecord,
    Bucket,
    Configuration,
    StepBreakdown,
    StepTimes,
    SweepPoint,
    Timeline,
)


def make_run(kind: str = "baseline", correct: int = 90, **changes: object) -> tuple[RunRecord, HistoryRecord]:
    """A finished run of two classes and 2 x 100 test images, without training one.

    It has the first 2 x `correct` images right; the images of the two classes take turns.
    """
    processes = 1 if kind == "baseline" else 2
    config = replace(RECIPES["resnet50-digits"], epochs=2, batch_size=64 // processes)
    accuracy = 2 * correct / 200
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
        images_per_second=76.8,
        test_accuracy=accuracy,
        test_loss=0.4,
        peak_memory_bytes=[2**30] * processes,
        accelerator_peak_bytes=[None] * processes,
        confusion=[[correct, 100 - correct], [100 - correct, correct]],
        correct_images=pack_bits([True] * 2 * correct + [False] * 2 * (100 - correct)),
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
            images_per_second=76.8,
        )
        for number in (1, 2)
    ]
    history = HistoryRecord(kind=kind, recipe=config.recipe, epochs=epochs)
    return run.model_copy(update=changes), history


def make_benchmark() -> BenchmarkRecord:
    """Interleaved timings: two processes reach 1.5 times one thread, 0.9 times all cores, 0.75 of the upper bound."""
    noise = [1.0, 1.1, 0.95, 1.02, 0.99]
    rates = {
        ("1 process, 1 thread", "serial", 1, 1): 100,
        ("1 process, 2 threads", "serial", 1, 2): 500 / 3,
        ("2 processes, 1 thread each, not communicating", "no-communication", 2, 1): 200,
        ("2 processes, 1 thread each", "distributed", 2, 1): 150,
    }
    return BenchmarkRecord(
        recipe="resnet50-digits",
        config=RECIPES["resnet50-digits"],
        environment=make_run()[0].environment,
        precision="fp32",
        scaling="strong",
        steps=4,
        configurations=[
            Configuration(
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


def make_breakdown() -> StepBreakdown:
    """Two ranks whose steps take 10 ms under no_sync and 13 ms synced; two buckets, the second one exposed."""
    return StepBreakdown(
        recipe="resnet50-digits",
        config=RECIPES["resnet50-digits"],
        environment=make_run()[0].environment,
        processes=2,
        threads=1,
        precision="fp32",
        parameters=23_520_842,
        synced=[make_steps(0.013, collectives=0.006, waited=0.002)] * 2,
        no_sync=[make_steps(0.010)] * 2,
        timelines=[
            Timeline(
                marks=[0.0, 0.001, 0.005, 0.012, 0.013],
                buckets=[
                    Bucket(ready=0.006, done=0.009, bytes=2_000_000),
                    Bucket(ready=0.010, done=0.012, bytes=1_000_000),
                ],
            ),
            Timeline(
                marks=[0.001, 0.002, 0.005, 0.012, 0.0135],
                buckets=[
                    Bucket(ready=0.0065, done=0.0091, bytes=2_000_000),
                    Bucket(ready=0.0105, done=0.0119, bytes=1_000_000),
                ],
            ),
        ],
    )


def make_sweep(processes: int = 2) -> BatchSweep:
    """Steps and all-reduces that follow the cost model exactly: 1 ms + 0.1 ms per image, 20 us, 1 GB/s.

    More processes than the two cores take turns.
    """
    messages, crowding = 2 * (processes - 1), max(1.0, processes / 2)

    def all_reduce(size: int) -> float:
        return messages / processes * size / 1e9 + messages * 20e-6

    points = []
    for model, size in (("mlp", 2_000_000), ("resnet50", 90_000_000)):
        for images in (8, 32, 128):
            no_sync = crowding * (1e-3 + 1e-4 * images)
            points.append(
                SweepPoint(
                    model=model,
                    images=images,
                    gradient_bytes=size,
                    buckets=1,
                    serial=[1e-3 + 5e-5 * processes * images] * 3,
                    synced=[no_sync + all_reduce(size)] * 3,
                    no_sync=[no_sync] * 3,
                )
            )
    return BatchSweep(
        dataset="digits",
        environment=make_run()[0].environment,
        processes=processes,
        threads=1,
        all_reduce=AllReduceBenchmark(
            processes=processes,
            samples=[AllReduceTimes(bytes=size, seconds=[all_reduce(size)] * 3) for size in (2**10, 2**20, 2**27)],
        ),
        points=points,
    )
