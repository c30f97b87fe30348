"""Gloo's line: kept away where an old torch would print it, and the group left alone where none does."""

import os

import pytest
import torch
from torch.distributed import distributed_c10d
from torch.torch_version import TorchVersion

from ddp_workbook.distributed.quiet_gloo import GLOO_LINE, silence_gloo


class OldGloo:
    """What a group of torch 2.9 does: it prints past sys.stdout."""

    def __init__(self, *arguments, **options):
        os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\n")
        self.arguments = arguments
        if options.get("broken"):
            raise RuntimeError("no connection")


@pytest.fixture
def old_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.0+cpu"))
    monkeypatch.setattr(distributed_c10d, "ProcessGroupGloo", OldGloo)


def test_the_line_is_printed_otherwise(old_torch, capfd):
    distributed_c10d.ProcessGroupGloo()
    assert GLOO_LINE.search(capfd.readouterr().out)


def test_an_old_torch_makes_its_groups_in_silence(old_torch, capfd):
    silence_gloo()
    silence_gloo()
    group = distributed_c10d.ProcessGroupGloo(1, 2)
    assert isinstance(group, OldGloo)
    assert group.arguments == (1, 2)
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"


def test_a_group_that_fails_gives_stdout_back(old_torch, capfd):
    silence_gloo()
    with pytest.raises(RuntimeError, match="no connection"):
        distributed_c10d.ProcessGroupGloo(broken=True)
    os.write(1, b"afterwards\n")
    assert capfd.readouterr().out == "afterwards\n"


def test_a_newer_torch_keeps_its_own_group(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cpu"))
    before = distributed_c10d.ProcessGroupGloo
    silence_gloo()
    assert distributed_c10d.ProcessGroupGloo is before
