"""What the judges of the labs that average gradients share: three programs, from the plainest to a real training.

Each gets attach(module), which prepares the answer for a module and returns what is called after backward().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isfinite, prod

import torch
from torch import Tensor, nn

from ddp_workbook.labs.probe import describe, one_hot, scale, weights
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

Attach = Callable[[nn.Module], Callable[[], object]]
SAMPLES = 3  # per rank, on the scale
BASE = 128  # of the numbers that name gradients; more than there are elements
LARGEST_ERROR = 1e-4  # of the largest element; float32 rounds to about 1e-5 after a few steps


def weigh(rank: Rank, attach: Attach) -> None:
    """Which weight has each sample in the gradient? 1/(NB) is right."""
    model = scale(rank.size * SAMPLES).float()
    nn.init.constant_(model.weight, 1.0 + rank.rank)  # its gradient does not depend on its weights
    finish, owners = attach(model), [range(SAMPLES * each, SAMPLES * (each + 1)) for each in range(rank.size)]
    rank.ledger.take()
    model(one_hot(owners[rank.rank], model.in_features).float()).mean().backward()
    before = model.weight.detach().clone()
    finish()
    calls, moved = len(rank.ledger.take()), not torch.equal(model.weight, before)
    if model.weight.grad is None or not model.weight.grad.isfinite().all():
        raise Wrong("no-gradient", f"afterwards the gradient on rank {rank.rank} is {model.weight.grad}")
    found = rank.gather(weights(model))
    if any(rank.gather(moved)):
        raise Wrong(
            "parameters-averaged", "the weights of the module have changed; only their gradients, .grad, should"
        )
    _compare_weights(found, owners, calls)


def _compare_weights(found: Sequence[Sequence[Fraction]], owners: Sequence[range], calls: int) -> None:
    size = len(owners)
    right, whole = Fraction(1, size * SAMPLES), [set(each) for each in found]
    if all(each == {right} for each in whole):
        return
    if all(each == {size * right} for each in whole):
        raise Wrong("sum", f"every sample weighs {size * right} in the gradient, {size} times the right {right}")
    if all(each == {right / size} for each in whole):
        raise Wrong("divided-twice", f"every sample weighs {right / size} in the gradient, {size} times too little")
    own = [[size * right if n in owners[k] else 0 for n in range(len(each))] for k, each in enumerate(found)]
    if list(map(list, found)) == own:
        if not calls:
            raise Wrong("no-collectives", "every gradient is as backward() left it, and no collective was called")
        raise Wrong(
            "not-copied-back",
            f"every gradient is as backward() left it, though there was a collective (no. {calls} was the last): "
            f"where did its result go?",
        )
    alone = next((each for each, own_weights in enumerate(whole) if len(own_weights) > 1), None)
    if len(whole[0]) == 1 and alone is not None:
        raise Wrong(
            "reduced-to-0",
            f"rank 0's gradient has all samples in it, rank {alone}'s has not: there {describe(found[alone], owners)}. "
            f"Which ranks get the result of your collective?",
        )
    wrong = next(each for each, own_weights in enumerate(whole) if own_weights != {right})
    raise Wrong("other-weights", f"on rank {wrong} {describe(found[wrong], owners)}; each should weigh {right}")


class Numbered(nn.Module):
    """Parameters whose elements are numbered through, 1, 2, 3, ...; element e has the gradient e · BASE^rank.

    So a sum of gradients says which element each rank has put into it. The parameters lie in memory in another order
    on each rank, as they do in a real run where each rank has loaded other things before.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], rank: int) -> None:
        super().__init__()
        pool: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for shape in shapes:
            pool.setdefault(shape, []).append(nn.Parameter(torch.zeros(shape)))
        for same in pool.values():
            same.sort(key=id)
            same[:] = same[rank % len(same) :] + same[: rank % len(same)]
        ends = [sum(map(prod, shapes[:number])) for number in range(len(shapes) + 1)]
        self.numbers, self.rank = {}, rank
        for number, shape in enumerate(shapes):
            self.register_parameter(name := f"p{number}", pool[shape].pop(0))
            self.numbers[name] = torch.arange(ends[number] + 1.0, ends[number + 1] + 1).view(shape)

    def forward(self, times: int) -> Tensor:
        """A loss with so many times these gradients."""
        unit = times * BASE**self.rank
        return sum((unit * numbers * getattr(self, name)).sum() for name, numbers in self.numbers.items())

    def name_of(self, element: int) -> str:
        """'p2[0, 1]'"""
        for name, numbers in self.numbers.items():
            if len(place := (numbers == element).nonzero()):
                return f"{name}{place[0].tolist()}"
        return f"element {element}, which does not exist" if element else "nothing"


def read_numbers(rank: Rank, module: Numbered, finish: Callable[[], object], mixed: str, times: int = 1) -> None:
    """One backward pass, and whether each gradient is the mean of its own. `mixed`: the diagnosis if of another's."""
    module(times).backward()
    finish()
    missing = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    if missing:
        raise Wrong("no-gradient", f"the gradient of {missing[0]} on rank {rank.rank} is None")
    every = rank.gather({name: parameter.grad.detach().clone() for name, parameter in module.named_parameters()})
    mean = times * sum(BASE**each for each in range(rank.size)) / rank.size
    ratios = {
        (name, each): every[each][name] / (numbers * mean)
        for name, numbers in module.numbers.items()
        for each in range(rank.size)
    }
    wrong = [key for key, ratio in ratios.items() if not (ratio - 1).abs().max() < 1e-6]
    if not wrong:
        return
    local = {name for name, each in wrong if torch.equal(every[each][name], module.numbers[name] * times * BASE**each)}
    if len(local) == len(module.numbers):
        raise Wrong("not-copied-back", "every gradient is as backward() left it: where did the averages go?")
    if local:
        raise Wrong("rank-local", f"the gradient of {', '.join(sorted(local))} is still each rank's own")
    (name, where), ratio = wrong[0], ratios[wrong[0]].flatten()[0].item()
    if all((each - ratio).abs().max() < 1e-5 for each in ratios.values()):
        raise Wrong("scaled", f"every gradient is {ratio:.3g} times what it should be")
    place = (ratios[wrong[0]] - 1).abs().argmax()
    value, element = every[where][name].flatten()[place].item(), int(module.numbers[name].flatten()[place])
    words = f"on rank {where} the gradient of {module.name_of(element)} is {value:g} and should be {element * mean:g}"
    total = round(value * rank.size / times) if isfinite(value) else 0
    parts = [total // BASE**each % BASE for each in range(rank.size)]
    exact = abs(total * times - value * rank.size) < 0.5 and 0 < total < BASE**rank.size
    if exact and parts != [element] * rank.size:
        other = next(each for each, part in enumerate(parts) if part != element)
        raise Wrong(mixed, f"{words}: in place of its own, rank {other} has put in {module.name_of(parts[other])}")
    raise Wrong("other-values", words)


class Net(nn.Module):
    """Convolutions of random widths; two layers with the same weight; a frozen one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = 2 + seed % 4
        self.first, self.second = nn.Conv2d(1, width, 3), nn.Conv2d(width, 3, 3, stride=2)
        self.third, self.tied = nn.Linear(12, 12), nn.Linear(12, 12)
        self.tied.weight = self.third.weight
        self.frozen, self.last = nn.Linear(12, 12).requires_grad_(False), nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = self.second(self.first(images).tanh()).tanh().flatten(1)
        return self.last(self.frozen(self.tied(self.third(x).tanh())).tanh())


def train(rank: Rank, attach: Attach, sizes: Sequence[int] = (3, 5, 2)) -> int:
    """Steps of SGD with momentum, with so many images per rank, against a serial training on the joined batches."""
    net, serial = Net(rank.seed), Net(rank.seed)
    finish = attach(net)
    ours, other = (torch.optim.SGD(each.parameters(), 0.2, 0.9, weight_decay=0.01) for each in (net, serial))
    for step, size in enumerate(sizes):
        images, labels = torch.randn(size * rank.size, 1, 7, 7), torch.randint(5, (size * rank.size,))
        mine = slice(size * rank.rank, size * (rank.rank + 1))
        for module, optimizer, part in ((net, ours, mine), (serial, other, slice(None))):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            nn.functional.cross_entropy(module(images[part]), labels[part]).backward()
            if module is net:
                finish()
        _compare_gradients(rank, net, serial, f"step {step} of a small net, batch {size} per rank")
        ours.step()
        other.step()
    hashes = rank.hashes(list(net.parameters()))
    if len(set(hashes)) > 1:
        odd = next(each for each, digest in enumerate(hashes) if digest != hashes[0])
        raise Wrong(
            "other-bits",
            f"after {len(sizes)} steps rank {odd} has other weights than rank 0, in the last bits: the same numbers, "
            f"added in another order, give another sum",
        )
    return 1 + len(sizes) * len(list(net.parameters()))


def _compare_gradients(rank: Rank, net: nn.Module, serial: nn.Module, words: str) -> None:
    """Equal to the serial ones on all ranks, but for rounding."""
    errors = {}
    for (name, parameter), expected in zip(net.named_parameters(), serial.parameters(), strict=True):
        if expected.grad is None and parameter.grad is not None:
            raise Wrong(
                "zeros-for-unused",
                f"{name} was used by no rank and its .grad was None; now it is a tensor, so that weight decay moves it",
            )
        if expected.grad is None:
            continue
        scale = expected.grad.abs().max()
        grad = torch.full_like(scale, torch.nan) if parameter.grad is None else parameter.grad
        errors[name] = ((grad - expected.grad).abs().max() / scale).item()
    for each, found in enumerate(rank.gather(errors)):
        for name, error in found.items():
            if not error < LARGEST_ERROR:
                raise Wrong(
                    "other-gradient",
                    f"{words}: on rank {each} the gradient of {name} differs by {error:.2g} times its "
                    f"largest element from that of a serial step on all of the images",
                )
