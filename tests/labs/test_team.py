"""Programs on real ranks: the ledger sees every collective, and no answer gets past the judge or leaves anything."""

import os
import time

import psutil
import pytest
import torch
import torch.distributed as dist
from helper_tries import LAB_TRIES
from torch import nn

from ddp_workbook.labs import team
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.ledger import where
from ddp_workbook.labs.verdict import CannotJudge, Wrong


def answer(body: str) -> Answer:
    return Answer(
        "act", f"import os, sys, time\nimport torch\nimport torch.distributed as dist\ndef act():\n{body}", ("act",)
    )


def call_it(rank: team.Rank) -> object:
    return rank.names["act"]()


def ledger_of_answer(rank: team.Rank) -> list:
    rank.ledger.phase = "first"
    rank.names["act"]()
    return [(entry.name, entry.bytes, entry.dtype, entry.phase, where(entry)) for entry in rank.ledger.take()]


def test_the_ledger_has_every_collective_with_bytes_and_line():
    body = (
        "    x, own = torch.ones(6), [torch.zeros(6) for _ in range(2)]\n"
        "    from torch.distributed import all_reduce as other_name\n"
        "    other_name(x)\n"
        "    dist.broadcast(x.double(), 1)\n"
        "    dist.all_gather(own, x)\n"
        "    dist.all_gather_into_tensor(torch.zeros(12), x)\n"
        "    dist.reduce(x, 0)\n"
        "    dist.barrier()\n"
    )
    first, second = team.run(ledger_of_answer, answer(body), 2)
    assert first == second
    assert first[:5] == [
        ("all_reduce", 24, "float32", "first", "all_reduce (your line 7)"),
        ("broadcast", 48, "float64", "first", "broadcast (your line 8)"),
        ("all_gather", 24, "float32", "first", "all_gather (your line 9)"),
        ("all_gather", 24, "float32", "first", "all_gather (your line 10)"),
        ("reduce", 24, "float32", "first", "reduce (your line 11)"),
    ]
    assert [entry[0] for entry in first[5:]] == ["barrier"]


def ddp_traffic(rank: team.Rank) -> list:
    model = nn.parallel.DistributedDataParallel(nn.Linear(10, 7))
    rank.ledger.take()
    model(torch.ones(3, 10)).sum().backward()
    return [(entry.name, entry.bytes, entry.line) for entry in rank.ledger.take()]


def test_ddp_s_own_collectives_are_in_the_ledger():
    assert team.run(ddp_traffic, answer("    pass\n"), 2) == [[("all_reduce", 4 * 77, None)]] * 2


def exchange(rank: team.Rank) -> tuple:
    hashes = rank.hashes([torch.full((2, 3), float(rank.rank)).t()])
    alike = rank.hashes([torch.arange(4)])
    return rank.gather(rank.rank), len(set(hashes)), len(set(alike)), len(rank.ledger.entries)


def test_ranks_compare_values_and_bits_outside_of_the_ledger():
    assert team.run(exchange, answer("    pass\n"), 3) == [([0, 1, 2], 3, 1, 0)] * 3


HANGS = "    if dist.get_rank() == 0:\n        dist.all_reduce(torch.ones(1))\n"
ATTACKS = {
    "raises": ("    return 1 / 0\n", "error", r"ZeroDivisionError: .* \(your line 5: return 1 / 0\), on rank \d of 2$"),
    "exits": ("    sys.exit()\n", "exit", "sys.exit .your line 5"),
    "dies": ("    os._exit(3)\n", "died", r"rank \d died without an error of its own .exit code 3"),
    "is killed": ("    os.kill(os.getpid(), 9)\n", "died", "SIGKILL"),
    "takes memory": ("    return bytearray(2**33)\n", "memory", "more memory than the judge allows"),
    "interrupts": ("    raise KeyboardInterrupt\n", "error", "KeyboardInterrupt"),
    "hangs": (HANGS, "hang", r"rank 0 is at your line 6.*rank 1 has finished"),
    "loops": ("    while True: pass\n", "hang", "rank 0 is at your line 5; rank 1 is at your line 5"),
    "prints without end": ("    while True: print('x' * 1000)\n", "hang", "rank 0"),
}


@pytest.mark.parametrize("name", ATTACKS if LAB_TRIES else ["raises", "dies", "hangs"])
def test_an_answer_that_goes_wrong_gets_one_message_within_ten_seconds(name, capsys):
    body, diagnosis, message = ATTACKS[name]
    started = time.monotonic()
    with pytest.raises(Wrong, match=message) as wrong:
        team.run(call_it, answer(body), 2, seconds=2)
    assert wrong.value.diagnosis == diagnosis
    assert time.monotonic() - started < 10
    assert len(capsys.readouterr().out) < 3 * team.MOST_OUTPUT


@pytest.mark.parametrize("how", ["", "        os.setsid()\n"], ids=["a child", "a daemon"])
def test_processes_that_an_answer_starts_end_with_the_try(how, tmp_path):
    file = tmp_path / "pid"
    body = (
        f"    if not os.fork():\n{how}        open({str(file)!r}, 'w').write(str(os.getpid()))\n"
        f"        time.sleep(1000)\n"
        f"    while not os.path.exists({str(file)!r}): time.sleep(0.01)\n"
    )
    team.run(call_it, answer(body), 1)
    pid, deadline = int(file.read_text()), time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.05)


def test_a_replaced_collective_does_not_change_the_judge():
    body = "    pass\ndist.all_gather_object = dist.all_reduce = lambda *_, **__: None\n"
    assert team.run(exchange, answer(body), 2) == [([0, 1], 2, 1, 0)] * 2


def test_a_judge_that_cannot_start_says_so(monkeypatch):
    def refuse():
        raise OSError("no port is free")

    monkeypatch.setattr(team, "serve_store", refuse)
    with pytest.raises(CannotJudge, match="cannot start 2 rank"):
        team.run(call_it, answer("    pass\n"), 2)


def test_a_judge_without_gloo_or_its_network_says_so(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nothing0")
    with pytest.raises(CannotJudge, match="GLOO_SOCKET_IFNAME"):
        team.run(call_it, answer("    pass\n"), 2)
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    with pytest.raises(CannotJudge, match="no Gloo"):
        team.run(call_it, answer("    pass\n"), 2)


class Deadly:
    """Ends the process in which it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


def test_ranks_that_die_before_they_meet_are_no_wrong_answer():
    with pytest.raises(CannotJudge, match="exit code 3"):
        team.run(call_it, Deadly(), 2)


def test_a_program_on_one_rank_has_no_group():
    assert team.run(without_group, answer("    return dist.is_initialized()\n"), 1) == [False]


def without_group(rank: team.Rank) -> object:
    assert not dist.is_initialized()
    return rank.names["act"]()
