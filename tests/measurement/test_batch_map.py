"""The batch map: rounds of a point, a small real map, and its files: continued, replaced, refused."""

import statistics
from dataclasses import replace

import pytest
from helper_map import curve_map

from ddp_workbook.analysis.break_even import curves
from ddp_workbook.errors import InputError
from ddp_workbook.measurement import batch_map
from ddp_workbook.measurement.batch_map import FIGURE, FILE, ROUNDS, ROUNDS_AT_MOST, UNFINISHED, Pools, measure_point
from ddp_workbook.measurement.benchmark import time_training
from ddp_workbook.measurement.workers import Worker
from ddp_workbook.recipes import RECIPES
from ddp_workbook.records.batch_map import BatchMap, MapEnd
from ddp_workbook.records.files import load_record, save_record
from ddp_workbook.specs import MODELS

CONFIG = replace(RECIPES["mlp-digits"], dropout=0.0, precision="fp32", device="cpu")


class FakePool:
    """Answers in place of worker processes: the slower of two ranks takes `seconds` a step, times a round's factor."""

    def __init__(self, seconds, processes, log, factors=()):
        self.seconds, self.processes, self.log, self.factors = seconds, processes, log, iter(factors)

    def call(self, function, *arguments):
        if function is time_training:
            config, communicate, steps, seed = arguments
            assert seed is None
            assert communicate == (self.processes > 1)
            self.log.append((self, config.batch_size, config.comm_hook, steps))
            factor = 1.0 if steps == batch_map.WARM_UP_STEPS else next(self.factors, 1.0)
            return [(share * self.seconds * steps * factor, []) for share in (0.5, 1.0)][-self.processes :]
        if function is batch_map.report_memory:
            return [(1000, 600, 5000)] * self.processes
        assert function is Worker.forget
        return [None] * self.processes


def fake_pools(factors=()):
    log = []
    serial = {"one worker": FakePool(0.02, 1, log), "all cores": FakePool(0.01, 1, log)}
    return Pools(serial, FakePool(0.008, 2, log, factors), ["allreduce", "shared-memory"]), log


def test_every_round_has_every_configuration_and_none_always_goes_first():
    pools, log = fake_pools()
    point = measure_point(pools, CONFIG, 64)
    assert point.serial == {"one worker": pytest.approx([0.02] * ROUNDS), "all cores": pytest.approx([0.01] * ROUNDS)}
    assert point.distributed == {hook: pytest.approx([0.008] * ROUNDS) for hook in ("allreduce", "shared-memory")}
    assert point.steps == round(0.25 / statistics.fmean([0.02, 0.01, 0.008, 0.008]))
    assert point.peak_bytes == 2000  # of the two ranks
    warm_up, rounds = log[:4], [log[4 * number : 4 * number + 4] for number in range(1, ROUNDS + 1)]
    assert [steps for *_, steps in warm_up] == [batch_map.WARM_UP_STEPS] * 4
    for calls in rounds:
        assert sorted((batch, hook) for _, batch, hook, _ in calls) == [
            (32, "allreduce"), (32, "shared-memory"), (64, "allreduce"), (64, "allreduce"),
        ]  # fmt: skip
    assert len({calls[0][:3] for calls in rounds}) == 4


@pytest.mark.parametrize(
    ("factors", "expected"),
    [([1.0, 1.3] * 100, ROUNDS_AT_MOST), ([3.0, 1.0], 2 * ROUNDS)],
    ids=["never settled", "one slow round"],
)
def test_a_point_gets_more_rounds_until_it_is_settled(factors, expected):
    pools, _ = fake_pools(factors)
    pools = replace(pools, hooks=["allreduce"])
    point = measure_point(pools, CONFIG, 64)
    assert point.rounds == expected
    if expected < ROUNDS_AT_MOST:
        assert point.distributed["allreduce"] == pytest.approx([0.024] + [0.008] * (expected - 1))


def test_a_point_that_takes_too_long_gets_no_further_rounds(monkeypatch):
    monkeypatch.setattr(batch_map, "SECONDS_AT_MOST", -1)
    pools, _ = fake_pools([1.0, 1.3] * 100)
    assert measure_point(pools, CONFIG, 64).rounds == ROUNDS


def test_the_memory_is_that_of_the_pool_with_the_largest_peak():
    assert fake_pools()[0].memory() == (2000, 1200, 5000)


@pytest.fixture(scope="module")
def real_map(tmp_path_factory):
    """A real map of the MLP at 16 and 32 images."""
    folder, printed = tmp_path_factory.mktemp("maps"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_map, "MODELS", {"mlp": MODELS["mlp"]})
        patch.setattr(batch_map, "SECONDS_PER_PART", 0.01)
        patch.setattr(batch_map, "SECONDS_AT_MOST", -1)
        record, place = batch_map.map_batches(CONFIG, 2, 32, folder, printed.append)
    return record, place, printed


def test_a_real_map_is_written_with_its_figure(real_map):
    record, place, printed = real_map
    [network] = record.networks
    assert [point.batch for point in network.points][:1] == [16]
    assert network.points[-1].batch == 32
    assert network.end.reason in ("asked", "pays")
    assert {(curve.baseline, curve.hook) for curve in curves(network)} >= {("all cores", "allreduce")}
    assert all(point.peak_bytes > 2**27 for point in network.points)
    assert load_record(BatchMap, place / FILE) == record
    assert (place / FIGURE).stat().st_size > 5000
    assert not (place / UNFINISHED).exists()
    assert sum("images" in line for line in printed) == len(network.points)


def test_an_unfinished_map_is_continued_and_another_one_refused(real_map, tmp_path, monkeypatch):
    record, _, _ = real_map
    monkeypatch.setattr(batch_map, "MODELS", {"mlp": MODELS["mlp"]})
    unfinished = tmp_path / "mlp-digits" / UNFINISHED
    save_record(record, unfinished)
    for processes, largest, name in ((2, 64, "largest_batch"), (4, 32, "processes")):
        with pytest.raises(InputError, match=f"an unfinished map whose {name} differs"):
            batch_map.map_batches(CONFIG, processes, largest, tmp_path, lambda line: None)
    printed = []
    again, _ = batch_map.map_batches(CONFIG, 2, 32, tmp_path, printed.append)
    assert again.networks == record.networks  # nothing was left to measure
    assert f"with {len(record.networks[0].points)} points" in printed[0]
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("changes", "models", "name"),
    [
        ({"backend": "nccl"}, ["mlp"], "backend"),
        ({}, ["mlp", "cnn"], "list of networks"),
        ({}, ["cnn"], "list of networks"),
        ({}, ["mlp"], "list of communication hooks"),
    ],
)
def test_an_unfinished_map_of_other_networks_or_ways_to_send_is_refused(
    real_map, tmp_path, monkeypatch, changes, models, name
):
    """Continued, it would lack a network, or end with an error of Python's."""
    record, _, _ = real_map
    monkeypatch.setattr(batch_map, "MODELS", {model: MODELS[model] for model in models})
    monkeypatch.setattr(batch_map, "_hooks", lambda config, processes: ["allreduce", "bf16"])
    save_record(record.model_copy(update=changes), tmp_path / "mlp-digits" / UNFINISHED)
    with pytest.raises(InputError, match=f"an unfinished map whose {name} differs"):
        batch_map.map_batches(CONFIG, 2, 32, tmp_path, lambda line: None)


def test_what_was_measured_stays_when_it_is_stopped(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_map, "measure_point", stop)
    monkeypatch.setattr(batch_map, "MODELS", {"cnn": MODELS["cnn"]})
    begun = curve_map([16, 32], [0.5, 0.6]).model_copy(update={"largest_batch": 64})
    begun = begun.model_copy(update={"networks": [begun.networks[0].model_copy(update={"end": None})]})
    monkeypatch.setattr(batch_map, "describe_environment", lambda device: begun.environment)
    monkeypatch.setattr(batch_map, "choose_threads", lambda asked, processes: begun.threads)
    monkeypatch.setattr(batch_map, "_hooks", lambda config, processes: ["allreduce"])
    save_record(begun, tmp_path / "mlp-digits" / UNFINISHED)
    with pytest.raises(KeyboardInterrupt, match="to continue: the same command"):
        batch_map.map_batches(CONFIG, 2, 64, tmp_path, lambda line: None)
    assert load_record(BatchMap, tmp_path / "mlp-digits" / UNFINISHED) == begun
    assert not (tmp_path / "mlp-digits" / FILE).exists()


def test_bytes_belong_to_the_end_of_memory():
    with pytest.raises(ValueError, match="belong to the reason memory"):
        MapEnd(reason="memory")
    with pytest.raises(ValueError, match="belong to the reason memory"):
        MapEnd(reason="pays", needed_bytes=1, available_bytes=1)
