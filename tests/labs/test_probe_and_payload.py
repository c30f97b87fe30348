"""Probes whose results can be read: weights of samples, and who is in a sum how often."""

from fractions import Fraction

import pytest
import torch

from ddp_workbook.labs import payload, probe


def test_the_gradient_is_the_weight_of_each_sample():
    """A mean over 4 samples, of which sample 2 is counted twice and sample 3 left out."""
    model = probe.scale(5)
    model(probe.one_hot([0, 1, 2, 2], of=5)).mean().backward()
    assert probe.weights(model) == [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2), 0, 0]
    words = probe.describe(probe.weights(model), [[0, 1], [2, 3, 4]])
    assert words == "samples of rank 0 weigh 1/4, those of rank 1 weigh 0 or 1/2"


def test_without_a_gradient_all_weights_are_zero():
    assert probe.weights(probe.scale(2)) == [0, 0]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([1, 1, 1], "every rank once"),
        ([1, 2, 0], "rank 1 twice, rank 2 missing"),
        ([5, 1, 1], "rank 0 5 times"),
    ],
)
def test_a_sum_of_payloads_is_read(counts, words):
    total = sum(n * payload.payload(3, rank) for rank, n in enumerate(counts))
    assert payload.counts(total[0].item(), 3) == counts
    assert payload.describe(total[0].item(), 3) == words


def test_sums_of_the_most_ranks_are_exact_in_float32():
    ranks = payload.MOST_RANKS
    total = sum(15 * payload.payload(1, rank) for rank in range(ranks))
    assert total.dtype == torch.float32
    assert payload.counts(total.item(), ranks) == [15] * ranks


def test_what_is_no_sum_is_said_to_be_none():
    mean = (payload.payload(1, 0) + payload.payload(1, 1)).item() / 2
    assert payload.describe(mean, 2) == "1/2 of the sum"
    assert payload.describe(0.3, 2) == "0.3, which is not a sum of the ranks' values"
    assert payload.counts(-1.0, 2) is None
