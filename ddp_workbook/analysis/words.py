"""What the records say, in plain sentences for notebooks and report. No number is typed: all come from the records.

Each function returns text with a sentence a line and an empty line between paragraphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ddp_workbook.analysis.costmodel import Check, exposed, judge, slowest, summed_collectives
from ddp_workbook.analysis.speedup import (
    EQUIVALENCE_MARGIN,
    accuracy_difference,
    is_equivalent,
    paired_answers,
    speedup_table,
    upper_bound_shares,
    verdict,
)
from ddp_workbook.analysis.statistics import SAMPLES_NEEDED, mcnemar, only_one_right, outermost
from ddp_workbook.records.run import RunRecord
from ddp_workbook.records.timing import BenchmarkRecord, Interval, StepBreakdown, StepTimes
from ddp_workbook.specs import DATASETS, MODELS

RANKING_ERROR = 0.25  # mean size of the errors up to which a model is of use for ranking choices
PLANNING_ERROR = 0.05  # and up to which also for planning


def milliseconds(seconds: float) -> str:
    """A time with its unit, with about two digits that count."""
    return f"{1000 * seconds:.{_digits(seconds)}f} ms"


def _digits(seconds: float) -> int:
    return 0 if abs(seconds) >= 0.00995 else 1 if abs(seconds) >= 0.000995 else 2


def _from_to(interval: Interval) -> str:
    digits = _digits(max(abs(interval.low), abs(interval.high)))
    return f"{1000 * interval.low:z.{digits}f} to {1000 * interval.high:z.{digits}f} ms"


def read_breakdowns(breakdowns: dict[str, StepBreakdown], alone: float | None = None) -> str:
    """What gradient synchronization costs a step, and where; then the same for each further way to send.

    `breakdowns` maps the name of a way to send ("Gloo", "shared memory") to its record; the first is the ordinary
    all-reduce. `alone`: seconds that its all-reduces would take with nothing else to do, by the fitted link.
    """
    (first, record), *others = breakdowns.items()
    cost = exposed(record)
    paragraphs = [
        [_cost(record, cost), *_where(record, cost)],
        _sum(record, cost, alone),
        *([_other_way(first, cost, label, other)] for label, other in others),
    ]
    return "\n\n".join("\n".join(sentences) for sentences in paragraphs)


def _spread(record: StepBreakdown, cost: Interval) -> str:
    pairs = len(record.synced[0])
    name = "95 % interval" if pairs >= SAMPLES_NEEDED else "range"
    return f"{name} of the difference {_from_to(cost)}, median of {pairs} pairs of one launch"


def _without_and_with(record: StepBreakdown) -> str:
    without, synced = (float(np.median(slowest(ranks))) for ranks in (record.no_sync, record.synced))
    return f"{milliseconds(without)} without, {milliseconds(synced)} with"


def _cost(record: StepBreakdown, cost: Interval) -> str:
    detail = f"({_without_and_with(record)}; {_spread(record, cost)})"
    if cost.low > 0:
        return f"Averaging makes a step {milliseconds(cost.value)} longer {detail}."
    if cost.high < 0:
        return (
            f"Steps with averaging were {milliseconds(-cost.value)} shorter {detail}: averaging cannot save time, so "
            f"something else differed between the two kinds of steps."
        )
    return f"The cost of averaging, {milliseconds(cost.value)}, is not distinguishable from no cost {detail}."


def _median(record: StepBreakdown, difference: Callable[[StepTimes, StepTimes], float]) -> float:
    """Median over ranks and pairs of a synced step and one under no_sync."""
    pairs = zip(record.synced, record.no_sync, strict=True)
    return float(np.median([difference(*pair) for ranks in pairs for pair in zip(*ranks, strict=True)]))


def _cores_are_busy(record: StepBreakdown) -> bool:
    """Whether every core computes, so that none is free to send."""
    machine = record.environment
    return machine.device == "cpu" and record.processes * record.threads >= machine.cores


def _where(record: StepBreakdown, cost: Interval) -> list[str]:
    """In which part of the step the cost is: waiting after the last gradient, or a slower backward pass before it."""
    waited = _median(record, lambda synced, _: synced.waited)
    slower = _median(record, lambda synced, no_sync: synced.backward - synced.waited - no_sync.backward)
    if cost.low <= 0:
        return [f"After the last gradient was ready, backward waited {milliseconds(waited)} for the all-reduces."]
    if waited > cost.value:
        sentences = [
            f"After the last gradient was ready, backward waited {milliseconds(waited)} for the all-reduces.",
            "That is longer than the whole cost: other parts of the step were shorter.",
        ]
    else:
        only = "Only " if waited < cost.value / 2 else ""
        sentences = [f"{only}{milliseconds(waited)} of that is waiting after the last gradient."]
    if slower > cost.value / 10:
        reason = "the all-reduces that run meanwhile slow it down"
        if _cores_are_busy(record):
            reason = "the same cores that compute also send and add"
        sentences.append(f"Backward itself takes {milliseconds(slower)} longer: {reason}.")
    else:
        sentences.append("Up to the last gradient, backward itself is hardly slower.")
    rest = cost.value - waited - max(slower, 0.0)
    if rest > cost.value / 4:
        sentences.append(f"The other {milliseconds(rest)} are elsewhere in the step, or in waiting for a slower rank.")
    return sentences


def _sum(record: StepBreakdown, cost: Interval, alone: float | None) -> list[str]:
    """Why the sum of the all-reduces is not the cost."""
    total = summed_collectives(record)
    sentence = f"The all-reduces of a step sum to {milliseconds(total)}"
    if alone is not None:
        sentence += f"; alone they would take about {milliseconds(alone)}"
        if total > 1.1 * alone:
            rival = "compete for the cores" if _cores_are_busy(record) else "share the machine with the computing"
            sentence += f", during backward they {rival}"
    if total > cost.high:
        conclusion = "So the sum of the all-reduces is not the overhead: a part of it runs while backward computes."
    elif total < cost.low:
        conclusion = "So the sum of the all-reduces is not the overhead: a step gets longer by more than that."
    else:
        conclusion = "Here the sum lies inside the interval of the cost. It need not: it also counts what is hidden."
    clocks = "Several can be under way at once, and each clock also counts waiting for the other ranks."
    return [f"{sentence}.", clocks, conclusion]


def _other_way(first: str, cost: Interval, label: str, record: StepBreakdown) -> str:
    """Another way to send the same gradients, against the first one."""
    other = exposed(record)
    costs = f"the same averaging costs {milliseconds(other.value)}"
    if other.low <= 0 <= other.high:
        costs = f"the cost of the same averaging ({milliseconds(other.value)}) is not distinguishable from no cost"
    sentence = f"With {label} {costs} ({_without_and_with(record)}; {_spread(record, other)})"
    if other.high < cost.low:
        share = 1 - max(other.value, 0.0) / cost.value
        return f"{sentence}: about {100 * share:.0f} % of the cost was the way the bytes travel, not the averaging."
    if other.low > cost.high:
        return f"{sentence}: more than with {first}."
    return f"{sentence}: the intervals overlap, so these steps do not show that one way is cheaper than the other."


def read_model(checks: Sequence[Check]) -> str:
    """The verdict on the cost model, network by network, and what it may be used for."""
    verdicts = judge(checks)
    paragraphs = [f"{one.text}\n{_share(one.model, checks)}" for one in verdicts]
    size = max(one.mean_size_of_corrected_error for one in verdicts)
    largest = max(abs(check.corrected_error.value) for check in checks)
    numbers = f"it is off by up to {100 * size:.0f} % on average over a network, and by {100 * largest:.0f} % at most"
    if size <= PLANNING_ERROR:
        use = f"The model with its exposed share can rank choices, and plan with a margin: {numbers}."
    elif size <= RANKING_ERROR:
        use = f"The model with its exposed share can rank choices; it is too rough to plan a budget: {numbers}."
    else:
        use = f"The model is of no use here, measure instead: {numbers}."
    return "\n\n".join([*paragraphs, use])


def _share(model: str, checks: Sequence[Check]) -> str:
    """What the exposed share of a network means."""
    points = sorted((check for check in checks if check.model == model), key=lambda check: check.images)
    shares = ", ".join(f"{100 * check.added.value / check.all_reduce:.0f} %" for check in points)
    images = ", ".join(str(check.images) for check in points)
    sentence = f"Its steps get longer by {shares} of what their all-reduces take alone, at {images} images each."
    if all(check.added.high < check.all_reduce for check in points):
        return f"{sentence} The rest is hidden behind computing."
    if all(check.added.low > check.all_reduce for check in points):
        return f"{sentence} Averaging also slows down what computes at the same time."
    return f"{sentence} The model takes one share for all; do not use it outside these batch sizes."


def read_speedups(strong: BenchmarkRecord, weak: BenchmarkRecord | None) -> str:
    """How the speedups were measured, what they are, and what weak scaling does not show."""
    paragraphs = [
        [
            "A speedup is the images per second of the distributed run, divided by those of the baseline in the same "
            "round.",
            "A run can be faster than one baseline and slower than another, so each is named with its threads.",
        ],
        ["Strong scaling: the processes split the same global batch.", *_runs(strong), _rounds(strong)],
    ]
    if weak is not None:
        paragraphs.append(["Weak scaling: every process gets a whole batch.", *_hook(weak, strong), *_runs(weak)])
        growth = " and ".join(str(run.processes) for run in weak.by_role("distributed"))
        paragraphs[-1] += [
            f"The global batch is {growth} times that of a baseline, so these are throughputs (images per second), not "
            f"times to an accuracy: an epoch has fewer steps, and a larger batch may need more epochs.",
            _rounds(weak),
        ]
    return "\n\n".join("\n".join(sentences) for sentences in paragraphs)


def _rounds(record: BenchmarkRecord) -> str:
    rounds, cut = record.rounds, outermost(record.rounds) - 1
    launches = "each with new processes" if record.new_processes else "of one launch"
    numbers = f"The numbers are medians of {rounds} rounds, {launches}; in brackets"
    if rounds < SAMPLES_NEEDED:
        return f"{numbers} the smallest and the largest, since a 95 % interval needs {SAMPLES_NEEDED} rounds."
    ends = "from the smallest to the largest" if cut == 0 else f"without the {cut} smallest and the {cut} largest"
    more = "" if record.new_processes else " Another launch can differ by more."
    return f"{numbers} the 95 % interval, {ends}.{more}"


def _hook(record: BenchmarkRecord, other: BenchmarkRecord) -> list[str]:
    """How gradients were sent, where that differs between two benchmarks."""
    names = {"allreduce": "the ordinary all-reduce", "shared-memory": "shared memory"}
    here, above = (names.get(hook, hook) for hook in (record.config.comm_hook, other.config.comm_hook))
    return [] if here == above else [f"Gradients were averaged through {here} here, through {above} above."]


def _runs(record: BenchmarkRecord) -> list[str]:
    """Each run against each baseline, and against the same processes without communication."""
    sentences, shares = [], upper_bound_shares(record)
    for run in record.by_role("distributed"):
        sentences.append(f"{run.name}: {run.batch_size} images each, {run.global_batch} together.")
        rows = [row for row in speedup_table(record) if row.run == run.name]
        sentences += [f"Over {row.baseline}: {row.speedup.text('.2f')}, {verdict(row.speedup)}." for row in rows]
        speedup, baseline = rows[-1].speedup, rows[-1].baseline
        if speedup.low > 1:
            value, low, high = (100 * (x - 1) for x in (speedup.value, speedup.low, speedup.high))
            sentences.append(f"That is a gain of {value:.0f} % ({low:.0f} to {high:.0f} %) over {baseline}.")
        share = shares[run.name].text(".2f")
        sentences.append(f"It reaches {share} of the rate of the same processes without communication.")
    return sentences


def read_accuracy(baseline: RunRecord, distributed: RunRecord) -> str:
    """The difference of two accuracies, what it shows, and what one run each cannot show."""
    difference = accuracy_difference(baseline, distributed)
    points = f"{100 * abs(difference.value):.2f} points {'more' if difference.value > 0 else 'less'} accurate than"
    if difference.value == 0:
        points = "as accurate as"
    shown = [
        f"The distributed run is {points} the baseline ({100 * distributed.test_accuracy:.2f} % against "
        f"{100 * baseline.test_accuracy:.2f} %; 95 % interval of the difference {100 * difference.low:+.2f} to "
        f"{100 * difference.high:+.2f} points).",
        *_by_image(baseline, distributed),
        "The interval contains 0: the choice of test images alone could explain the difference."
        if difference.low <= 0 <= difference.high
        else "The interval does not contain 0: the choice of test images alone does not explain the difference.",
        _equivalence(difference),
    ]
    hidden = [
        "There is one run of each kind. Another seed would change both accuracies, by an amount that one run each "
        "cannot show."
    ]
    if DATASETS[baseline.dataset.name].images and MODELS[baseline.config.model].chosen_on_test:
        hidden.append(
            "Parts of the recipe were chosen on these same test images (bench/README.md), so both accuracies look a "
            "little better than they are."
        )
    return "\n".join(shown) + "\n\n" + "\n".join(hidden)


def _by_image(baseline: RunRecord, distributed: RunRecord) -> list[str]:
    answers = paired_answers(baseline, distributed)
    if answers is None:
        return [
            "The records do not say which images were right, so the interval is that of two runs on different images, "
            "which is usually too wide."
        ]
    differing, p = sum(only_one_right(*answers)), mcnemar(*answers)
    found = f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
    return [
        f"Both were tested on the same {len(answers[0]):,} images; on {differing:,} of them only one is right.",
        f"So the interval is a paired one (Agresti & Min 2005); McNemar's exact test of equal accuracy gives {found}: "
        f"with equally good models, these images would split at least this unevenly with that probability.",
    ]


def _equivalence(difference: Interval) -> str:
    margin = f"{100 * EQUIVALENCE_MARGIN:g} points"
    if is_equivalent(difference):
        return f"The whole interval lies within {margin}: up to that margin the two are equally accurate."
    if difference.high < -EQUIVALENCE_MARGIN or difference.low > EQUIVALENCE_MARGIN:
        return f"The whole interval lies beyond {margin}: the two are not equally accurate."
    limits = []
    if difference.low < -EQUIVALENCE_MARGIN:
        limits.append(f"a loss of up to {-100 * difference.low:.1f} points")
    if difference.high > EQUIVALENCE_MARGIN:
        limits.append(f"a gain of up to {100 * difference.high:.1f} points")
    verb = "is" if len(limits) == 1 else "are"
    return f"Equal accuracy is not shown: {' and '.join(limits)} {verb} compatible with these data."
