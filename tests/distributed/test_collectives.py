"""The collectives on three real processes, and without a process group."""

import os

import pytest
import torch
from conftest import run_on_ranks

from ddp_workbook.distributed.collectives import all_reduce_sum, dist_max, dist_sum, from_main, gather_objects
from ddp_workbook.errors import InputError

CPU = torch.device("cpu")
RANKS = 3
LARGE = 2**40  # with a small number added, it needs float64


def sum_in_place(rank):
    value = torch.tensor([rank + 1, 10])
    returned = all_reduce_sum(value)
    return value.tolist(), returned is value


def sums_and_maxima(rank):
    values = [LARGE + rank, 0.5 * rank, -float(rank)]
    return dist_sum(values, CPU), dist_max(values, CPU)


def gathered(rank):
    return gather_objects({"rank": rank, "process": os.getpid()}), os.getpid()


def decided_by_rank_0(rank):
    calls = []

    def decide():
        calls.append(rank)
        return f"decided by rank {rank}"

    return from_main(decide), calls


def refused_by_rank_0(rank):
    """The message of the error that each rank gets; the ranks can still work together afterwards."""

    def refuse():
        raise InputError(f"rank {rank}: the disk is full")

    with pytest.raises(InputError) as refusal:
        from_main(refuse)
    return str(refusal.value), all_reduce_sum(torch.ones(1)).item()


QUESTIONS = (sum_in_place, sums_and_maxima, gathered, decided_by_rank_0, refused_by_rank_0)


def answer_all(rank):
    return {question.__name__: question(rank) for question in QUESTIONS}


@pytest.fixture(scope="module")
def answers():
    """answers(question): the answers of all ranks."""
    by_rank = run_on_ranks(answer_all, RANKS)
    return lambda question: [answer[question.__name__] for answer in by_rank]


def test_a_tensor_is_summed_in_place(answers):
    assert answers(sum_in_place) == [([6, 30], True)] * RANKS


def test_numbers_are_summed_and_compared_in_float64(answers):
    expected = [3.0 * LARGE + 3, 1.5, -3.0], [LARGE + 2.0, 1.0, 0.0]
    assert answers(sums_and_maxima) == [expected] * RANKS


def test_objects_are_gathered_in_rank_order(answers):
    found = answers(gathered)
    expected = [{"rank": rank, "process": process} for rank, (_, process) in enumerate(found)]
    assert len({process for _, process in found}) == RANKS
    assert all(objects == expected for objects, _ in found)


def test_rank_0_decides_for_all(answers):
    expected = [("decided by rank 0", [0])] + [("decided by rank 0", [])] * (RANKS - 1)
    assert answers(decided_by_rank_0) == expected


def test_an_error_of_rank_0_is_raised_on_all(answers):
    assert answers(refused_by_rank_0) == [("rank 0: the disk is full", RANKS)] * RANKS


def test_without_a_group_each_returns_its_input():
    value = torch.tensor([5])
    assert all_reduce_sum(value) is value
    assert value.item() == 5
    assert dist_sum([1.5, 2], CPU) == dist_max([1.5, 2], CPU) == [1.5, 2]
    assert gather_objects("me") == ["me"]
    assert from_main(lambda: "mine") == "mine"
    with pytest.raises(InputError, match="no"):
        from_main(lambda: (_ for _ in ()).throw(InputError("no")))
