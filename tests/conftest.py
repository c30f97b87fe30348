"""Shared by all tests: small data, the folder of a finished course, and functions run on several real processes."""

from __future__ import annotations

import faulthandler
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helper_tries import IN_FULL, LAB_TRIES

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import bind_to_loopback
from ddp_workbook.measurement.workers import Worker, WorkerPool
from ddp_workbook.recipes import RECIPES
from ddp_workbook.training.datasets import Dataset, ImageSet

# Not in `make test`: those that need a minute or more, or a network or a disk of their own.
LONG_FAULTS = (
    "disk", "harmed_files", "invocations", "killed_and_stopped", "network", "ranks_that_fail", "restart",
    "stopped_commands",
)  # fmt: skip
LONG_LABS = ("jupyterlab", "notebooks")
collect_ignore = [] if IN_FULL else [f"faults/test_{name}.py" for name in LONG_FAULTS]
collect_ignore += [] if LAB_TRIES else [f"labs/test_{name}.py" for name in LONG_LABS]

ROOT = Path(__file__).resolve().parent.parent
SECONDS_ON_RANKS = 120  # then the ranks wait for each other without end
os.environ.setdefault("MPLBACKEND", "agg")


def make_data(train: int = 48, test: int = 21, classes: int = 3, size: int = 32) -> Dataset:
    """Random images, each with its own index in its first pixel (low byte red, high byte green)."""
    draws = torch.Generator().manual_seed(0)

    def part(count: int) -> ImageSet:
        images = torch.randint(0, 256, (count, size, size, 3), generator=draws, dtype=torch.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = torch.arange(count) % 256, torch.arange(count) // 256
        return ImageSet(images, torch.randint(classes, (count,), generator=draws))

    names = tuple(f"class {i}" for i in range(classes))
    return Dataset("cifar10", names, part(train), part(test), torch.full((3,), 0.5), torch.full((3,), 0.25))


@pytest.fixture
def data() -> Dataset:
    return make_data()


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """refuse(main, program, arguments): run `main` in this process; its exit code and what it printed on stderr."""

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
    """function(rank, *args) on `ranks` Gloo processes with a thread each; their results in rank order.

    An error on a rank fails the test with that rank's traceback.
    """
    with WorkerPool("the ranks of this test", TrainConfig(device="cpu"), ranks, threads=1) as pool:
        return pool.call(_on_rank, function, *args)


def _on_rank(worker: Worker, function: Callable, *args: object) -> object:
    if not dist.is_initialized():  # a pool of one process has no group, but DDP needs one
        bind_to_loopback()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    faulthandler.dump_traceback_later(SECONDS_ON_RANKS, exit=True)
    try:
        return function(worker.world.rank, *args)
    except BaseException:  # a failed pytest.raises() is no Exception
        raise RuntimeError(traceback.format_exc()) from None
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def course_folder(tmp_path: Path) -> Path:
    """Where a course was finished: records, a report, a checkpoint, report.toml."""
    from helper_bad_invocations import finish_course

    finish_course(tmp_path / "results" / "resnet50-digits")
    (tmp_path / "results" / "resnet50-digits" / "report.pdf").write_text("an earlier report")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "baseline_mlp_digits.pth").write_text("an earlier model")
    (tmp_path / "report.toml").write_bytes((ROOT / "report.toml").read_bytes())
    return tmp_path


@pytest.fixture
def small_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rectangle in place of each figure of the report, but in tests that are marked with `figures`.

    The report's words do not depend on them. They take most of its time, and have tests of their own.
    """
    if "figures" in request.keywords:
        return
    names = ("curves", "confusion", "per_class", "comparison", "speedup", "sync_cost", "timeline", "pay", "scaling")
    small = b'<svg xmlns="http://www.w3.org/2000/svg" width="200" height="100"><rect width="200" height="100"/></svg>'
    monkeypatch.setattr("ddp_workbook.report.build._figures", lambda inputs: dict.fromkeys(names))
    monkeypatch.setattr("ddp_workbook.analysis.plots.to_svg", lambda figure: small)


needs_real_data = pytest.mark.skipif(
    not (ROOT / "data" / "cifar-10-batches-py").exists() or not (ROOT / "data" / "MNIST").exists(),
    reason="CIFAR-10 and MNIST are not under data/ (download them with notebook 01)",
)
