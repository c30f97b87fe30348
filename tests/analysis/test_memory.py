"""Bytes per rank and per step against sums by hand. tests/distributed/test_sharding.py has real steps."""

from ddp_workbook.analysis.memory import kept_bytes, sent_bytes, step_bytes


def test_what_a_rank_keeps():
    """100 bytes of parameters with Adam: 400 bytes in all."""
    assert kept_bytes("none", 4, 100, 2) == (100, 100, 200)
    assert kept_bytes("optimizer", 4, 100, 2) == (100, 100, 50)
    assert kept_bytes("full", 4, 100, 2) == (25, 25, 50)
    assert kept_bytes("full", 4, 100, 2).total == 100
    assert {kept_bytes(shard, 1, 100, 1) for shard in ("none", "optimizer", "full")} == {(100, 100, 100)}


def test_what_a_ring_sends_in_a_step():
    """Two ranks send each half of a tensor once in a pass, four ranks three quarters of it."""
    assert [step_bytes(shard, 2, 100) for shard in ("none", "optimizer", "full")] == [100, 150, 150]
    assert [step_bytes(shard, 4, 100) for shard in ("none", "optimizer", "full")] == [150, 225, 225]
    assert step_bytes("full", 1, 100) == 0


def test_gloo_sends_a_third_more_for_a_fully_sharded_step():
    collectives = {"all_gather": 200, "reduce_scatter": 100}
    assert sent_bytes(collectives, 2, "gloo") == 4 / 3 * sent_bytes(collectives, 2, "nccl") == 200
