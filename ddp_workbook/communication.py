"""The hook that carries DDP's gradients, and a meter that times it."""

# No postponed annotations here: DDP checks those of its hook, and wants classes, not strings.

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

from ddp_workbook.config import TrainConfig
from ddp_workbook.shared_memory import SharedMemoryAverage

Hook = Callable[[object, dist.GradBucket], torch.futures.Future[Tensor]]
Stamp = float | torch.cuda.Event


@dataclass(frozen=True)
class Collective:
    """One bucket: when its gradients were ready and when they were averaged, and their bytes before compression."""

    ready: float
    done: float
    bytes: int


@dataclass(frozen=True)
class Traffic:
    """The collectives of one rank since the meter was last read.

    `waited` are the seconds between a backward pass's last bucket being ready and the end of that pass: what
    computation no longer hides, the wait for slower ranks included. Times are seconds since the first bucket was ready.
    """

    collectives: list[Collective]
    waited: list[float]

    @property
    def collective_seconds(self) -> float:
        return sum(one.done - one.ready for one in self.collectives)

    @property
    def gradient_bytes(self) -> int:
        return sum(one.bytes for one in self.collectives)


def choose_hook(config: TrainConfig, numel: int) -> tuple[object, Hook]:
    """The hook that the configuration asks for, with the state that it wants; `numel` parameters are averaged."""
    if config.averaging == "shared-memory":
        return None, SharedMemoryAverage(numel).hook
    name = config.gradient_compression
    if name == "powersgd":
        state = powerSGD_hook.PowerSGDState(process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=10)
        return state, powerSGD_hook.powerSGD_hook
    hooks = {
        "none": default_hooks.allreduce_hook,
        "bf16": default_hooks.bf16_compress_hook,
        "fp16": default_hooks.fp16_compress_hook,
    }
    return None, hooks[name]


class CommunicationMeter:
    """Stands between DDP and its hook, and stamps when each bucket was ready and when it was averaged.

    On CUDA the stamps are events on the stream, read only when asked: nothing waits during training.
    """

    def __init__(self, config: TrainConfig, numel: int, device: torch.device) -> None:
        self.state, self.inner = choose_hook(config, numel)
        self.on_cuda = device.type == "cuda"
        self._clear()

    def _clear(self) -> None:
        self._spans: list[list] = []  # [ready, done, bytes] by bucket
        self._waits: list[tuple[Stamp, Stamp]] = []

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP calls in backward as soon as all gradients of a bucket are there."""
        span = [self._now(), None, bucket.buffer().nbytes]
        self._spans.append(span)

        def finish(future: torch.futures.Future) -> Tensor:
            span[1] = self._now()
            return future.value()

        return self.inner(self.state, bucket).then(finish)

    def backward_ended(self) -> None:
        """To be called right after a backward pass that averaged gradients."""
        self._waits.append((self._spans[-1][0], self._now()))

    def take(self) -> Traffic:
        """All that was measured since the last time, and begin anew."""
        if self.on_cuda:
            torch.cuda.synchronize()
        start = self._spans[0][0] if self._spans else 0.0
        traffic = Traffic(
            [Collective(_between(start, ready), _between(start, done), size) for ready, done, size in self._spans],
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
