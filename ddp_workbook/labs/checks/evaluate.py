"""L10: the exact loss and accuracy of a test set that the ranks share, whatever its size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddp_workbook.labs.lab import Lab, Part
from ddp_workbook.labs.ledger import where
from ddp_workbook.labs.team import Rank
from ddp_workbook.labs.verdict import Wrong

SIZES = (10, 11, 3, 2, 0)
FEATURES, CLASSES = 6, 4


class Net(nn.Module):
    """Dropout and BatchNorm, in float64. It writes down which images it was given, in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(FEATURES, 16), nn.BatchNorm1d(16)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(16, CLASSES)
        self.batches: list[list[int]] = []
        self.trained = False

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, CLASSES). The first feature is the number of the image, from 1 on: 0 is padding."""
        self.batches.append([int(number) - 1 for number in images[:, 0].tolist()])
        self.trained |= self.dropout.training or self.norm.training
        return self.last(self.dropout(torch.tanh(self.norm(self.first(images)))))


def shared(rank: Rank) -> int:
    """Test sets of several sizes, with a model found in training mode and in evaluation mode."""
    costs = [_evaluate(rank, n, training) for n in SIZES for training in (True, False)]
    for n, reports in zip(SIZES, costs[::2], strict=True):
        _check_cost(n, reports)
    return len(costs)


def _evaluate(rank: Rank, n: int, training: bool) -> list[tuple[int, list[str]]]:
    """Returns for each rank how many images it evaluated, and its collectives."""
    torch.manual_seed(rank.seed + n)
    net = Net().double()
    net.norm.running_mean.normal_()
    images, labels = torch.randn(n, FEATURES).double(), torch.randint(CLASSES, (n,))
    images[:, 0] = torch.arange(1, n + 1)
    scores = net.eval()(images)
    losses = F.cross_entropy(scores, labels, reduction="none").tolist()
    right = (scores.argmax(1) == labels).tolist()
    net.train(training)
    net.batches, net.trained, buffers = [], False, {name: each.clone() for name, each in net.named_buffers()}
    words = f"{n} images on {rank.size} ranks"
    rank.ledger.take()
    try:
        result = rank.names["evaluate"](net, images.clone(), labels.clone(), rank.rank, rank.size)
    except (ZeroDivisionError, IndexError, ValueError, RuntimeError) as error:
        if n >= rank.size:
            raise
        raise Wrong("empty", f"{words}: {type(error).__name__}: {error}. Which rank has no images?") from None
    calls = [where(entry) for entry in rank.ledger.take()]
    moved = [name for name, each in net.named_buffers() if not torch.equal(each, buffers[name])]
    modes = {each.training for each in net.modules()}
    reports = rank.gather((_numbers(result), calls, net.batches, net.trained, moved, modes))
    if any(report[3] for report in reports):
        buffer = next((report[4][0] for report in reports if report[4]), None)
        also = f", and {buffer} has changed" if buffer else ""
        raise Wrong(
            "train-mode", f"{words}: dropout or BatchNorm was in training mode while the images were judged{also}"
        )
    _check_results([report[0] for report in reports], [report[2] for report in reports], losses, right, words)
    for _, _, _, _, moved, modes in reports:
        if modes != {training}:
            found, left = (("training" if mode else "evaluation") for mode in (training, not training))
            raise Wrong("other-mode", f"{words}: the model was in {found} mode; your function left it in {left} mode")
        if moved:
            raise Wrong("buffers", f"{words}: {moved[0]} is not as it was")
    return [(sum(map(len, report[2])), report[1]) for report in reports]


def _check_cost(n: int, reports: list[tuple[int, list[str]]]) -> None:
    """A fair share of the images, and one collective."""
    share = math.ceil(n / len(reports))
    for number, (evaluated, calls) in enumerate(reports):
        words = f"the numbers are right, but with {n} images on {len(reports)} ranks rank {number}"
        if evaluated > share:
            raise Wrong("not-shared", f"{words} evaluated {evaluated} of them; a fair share is {share} at most")
        if len(calls) > 1:
            names = ", ".join(calls[:4])
            raise Wrong("too-many-collectives", f"{words} called {len(calls)} collectives: {names}. One is enough")


def _numbers(result: object) -> list[float] | str:
    """(loss, right, total) as numbers; a description of anything else."""
    if not isinstance(result, Sequence) or isinstance(result, str) or len(result) != 3:
        return type(result).__name__ + (f" of {len(result)}" if isinstance(result, Sequence | Tensor) else "")
    try:
        return [float(each) for each in result]
    except (TypeError, ValueError, RuntimeError):
        return "(" + ", ".join(type(each).__name__ for each in result) + ")"


def _check_results(
    results: list[list[float] | str], batches: list[list[list[int]]], losses: list[float], right: list[bool], words: str
) -> None:
    """Every rank's result, against one process and all images."""
    n = len(losses)
    expected = [sum(losses) / max(1, n), float(sum(right)), float(n)]
    wrong = [number for number, result in enumerate(results) if not _same(result, expected)]
    if not wrong:
        return
    result = results[wrong[0]]
    for number, other in enumerate(results):
        if isinstance(other, str):
            raise Wrong("no-triple", f"{words}: rank {number} returned {other}, not three numbers (loss, right, total)")
    if any(value != value for each in results for value in each):
        raise Wrong("not-finite", f"{words}: rank {wrong[0]} returned {_text(result)}. What is the mean of no images?")
    if wrong != list(range(len(results))):
        text = f"rank {wrong[0]} returned {_text(result)}, another rank {_text(expected)}, which is right"
        raise Wrong("not-everywhere", f"{words}: {text}")
    if any(each != results[0] for each in results):
        raise Wrong(
            "own-share",
            f"{words}: rank 0 returned {_text(results[0])} and rank 1 {_text(results[1])}; all of them should return "
            f"the same",
        )
    loss, hits, total = result
    times = Counter(number for mine in batches for batch in mine for number in batch)
    twice = [
        f"image {number} twice" if number >= 0 else "padding as well"
        for number in times
        if times[number] > 1 or number < 0
    ]
    if total > n and twice:
        raise Wrong("padded", f"{words}: {total:g} were counted, {n} exist: {twice[0]}")
    if total < n and len(times) < n:
        missing = next(number for number in range(n) if number not in times)
        raise Wrong("dropped", f"{words}: {total:g} were counted, {n} exist; no rank evaluated image {missing}")
    if total != n:
        raise Wrong("miscounted", f"{words}: the total is {total:g}")
    rounded = abs(loss - expected[0]) < 1e-5 * abs(expected[0])
    averaged = "" if rounded else _mean_of_means(loss, batches, losses)
    if averaged or (hits != expected[1] and (averaged := _mean_of_means(hits / n, batches, right))):
        raise Wrong(
            "mean-of-means",
            f"{words}: {_text(result)} instead of {_text(expected)}; the mean of the means of {averaged} images",
        )
    if hits != expected[1]:
        raise Wrong(
            "other-count", f"{words}: {hits:g} predictions are right by your count; it should be {expected[1]:g}"
        )
    if rounded:
        raise Wrong(
            "rounded",
            f"{words}: the loss is off by {abs(loss - expected[0]):.1g}, so some number on the way was not in float64",
        )
    factor = loss / expected[0] if expected[0] else math.inf
    raise Wrong("other-loss", f"{words}: the loss is {loss:.6g}, {factor:.4g} times what one process finds")


def _same(result: list[float] | str, expected: list[float]) -> bool:
    if isinstance(result, str) or result[1:] != expected[1:]:
        return False
    return abs(result[0] - expected[0]) <= 1e-12 * max(1, abs(expected[0]))


def _mean_of_means(value: float, batches: list[list[list[int]]], of_image: Sequence[float]) -> str:
    """'ranks with 6 and 5' when the value is the mean of their means, or the same for batches; '' when it is not."""
    groups = {
        "ranks": [[number for batch in mine for number in batch] for mine in batches],
        "batches": [batch for mine in batches for batch in mine],
    }
    for name, members in groups.items():
        for some in (members, [each for each in members if each]):
            means = [sum(of_image[number] for number in each) / max(1, len(each)) for each in some]
            if means and len(set(map(len, some))) > 1 and abs(value - sum(means) / len(means)) < 1e-6:
                return f"{name} with {', '.join(map(str, map(len, some)))}"
    return ""


def _text(result: list[float]) -> str:
    return f"({result[0]:.6g}, {result[1]:g}, {result[2]:g})"


LAB = Lab(
    number=10,
    name="evaluate",
    title="Count every test image once",
    minutes=20,
    difficulty=2,
    defines=("evaluate",),
    parts=(Part(shared, 2, 3), Part(shared, 3, 3)),
)
