"""The capstone: mlp-digits trained with the reader's own parts, compared with DDP, then killed and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.own_training import BUCKET_BYTES, Plan, Trained, Wrap, train
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

TOLERANCE = 1e-5  # of a loss; in float64 two right sums differ by 1e-15, with a buffer in float32 by 1e-7
SECONDS = 30
STOP_AFTER = 31  # steps, in the middle of the second epoch on 2 ranks
SEED = 5  # of the run that is interrupted: the same in three parts


def trains_like_ddp(rank: Rank, optimizer: str) -> int:
    """Losses of all steps, replicas and test counts: against torch's DDP, with the same data, rates and randomness."""
    plan = Plan(rank.names, rank.rank, rank.size, rank.seed % 1000, optimizer)
    rank.ledger.phase = f"training with {optimizer}"
    rank.ledger.take()
    own = train(plan, _own(plan))
    collectives = [entry for entry in rank.ledger.take() if entry.name == "all_reduce"]
    rank.ledger.phase = ""
    reference = train(replace(plan, names={**rank.names, "step": _plain_step, "evaluate": _serial_test}), _torch_ddp)
    ranks = rank.gather((own, reference))
    steps = len(reference.losses)
    for number, (mine, its) in enumerate(ranks):
        if len(mine.losses) != steps:
            raise Wrong("other-steps", f"rank {number} computed {len(mine.losses)} losses, {steps} were expected")
        if _differ(mine.losses[0], its.losses[0]):
            raise Wrong("other-start", f"the first loss of rank {number} is {mine.losses[0]:.6f}, with DDP "
                        f"{its.losses[0]:.6f}: do all ranks start with the weights of rank 0?")  # fmt: skip
    if len(collectives) < steps:
        raise Wrong(
            "not-averaged",
            f"{len(collectives)} all-reduces in {steps} steps and a test: each rank has trained on its own images",
        )
    for number, (mine, its) in enumerate(ranks):
        off = next((step for step in range(steps) if _differ(mine.losses[step], its.losses[step])), None)
        if off is not None:
            raise Wrong("other-losses", f"the losses of rank {number} are DDP's in the first {off} step(s); then "
                        f"{mine.losses[off]:.6f} instead of {its.losses[off]:.6f}. Are the gradients the averages "
                        f"when the optimizer uses them?")  # fmt: skip
    if len({mine.weights for mine, _ in ranks}) > 1:
        raise Wrong("replicas-differ", "the losses are right, but the ranks end with weights that differ in bits")
    _compare_tests(ranks)
    if len(collectives) < 2 * steps:
        raise Wrong("one-bucket", f"{len(collectives)} all-reduces in {steps} steps: {BUCKET_BYTES} bytes a bucket are "
                    f"several buckets in each step")  # fmt: skip
    return steps * rank.size + 3


def _differ(loss: float, other: float) -> bool:
    return not abs(loss - other) <= TOLERANCE * abs(other)  # NaN differs


def _compare_tests(ranks: list[tuple[Trained, Trained]]) -> None:
    for number, (mine, its) in enumerate(ranks):
        if mine.tested[1:] != its.tested[1:]:
            raise Wrong("other-test", f"rank {number} counted {mine.tested[1]} of {mine.tested[2]} test images as "
                        f"correct; there are {its.tested[1]} of {its.tested[2]}")  # fmt: skip


def with_adam(rank: Rank) -> int:
    """The recipe as it is; and keep the result for what follows."""
    plan = Plan(rank.names, rank.rank, rank.size, SEED, "adam")
    compared = trains_like_ddp(rank, "adam")
    result = train(plan, _own(plan))
    (rank.folder / f"{rank.rank}.json").write_text(json.dumps(asdict(result)))
    return compared


def with_sgd(rank: Rank) -> int:
    """Adam hides constant factors of the gradient, SGD does not."""
    return trains_like_ddp(rank, "sgd")


def begun(rank: Rank) -> int:
    """The run until it is saved. The judge kills the ranks after that, as after every part."""
    plan = Plan(rank.names, rank.rank, rank.size, SEED, "adam")
    train(plan, _own(plan), _checkpoint(rank.folder), STOP_AFTER)
    return 0


def resumed(rank: Rank) -> int:
    """New processes go on: the weights must have the bits of the undisturbed run."""
    plan = Plan(rank.names, rank.rank, rank.size, SEED, "adam")
    own = train(plan, _own(plan), _checkpoint(rank.folder), resume=True)
    before = Trained(**json.loads((rank.folder / f"{rank.rank}.json").read_text()))
    rest = before.losses[STOP_AFTER:]
    ranks = rank.gather((own, before, rest))
    for number, (mine, _, its) in enumerate(ranks):
        if mine.losses != its:
            step = next((i for i, pair in enumerate(zip(mine.losses, its, strict=False)) if len(set(pair)) > 1), 0)
            raise Wrong("other-after-resume", f"killed after step {STOP_AFTER} and resumed: rank {number} has another "
                        f"loss than the undisturbed run {step + 1} step(s) later")  # fmt: skip
    if any(mine.weights != undisturbed.weights for mine, undisturbed, _ in ranks):
        raise Wrong("other-bits-after-resume", "killed and resumed: the losses are the same, the last weights are not")
    return len(rest) * rank.size + 1


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _own(plan: Plan) -> Wrap:
    def wrap(module: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        model = plan.names["OwnDDP"](module, optimizer, BUCKET_BYTES)
        if getattr(model, "module", None) is not module:
            raise Wrong("other-module", "the attribute .module of your model must be the module that it was given: the "
                        "optimizer holds the parameters of that one")  # fmt: skip
        return model

    return wrap


def _torch_ddp(module: nn.Module, _: torch.optim.Optimizer) -> nn.Module:
    return DistributedDataParallel(module)


def _plain_step(model: nn.Module, batches: list, loss_of: Callable, optimizer: torch.optim.Optimizer) -> None:
    [(inputs, targets)] = batches
    optimizer.zero_grad()
    loss_of(model(inputs), targets).backward()
    optimizer.step()


@torch.no_grad()
def _serial_test(model: nn.Module, images: Tensor, labels: Tensor, *_: int) -> tuple[float, int, int]:
    model.eval()
    outputs = model(images)
    correct = (outputs.argmax(1) == labels).sum()
    return functional.cross_entropy(outputs, labels).item(), correct.item(), len(labels)


LAB = Lab(
    number=14,
    name="capstone",
    title="Train with your own parts",
    minutes=30,
    difficulty=2,
    defines=("OwnDDP",),
    uses=("shard", "start_alike", "buckets", "accumulate", "evaluate", "schedule", "checkpoint"),
    parts=(
        Part(with_adam, 2, SECONDS),
        Part(begun, 2, SECONDS),
        Part(resumed, 2, SECONDS),
        Part(with_sgd, 3, SECONDS),
    ),
)
