"""Ranks that die, and ranks that somebody starts by hand."""

import os
import socket
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from conftest import ROOT

from ddp_workbook.distributed.launch import LaunchError, torchrun

SCRIPT = ROOT / "distributed_train.py"

JOIN = """
    import os, psutil, torch
    from ddp_workbook.distributed.collectives import all_reduce_sum
    from ddp_workbook.distributed.process_group import process_group, read_world
    with process_group(read_world(), "gloo", torch.device("cpu")):
        total = all_reduce_sum(torch.ones(1)).item()
        found = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}
        print(total, sorted(found), flush=True)
"""


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_ranks_started_by_hand_open_ports_only_on_loopback(tmp_path, free_port):
    """Without torchrun rank 0 has to serve the store itself; torch's env:// would open it to all."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(JOIN))
    base = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(free_port)}
    base |= {"PYTHONPATH": str(ROOT)}
    base.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(path)], env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [rank.communicate(timeout=60)[0].strip() for rank in ranks] == ["2.0 ['127.0.0.1']"] * 2


def test_a_rank_that_dies_is_reported_in_one_line(tmp_path):
    """The other rank reports the lost connection, without a traceback, long before the time-out."""
    run = ["--recipe", "mlp-digits", "--epochs", "400", "--device", "cpu"]
    run += ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
    lines, killed = [], []

    def kill_rank_1(line):
        lines.append(line)
        if line.startswith("epoch") and not killed:
            ranks = psutil.Process().children(recursive=True)
            killed.extend(one for one in ranks if one.environ().get("RANK") == "1")
            killed[0].kill()

    start = time.monotonic()
    with pytest.raises(LaunchError, match=r"^rank 1 died without an error of its own \(SIGKILL"):
        torchrun(run, 2, SCRIPT, kill_rank_1)
    assert time.monotonic() - start < 60
    reports = [line for line in lines if "lost connection to another rank" in line and line.startswith("distributed_")]
    assert len(reports) <= 1  # torchrun may end that rank before it has printed
    assert not any(line.startswith("[rank") for line in lines)  # how torch begins the lines of a traceback in a rank


def test_torchrun_knows_the_loopback_store_where_the_workbook_is_installed(tmp_path):
    """What `pip install` leaves, made by hand: the entry points of pyproject.toml."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "ddp_workbook-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ddp-workbook\nVersion: 0.1.0\n")
    (name, target), *_ = project["entry-points"]["torchrun.handlers"].items()
    (info / "entry_points.txt").write_text(f"[torchrun.handlers]\n{name} = {target}\n")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(JOIN))
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=loopback", "--nproc_per_node=1", str(program)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1.0 ['127.0.0.1']"
