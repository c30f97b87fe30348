"""The restart lab: what its ranks log, and when one of them is killed. Real runs: notebook 03, tests/faults."""

import json
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from ddp_workbook.course.restart_lab import (
    EventLog,
    Timeline,
    plot_timelines,
    read_timeline,
    same_weights,
)
from ddp_workbook.distributed.process_group import World

EPOCHS, STEPS = 3, 11
LAST = World(1, 2, 1, 2, launched=True)
MAIN = replace(LAST, rank=0, local_rank=0)


class Killed(BaseException):
    """Stands for the end of this process."""


@pytest.fixture
def killable(monkeypatch):
    """psutil kills nothing; the process that would be killed is raised."""

    def kill(process):
        raise Killed(process.pid)

    monkeypatch.setattr(psutil.Process, "kill", kill)


def train(log, epoch=0, step=0):
    """What fit() calls from this epoch and step on; where the rank was killed, None when it was not."""
    for number in range(epoch, EPOCHS):
        for done in range(step + 1 if number == epoch else 1, STEPS + 1):
            partial = SimpleNamespace(step=done)
            try:
                log.after_step(
                    SimpleNamespace(epoch=number, partial=partial, steps_per_epoch=STEPS, step=STEPS * number + done)
                )
            except Killed as kill:
                assert kill.args == (psutil.Process().pid,)
                return number, done
        log.after_epoch(SimpleNamespace(epoch=number + 1))
    return None


def logged(path):
    """The events without their time."""
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in event.items() if name != "time"} for event in events]


@pytest.mark.parametrize(
    ("world", "kill_after", "killed"),
    [
        (LAST, 1, (1, 5)),  # in the middle of the second epoch, and no later
        (LAST, 2, (2, 5)),
        (LAST, 0, None),
        (MAIN, 1, None),
        (replace(LAST, restarts=1), 1, None),
        (World(1, 3, 1, 3, launched=True), 1, None),  # not the last of three
        (World(2, 3, 2, 3, launched=True), 1, (1, 5)),
    ],
)
def test_only_the_last_rank_is_killed_and_only_before_a_restart(killable, tmp_path, world, kill_after, killed):
    path = tmp_path / "events"
    assert train(EventLog(path, world, kill_after)) == killed
    assert ({"event": "killed", "epoch": None} in logged(path)) == (killed is not None)


def test_the_main_rank_logs_epochs(killable, tmp_path):
    for world in (MAIN, LAST):
        train(EventLog(tmp_path / "events", world, kill_after=0))
    assert logged(tmp_path / "events") == [{"event": "epoch done", "epoch": epoch} for epoch in (1, 2, 3)]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((1, 8), "restarted, resuming after step 19"),
        ((1, 0), "restarted, resuming after step 11"),
        ((0, 0), "restarted without a checkpoint"),
    ],
)
def test_after_a_restart_the_main_rank_logs_once_where_it_resumed(killable, tmp_path, place, words):
    for world in (MAIN, LAST):
        train(EventLog(tmp_path / "events", replace(world, restarts=1), kill_after=1), *place)
    first, *others = logged(tmp_path / "events")
    assert first == {"event": words, "epoch": None}
    assert [event["event"] for event in others] == ["epoch done"] * (EPOCHS - place[0])


def test_a_timeline_is_read_from_the_events(tmp_path):
    events = [
        {"event": "epoch done", "time": 101.5, "epoch": 1},
        {"event": "killed", "time": 102.0, "epoch": None},
        {"event": "the other rank notices", "time": 102.25, "epoch": None},
        {"event": "the other rank notices", "time": 102.5, "epoch": None},
        {"event": "restarted", "time": 105.0, "epoch": None},
        {"event": "epoch done", "time": 106.0, "epoch": 1},
        {"event": "epoch done", "time": 107.0, "epoch": 2},
    ]
    (tmp_path / "events").write_text("".join(json.dumps(event) + "\n" for event in events))
    timeline = read_timeline(tmp_path / "events", started=100.0, seconds=8.0)
    assert timeline == Timeline(
        8.0, [(1.5, 1), (6.0, 1), (7.0, 2)], {"killed": 2.0, "the other rank notices": 2.25, "restarted": 5.0}
    )
    assert list(timeline.events) == ["killed", "the other rank notices", "restarted"]


def test_weights_are_compared_bit_for_bit():
    weights = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert same_weights(weights, {name: value.clone() for name, value in weights.items()})
    assert not same_weights(weights, weights | {"b": torch.tensor([0.0, 1e-45])})
    assert not same_weights(weights, {"a": weights["a"]})


def test_the_figure_shows_epochs_and_events():
    disturbed = Timeline(8.0, [(1.5, 1), (7.0, 2)], {"killed": 2.0, "the other rank notices": 2.25})
    undisturbed = Timeline(3.0, [(1.25, 1), (2.5, 2)])
    [ax] = plot_timelines(disturbed, undisturbed).axes
    steps = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.get_lines()[:2]}
    assert steps == {"undisturbed": undisturbed.epochs, "one rank killed": disturbed.epochs}
    assert [text.get_text().strip() for text in ax.texts] == ["2.0 s: killed", "2.2 s: the other rank notices"]
