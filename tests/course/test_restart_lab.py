"""What is read off a run that loses a rank. Notebook 03, which the course test runs, kills a real one."""

import psutil
from ddp_workbook.elastic import Observer


class Rank:
    """A process as psutil shows it."""

    killed: list = []  # noqa: RUF012

    def __init__(self, rank):
        self.rank = rank

    def environ(self):
        return {} if self.rank is None else {"RANK": str(self.rank)}

    def kill(self):
        self.killed.append(self.rank)


def test_the_last_rank_is_killed_once_and_what_follows_is_told(monkeypatch):
    monkeypatch.setattr(
        psutil, "Process", lambda: type("Me", (), {"children": lambda *_, **__: map(Rank, [None, 0, 1])})
    )
    Rank.killed.clear()
    observer = Observer(kill_after=2)
    for line in (
        "no checkpoint of an interrupted run in x: starting afresh",  # before the kill: of no interest
        "epoch  1/4  loss 2.0",
        "epoch  2/4  loss 1.9",
        "distributed_train.py: rank 0 of 2 lost contact with another rank",
        "going on after step 10 of epoch 2, from x",
        "epoch  2/4  loss 1.9",
        "epoch  3/4  loss 1.8",
    ):
        observer.on_line(line)
    assert Rank.killed == [1]
    assert [epoch for _, epoch in observer.life.epochs] == [1, 2, 2, 3]
    assert list(observer.life.events) == [
        "killed", "the other rank notices", "restarted, going on after step 10 of epoch 2",
    ]  # fmt: skip
    assert sorted(observer.life.events.values()) == list(observer.life.events.values())
