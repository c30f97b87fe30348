"""L04: which samples a rank visits in an epoch."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

CASES = 1000
MOST_SAMPLES, MOST_RANKS = 60, 8


def properties(rank: Rank) -> int:
    """A thousand random cases, judged by what every sharding must hold, whatever its order."""
    shard, draw = rank.names["shard"], random.Random(rank.seed)
    cases = [(0, 1), (0, 3), (1, 2), (2, 3), (7, 7), (8, 2)]
    cases += [(draw.randint(0, MOST_SAMPLES), draw.randint(1, MOST_RANKS)) for _ in range(CASES - len(cases))]
    for n, world in cases:
        epoch, seed = draw.randint(0, 9), draw.randint(0, 99)
        states = random.getstate(), torch.get_rng_state()
        shards = [shard(n, each, world, epoch, seed) for each in range(world)]
        if random.getstate() != states[0] or not torch.equal(torch.get_rng_state(), states[1]):
            raise Wrong(
                "global-generator",
                "your function moved the global random generator, which dropout and augmentation use too",
            )
        if [list(shard(n, each, world, epoch, seed)) for each in range(world)] != [list(each) for each in shards]:
            raise Wrong("not-repeatable", f"{n} samples, {world} ranks: asked twice, it gives another answer")
        _check_shards(shards, n, world, f"{n} samples, {world} ranks, epoch {epoch}")
    _check_epochs(shard, draw.randint(0, 99))
    return CASES


def _check_shards(shards: list, n: int, world: int, words: str) -> None:
    """Disjoint, equally long, complete up to the remainder."""
    for number, each in enumerate(shards):
        kinds = {type(sample).__name__ for sample in each if not isinstance(sample, int)}
        if kinds:
            raise Wrong(
                "no-samples", f"{words}: rank {number} got objects of type {', '.join(sorted(kinds))}; return ints"
            )
        if not all(0 <= sample < n for sample in each):
            raise Wrong(
                "no-samples", f"{words}: rank {number} got {list(each)[:5]}; samples are whole numbers below {n}"
            )
    lengths = [len(each) for each in shards]
    every = [sample for each in shards for sample in each]
    twice = sorted(sample for sample in set(every) if every.count(sample) > 1)
    if twice and len(every) > n // world * world and len(set(every)) == n:
        raise Wrong(
            "padded", f"{words}: sample {twice[0]} occurs twice so that all ranks get as many; drop the remainder"
        )
    if twice:
        owners = [number for number, each in enumerate(shards) if twice[0] in each]
        share = len(twice) / max(1, len(set(every)))
        raise Wrong(
            "overlapping",
            f"{words}: {share:.0%} of the samples occur more than once; sample {twice[0]} belongs to ranks {owners}",
        )
    if len(set(lengths)) > 1:
        longest = lengths.index(max(lengths))
        raise Wrong(
            "unequal",
            f"{words}: rank {longest} has {max(lengths)} samples, another one {min(lengths)}: in the last step "
            f"it would wait for the others forever",
        )
    if lengths[0] != n // world:
        raise Wrong("incomplete", f"{words}: each rank got {lengths[0]} samples; there are enough for {n // world}")


def _check_epochs(shard: Callable, seed: int) -> None:
    """Another order in every epoch and for every seed, also between the ranks."""
    n, world = 40, 4
    epochs = [[list(shard(n, each, world, epoch, seed)) for each in range(world)] for epoch in range(12)]
    if epochs[0][0] == sorted(epochs[0][0]) and epochs[1][0] == sorted(epochs[1][0]):
        raise Wrong("not-shuffled", "each rank visits its samples in ascending order")
    if all(each == epochs[0] for each in epochs):
        raise Wrong("same-every-epoch", "epoch 1 visits the samples in the very order of epoch 0")
    if [list(shard(n, 0, world, 0, other)) for other in range(5)] == [epochs[0][0]] * 5:
        raise Wrong("seed-ignored", "another seed gives the same order")
    for sample in range(n):
        owners = {number for ranks in epochs for number, each in enumerate(ranks) if sample in each}
        if len(owners) == 1:
            raise Wrong(
                "fixed-owner",
                f"sample {sample} belongs to rank {owners.pop()} in each of 12 epochs: shuffle before you divide",
            )
    if len({tuple(ranks[0]) for ranks in epochs}) < 12:
        raise Wrong("orders-repeat", "some of 12 epochs have the same order")
    if shard(n, 0, world, 3, 5) == shard(n, 0, world, 5, 3):
        raise Wrong("seed-plus-epoch", "seed 5 in epoch 3 gives the order of seed 3 in epoch 5")


def in_other_processes(rank: Rank) -> int:
    """The ranks must agree without talking: each computes its own shard."""
    mine = list(rank.names["shard"](50, rank.rank, rank.size, 1, 7))
    shards = rank.gather(mine)
    _check_shards(shards, 50, rank.size, f"in {rank.size} real processes: 50 samples")
    return 1


LAB = Lab(
    number=4,
    name="shard",
    title="Who visits which sample",
    minutes=15,
    difficulty=1,
    defines=("shard",),
    parts=(Part(properties), Part(in_other_processes, 2), Part(in_other_processes, 3)),
)
