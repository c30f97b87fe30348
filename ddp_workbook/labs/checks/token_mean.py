"""L09: the gradient of the mean over all tokens, of which ranks and micro-batches hold different numbers."""

from __future__ import annotations

from fractions import Fraction
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_workbook.labs import probe
from ddp_workbook.labs.checks import on_ddp
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.ledger import where
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

IGNORED = -100
PADDING = 2  # positions more than the longest micro-batch needs
# For 2 and 3 ranks: cases, each with the numbers of tokens in the micro-batches of each rank.
CASES = {
    2: (((5,), (1,)), ((7,), (0,)), ((3, 0), (2, 4)), ((0,), (0,))),
    3: (((3,), (3,), (2,)), ((7,), (0,), (0,)), ((3, 0), (0, 4), (1, 2)), ((0,), (0,), (0,))),
}


def averaged(rank: Rank) -> int:
    """The weight of every token, what it cost, and then random data."""
    for counts in CASES[rank.size]:
        _weigh(rank, counts)
    return len(CASES[rank.size]) + compared(rank)


def _weigh(rank: Rank, counts: tuple[tuple[int, ...], ...]) -> None:
    """One case with the probe: its gradient is the weights of the tokens."""
    numbers, width = count(), max(map(max, counts)) + PADDING
    tokens = [[[next(numbers) for _ in range(width)] for _ in each] for each in counts]
    owners = [[ids[:n] for ids, n in zip(*each, strict=True)] for each in zip(tokens, counts, strict=True)]
    positions, total = next(numbers), sum(map(sum, counts))
    model = probe.scale(positions)
    ddp, _ = on_ddp.wrapped(model, probe.one_hot([0], positions))
    batches = [
        (probe.one_hot(ids, positions), torch.tensor([7] * n + [IGNORED] * (width - n)))
        for ids, n in zip(tokens[rank.rank], counts[rank.rank], strict=True)
    ]
    rank.ledger.take()
    try:
        rank.names["token_mean_backward"](ddp, batches, _sum_of_counted)
    except ZeroDivisionError as error:
        if total:
            raise
        raise Wrong("empty", f"no rank has a token that counts: {error}; the gradients should be 0") from None
    entries = rank.ledger.take()
    gradient = [0.0] * positions if model.weight.grad is None else model.weight.grad.flatten().tolist()
    reports = rank.gather((gradient, list(map(where, entries)), on_ddp.float_bytes(entries)))
    _check_weights([report[0] for report in reports], owners, counts, positions)
    for number, (_, collectives, sent) in enumerate(reports):
        if sent > model.weight.nbytes + 64:
            raise Wrong(
                "too-many-bytes",
                f"the weights are right, but rank {number} sent gradients {sent / model.weight.nbytes:.3g} times for "
                f"{len(counts[0])} micro-batches; once is enough",
            )
        if len(collectives) > 2:
            raise Wrong(
                "too-many-collectives",
                f"the weights are right, but rank {number} called {len(collectives)} collectives: "
                f"{', '.join(collectives)}. One for the gradients and one more are enough",
            )


def _sum_of_counted(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.flatten() * (targets != IGNORED)).sum()


def _check_weights(
    gradients: list[list[float]], owners: on_ddp.Owners, counts: tuple[tuple[int, ...], ...], positions: int
) -> None:
    """Every token weighs 1 / (tokens of all ranks), on every rank."""
    size, total, per_rank = len(counts), sum(map(sum, counts)), [sum(each) for each in counts]
    words = f"{size} ranks with {' and '.join(' + '.join(map(str, each)) for each in counts)} tokens"
    for number, gradient in enumerate(gradients):
        if any(value != value or abs(value) == float("inf") for value in gradient):
            if not total:
                raise Wrong("empty", f"no rank has a token that counts: the gradient is {gradient[0]}, it should be 0")
            raise Wrong(
                "not-finite", f"{words}: the gradient on rank {number} is NaN or infinite; what was divided by 0?"
            )
    found = [[Fraction(value).limit_denominator(10_000) for value in gradient] for gradient in gradients]
    if not total and any(map(any, found)):
        raise Wrong("padding", f"{words}: the gradient is not 0, so something in the padding counts")
    kinds = [on_ddp.fate(found, owners, number) for number in range(len(counts[0]))]
    if "local" in kinds:
        raise Wrong(
            "not-averaged",
            f"{words}: the tokens of micro_batches[{kinds.index('local')}] count on their own rank only; the gradients "
            f"of the ranks were not averaged",
        )
    if any(gradient != found[0] for gradient in found):
        raise Wrong("not-averaged", f"{words}: the gradients differ between ranks")
    tokens = [
        (found[0][token], rank, k) for rank, mine in enumerate(owners) for k, ids in enumerate(mine) for token in ids
    ]
    if all(weight * total == 1 for weight, _, _ in tokens):
        return
    across = [sum(each) for each in zip(*counts, strict=True)]
    weighs = probe.describe(found[0], [[token for ids in mine for token in ids] for mine in owners], "tokens")
    text = f"{words}: each should weigh 1/{total}; {weighs}"
    if any(not weight for weight, _, _ in tokens):
        raise Wrong("missing", f"{text}. Some do not count at all")
    factors = {weight * total for weight, _, _ in tokens}
    if len(factors) > 1:
        if len({weight * per_rank[rank] for weight, rank, _ in tokens}) == 1 or (
            len({weight * counts[rank][k] for weight, rank, k in tokens}) == 1
        ):
            raise Wrong("mean-of-means", f"{text}. Whose tokens did you divide by?")
        if len({weight * across[k] for weight, _, k in tokens}) == 1:
            raise Wrong("per-micro-batch", f"{text}. Those of one micro-batch weigh the same; those of two do not")
        raise Wrong("other-weights", f"{text}")
    factor = factors.pop()
    if total % size and factor == Fraction(total, total // size * size):
        raise Wrong("rounded-count", f"{text}: {factor} times as much, as if there were {total // size * size} tokens")
    if factor in (Fraction(total, positions), Fraction(total, size * positions)):
        raise Wrong("counts-padding", f"{text}: there are {positions} positions with the padding")
    also = f": it was divided by {size} once too often" if factor == Fraction(1, size) else ""
    raise Wrong("wrong-factor", f"{text}, {factor} times as much{also}")


def compared(rank: Rank) -> int:
    """Gradients on random data against one process that has all tokens."""
    torch.manual_seed(rank.seed)
    serial, model = (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double() for _ in range(2))
    model.load_state_dict(serial.state_dict())
    ddp, _ = on_ddp.wrapped(model, torch.zeros(1, 5).double())
    data = [[(torch.randn(9, 5).double(), torch.randint(4, (9,))) for _ in range(3)] for _ in range(rank.size)]
    for mine in data:
        for _, targets in mine:
            targets[torch.rand(9) < torch.rand(1)] = IGNORED
    data[-1][-1][1].fill_(IGNORED)
    data[0][0][1][0] = 1
    inputs, targets = (torch.cat([pair[part] for mine in data for pair in mine]) for part in (0, 1))
    F.cross_entropy(serial(inputs), targets, ignore_index=IGNORED).backward()
    rank.names["token_mean_backward"](
        ddp, data[rank.rank], lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum")
    )
    found, expected = (
        [torch.zeros_like(p) if p.grad is None else p.grad for p in each.parameters()] for each in (model, serial)
    )
    error = max(rank.gather(on_ddp.relative_error(found, expected)), key=lambda each: (each != each, each))
    if not error < 1e-6:
        raise Wrong("other-values", f"random data: the gradients are off by {error:.1g} from those of one process")
    if len(set(rank.hashes(found))) > 1:
        raise Wrong("other-bits", "random data: the gradients differ in bits between ranks")
    return 1


LAB = Lab(
    number=9,
    name="token_mean",
    title="The mean of all tokens",
    minutes=25,
    difficulty=2,
    defines=("token_mean_backward",),
    parts=(Part(averaged, 2, 3), Part(averaged, 3, 3)),
)
