"""On one machine only loopback has open ports, and the loopback store does all that torchrun's own does."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import EntryPoint

import psutil
import pytest
from conftest import ROOT, run_on_ranks
from torch.distributed.elastic.rendezvous.api import RendezvousParameters

from ddp_workbook.distributed.launch import torchrun
from ddp_workbook.distributed.quiet_gloo import GLOO_LINE
from ddp_workbook.distributed.rendezvous import serve_store
from ddp_workbook.torchrun_plugin import create_handler, plug_in

LOCAL = {"127.0.0.1", "::1"}
SCRIPT = ROOT / "distributed_train.py"


def listening(process):
    """The addresses at which a process listens; empty when it has ended meanwhile."""
    try:
        return {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    except psutil.Error:
        return set()


class OpenPorts(threading.Thread):
    """Notes, many times a second, at which addresses the processes that were started here have open ports."""

    def __init__(self):
        super().__init__(daemon=True)
        self.addresses, self.most_processes, self.done = set(), 0, threading.Event()

    def run(self):
        while not self.done.wait(0.02):
            family = psutil.Process().children(recursive=True)
            open_now = [listening(process) for process in family]
            self.addresses |= set().union(*open_now)
            self.most_processes = max(self.most_processes, sum(map(bool, open_now)))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def write(tmp_path, body):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(body))
    return path


def test_a_port_that_is_open_to_all_is_seen(tmp_path):
    """torchrun's own store has one: what cannot see it would find nothing in the tests below either."""
    path = write(tmp_path, "import time; time.sleep(1)")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1", str(path)]
    with OpenPorts() as ports:
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=100)
    assert ports.addresses - LOCAL


def test_a_training_run_opens_ports_on_loopback_only(tmp_path):
    flags = ["--recipe", "mlp-digits", "--epochs", "1", "--device", "cpu"]
    folders = ["--results-dir", str(tmp_path / "r"), "--checkpoint-dir", str(tmp_path / "c")]
    with OpenPorts() as ports:
        torchrun([*flags, *folders], 2, SCRIPT, lambda line: None)
    assert ports.addresses
    assert ports.addresses <= LOCAL
    assert ports.most_processes == 3  # torchrun's store and a Gloo socket in each rank: all were seen at once


def own_addresses(rank):
    return sorted(listening(psutil.Process()))


def test_ranks_that_meet_through_a_file_open_ports_on_loopback_only():
    assert run_on_ranks(own_addresses, 2) == [["127.0.0.1"]] * 2


def test_a_restart_meets_again(tmp_path):
    """Rank 1 fails once; then every rank starts again, in a store without the keys of the first attempt."""
    body = """
        import os, sys, time
        import torch, torch.distributed as dist
        from ddp_workbook.distributed.process_group import bind_to_loopback
        bind_to_loopback()
        dist.init_process_group("gloo")
        value = torch.ones(1)
        dist.all_reduce(value)
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os._exit(7)
        dist.all_reduce(value)
        if os.environ["RANK"] == "0":
            print("met", int(value), "after", os.environ["TORCHELASTIC_RESTART_COUNT"], flush=True)
        dist.destroy_process_group()
    """
    command = [sys.executable, "-m", "ddp_workbook.distributed.rendezvous", "--max-restarts=1", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(write(tmp_path, body))], capture_output=True, text=True, cwd=ROOT, timeout=100, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if not GLOO_LINE.search(line)] == ["met 4 after 1"]


def parameters(nodes):
    return RendezvousParameters("loopback", "", "run", 1, nodes)


def test_every_round_has_its_own_store():
    handler = create_handler(parameters(1))
    first, second = handler.next_rendezvous(), handler.next_rendezvous()
    first.store.set("key", "old")
    assert not second.store.check(["key"])
    assert (second.rank, second.world_size, handler.num_nodes_waiting(), handler.is_closed()) == (0, 1, 0, False)


def test_several_machines_are_refused_with_the_backend_to_use():
    with pytest.raises(ValueError, match="--rdzv-backend=c10d"):
        create_handler(parameters(2))


def test_torchrun_finds_the_plug_in_by_its_entry_point():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torchrun.handlers"]
    entry = EntryPoint("loopback", declared["loopback"], "torchrun.handlers")
    assert entry.load() is plug_in
    assert plug_in() is create_handler


def test_the_store_cannot_be_reached_from_another_machine():
    store = serve_store()
    outward = [a.address for nic in psutil.net_if_addrs().values() for a in nic if a.family == socket.AF_INET]
    outward = [address for address in outward if not address.startswith("127.")]
    if not outward:
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError):
        socket.create_connection((outward[0], store.port), timeout=2)
    socket.create_connection(("127.0.0.1", store.port), timeout=2).close()
