"""Environment variables and names that cannot be: refused at once, in one line that names them."""

import multiprocessing.forkserver
import multiprocessing.process
import os
import sys
import tempfile
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from conftest import make_data
from helper_interrupted_runs import SMALL, in_folder, train

import distributed_train
from ddp_workbook.course import doctor, notebook
from ddp_workbook.distributed.process_group import LOOPBACK, World, process_group
from ddp_workbook.distributed.ranks import run_on_ranks
from ddp_workbook.errors import InputError
from ddp_workbook.labs.notebook import load_ipython_extension
from ddp_workbook.records.run import load_run

posix = pytest.mark.skipif(os.name != "posix", reason="names in bytes, interfaces and sockets as POSIX has them")
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    "values", [(5, 2, 0, 2), (-1, 2, 0, 2), (0, 0, 0, 1), (0, -2, 0, 1), (0, 2, 2, 2), (0, 2, -1, 2), (0, 2, 0, 4)]
)
def test_a_rank_that_cannot_be(values, refuse, monkeypatch):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, str(value))
    code, printed = refuse(distributed_train.main, "distributed_train.py", ["--recipe", "mlp-digits"])
    rank, size, local_rank, local_size = values
    given = f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank}, LOCAL_WORLD_SIZE={local_size} cannot be"
    assert (code, given in printed, len(printed.splitlines())) == (2, True, 1), printed


def join(world, backend="gloo"):
    with process_group(world, backend, torch.device("cpu")):
        raise AssertionError("there is no other rank")


ONE_MACHINE, TWO_MACHINES = World(0, 2, 0, 2, launched=True), World(0, 2, 0, 1, launched=True)


@pytest.fixture
def variables(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": LOOPBACK.get(sys.platform, ""),
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("world", [ONE_MACHINE, TWO_MACHINES])
@pytest.mark.parametrize("port", ["²", "٣", "000080000", " 80", "-1"])
def test_a_port_that_cannot_be(port, world, variables):
    variables.setenv("MASTER_PORT", port)
    with pytest.raises(InputError, match="MASTER_PORT must be a port number, not"):
        join(world)


def test_several_machines_without_an_address(variables):
    variables.delenv("MASTER_ADDR")
    with pytest.raises(InputError, match="MASTER_ADDR must be the address of rank 0's machine"):
        join(TWO_MACHINES)


@posix
@pytest.mark.parametrize("world", [ONE_MACHINE, TWO_MACHINES])
def test_a_network_interface_that_does_not_exist(world, variables):
    """Gloo itself would try to connect until the time-out."""
    variables.setenv("GLOO_SOCKET_IFNAME", "eth9")
    line = r"GLOO_SOCKET_IFNAME=eth9 is not a network interface of this machine, which has: (.*, )?lo0?\b"
    with pytest.raises(InputError, match=line):
        join(world)
    with pytest.raises(InputError, match=line):
        run_on_ranks("print('no rank should start')", 2)


@posix
@pytest.mark.parametrize("flag", ["results-dir", "checkpoint-dir", "data-dir"])
def test_a_folder_whose_name_is_not_utf_8(flag, refuse):
    """Or one that is, where Python was told to use ASCII: it then gets the same kind of text."""
    name = os.fsdecode(b"caf\xe9")
    code, printed = refuse(
        distributed_train.main, "distributed_train.py", ["--recipe", "mlp-digits", f"--{flag}", name]
    )
    assert (code, len(printed.splitlines())) == (2, 1), printed
    assert f"--{flag} must be a name in UTF-8, not 'caf\\udce9'" in printed


@posix
def test_a_folder_with_any_other_name_can_be_stored(tmp_path):
    config = in_folder(replace(SMALL, epochs=1), tmp_path / "größe-日本 \"'%$\n")
    assert train(config, make_data())
    assert load_run(config.run_dir, "baseline")[0].config == config


@posix
def test_a_temporary_folder_whose_name_is_too_long_for_a_socket(tmp_path, monkeypatch):
    """A server of processes has its socket there; the one of the tests before may run already."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setitem(multiprocessing.process.current_process()._config, "tempdir", str(folder))
    server = multiprocessing.forkserver.ForkServer()
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", server.ensure_running)
    line = (
        f"the temporary folder, TMPDIR={folder}, is too long for a socket in it; set TMPDIR to a folder with a shorter"
    )
    with pytest.raises(InputError, match=line):
        run_on_ranks("print('no rank should start')", 2)
    shell = MagicMock()
    load_ipython_extension(shell)  # the labs load all the same: the first judged answer says it
    shell.register_magic_function.assert_called_once()
    finding = doctor.check_all_reduce()
    assert (finding.state, line in finding.fix, "\n" in finding.fix) == ("fault", True, False)


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "seco', b"\xff\xfe"])
def test_corrupt_notebook_times_are_written_anew(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "results" / "mlp-digits" / "notebook_times.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setattr(notebook, "_clock", {"started": 0.0, "notebook": "02", "recipe": "mlp-digits"})
    notebook.finish()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert "notebook_times.json does not fit: the file: Invalid JSON" in printed[0]
    assert printed[0].startswith("the earlier times are lost (")
    assert printed[0].endswith("); a new file replaces them")
    notebook.finish()
    assert len(capsys.readouterr().out.splitlines()) == 1
