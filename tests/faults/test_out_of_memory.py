"""A rank without memory. One that the system kills for it looks like every rank that gets SIGKILL: test_ranks.py."""

import sys

import pytest

from ddp_workbook.distributed.launch import LaunchError
from ddp_workbook.distributed.ranks import run_on_ranks

CELL = """
import os, resource, time
import torch

if os.environ["RANK"] == "1":
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    torch.ones(2**29)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce this limit")
def test_a_limit_on_the_memory_of_a_rank_is_an_error_like_others():
    with pytest.raises(LaunchError, match=r"(?s)^rank 1 failed:.*<cell>.*line 9.*can't allocate memory"):
        run_on_ranks(CELL, 2)
