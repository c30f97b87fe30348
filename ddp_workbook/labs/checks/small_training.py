"""A small training on real ranks whose every step can be compared bit for bit with that of another one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.labs.team import Rank

EPOCHS, STEPS, BATCH = 3, 4, 3  # epochs, steps of each, samples of a rank's step
SAMPLES = 40  # some are left over in each epoch, with 2 and with 3 ranks
LAST = EPOCHS * STEPS


@dataclass(frozen=True)
class Moment:
    """What decides how a training goes on, on one rank."""

    rate: float
    weights: dict[str, Tensor]
    """Parameters and buffers."""
    momentum: list[Tensor | None]
    numbers: list[float]
    """The next ones of the rank's generator."""
    mode: bool
    """True: training."""


class Training:
    """A small net with dropout, BatchNorm and noisy samples; SGD with momentum, a cosine schedule."""

    def __init__(self, rank: Rank, seed: int, wrapped: bool = True) -> None:
        torch.manual_seed(seed + rank.rank)
        self.rank = rank
        self.model: nn.Module = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 2)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, LAST)
        if wrapped:
            self.model = DistributedDataParallel(self.model)

    @property
    def plain(self) -> nn.Module:
        """The net itself."""
        return getattr(self.model, "module", self.model)

    def run(self, first: int, last: int, stops: Collection[int]) -> list[Moment]:
        """The steps from number `first` to before `last`; returns how things stand after each.

        DDP changes the order of its buckets after its first step, and with three ranks another order of adding gives
        other bits. So each training is wrapped again where one of them will have to resume.
        """
        moments = []
        for number in range(first, last):
            if number in stops:
                self.model = DistributedDataParallel(self.plain)
            samples = _samples(self.rank, *divmod(number, STEPS))
            inputs = torch.stack([torch.linspace(-1, 1, 4) * sample for sample in samples]) / SAMPLES
            self.optimizer.zero_grad()
            self.model(inputs + 0.1 * torch.randn(inputs.shape)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            moments.append(self.now())
        return moments

    def now(self) -> Moment:
        """How things stand."""
        state = torch.get_rng_state()
        numbers = torch.rand(3).tolist()
        torch.set_rng_state(state)
        parameters = self.optimizer.param_groups[0]["params"]
        momentum = [self.optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
        return Moment(
            self.optimizer.param_groups[0]["lr"],
            {name: tensor.clone() for name, tensor in self.plain.state_dict().items()},
            [None if buffer is None else buffer.clone() for buffer in momentum],
            numbers,
            all(module.training for module in self.plain.modules()),
        )


def _samples(rank: Rank, epoch: int, position: int) -> list[int]:
    """The samples of this rank's step number `position`."""
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1000 * rank.seed + epoch)).tolist()
    return order[(position * rank.size + rank.rank) * BATCH :][:BATCH]


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ in a bit."""
    return [name for name in first if not torch.equal(first[name], second[name])]
