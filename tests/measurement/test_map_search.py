"""The search of the batch map: which batches are measured, and what ends it."""

import pytest
from helper_map import constant_point

from ddp_workbook.measurement.map_search import MEMORY_SHARE, complete_network, end_at, next_batch
from ddp_workbook.records.batch_map import MapEnd, NetworkMap


def network(*speedups, peaks=None):
    """A network's map at 16, 32, 64, ... images with these speedups."""
    peaks = peaks or [0] * len(speedups)
    points = [constant_point(16 * 2**at, each, peak_bytes=peaks[at]) for at, each in enumerate(speedups)]
    return NetworkMap(model="cnn", points=points)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_batch_doubles_until_it_pays_and_then_halves_around_the_break_even(processes):
    """A speedup of batch / 100 crosses 1 at 100; the batches can be split evenly."""
    measured = []

    def measure(batch):
        measured.append(batch)
        return constant_point(batch, batch / 100)

    done = complete_network(
        NetworkMap(model="cnn", points=[]), processes, measure, lambda found: end_at(found, 10_000, None, None)
    )
    doubled = [8 * processes * 2**power for power in range(10) if 8 * processes * 2**power <= 400]
    assert measured[: len(doubled)] == doubled
    assert done.end == MapEnd(reason="pays")
    batches = [point.batch for point in done.points]
    assert batches == sorted(measured)
    assert all(batch % processes == 0 for batch in batches)
    low = max(batch for batch in batches if batch <= 100)
    assert batches[batches.index(low) + 1] / low <= 1.25
    assert next_batch(done, processes) is None


def test_a_search_goes_on_where_it_was_stopped():
    def measure(batch):
        if batch == stop_at:
            raise KeyboardInterrupt
        return constant_point(batch, batch / 100)

    def end(found):
        return end_at(found, 10_000, None, None)

    stop_at = None
    uninterrupted = complete_network(NetworkMap(model="cnn", points=[]), 2, measure, end)
    for stop_at in [point.batch for point in uninterrupted.points]:
        saved = [NetworkMap(model="cnn", points=[])]
        with pytest.raises(KeyboardInterrupt):
            complete_network(saved[0], 2, measure, end, lambda found, _, saved=saved: saved.append(found))
        stop_at = None
        assert complete_network(saved[-1], 2, measure, end) == uninterrupted


@pytest.mark.parametrize(
    ("found", "images", "largest", "expected"),
    [
        (network(0.5, 1.1, 1.2), 10_000, None, "pays"),
        (network(1.1, 1.2), 10_000, None, "pays"),
        (network(0.5, 1.1), 10_000, None, None),  # a single batch with a gain may be luck
        (network(1.1), 10_000, None, None),
        (network(1.1, 0.9, 1.1), 10_000, None, None),
        (network(0.5, 0.9), 10_000, None, None),
        (network(0.5, 0.9), 10_000, 63, "asked"),
        (network(0.5, 0.9), 10_000, 64, None),
        (network(0.5, 0.9), 63, None, "images"),
        (network(0.5, 0.9), 64, None, None),
    ],
)
def test_what_ends_the_doubling(found, images, largest, expected):
    end = end_at(found, images, largest, (0, 2**60))
    assert (end and end.reason) == expected


@pytest.mark.parametrize("room", [0.99, 1.01])
def test_memory_ends_it_when_twice_the_batch_would_not_fit(room):
    """Memory of 1000 + 7 B bytes: 64 images need 1448. A part of what is needed is held already."""
    found = network(0.5, 0.9, peaks=[1000 + 7 * 16, 1000 + 7 * 32])
    total = round(room * 1448 / MEMORY_SHARE)
    end = end_at(found, 10_000, None, (300, total - 300))
    fits = room > 1
    assert end == (None if fits else MapEnd(reason="memory", needed_bytes=1448, available_bytes=total))
