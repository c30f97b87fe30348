"""Counting many steps at once gives what counting each by itself does."""

import math

import pytest
import torch
from ddp_workbook.tally import Outcome, Tally, add_up
from sklearn.metrics import accuracy_score, log_loss
from torch.nn import functional


def outcome(size, seed, loss=None):
    draws = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(size, 4, generator=draws), torch.randint(4, (size,), generator=draws)
    return Outcome(functional.cross_entropy(logits, labels) if loss is None else torch.tensor(loss), logits, labels)


STEPS = [[outcome(8, 10 * step + part) for part in range(2)] for step in range(7)]


def test_sums_equal_scikit_learns():
    every = [one for step in STEPS for one in step] + [outcome(5, 99)]
    labels = torch.cat([one.labels for one in every])
    chances = torch.cat([one.logits for one in every]).double().softmax(1)
    loss, right, images = add_up(every).tolist()
    assert images == len(labels) == 117
    assert loss / images == pytest.approx(log_loss(labels, chances, labels=range(4)), rel=1e-6)
    assert right / images == pytest.approx(accuracy_score(labels, chances.argmax(1)))


@pytest.mark.parametrize("pauses", [range(7), [2, 3], []], ids=["each", "some", "none"])
def test_when_steps_are_counted_changes_nothing(pauses):
    tally = Tally()
    for number, step in enumerate(STEPS):
        tally.add(step)
        assert tally.steps == number + 1
        if number in pauses:
            tally.count()
    assert torch.equal(tally.count(), add_up([one for step in STEPS for one in step]))
    assert tally.mean_loss() == pytest.approx(torch.stack([one.loss for step in STEPS for one in step]).mean().item())


def test_a_tally_goes_on_from_an_earlier_ones_sums():
    first = Tally()
    for step in STEPS[:3]:
        first.add(step)
    second = Tally(first.steps, first.count())
    for step in STEPS[3:]:
        second.add(step)
    assert torch.equal(second.count(), add_up([one for step in STEPS for one in step]))
    assert second.steps == 7
    assert torch.equal(first.count(), add_up([one for step in STEPS[:3] for one in step]))  # not added to as well


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_loss_that_is_no_number_is_found(value):
    for counted in (0, 5):
        tally = Tally(counted)
        assert tally.first_bad is None
        for number, step in enumerate(STEPS):
            bad = number in (4, 6)
            tally.add([step[0], outcome(8, 1, value)] if bad else step)
            if number == 1:
                tally.count()
        tally.count()
        assert tally.first_bad == counted + 5
        tally.add(STEPS[0])
        tally.count()
        assert tally.first_bad == counted + 5
