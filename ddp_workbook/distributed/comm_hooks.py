"""DDP's communication hooks, and a meter that times them."""

# No postponed annotations here: DDP checks those of its hook, and wants classes, not strings.

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from ddp_workbook.config import CommHookName
from ddp_workbook.distributed.process_group import World
from ddp_workbook.distributed.shared_memory import SharedMemoryAverage, require_shared_memory
from ddp_workbook.records.timing import Bucket

Hook = Callable[[object, dist.GradBucket], torch.futures.Future[Tensor]]
Stamp = float | torch.cuda.Event


def check_comm_hook(name: CommHookName, device: torch.device, world: World) -> None:
    """Raise InputError where the hook cannot work."""
    if name == "shared-memory":
        require_shared_memory(device, world.size, world.local_size)


def build_comm_hook(name: CommHookName, numel: int) -> tuple[object, Hook]:
    """The hook for a model of `numel` parameters, and the state that DDP passes to it."""
    if name == "shared-memory":
        return None, SharedMemoryAverage(numel).hook
    if name == "powersgd":
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=10)
        return state, powerSGD_hook.powerSGD_hook
    hooks = {
        "allreduce": default_hooks.allreduce_hook,
        "bf16": default_hooks.bf16_compress_hook,
        "fp16": default_hooks.fp16_compress_hook,
    }
    return None, hooks[name]


@dataclass(frozen=True)
class Traffic:
    """The buckets of one rank since the meter was last read; times are seconds since the first one was ready.

    `waited`: for each backward pass, the seconds from its last bucket being ready to its end. That is communication
    which computation does not hide, the wait for slower ranks included.
    """

    buckets: list[Bucket]
    waited: list[float]

    @property
    def collective_seconds(self) -> float:
        """Sum over the buckets. They overlap with backward and with each other: this is not the overhead."""
        return sum(bucket.done - bucket.ready for bucket in self.buckets)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all buckets, before compression."""
        return sum(bucket.bytes for bucket in self.buckets)


class CommunicationMeter:
    """Stands between DDP and its hook, and notes when each bucket was ready and when its all-reduce was done.

    On CUDA it records events on the stream and reads them only in take(): training does not wait for the meter.
    """

    def __init__(self, hook: CommHookName, numel: int, device: torch.device) -> None:
        self.state, self.inner = build_comm_hook(hook, numel)
        self.on_cuda = device.type == "cuda"
        self._clear()

    def _clear(self) -> None:
        self._spans: list[list] = []  # [ready, done, bytes] by bucket
        self._waits: list[tuple[Stamp, Stamp]] = []

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """The hook that DDP calls in backward as soon as a bucket holds all its gradients."""
        span = [self._now(), None, bucket.buffer().nbytes]
        self._spans.append(span)

        def finish(future: torch.futures.Future) -> Tensor:
            span[1] = self._now()
            return future.value()

        return self.inner(self.state, bucket).then(finish)

    def backward_ended(self) -> None:
        """Call it right after a backward pass that averaged gradients."""
        self._waits.append((self._spans[-1][0], self._now()))

    def take(self) -> Traffic:
        """Everything since the last call."""
        if self.on_cuda:
            torch.cuda.synchronize()
        start = self._spans[0][0] if self._spans else 0.0
        traffic = Traffic(
            [
                Bucket(ready=_between(start, ready), done=_between(start, done), bytes=size)
                for ready, done, size in self._spans
            ],
            [_between(ready, end) for ready, end in self._waits],
        )
        self._clear()
        return traffic

    def _now(self) -> Stamp:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(first: Stamp, second: Stamp) -> float:
    """Seconds from one stamp to a later one."""
    return second - first if isinstance(first, float) else first.elapsed_time(second) / 1000
