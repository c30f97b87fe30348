"""The simulation of a step on a cluster against closed forms, and against the plain sum of the cost model."""

import itertools

import pytest
from helper_records import make_sweep

from ddp_workbook.analysis.clusters import (
    BACKWARD_SHARE,
    Bucket,
    Cluster,
    all_reduce_times,
    exposed_seconds,
    fill_buckets,
    whole_nodes,
)
from ddp_workbook.analysis.costmodel import ModelCosts
from ddp_workbook.analysis.fits import Link, StepCost, predict_step
from ddp_workbook.errors import InputError

NVLINK, ETHERNET = Link(3e-6, 40e9), Link(30e-6, 3e9)
NODES = Cluster(4, NVLINK, ETHERNET)
FREE = Link(0.0, float("inf"))


@pytest.mark.parametrize("buckets", [1, 2, 4, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 64, 4096])
@pytest.mark.parametrize("network", [ETHERNET, Cluster(1, NVLINK, ETHERNET)])
def test_without_overlap_the_simulation_is_the_plain_sum_exactly(buckets, processes, network):
    cost = StepCost(0.013, 0.0007, 94_123_456, buckets)
    ready = fill_buckets([(cost.gradient_bytes, 1.0)], 0.0, buckets)
    simulated = cost.seconds(32) + exposed_seconds(ready, network, processes)
    assert simulated == predict_step(cost, 32, ETHERNET, processes)


def test_the_predictions_on_cpus_are_the_plain_sum_exactly():
    costs = ModelCosts(make_sweep(), "resnet50")
    assert costs.on_cpu
    for processes in (1, 2, 3, 64, 4096):
        assert costs.step_on_network(16, processes, ETHERNET) == predict_step(costs.serial, 16, ETHERNET, processes)


def test_on_accelerators_only_what_backward_does_not_hide_is_added():
    sweep = make_sweep()
    machine = sweep.environment.model_copy(update={"device": "cuda", "accelerator_count": 2})
    costs = ModelCosts(sweep.model_copy(update={"environment": machine}), "resnet50")
    point = costs.serial
    assert point.buckets == 1  # the only bucket is full when backward ends: nothing can be hidden
    assert costs.step_on_network(128, 8, ETHERNET) == predict_step(point, 128, ETHERNET, 8)
    points = [each.model_copy(update={"buckets": 10}) for each in sweep.points]
    costs = ModelCosts(sweep.model_copy(update={"environment": machine, "points": points}), "resnet50")
    fast = Link(1e-6, 40e9)
    assert fast.all_reduce(9_000_000, 8) < BACKWARD_SHARE * costs.serial.seconds(128) / 10
    assert costs.step_on_network(128, 8, fast) == pytest.approx(
        costs.serial.seconds(128) + fast.all_reduce(9_000_000, 8)
    )


@pytest.mark.parametrize("processes", [4, 12, 512])
def test_a_hierarchical_all_reduce_by_counting_its_messages(processes):
    """A process sends 3 messages of a quarter in its node, twice; and its quarter in a ring of nodes."""
    size, nodes = 120e6, processes // 4
    inside = sum(3e-6 + size / 4 / 40e9 for _ in range(2 * 3))
    card = 3e9 / 4  # the four processes of a node share its card
    between = sum(30e-6 + size / 4 / nodes / card for _ in range(2 * (nodes - 1)))
    assert NODES.all_reduce(size, processes) == pytest.approx(inside + between)
    assert NODES.all_reduce(size, processes, 3) == pytest.approx(3 * NODES.all_reduce(size / 3, processes))


def test_one_node_and_nodes_of_one_are_plain_rings():
    for processes in (1, 2, 3, 4):
        assert NODES.all_reduce(1e8, processes) == NVLINK.all_reduce(1e8, processes)
    assert Cluster(1, NVLINK, ETHERNET).all_reduce(1e8, 7) == ETHERNET.all_reduce(1e8, 7)


def test_incomplete_nodes_are_refused():
    with pytest.raises(InputError, match="6 processes do not fill nodes of 4"):
        NODES.all_reduce(1e8, 6)
    assert whole_nodes([1, 2, 3, 5, 6, 7, 16], NODES) == [1, 2, 3, 4, 8, 16]
    assert whole_nodes([1, 2, 3, 5], ETHERNET) == [1, 2, 3, 5]


def test_a_free_network_exposes_nothing():
    buckets = fill_buckets([(1e8, 1.0), (5e7, 3.0)], 0.1, 7)
    assert exposed_seconds(buckets, Cluster(8, FREE, FREE), 512) == 0


def test_a_bucket_is_ready_when_backward_has_filled_it():
    """100 MB in a second, 300 MB in two, nothing in the last: four buckets, the last 1 s before the end."""
    buckets = fill_buckets([(1e8, 1.0), (3e8, 2.0), (0.0, 1.0)], 4.0, 4)
    assert [bucket.size for bucket in buckets] == [1e8] * 4
    assert [bucket.ready for bucket in buckets[:3]] == pytest.approx([-3, -3 + 2 / 3, -3 + 4 / 3])


def test_a_long_backward_hides_all_but_the_last_bucket():
    buckets = fill_buckets([(1e8, 1.0)], 10.0, 5)
    assert exposed_seconds(buckets, NODES, 64) == pytest.approx(NODES.all_reduce(2e7, 64))


def test_a_short_backward_hides_what_it_lasts_after_the_first_bucket():
    """The network is never idle after the first bucket: the exposed part is their sum less the rest of backward."""
    buckets = fill_buckets([(1e8, 1.0)], 0.01, 5)
    assert exposed_seconds(buckets, NODES, 64) == pytest.approx(5 * NODES.all_reduce(2e7, 64) - 0.01 * 4 / 5)


def test_buckets_wait_for_the_one_before_and_for_their_gradients():
    link = Link(0.0, 1e8)  # 1 s for 100 MB among two
    times = all_reduce_times([Bucket(-5.0, 2e8), Bucket(-4.0, 1e8), Bucket(-0.5, 1e8)], link, 2)
    assert times == [(-5, -3), (-3, -2), (-0.5, 0.5)]
    assert all(second[0] >= first[1] for first, second in itertools.pairwise(times))
