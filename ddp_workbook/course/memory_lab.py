"""The memory lab: a run under a limit on the memory of each process. Unsharded it does not fit, sharded it does.

Run as a script, this file is a rank of that run: distributed_train.py with the limit.
"""

from __future__ import annotations

import mmap
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record

from ddp_workbook.config import TrainConfig
from ddp_workbook.devices import choose_device, prepare_cpu
from ddp_workbook.distributed.agent import end_with_torchrun
from ddp_workbook.distributed.launch import show, torchrun, training_script
from ddp_workbook.distributed.process_group import leave_group, read_world
from ddp_workbook.errors import InputError
from ddp_workbook.flags import parse_run, to_flags
from ddp_workbook.records.run import RunRecord, load_run
from ddp_workbook.runs.stopping import exit_code_for
from ddp_workbook.training.datasets import load_dataset


def train_under_limit(
    config: TrainConfig, processes: int, limit: int, on_line: Callable[[str], None] = show
) -> RunRecord:
    """A run under torchrun in which no process may take more than `limit` bytes beyond what it has when it begins.

    `on_line` gets what it prints. Its files are not kept; the record is returned. Raises InputError, of one line, when
    a process is out of memory, and where the system cannot limit it.
    """
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        config = replace(config, results_dir=Path(folder), checkpoint_dir=Path(folder))
        torchrun([str(limit), *to_flags(config)], processes, Path(__file__), on_line)
        return load_run(config.run_dir, "distributed")[0]


def limit_memory(extra: int, device: torch.device) -> None:
    """From now on this process may take `extra` bytes beyond what it has: of its GPU, or of main memory.

    Raises InputError where the system does not enforce such a limit.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(extra / total, 1.0), device)
        return
    if sys.platform == "linux":
        import resource  # other systems do not have it

        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + extra, hard))
        with suppress(OSError, ValueError), mmap.mmap(-1, 2 * extra, flags=private):
            resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # the limit let this pass
            raise InputError("this system sets a limit on memory and does not enforce it; try it on another Linux")
        return
    raise InputError("only Linux limits the memory of a process; on other systems this needs a GPU of CUDA")


def data_bytes() -> int:
    """What this process can write to and shares with no other one, on Linux: what its limit RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmData:\s+(\d+) kB", status)[1]) * 1024


def start_threads() -> None:
    """Let torch start the threads that compute forward and backward: their stacks are no part of the training."""
    image = torch.zeros(8, 8, 32, 32, requires_grad=True)
    nn.Conv2d(8, 8, 3)(image).sum().backward()


@record  # torchrun then shows the error of the rank that failed first
def main() -> None:
    """One rank of the run; the arguments are the limit in bytes, and flags of distributed_train.py."""
    limit, *flags = sys.argv[1:]
    config, options = parse_run(flags, __doc__)
    world = read_world()
    end_with_torchrun(world)
    try:
        prepare_cpu(config, world.local_size)
        start_threads()
        load_dataset(config)  # so that the libraries that read it do not count
        limit_memory(int(limit), choose_device(config.device, world.size, world.local_rank))
        training_script().run(config, options, world)
        return
    except (InputError, RuntimeError, MemoryError) as error:
        code = exit_code_for(error, Path(__file__).name, world)
    leave_group(together=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
