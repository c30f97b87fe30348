"""Running metrics: counting many steps at once gives the same as counting each step."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch.nn import functional

from ddp_workbook.training.metrics import RunningMetrics, StepOutput, sum_outputs


def output(size, seed, loss=None):
    draws = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(size, 4, generator=draws), torch.randint(4, (size,), generator=draws)
    return StepOutput(functional.cross_entropy(logits, labels) if loss is None else torch.tensor(loss), logits, labels)


STEPS = [[output(8, 10 * step + part) for part in range(2)] for step in range(7)]


def test_sums_equal_scikit_learns():
    every = [one for step in STEPS for one in step] + [output(5, 99)]
    labels = torch.cat([one.labels for one in every])
    probabilities = torch.cat([one.logits for one in every]).double().softmax(1)
    loss, correct, images = sum_outputs(every).tolist()
    assert images == len(labels) == 117
    assert loss / images == pytest.approx(log_loss(labels, probabilities, labels=range(4)), rel=1e-6)
    assert correct / images == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))


@pytest.mark.parametrize("computed_after", [range(7), [2, 3], []], ids=["each", "some", "none"])
def test_when_steps_are_counted_changes_nothing(computed_after):
    metrics = RunningMetrics()
    for number, step in enumerate(STEPS):
        metrics.add(step)
        assert metrics.steps == number + 1
        if number in computed_after:
            metrics.compute()
    assert torch.equal(metrics.compute(), sum_outputs([one for step in STEPS for one in step]))
    assert metrics.mean_loss() == pytest.approx(torch.stack([one.loss for step in STEPS for one in step]).mean().item())


def test_metrics_continue_from_the_sums_of_earlier_ones():
    first = RunningMetrics()
    for step in STEPS[:3]:
        first.add(step)
    second = RunningMetrics(first.steps, first.compute())
    for step in STEPS[3:]:
        second.add(step)
    assert torch.equal(second.compute(), sum_outputs([one for step in STEPS for one in step]))
    assert second.steps == 7
    assert torch.equal(first.compute(), sum_outputs([one for step in STEPS[:3] for one in step]))  # unchanged


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_not_finite_is_found(value):
    for counted in (0, 5):
        metrics = RunningMetrics(counted)
        assert metrics.first_bad is None
        for number, step in enumerate(STEPS):
            bad = number in (4, 6)
            metrics.add([step[0], output(8, 1, value)] if bad else step)
            if number == 1:
                metrics.compute()
        metrics.compute()
        assert metrics.first_bad == counted + 5
        metrics.add(STEPS[0])
        metrics.compute()
        assert metrics.first_bad == counted + 5
