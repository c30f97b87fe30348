"""What a rank of a run keeps in memory, and what it communicates in a step."""

from __future__ import annotations

from typing import Literal

from ddp_workbook.records.fields import Count, Strict

CollectiveName = Literal["all_reduce", "broadcast", "reduce_scatter", "all_gather"]


class StepTraffic(Strict):
    """What one rank communicates in one optimizer step, measured once in a run, in bytes.

    collectives: whole tensors that the collectives work on, by kind. sent: what the rank's connections sent; None where
    Gloo is not used or the system does not count.
    """

    collectives: dict[CollectiveName, Count]
    sent: Count | None


class RankBytes(Strict):
    """What one rank keeps between two steps, in bytes of memory; traffic is None where no step was measured."""

    parameters: Count
    gradients: Count
    optimizer: Count
    traffic: StepTraffic | None
