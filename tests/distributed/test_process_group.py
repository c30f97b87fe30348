"""Who a process is, which interface Gloo uses, and what is said when the ranks cannot meet."""

import os
import socket
import sys

import pytest
import torch
import torch.distributed as dist

from ddp_workbook.distributed.process_group import (
    LOOPBACK,
    LostConnection,
    World,
    bind_to_loopback,
    bind_to_network,
    process_group,
    read_timeout,
    read_world,
)
from ddp_workbook.errors import InputError

CPU = torch.device("cpu")
VARIABLES = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def torchruns_variables(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)


def test_without_torchrun_a_process_is_the_only_one(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert read_world() == World()
    assert (World().is_main, World().kind) == (True, "baseline")


def test_world_from_torchruns_variables(torchruns_variables, monkeypatch):
    world = read_world()
    assert world == World(rank=3, size=4, local_rank=1, local_size=2, launched=True)
    assert (world.is_main, world.kind) == (False, "distributed")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert read_world().restarts == 2


def test_one_process_under_torchrun_is_a_distributed_run():
    assert World(launched=True).kind == "distributed"


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["four", "1.5", ""])
def test_variables_that_are_no_whole_numbers_are_refused(torchruns_variables, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="must all be whole numbers"):
        read_world()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_variable_that_is_missing_is_named(torchruns_variables, monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=rf"must all be whole numbers \('{name}'\)"):
        read_world()


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "soon", "", "999999", "١"])
def test_a_time_out_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv("DDP_TIMEOUT", text)
    with pytest.raises(InputError, match="DDP_TIMEOUT must be whole seconds from 1 to 99999"):
        read_timeout()


def test_the_time_out_is_ten_minutes_unless_asked_otherwise(monkeypatch):
    monkeypatch.delenv("DDP_TIMEOUT", raising=False)
    assert read_timeout().total_seconds() == 600
    monkeypatch.setenv("DDP_TIMEOUT", "99999")
    assert read_timeout().total_seconds() == 99999


def test_gloo_uses_the_loopback_interface_on_one_machine(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    bind_to_loopback()
    assert os.environ.get("GLOO_SOCKET_IFNAME") == LOOPBACK.get(sys.platform)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    bind_to_loopback()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_gloo_uses_the_interface_that_leads_to_rank_0(monkeypatch):
    """A name that cannot be found leaves the choice to Gloo; a choice that was made stays."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: (_ for _ in ()).throw(socket.gaierror("unknown")))
    bind_to_network()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    monkeypatch.undo()
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    bind_to_network()
    assert os.environ["GLOO_SOCKET_IFNAME"] in ("lo", "lo0") or os.name != "posix"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    bind_to_network()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_a_baseline_has_no_process_group():
    with process_group(World(), "gloo", CPU):
        assert not dist.is_initialized()


@pytest.fixture
def by_hand(monkeypatch):
    """by_hand(port): the variables of ranks that were started without torchrun."""

    def set_port(port):
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK.get(sys.platform, ""))  # so that it is restored afterwards
        monkeypatch.setenv("DDP_TIMEOUT", "1")
        monkeypatch.setenv("MASTER_PORT", str(port))

    return set_port


def join(rank):
    with process_group(World(rank, 2, rank, 2, launched=True), "gloo", CPU):
        raise AssertionError("there is no other rank")


@pytest.mark.parametrize("port", ["", "0", "65536", "http"])
def test_a_port_that_is_no_port_is_refused(by_hand, port):
    by_hand(port)
    with pytest.raises(InputError, match="MASTER_PORT must be a port number"):
        join(rank=0)


def test_a_port_that_is_in_use_is_named(by_hand):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        by_hand(port)
        with pytest.raises(InputError, match=rf"MASTER_PORT {port} cannot be opened \(.*\); choose another"):
            join(rank=0)


def test_a_rank_that_nobody_answers_says_so_in_one_line(by_hand):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    by_hand(port)  # nothing listens there any more
    with pytest.raises(LostConnection, match=r"^rank 1 of 2 lost connection .*DDP_TIMEOUT=1 s\. Fix the cause") as lost:
        join(rank=1)
    assert "\n" not in str(lost.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"), LostConnection),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), LostConnection),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError),
        (ValueError("Connection closed by peer"), ValueError),
    ],
)
def test_only_errors_of_the_network_are_lost_connections(monkeypatch, by_hand, error, expected):
    by_hand(1)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(expected) as raised, process_group(World(1, 2, 1, 2, launched=True), "gloo", CPU):
        raise error
    assert type(raised.value) is expected
