"""L11: the peak learning rate, the number of optimizer steps, and the rate of each step."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddp_workbook.config import TrainConfig
from ddp_workbook.distributed.process_group import World
from ddp_workbook.errors import InputError
from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong
from ddp_workbook.training.loader import steps_per_epoch
from ddp_workbook.training.optim import learning_rate_factor

CASES = 40
CURVES = ((60, 20), (100, 10), (7, 3), (12, 1), (5, 4))  # steps, warm-up steps


@dataclass(frozen=True)
class Case:
    """One line of the table: a training, and what the workbook itself makes of it."""

    images: int
    batch: int
    world: int
    accumulate: int
    epochs: int
    lr: float
    base: int

    def config(self) -> TrainConfig:
        """As the workbook's command line would make it."""
        return TrainConfig(
            lr=self.lr, base_batch_size=self.base, batch_size=self.batch, grad_accum_steps=self.accumulate,
            epochs=self.epochs,
        )  # fmt: skip

    def steps(self) -> int:
        """Optimizer steps of the whole training; the workbook refuses to train where there are none."""
        try:
            return self.epochs * steps_per_epoch(self.images, self.config(), World(size=self.world))
        except InputError:
            return 0

    def __str__(self) -> str:
        return f"{self.world} rank(s), each with {self.accumulate} batch(es) of {self.batch} images before a step"


def _ceil(images: int, by: int) -> int:
    return -(-images // by)


Rule = Callable[[Case], float]
# Mistakes that all 40 cases confirm: diagnosis -> the rules that make it, and what to think about.
PEAK_MISTAKES: dict[str, tuple[list[Rule], str]] = {
    "unscaled": ([lambda c: c.lr], "the rate does not follow the global batch"),
    "times-world": (
        [lambda c: c.lr * c.world, lambda c: c.lr * c.world * c.accumulate],
        "base_lr belongs to a batch, not to one process: 2 ranks with 64 images each see what 1 rank with 128 sees",
    ),
    "accumulation-forgotten": (
        [lambda c: c.lr * c.batch * c.world / c.base],
        "how many images are behind one optimizer step when gradients are accumulated?",
    ),
    "batch-of-one-rank": (
        [lambda c: c.lr * c.batch / c.base, lambda c: c.lr * c.batch * c.accumulate / c.base],
        "how many images are behind one optimizer step when all ranks average their gradients?",
    ),
    "square-root": (
        [lambda c: c.lr * math.sqrt(c.batch * c.world * c.accumulate / c.base)],
        "that is the square root of the batch's growth; the rule of this lab is linear",
    ),
}  # fmt: skip
STEP_MISTAKES: dict[str, tuple[list[Rule], str]] = {
    # a schedule stepped, or planned, once per process: huggingface/accelerate#1398, #662; huggingface/diffusers#8312
    "steps-of-all-ranks": (
        [lambda c: c.images // (c.batch * c.accumulate) * c.epochs,
         lambda c: c.images // c.world // (c.batch * c.accumulate) * c.epochs * c.world],
        "all ranks make a step together; a schedule made for so many would still be near its peak at the end",
    ),
    "micro-batches": (
        [lambda c: c.images // (c.world * c.batch) * c.epochs],
        "those are batches; the training would end when the schedule has done only a part of its way",
    ),
    "one-epoch": ([lambda c: c.images // (c.world * c.batch * c.accumulate)], "that is one epoch"),
    "rounded-up": (
        [lambda c: _ceil(c.images, c.world * c.batch * c.accumulate) * c.epochs,
         lambda c: _ceil(_ceil(c.images, c.world), c.batch * c.accumulate) * c.epochs,
         lambda c: _ceil(c.images, c.world) // (c.batch * c.accumulate) * c.epochs,
         lambda c: _ceil(c.images // (c.world * c.batch), c.accumulate) * c.epochs,
         lambda c: _ceil(_ceil(_ceil(c.images, c.world), c.batch), c.accumulate) * c.epochs,
         lambda c: _ceil(c.images * c.epochs, c.world * c.batch * c.accumulate)],
        "what happens to the images at the end of an epoch that do not fill a step?",
    ),
    "across-epochs": (
        [lambda c: c.images * c.epochs // (c.world * c.batch * c.accumulate),
         lambda c: c.images // (c.world * c.batch) * c.epochs // c.accumulate],
        "what is left over at the end of an epoch is not completed by the next epoch",
    ),
}  # fmt: skip


def table(rank: Rank) -> int:
    """The two numbers that every schedule begins with, in 40 cases."""
    draw = random.Random(rank.seed)
    cases = [Case(1000, 64, 2, 1, 2, 0.1, 128), Case(2, 3, 1, 1, 4, 0.1, 6)]
    cases += [
        Case(
            draw.randint(20, 3000), draw.randint(2, 40), draw.randint(1, 8), draw.randint(1, 5), draw.randint(1, 9),
            draw.uniform(0.01, 1), draw.choice([32, 100, 128, 256]),
        )
        for _ in range(CASES - len(cases))
    ]  # fmt: skip
    peaks, steps = [], []
    for case in cases:
        peaks.append(rank.names["peak_lr"](case.lr, case.base, case.batch, case.world, case.accumulate))
        _require_number("peak_lr", peaks[-1], (int, float))
    _compare_table("peak_lr", cases, peaks, lambda c: c.config().peak_lr(c.world), PEAK_MISTAKES)
    for case in cases:
        found = rank.names["optimizer_steps"](case.images, case.batch, case.world, case.accumulate, case.epochs)
        steps.append(_require_number("optimizer_steps", found, (int,)))
    _compare_table("optimizer_steps", cases, steps, Case.steps, STEP_MISTAKES)
    return 2 * CASES


def _require_number(function: str, found: object, types: tuple[type, ...]) -> float:
    if not isinstance(found, types) or isinstance(found, bool) or math.isnan(found):
        kind = "a whole number" if types == (int,) else "a number"
        raise Wrong("no-number", f"{function} returned {found!r:.40} ({type(found).__name__}); it must return {kind}")
    return found


def _compare_table(
    function: str, cases: list[Case], found: list[float], rule: Rule, mistakes: dict[str, tuple[list[Rule], str]]
) -> None:
    right = [rule(case) for case in cases]
    wrong = [number for number in range(len(cases)) if not math.isclose(found[number], right[number], rel_tol=1e-9)]
    if not wrong:
        return
    case, mine, theirs = cases[wrong[0]], found[wrong[0]], right[wrong[0]]
    words = f"{case}, base_lr {case.lr:.3g} for a batch of {case.base}"
    if function == "optimizer_steps":
        words = f"{case}, {case.images} images, {case.epochs} epoch(s)"
    text = (
        f"{words}: {function} says {mine:.6g}, the workbook {theirs:.6g} (wrong in {len(wrong)} of {len(cases)} cases)"
    )
    for diagnosis, (rules, thought) in mistakes.items():
        for mistake in rules:
            if all(math.isclose(a, mistake(c), rel_tol=1e-9) for a, c in zip(found, cases, strict=True)):
                raise Wrong(diagnosis, f"{text}; {thought}")
    raise Wrong(f"other-{function.split('_')[1]}", text)


def curve(rank: Rank) -> int:
    """The rate of every step, and of the one after the last."""
    draw = random.Random(rank.seed)
    for steps, warmup in CURVES:
        peak = draw.uniform(0.1, 2)
        found = [
            _require_number("lr_at", rank.names["lr_at"](step, steps, warmup, peak), (int, float)) / peak
            for step in range(steps + 1)
        ]
        _compare_curve(found, _factors(steps, warmup), warmup)
    return sum(steps + 1 for steps, _ in CURVES)


def _factors(steps: int, warmup: int) -> list[float]:
    """The workbook's own schedule, as shares of the peak."""
    config = TrainConfig(epochs=1, warmup=warmup / steps, schedule="onecycle")
    return [learning_rate_factor(step, steps, config) for step in range(steps + 1)]


def _compare_curve(found: list[float], right: list[float], warmup: int) -> None:
    """Both as shares of the peak."""
    steps = len(right) - 1
    words = f"{steps} steps, {warmup} of them warm-up"
    wrong = [step for step in range(steps + 1) if not math.isclose(found[step], right[step], abs_tol=1e-9)]
    if not wrong:
        return
    if wrong == [steps]:
        raise Wrong(
            "past-the-end",
            f"{words}: right up to the last step, {steps - 1}; but a scheduler asks for one rate more, that of step "
            f"{steps}, and got {found[steps]:.3g} of the peak",
        )
    for span in (steps - 1, steps):
        whole = [right[-1] + (1 - right[-1]) * (1 + math.cos(math.pi * step / span)) / 2 for step in range(steps)]
        if all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(found[warmup:steps], whole[warmup:], strict=True)):
            raise Wrong(
                "jump",
                f"{words}: step {warmup} gets {found[warmup]:.3g} of the peak, the workbook's schedule says "
                f"{right[warmup]:.3g}: at which step does the falling cosine begin?",
            )
    highest = max(range(steps + 1), key=found.__getitem__)
    if highest != warmup - 1 and found[highest] > found[warmup - 1] + 1e-9:
        raise Wrong(
            "peak-misplaced",
            f"{words}: the highest rate is that of step {highest}; it should be that of step {warmup - 1}, the last "
            f"one of the warm-up (steps are counted from 0)",
        )
    first = wrong[0]
    at = f"{words}: step {first} gets {found[first]:.4g} of the peak, the workbook's schedule says {right[first]:.4g}"
    if first == 0:
        raise Wrong("wrong-start", at)
    if first < warmup:
        line = [right[0] + (1 - right[0]) * step / (warmup - 1) for step in range(warmup)]
        if all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(found, line, strict=False)):
            raise Wrong("linear-warm-up", f"{at}: the warm-up is a straight line, not half a cosine")
        raise Wrong("other-warm-up", at)
    if abs(found[steps - 1] - right[steps - 1]) > 1e-9:
        raise Wrong(
            "wrong-end",
            f"{words}: the last step, {steps - 1}, gets {found[steps - 1]:.3g} of the peak, the workbook's schedule "
            f"says {right[steps - 1]:.3g}",
        )
    raise Wrong("other-rate", at)


def together(rank: Rank) -> int:
    """A real training at these rates: ranks that accumulate end where one process with the whole batch ends."""
    case = Case(images=rank.size * 25, batch=3, world=rank.size, accumulate=2, epochs=2, lr=0.02, base=8)
    generator = torch.Generator().manual_seed(rank.seed)
    images = torch.randn(case.images, 4, dtype=torch.float64, generator=generator)
    each = case.batch * case.accumulate
    names, steps = rank.names, case.steps()
    peak = names["peak_lr"](case.lr, case.base, case.batch, rank.size, case.accumulate)
    planned = names["optimizer_steps"](case.images, case.batch, rank.size, case.accumulate, case.epochs)
    mine = _train(
        images[rank.rank :: rank.size], each, planned, lambda s: names["lr_at"](s, planned, 3, peak), rank.gather
    )
    factors, top = _factors(steps, 3), case.config().peak_lr(rank.size)
    serial = _train(images, each * rank.size, steps, lambda s: top * factors[s], lambda grad: [grad])
    worst = max(rank.gather((mine - serial).abs().max().item()))
    if worst > 1e-9:
        raise Wrong(
            "other-weights", f"trained on {rank.size} ranks, weights differ from serial training by {worst:.2g}"
        )
    return 1


def _train(
    images: Tensor, batch: int, steps: int, rate: Callable[[int], float], gather: Callable[[Tensor], list]
) -> Tensor:
    """The weights after so many steps of SGD with momentum; gradients are averaged over what gather() returns."""
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    per_epoch = len(images) // batch
    for step in range(steps):
        here = images[step % per_epoch * batch :][:batch]
        optimizer.zero_grad()
        (model(here) - here.sum(1, keepdim=True)).square().mean().backward()
        model.weight.grad = torch.stack(gather(model.weight.grad)).mean(0)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
    return model.weight.detach()


LAB = Lab(
    number=11,
    name="schedule",
    title="The learning rate of every step",
    minutes=15,
    difficulty=1,
    defines=("peak_lr", "optimizer_steps", "lr_at"),
    parts=(Part(table), Part(curve), Part(together, 2), Part(together, 3)),
)
