"""Studies of seeds made from right and wrong answers, without any training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from helper_records import make_run

from ddp_workbook.records.run import pack_bits
from ddp_workbook.records.seeds import SeedPair, SeedRun, SeedStudy


def make_study(baseline: Sequence[Sequence[bool]], distributed: Sequence[Sequence[bool]]) -> SeedStudy:
    """Seeds 0, 1, ...: the answers of each seed's two runs, by test image."""
    run = make_run()[0]
    images = len(baseline[0])
    return SeedStudy(
        recipe="cnn-digits", epochs=3, global_batch=64, processes=2, environment=run.environment,
        dataset=run.dataset.model_copy(update={"test_images": images}),
        pairs=[
            SeedPair(seed=seed, baseline=_run(pair[0]), distributed=_run(pair[1]))
            for seed, pair in enumerate(zip(baseline, distributed, strict=True))
        ],
    )  # fmt: skip


def _run(answers: Sequence[bool]) -> SeedRun:
    answers = np.asarray(answers, dtype=bool)
    return SeedRun(
        finished_at="2026-01-02T03:04:05+00:00", train_seconds=1.0, test_accuracy=float(answers.mean()),
        correct_images=pack_bits(answers),
    )  # fmt: skip


def count_study() -> SeedStudy:
    """Three seeds with 90, 92 and 94 of 100 images right, and 91, 92 and 96 on two processes: the first ones each."""
    right = np.arange(100)
    return make_study([right < count for count in (90, 92, 94)], [right < count for count in (91, 92, 96)])
