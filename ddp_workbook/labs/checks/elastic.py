"""L13: go on with another number of ranks, and stop together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from numbers import Integral

import torch

from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

CASES = 150
MOST_SAMPLES, MOST_RANKS = 60, 5

Chain = Sequence[tuple[int, int]]  # (ranks, samples that each of them visits before the next restart)
Remaining = Callable[[int, int, int, int, int], list[list[int]]]


def what_is_left(rank: Rank) -> int:
    """Random epochs: with no restart, one with as many ranks, one with another number, several."""
    remaining, draw = rank.names["remaining"], random.Random(rank.seed)
    kinds = [lambda: [draw.randint(1, MOST_RANKS)], lambda: [draw.randint(1, MOST_RANKS)] * 2]
    kinds += [lambda: draw.sample(range(1, MOST_RANKS + 1), 2), lambda: draw.choices(range(1, MOST_RANKS + 1), k=4)]
    first = [[3], [3, 3], [3, 2], [3, 2, 4]]
    for kind, worlds_of in enumerate(kinds):
        for case in range(CASES):
            worlds = worlds_of() if case else first[kind]
            n = draw.randint(0, MOST_SAMPLES)
            _follow(remaining, n, draw.randint(0, 9), draw.randint(0, 99), _chain(draw, n, worlds), kind)
    _check_orders(remaining, draw.randint(0, 99))
    return len(kinds) * CASES


def _chain(draw: random.Random, n: int, worlds: list[int]) -> Chain:
    """Each number of ranks, with how many samples each rank visits; the last ones go on to the end."""
    chain, left = [], n
    for world in worlds:
        each = left // world if len(chain) == len(worlds) - 1 else draw.randint(0, left // world)
        chain.append((world, each))
        left -= world * each
    return chain


def _follow(remaining: Remaining, n: int, epoch: int, seed: int, chain: Chain, kind: int) -> None:
    """Visit the samples of one epoch, with all restarts, as the answer divides them."""
    visited: list[int] = []
    words = f"{n} samples, epoch {epoch}"
    for number, (world, each) in enumerate(chain):
        done = len(visited)
        states = random.getstate(), torch.get_rng_state()
        lists = remaining(n, epoch, seed, done, world)
        if random.getstate() != states[0] or not torch.equal(torch.get_rng_state(), states[1]):
            raise Wrong("global-generator", "remaining() moved the global random generator, which dropout uses too")
        then = f"{words}: {done} of them visited before, now {world} rank(s)"
        _check_lists(lists, n, done, world, then if done else f"{words}, {world} rank(s)")
        if number and done:
            _check_against(lists, visited, remaining(n, epoch, seed, 0, world), n, then, kind)
        visited += [sample for mine in lists for sample in list(mine)[:each]]


def _check_lists(lists: list[list[int]], n: int, done: int, world: int, words: str) -> None:
    """One list for each rank, all of them equally long, nothing twice, no more dropped than must be."""
    if not isinstance(lists, list | tuple) or len(lists) != world:
        found = f"{len(lists)} lists" if isinstance(lists, list | tuple) else f"{lists!r:.40}"
        raise Wrong("no-lists", f"{words}: remaining() returned {found}; it must return {world} lists, one per rank")
    for mine in lists:
        if not isinstance(mine, list | tuple) or not all(isinstance(s, Integral) and 0 <= s < n for s in mine):
            raise Wrong("no-samples", f"{words}: {mine!r:.60} is no list of whole numbers from 0 to {n - 1}")
    lengths, every = [len(mine) for mine in lists], [sample for mine in lists for sample in mine]
    should = (n - done) // world
    if done and set(lengths) == {max(0, n // world - done)} != {should}:
        raise Wrong(
            "local-position",
            f"{words}: each rank gets {lengths[0]} samples more, and {should} are left for each: `done` counts the "
            f"samples that all ranks together have visited",
        )
    twice = [sample for sample, times in Counter(every).items() if times > 1]
    if twice and max(lengths) > should:
        raise Wrong("padded", f"{words}: sample {twice[0]} occurs twice so that all ranks get as many")
    if twice:
        raise Wrong("overlapping", f"{words}: sample {twice[0]} is in the lists twice")
    if len(set(lengths)) > 1:
        raise Wrong(
            "unequal",
            f"{words}: one rank gets {max(lengths)} samples, another one {min(lengths)}: its last step would wait "
            f"for the others for good",
        )
    if lengths[0] < should:
        raise Wrong("incomplete", f"{words}: each rank gets {lengths[0]} samples; there are enough for {should}")


def _check_against(lists: list, visited: list[int], from_start: list, n: int, words: str, kind: int) -> None:
    """Nothing that was visited comes again."""
    again = sorted(set(visited) & {sample for mine in lists for sample in mine})
    if not again:
        return
    if [list(mine) for mine in lists] == [list(mine) for mine in from_start]:
        raise Wrong(
            "starts-over", f"{words}: they start the epoch from the beginning, and visit {len(visited)} samples twice"
        )
    never = n - len(set(visited) | {sample for mine in lists for sample in mine}) - (n - len(visited)) % len(lists)
    count = f"sample {again[0]} comes again, {len(again)} in all"
    if never > 0:
        count += f", and {never} would never be visited"
    if kind == 1:
        raise Wrong("visited-again", f"{words}, as many as before: {count}")
    if kind == 2:
        raise Wrong(
            "old-shards",
            f"right when the number of ranks stays the same. {words}: {count}. Which samples have been visited must "
            f"not depend on the number of ranks",
        )
    raise Wrong(
        "second-restart",
        f"right after one restart. {words}, after several restarts: {count}. In which order do the ranks visit what is "
        f"left, and is that still so for the next restart?",
    )


def _check_orders(remaining: Remaining, seed: int) -> None:
    """Another order in every epoch, and for every seed."""
    orders = [list(remaining(40, epoch, seed, 0, 2)[0]) for epoch in range(5)]
    if all(order == sorted(order) for order in orders):
        raise Wrong("not-shuffled", "the samples come in ascending order in every epoch")
    if all(order == orders[0] for order in orders):
        raise Wrong("same-every-epoch", "epoch 1 visits the samples in the very order of epoch 0")
    if all(list(remaining(40, 0, other, 0, 2)[0]) == orders[0] for other in (seed, seed + 1, seed + 2)):
        raise Wrong("seed-ignored", "another seed gives the same order")


def stop_together(rank: Rank) -> int:
    """Every combination of flags, in random order; and the ranks must agree on what is left."""
    agree, size = rank.names["agree"], rank.size
    left = rank.gather([list(mine) for mine in rank.names["remaining"](50, 1, rank.seed % 1000, 6, size)])
    if any(each != left[0] for each in left):
        raise Wrong("not-repeatable", "remaining() gives different lists in different processes")
    rounds = list(product([False, True], repeat=size))
    random.Random(rank.seed).shuffle(rounds)
    answers = []
    for flags in rounds:
        rank.ledger.take()
        mine = agree(flags[rank.rank])
        calls = [(entry.name, entry.bytes, entry.dtype) for entry in rank.ledger.take()]
        answers.append((flags, rank.gather(mine), rank.gather(calls)))
    _check_kinds(answers)
    _check_answers(answers)
    for _, _, calls in answers:
        for number, each in enumerate(calls):
            if len(each) != 1:
                names = ", ".join(name for name, _, _ in each) or "none"
                raise Wrong(
                    "too-many-collectives",
                    f"right, but rank {number} took part in {len(each)} collectives ({names}) for one question: one is "
                    f"enough, and it is asked at every step",
                )
            name, size_in_bytes, dtype = each[0]
            if size_in_bytes > _bytes_of(dtype):
                raise Wrong(
                    "too-many-elements", f"right, but rank {number} put {size_in_bytes} bytes of {dtype} into {name}; "
                    f"one element is enough",
                )  # fmt: skip
    return 2 * len(rounds)


def _bytes_of(dtype: str) -> int:
    return getattr(torch, dtype).itemsize if dtype else 0


def _check_kinds(answers: list) -> None:
    for _, found, _ in answers:
        for number, each in enumerate(found):
            if type(each) is not bool:
                raise Wrong("no-bool", f"agree() returned {each!r:.40} on rank {number}; it must return True or False")


def _check_answers(answers: list) -> None:
    """All ranks must get what any() of the flags is; known mistakes fit every round."""
    wrong = [(flags, found) for flags, found, _ in answers if found != [any(flags)] * len(flags)]
    if not wrong:
        return
    pairs = [(flags, found) for flags, found, _ in answers]
    flags, found = min(wrong, key=lambda pair: sum(pair[0]))
    asked = " and ".join(str(number) for number, flag in enumerate(flags) if flag) or "no rank"
    words = f"rank {asked} of {len(flags)} wants to stop; the answers are {', '.join(map(str, found))}"
    if all(found == list(flags) for flags, found in pairs):
        # early stopping per rank: Lightning-AI/pytorch-lightning#379, ultralytics/yolov5#8345
        raise Wrong("each-for-itself", f"{words}: who goes on will wait for the others in its next collective")
    if all(found == [all(flags)] * len(flags) for flags, found in pairs):
        raise Wrong("all-must-want", f"{words}: they stop only when every rank wants to")
    for source in range(len(flags)):
        if all(found == [flags[source]] * len(flags) for flags, found in pairs):
            raise Wrong("one-decides", f"{words}: what any other rank than {source} wants has no effect")
    if all(found[0] == any(flags) for flags, found in pairs):
        raise Wrong("one-knows", f"{words}: only rank 0 knows the answer")
    raise Wrong("other-answers", words)


LAB = Lab(
    number=13,
    name="elastic",
    title="Another number of ranks, and one end for all",
    minutes=30,
    difficulty=2,
    defines=("remaining", "agree"),
    parts=(Part(what_is_left), Part(stop_together, 2, seconds=3), Part(stop_together, 3, seconds=3)),
)
