"""Averaging gradients through memory that the processes of one machine share, instead of through sockets."""

# No postponed annotations here: DDP checks those of its hook, and wants classes, not strings.

import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_workbook.errors import InputError

FOLDER = Path("/dev/shm")  # Linux keeps what lies here in memory


def require_shared_memory(device: torch.device, processes: int, local_processes: int) -> None:
    """Raise InputError where processes cannot average through shared memory."""
    if sys.platform == "win32":
        raise InputError("--averaging shared-memory needs Linux or macOS; use --averaging all-reduce")
    if processes == 1:
        raise InputError("--averaging shared-memory needs several processes; start them with torchrun")
    if device.type != "cpu":
        raise InputError(f"--averaging shared-memory needs --device cpu, not {device.type}: GPUs average by NCCL")
    if processes != local_processes:
        raise InputError("--averaging shared-memory needs all processes on one machine; use --averaging all-reduce")


class SharedMemoryAverage:
    """A communication hook for DDP. Every rank must make one, at the same time, for a model of `numel` parameters.

    As a bucket becomes ready, a rank copies its share into its own row of a table that all ranks see. When its last
    bucket is there, the ranks meet once, and each adds up all rows. An all-reduce moves the same bytes through sockets:
    into the kernel and out again, in several rounds, with a second thread to do it on a core that computes already.

    Two tables take turns. A rank that writes into the one may be ahead of a rank that still reads the other, but not
    further: to come back to a table it must have met all the others after they were done with it.
    """

    def __init__(self, numel: int) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.tables = _shared_floats(2 * self.ranks * numel).view(2, self.ranks, numel)
        self.tables[:, self.rank].zero_()  # the first touch finds the memory; not in the first step
        self.step = 0
        self._clear()

    def _clear(self) -> None:
        self.filled = 0
        self.waiting: list[tuple[Tensor, Tensor, torch.futures.Future]] = []

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP calls in backward as soon as all gradients of a bucket are there."""
        gradients = bucket.buffer()
        place = slice(self.filled, self.filled + gradients.numel())
        rows = self.tables[self.step % 2, :, place]
        torch.mul(gradients, 1 / self.ranks, out=rows[self.rank])
        average = torch.futures.Future()
        self.waiting.append((gradients, rows, average))
        self.filled = place.stop
        if bucket.is_last():
            self._average()
        return average

    def _average(self) -> None:
        dist.barrier()
        for gradients, rows, average in self.waiting:
            gradients.copy_(rows[0]) if self.ranks == 1 else torch.add(rows[0], rows[1], out=gradients)
            for row in rows[2:]:
                gradients += row
            average.set_result(gradients)
        self.step += 1
        self._clear()


def _shared_floats(numel: int) -> Tensor:
    """The same new memory on every rank; it goes when the last of them ends, however that happens.

    Raises InputError on all ranks when there is not so much.
    """
    told: list[str | InputError | None] = [None]
    if dist.get_rank() == 0:
        try:
            told[0] = _new_file(4 * numel)
        except OSError as error:
            mebibytes = 4 * numel / 2**20
            told[0] = InputError(
                f"--averaging shared-memory needs {mebibytes:.0f} MiB of shared memory ({error.strerror}); a container "
                f"gets more by --shm-size, or use --averaging all-reduce"
            )
    dist.broadcast_object_list(told)
    if isinstance(told[0], InputError):
        raise told[0]
    floats = torch.from_file(told[0], shared=True, size=numel, dtype=torch.float32)
    dist.barrier()
    if dist.get_rank() == 0:
        Path(told[0]).unlink()  # all have it open; no name is left behind
    return floats


def _new_file(size: int) -> str:
    """A file that has `size` bytes to give; without asking for them now, a lack would end the process later."""
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
