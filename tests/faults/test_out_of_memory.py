"""A rank without memory. One that the system kills for it looks like every rank that gets SIGKILL: test_ranks.py."""

import platform
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


LAB = """
import torch
from ddp_workbook.course.memory_lab import data_bytes, limit_memory, start_threads
from ddp_workbook.distributed.process_group import World
from ddp_workbook.runs.stopping import exit_code_for

start_threads()
limit_memory(2**28, torch.device("cpu"))
before = data_bytes()
kept = torch.ones(2**25)  # half of what is allowed
print(data_bytes() - before >= kept.nbytes, end=" ")
try:
    torch.ones(2**24)
    torch.ones(2**26)
except RuntimeError as error:
    exit_code_for(error, "lab", World())
"""
FREED = """
import torch
from ddp_workbook.course.memory_lab import data_bytes
from ddp_workbook.devices import return_freed_memory

def left_over():
    before = data_bytes()
    pairs = [(torch.ones(2**20), torch.ones(2**15)) for _ in range(16)]
    small = [second for _, second in pairs]
    del pairs
    return data_bytes() - before

torch.ones(2**22)  # from now on glibc keeps pieces of this size
kept = left_over()
return_freed_memory()
print(kept > 2**25, left_over() < 2**22)
"""
KEPT = """
import resource
import torch
from ddp_workbook.devices import keep_freed_memory, return_freed_memory

def new_pages():
    taken = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(3 * 2**21) for _ in range(3)]  # more than glibc keeps by itself
        del tensors
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sorted(taken)[4]

return_freed_memory()
given_back = new_pages()
keep_freed_memory()
print(given_back >= 3 * 12, new_pages() <= 2)  # even where a page has 2 MiB
"""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce this limit")


@LINUX
def test_under_the_limit_of_the_memory_lab_the_error_is_one_line(capsys):
    lines = []
    run_on_ranks(LAB, 1, lines.append)
    assert len(lines) == 1 and lines[0].startswith(
        "True lab: error: out of memory on rank 0, when it asked for 268435456"
    )


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_freed_memory_goes_back_to_the_system():
    """16 tensors of 4 MiB with small ones between them, so that what is freed is not in one piece."""
    lines = []
    run_on_ranks(FREED, 1, lines.append)
    assert lines == ["True True"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
def test_kept_memory_needs_no_new_pages():
    lines = []
    run_on_ranks(KEPT, 1, lines.append)
    assert lines == ["True True"]


@LINUX
def test_a_limit_on_the_memory_of_a_rank_is_an_error_like_others():
    with pytest.raises(LaunchError, match=r"(?s)^rank 1 failed:.*<cell>.*line 9.*can't allocate memory"):
        run_on_ranks(CELL, 2)
