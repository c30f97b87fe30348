"""distributed_train.py itself: real runs on 1, 2 and 3 processes, and the input that it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import distributed_train
from ddp_workbook import devices
from ddp_workbook.analysis.speedup import require_comparable
from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.launch import torchrun
from ddp_workbook.errors import InputError
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.run import load_run
from ddp_workbook.runs.checkpoint import read_checkpoint

SCRIPT = ROOT / "distributed_train.py"
FLAGS = ["--recipe", "resnet50-digits", "--epochs", "1", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--recipe", "cnn-digits", *FLAGS[2:]]


def folders(path):
    return ["--results-dir", str(path / "results"), "--checkpoint-dir", str(path / "checkpoints")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A serial run and one on two processes, with the same global batch."""
    path = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(SCRIPT), *SMALL, *folders(path), "--tensorboard"]
    serial = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=300)
    assert serial.returncode == 0, serial.stderr
    lines = []
    torchrun([*SMALL, *folders(path), "--tensorboard", "--batch-size", "32"], 2, SCRIPT, lines.append)
    return path, serial.stdout, "\n".join(lines)


def test_both_runs_leave_complete_comparable_records(runs):
    path = runs[0] / "results" / "cnn-digits"
    (baseline, history), (distributed, _) = (load_run(path, kind) for kind in ("baseline", "distributed"))
    require_comparable(baseline, distributed)
    assert (baseline.world.processes, distributed.world.processes) == (1, 2)
    assert (baseline.world.backend, distributed.world.backend) == (None, "gloo")
    assert (baseline.world.global_batch, distributed.world.global_batch) == (64, 64)
    weights = read_checkpoint(runs[0] / "checkpoints" / "baseline_cnn_digits.pth")["model"]  # a CNN has no buffers
    assert baseline.parameters == distributed.parameters == sum(each.numel() for each in weights.values())
    assert len(distributed.peak_memory_bytes) == 2
    assert sum(map(sum, distributed.confusion)) == 360
    assert [figure.name for figure in path.glob("*.png")] == ["training_plots_worldsize_2.png"]
    assert history.epochs[0].images_per_second == pytest.approx(22 * 64 / history.epochs[0].train_seconds)


def test_both_runs_leave_checkpoints_of_the_same_plain_model(runs):
    found = [
        read_checkpoint(runs[0] / "checkpoints" / f"{kind}_cnn_digits.pth") for kind in ("baseline", "distributed")
    ]
    assert list(found[0]["model"]) == list(found[1]["model"])
    assert not any(name.startswith("module.") for name in found[1]["model"])
    first, second = (next(iter(content["model"].values())) for content in found)
    assert not torch.equal(first, second)
    assert torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0) > 0.5  # one seed, one start


def test_only_one_rank_prints(runs):
    assert runs[2].count("test accuracy") == 1
    line = "epoch  1/1  loss"  # of a finished epoch; a slow machine also prints lines with "step"
    assert runs[1].count(line) == runs[2].count(line) == 1


def test_tensorboard_events_hold_the_history(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = runs[0] / "results" / "cnn-digits"
    for kind in ("baseline", "distributed"):
        events = EventAccumulator(str(path / "tensorboard" / kind))
        events.Reload()
        _, history = load_run(path, kind)
        assert events.Scalars("test_accuracy")[0].value == pytest.approx(history.epochs[0].test_accuracy)
    written = events.Scalars("communication/gradient_bytes")[0].value
    assert written == pytest.approx(history.epochs[0].communication.gradient_bytes)


def test_three_processes_with_accumulation_and_bf16_gradients(tmp_path):
    flags = [*SMALL, *folders(tmp_path), "--batch-size", "16", "--grad-accum-steps", "2", "--comm-hook", "bf16"]
    torchrun(flags, 3, SCRIPT, lambda line: None)
    run, _ = load_run(tmp_path / "results" / "cnn-digits", "distributed")
    assert run.world.processes == 3
    assert run.world.global_batch == 96
    assert run.world.oversubscribed == (devices.available_cores() < 3)
    assert sum(map(sum, run.confusion)) == 360


def test_the_mnist_and_imagefolder_recipes_differ_from_cifar10_only_in_data_and_epochs():
    cifar10 = RECIPES["resnet50-cifar10"]
    for name in ("resnet50-mnist", "resnet50-imagefolder"):
        assert replace(RECIPES[name], dataset="cifar10", epochs=cifar10.epochs) == cifar10


@pytest.fixture
def script_refuses(refuse):
    """script_refuses(arguments): the script's main with these flags; its exit code and what it printed on stderr."""
    return lambda arguments: refuse(distributed_train.main, "distributed_train.py", arguments)


REFUSED = {
    "unknown recipe": (["--recipe", "x"], "choose one of"),
    "unknown flag": (["--x"], "Unrecognized options"),
    "unknown data set": (["--dataset", "x"], "invalid choice"),
    "batch size 0": (["--batch-size", "0"], "at least 1"),
    "batch size negative": (["--batch-size", "-1"], "at least 1"),
    "batch larger than the shard": ([*FLAGS, "--batch-size", "2000"], "larger than a process's share"),
    "epochs 0": (["--epochs", "0"], "at least 1"),
    "nccl without cuda": ([*FLAGS, "--backend", "nccl"], "needs CUDA devices"),
    "a device that is not there": (["--device", "mps"], "not available on this machine"),
    "fp16 on a cpu": (["--device", "cpu", "--precision", "fp16"], "needs an accelerator"),
    "image folder missing": (["--dataset", "imagefolder", "--data-dir", "nowhere"], "must hold one folder"),
    "image folder without images": (["--dataset", "imagefolder", "--data-dir", "ddp_workbook"], "must hold one folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_code_2_and_one_line(case, monkeypatch, script_refuses, tmp_path):
    arguments, message = REFUSED[case]
    earlier = tmp_path / "results" / "resnet50-digits" / "baseline_metrics.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("an earlier result")
    monkeypatch.chdir(ROOT)
    code, printed = script_refuses([*arguments, *folders(tmp_path)])
    assert code == 2
    assert message in printed
    assert printed.startswith("distributed_train.py: error: ")
    assert len(printed.strip().splitlines()) == 1
    assert earlier.read_text() == "an earlier result"


def test_bf16_without_the_hardware_for_it(monkeypatch, script_refuses):
    monkeypatch.setattr(devices, "has_bf16", lambda device: False)
    code, printed = script_refuses([*FLAGS[:-1], "bf16"])
    assert (code, "use --precision fp32 or auto" in printed) == (2, True)


def test_results_folder_that_cannot_be_written(monkeypatch, script_refuses, tmp_path):
    (tmp_path / "results").write_text("in the way")
    code, printed = script_refuses([*FLAGS, *folders(tmp_path)])
    assert (code, "choose a writable folder" in printed) == (2, True)


def test_empty_data_folder_without_network(monkeypatch, script_refuses, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", no_network)
    (tmp_path / "data").mkdir()
    arguments = ["--device", "cpu", "--data-dir", str(tmp_path / "data"), *folders(tmp_path)]
    code, printed = script_refuses(arguments)
    assert (code, "use --recipe resnet50-digits" in printed) == (2, True)


def test_tensorboard_that_is_not_installed(monkeypatch, script_refuses, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, printed = script_refuses([*FLAGS, *folders(tmp_path), "--tensorboard"])
    assert (code, "pip install tensorboard" in printed) == (2, True)


class Steps:
    """Callback that counts."""

    def __init__(self):
        self.steps = self.epochs = 0

    def after_step(self, state):
        self.steps += 1

    def after_epoch(self, state):
        self.epochs += 1


def test_a_callers_callback_sees_every_step_of_a_run_started_with_arguments(tmp_path):
    callback = Steps()
    flags = ["--recipe", "mlp-digits", "--epochs", "2", "--device", "cpu", "--batch-size", "64"]
    distributed_train.main([*flags, *folders(tmp_path)], [callback])
    assert (callback.steps, callback.epochs) == (2 * 22, 2)
    _, history = load_run(tmp_path / "results" / "mlp-digits", "baseline")
    assert len(history.epochs) == 2


def test_under_torchrun_bad_input_is_reported_once(tmp_path):
    lines = []
    with pytest.raises(InputError, match="--batch-size must be at least 1, not 0"):
        torchrun([*FLAGS, "--batch-size", "0"], 2, SCRIPT, lines.append)
    assert not lines


def test_a_run_that_diverges_on_two_ranks_writes_nothing(tmp_path):
    flags = [*SMALL, "--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c"), "--lr", "1e30"]
    with pytest.raises(InputError, match="training diverged"):
        torchrun(flags, 2, SCRIPT, lambda line: None)
    assert not list(Path(tmp_path / "r").rglob("*.json"))


def test_the_script_runs_without_a_terminal_or_a_home(tmp_path):
    """No colour codes, no bar, no cache folder needed: what a batch system gives."""
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "VIRTUAL_ENV", "SYSTEMROOT")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert "--comm-hook" in done.stdout
    assert TrainConfig().recipe in done.stdout
