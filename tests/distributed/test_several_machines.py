"""The scripts for clusters: their syntax, and that every flag and variable in them exists."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT
from torch.distributed.run import get_args_parser

from ddp_workbook.flags import parse_run

SLURM = ROOT / "launch" / "slurm.sh"
TRAINJOB = ROOT / "launch" / "trainjob.yaml"


def torchruns_flags(words):
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    return [word.split("=")[0] for word in words if word.startswith("--")], known


def the_command(text):
    """The words of the torchrun command in a shell text, split at the script's name."""
    found = re.search(r"torchrun[\s\\]+(--nnodes.*?)distributed_train\.py(.*?)(?:\n\n|```|\Z)", text, re.DOTALL)
    return found[1].replace("\\\n", " ").split(), found[2].replace("\\\n", " ").split()


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_slurm_script_is_bash():
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert os.access(SLURM, os.X_OK) or os.name != "posix"


@pytest.mark.parametrize("path", [SLURM, ROOT / "launch" / "README.md"], ids=["slurm.sh", "README.md"])
def test_every_flag_of_the_command_exists(path):
    before, after = the_command(path.read_text())
    given, known = torchruns_flags(before)
    assert {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"} == set(given)
    assert set(given) <= known
    assert parse_run(after, "")[0].batch_size == 64


def test_slurms_own_lines_are_options():
    lines = [line for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert len(lines) >= 5
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=[\w%:.-]+", line) for line in lines)


def test_the_trainjob_says_what_trainer_v2_wants():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(TRAINJOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer = job["spec"]["trainer"]
    assert set(job["spec"]) == {"runtimeRef", "trainer"}
    assert set(trainer) == {"numNodes", "image", "command", "args", "env", "resourcesPerNode"}
    assert trainer["command"] == ["torchrun"]
    assert trainer["args"][0] == "distributed_train.py"
    _, after = the_command(SLURM.read_text())
    assert trainer["args"][1:] == after  # the same command on both
    assert trainer["numNodes"] == 2
    assert [(one["name"], one["value"]) for one in trainer["env"]] == [("DDP_TIMEOUT", "300")]


def test_both_set_the_time_out_that_the_package_reads():
    assert "export DDP_TIMEOUT=300" in SLURM.read_text()
