"""L08: accumulate gradients over micro-batches of unequal size, and synchronise once."""

from __future__ import annotations

from fractions import Fraction
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn

from ddp_workbook.labs import probe
from ddp_workbook.labs.checks import on_ddp
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

# Three steps: the sizes of the micro-batches of each rank. Ranks have equally many samples in a step.
STEPS = (((1, 3, 2), (2, 1, 3), (3, 2, 1)), ((4,), (4,), (4,)), ((1, 4), (3, 2), (2, 3)))


def accumulated(rank: Rank) -> int:
    """The weight of every sample, what it cost, and then a training."""
    return weighed(rank) + trained(rank)


def weighed(rank: Rank) -> int:
    """Three steps of the probe. With rate 1 its weights move by the weights of the samples."""
    numbers = count()
    steps = [[[[next(numbers) for _ in range(n)] for n in sizes] for sizes in step[: rank.size]] for step in STEPS]
    samples, past = next(numbers), []
    model = probe.scale(samples)
    ddp, watched = on_ddp.wrapped(model, probe.one_hot([0], samples))
    optimizer, made = torch.optim.SGD(model.parameters(), lr=1), []
    optimizer.register_step_post_hook(lambda *_: made.append(1))
    for owners in steps:
        mine = owners[rank.rank]
        batches = [(probe.one_hot(ids, samples), torch.zeros(len(ids), 1).double()) for ids in mine]
        before, _ = model.weight.detach().clone(), (made.clear(), watched.passes.clear(), rank.ledger.take())
        rank.names["step"](ddp, batches, lambda outputs, targets: (outputs - targets).mean(), optimizer)
        entries = rank.ledger.take()
        moved = (before - model.weight.detach()).flatten().tolist()
        reports = rank.gather((len(made), moved, watched.passes, on_ddp.float_bytes(entries)))
        _check_steps([report[0] for report in reports])
        _check_weights([report[1] for report in reports], owners, past, on_ddp.flags(reports[0][2]))
        for number, (_, _, passes, sent) in enumerate(reports):
            _check_cost(passes, sent, model.weight.nbytes, owners[number], number)
        past += [sample for sizes in owners for ids in sizes for sample in ids]
    return len(steps)


def _check_steps(made: list[int]) -> None:
    if max(made) > 1:
        raise Wrong("many-steps", f"the optimizer made {max(made)} steps in one call of step(); it makes one")
    if min(made) < 1:
        raise Wrong("no-step", f"rank {made.index(min(made))}: the optimizer made no step")


def _check_weights(
    moved: list[list[float]], owners: on_ddp.Owners, past: list[int], flags: list[tuple[bool, bool]]
) -> None:
    """Every sample weighs 1 / (ranks x samples of a rank), and every rank sees them all."""
    if any(value != value or abs(value) == float("inf") for values in moved for value in values):
        raise Wrong("not-finite", "the gradients are not finite: NaN or infinite")
    found = [[Fraction(value).limit_denominator(10_000) for value in values] for values in moved]
    size, last = len(owners), len(owners[0]) - 1
    each = sum(map(len, owners[0]))
    words = f"{size} ranks with {last + 1} micro-batch{'es' if last else ''}"
    kinds = [on_ddp.fate(found, owners, number) for number in range(last + 1)]
    if "local" in kinds:
        _raise_local(kinds, flags, words)
    if any(weights[sample] for weights in found for sample in past):
        raise Wrong("stale-gradients", "the second step contains the gradients of the first: its samples count again")
    if kinds == ["missing"] * last + ["shared"] and last:
        raise Wrong(
            "only-last-counts", f"{words}: only the samples of the last micro-batch count. Where are the others' lost?"
        )
    if set(kinds) == {"missing"}:
        raise Wrong("no-gradient", f"{words}: no sample counts: the optimizer's step changed no weight")
    if "missing" in kinds:
        raise Wrong("missing", f"{words}: the samples of micro_batches[{kinds.index('missing')}] do not count at all")
    if "other" in kinds:
        raise Wrong("other-weights", f"{words}: ranks made different steps with micro_batches[{kinds.index('other')}]")
    weights = {sample: (found[0][sample], len(ids)) for mine in owners for ids in mine for sample in ids}
    asked = f"{words} and {each} samples: each sample should weigh 1/({size} × {each}) = 1/{size * each}"
    factors = {weight * size * each for weight, _ in weights.values()}
    if factors == {1}:
        return
    if {weight * size * length for weight, length in weights.values()} == {Fraction(1)}:
        raise Wrong("not-divided", f"{asked}; {_sizes(found[0], owners[0])}: the means of micro-batches were added up")
    if {weight * size * length * (last + 1) for weight, length in weights.values()} == {Fraction(1)}:
        raise Wrong(
            "mean-of-means",
            f"{asked}; {_sizes(found[0], owners[0])}: every micro-batch counts the same, though their sizes differ",
        )
    if len(factors) == 1:
        times = next(iter(factors))
        raise Wrong("wrong-factor", f"{asked}; each weighs {times / size / each}, {times} times as much")
    samples = [[sample for ids in mine for sample in ids] for mine in owners]
    raise Wrong("other-weights", f"{asked}; {probe.describe(found[0], samples)}")


def _raise_local(kinds: list[str], flags: list[tuple[bool, bool]], words: str) -> None:
    """Some micro-batches stayed on their rank: build-nanogpt#30 and FunASR#3472 give the same numbers."""
    local = " and ".join(f"[{number}]" for number, kind in enumerate(kinds) if kind == "local")
    if "shared" not in kinds:
        raise Wrong("not-averaged", f"{words}: nothing was averaged; each rank made a step with its own samples only")
    if kinds[0] == "shared" and "shared" not in kinds[1:]:
        symptom = f"{words}: only micro_batches[0] was averaged over the ranks; {local} stayed on their rank"
        if any(forward != backward for forward, backward in flags):
            at = next(number for number, (forward, backward) in enumerate(flags) if forward != backward)
            was, became = (("off", "on")[flag] for flag in flags[at])
            raise Wrong(
                "flag-after-forward",
                f"{symptom}. In the forward pass of [{at}] DDP's synchronisation was {was}, in its backward pass "
                f"{became}. In which of the two does DDP look?",
            )
        raise Wrong("off-by-one", f"{symptom}. For which micro-batch is your condition true?")
    if kinds[-1] == "shared" and "shared" not in kinds[:-1]:
        raise Wrong(
            "only-last-averaged",
            f"{words}: only the gradient of the last micro-batch was averaged over the ranks; {local} stayed on their "
            f"rank, though they are in the same sum",
        )
    raise Wrong("partly-averaged", f"{words}: micro_batches {local} stayed on their rank, the others were averaged")


def _sizes(weights: list[Fraction], mine: list[list[int]]) -> str:
    parts = [f"{weights[ids[0]]} in a micro-batch of {len(ids)}" for ids in mine]
    return f"on rank 0 one weighs {', '.join(parts)}"


def _check_cost(passes: list[on_ddp.Pass], sent: int, gradients: int, mine: list[list[int]], rank: int) -> None:
    """The weights are right: now memory, bytes, and DDP's flag."""
    largest = max(map(len, mine))
    if on_ddp.most_alive(passes) > largest:
        raise Wrong(
            "too-much-memory",
            f"the weights are right, but rank {rank} had the activations of {on_ddp.most_alive(passes)} samples in "
            f"memory at one time; its largest micro-batch has {largest}",
        )
    if sent <= gradients + 64:  # a count or two may travel as well
        return
    times = f"the weights are right, but the gradients were sent {sent / gradients:.3g} times"
    if any(forward and not backward for forward, backward in on_ddp.flags(passes)):
        raise Wrong(
            "no-sync-too-late",
            f"{times}: DDP's synchronisation was off in backward passes, but on in their forward passes. "
            f"In which of the two does DDP look?",
        )
    raise Wrong("too-many-bytes", f"{times} for {len(mine)} micro-batches; once is enough")


def trained(rank: Rank) -> int:
    """Three steps of SGD with momentum on random data, against one process with all samples at once."""
    sizes = ((2, 5, 1, 3, 1), (4, 1, 2, 1, 4), (1, 1, 6, 2, 2))[: rank.size]
    torch.manual_seed(rank.seed)
    serial, model = (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double() for _ in range(2))
    model.load_state_dict(serial.state_dict())
    ddp, _ = on_ddp.wrapped(model, torch.zeros(1, 5).double())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (serial, model)]
    for number in range(3):
        data = [[(torch.randn(n, 5).double(), torch.randint(3, (n,))) for n in each] for each in sizes]
        inputs, targets = (torch.cat([pair[part] for each in data for pair in each]) for part in (0, 1))
        optimizers[0].zero_grad()
        F.cross_entropy(serial(inputs), targets).backward()
        optimizers[0].step()
        rank.names["step"](ddp, data[rank.rank], F.cross_entropy, optimizers[1])
        error = max(rank.gather(on_ddp.relative_error(list(model.parameters()), list(serial.parameters()))))
        if not error < 1e-6:
            raise Wrong("other-values", f"step {number + 1} of a training: the weights are off by {error:.1g}")
        if len(set(rank.hashes(list(model.parameters())))) > 1:
            raise Wrong("other-bits", f"step {number + 1} of a training: the weights differ in bits between ranks")
        momenta = [value for state in optimizers[1].state.values() for value in state.values() if value is not None]
        if len(set(rank.hashes(momenta))) > 1:
            raise Wrong(
                "other-momentum",
                f"step {number + 1} of a training: weights are alike, but the momenta differ between ranks. "
                f"What did you average?",
            )
    return 3


LAB = Lab(
    number=8,
    name="accumulate",
    title="Add up, then send once",
    minutes=20,
    difficulty=2,
    defines=("step",),
    parts=(Part(accumulated, 2), Part(accumulated, 3)),
)
