"""Gradient all-reduce through memory that the processes of one machine share, instead of through sockets."""

# No postponed annotations here: DDP checks those of its hook, and wants classes, not strings.

import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_workbook.errors import InputError

FOLDER = Path("/dev/shm")  # on Linux, files in this folder are in memory


def require_shared_memory(device: torch.device, processes: int, local_processes: int, parameters: int = 0) -> None:
    """Raise InputError where the processes cannot share memory, or not enough for a model of so many parameters."""
    if sys.platform == "win32":
        raise InputError("--comm-hook shared-memory needs Linux or macOS; use --comm-hook allreduce")
    if processes == 1:
        raise InputError("--comm-hook shared-memory needs several processes; start them with torchrun")
    if device.type != "cpu":
        raise InputError(f"--comm-hook shared-memory needs --device cpu, not {device.type}: between GPUs NCCL does it")
    if processes != local_processes:
        raise InputError("--comm-hook shared-memory needs all processes on one machine; use --comm-hook allreduce")
    needed = 4 * 2 * processes * parameters
    free = shutil.disk_usage(FOLDER if FOLDER.is_dir() else tempfile.gettempdir()).free
    if needed > free:
        raise _too_little(needed, f"{free // 2**20} MiB are free")


class SharedMemoryAverage:
    """A communication hook for DDP. All ranks must create it together, for a model of `numel` parameters.

    When a bucket is ready, a rank copies its gradients into its own row of a table that all ranks see. After its last
    bucket the ranks wait for each other once, and each adds up all rows. A Gloo all-reduce moves the same bytes through
    sockets: into the kernel and out again, in several rounds, by a second thread on a core that is already computing.

    Two tables are used in turn. A rank that writes into one may be ahead of a rank that still reads the other, but not
    further: before it writes into the same table again, all ranks have passed a barrier after reading it.
    """

    def __init__(self, numel: int) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.tables = _shared_floats(2 * self.ranks * numel).view(2, self.ranks, numel)
        self.tables[:, self.rank].zero_()  # touch the memory now, not in the first step
        self.step = 0
        self._clear()

    def _clear(self) -> None:
        self.filled = 0
        self.waiting: list[tuple[Tensor, Tensor, torch.futures.Future]] = []

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """The hook that DDP calls in backward as soon as a bucket holds all its gradients."""
        gradients = bucket.buffer()
        part = slice(self.filled, self.filled + gradients.numel())
        rows = self.tables[self.step % 2, :, part]
        torch.mul(gradients, 1 / self.ranks, out=rows[self.rank])
        average = torch.futures.Future()
        self.waiting.append((gradients, rows, average))
        self.filled = part.stop
        if bucket.is_last():
            self._average()
        return average

    def _average(self) -> None:
        dist.barrier()
        for gradients, rows, average in self.waiting:
            if self.ranks == 1:
                gradients.copy_(rows[0])
            else:
                torch.add(rows[0], rows[1], out=gradients)
            for row in rows[2:]:
                gradients += row
            average.set_result(gradients)
        self.step += 1
        self._clear()


def _shared_floats(numel: int) -> Tensor:
    """The same new memory on every rank. It is freed when the last of them ends, in whatever way.

    Raises InputError on all ranks when there is not enough memory.
    """
    answer: list[str | InputError | None] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0] = _new_file(4 * numel)
        except OSError as error:
            answer[0] = _too_little(4 * numel, error.strerror)
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], InputError):
        raise answer[0]
    floats = torch.from_file(answer[0], shared=True, size=numel, dtype=torch.float32)
    dist.barrier()
    if dist.get_rank() == 0:
        Path(answer[0]).unlink()  # all ranks have it open: it needs no name any more
    return floats


def _too_little(needed: int, found: str) -> InputError:
    return InputError(
        f"--comm-hook shared-memory needs {needed / 2**20:.0f} MiB of shared memory ({found}); a container gets more "
        f"by --shm-size, or use --comm-hook allreduce"
    )


def _new_file(size: int) -> str:
    """A new file with `size` bytes reserved. Not reserved, missing memory would kill the process at a later write."""
    handle, name = tempfile.mkstemp(prefix="averaging-", dir=FOLDER if FOLDER.is_dir() else None)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
    except OSError:
        Path(name).unlink()
        raise
    finally:
        os.close(handle)
    return name
