"""An answer runs in a namespace of its own, and what goes wrong in it is said with its line."""

import pytest

from ddp_workbook.labs import catalogue
from ddp_workbook.labs.answer import Answer
from ddp_workbook.labs.lab import judge
from ddp_workbook.labs.verdict import Wrong


def test_helpers_of_earlier_answers_do_not_meet():
    """Both define `helper`; each function keeps its own."""
    first = Answer("first", "def helper(): return 1\ndef f(): return helper()", ("f",))
    second = Answer("second", "def helper(): return 2\ndef g(): return f() * 10 + helper()", ("g",), (first,))
    names = second.load()
    assert names["g"]() == 12
    assert "helper" not in Answer("third", "", (), (first,)).load()


@pytest.mark.parametrize(
    ("source", "diagnosis", "message"),
    [
        ("def f(:", "syntax", "line 1 is no Python"),
        ("x = 1", "missing", "does not define f"),
        ("def f(): pass\nraise ValueError('bad')", "error", r"ValueError: bad \(your line 2: raise ValueError"),
        ("import nothing_of_this_name\ndef f(): pass", "error", "ModuleNotFoundError"),
        ("raise NotImplementedError\ndef f(): pass", "not-solved", "not solved yet"),
        ("raise NotImplementedError('no such op')\ndef f(): pass", "error", "NotImplementedError: no such op"),
        ("import sys\nsys.exit(1)", "exit", r"sys\.exit \(your line 2"),
        ("\0", "error", "null bytes"),
    ],
)
def test_what_goes_wrong_is_said_with_its_line(source, diagnosis, message):
    with pytest.raises(Wrong, match=message) as wrong:
        Answer("a", source, ("f",)).load()
    assert wrong.value.diagnosis == diagnosis


def test_an_error_on_a_simulated_rank_names_the_case():
    lab = catalogue.find("ring_all_reduce")
    source = "def ring_all_reduce(x, wire):\n    if wire.size == 3 and wire.rank == 2: [][0]\n    sum_over(x, wire)\n"
    helper = """
def sum_over(x, wire):
    own = x.clone()
    for step in range(1, wire.size):
        sending = wire.isend(own, (wire.rank + step) % wire.size)
        x += wire.recv((wire.rank - step) % wire.size)
        sending.wait()
"""
    message = judge(lab, Answer("ring_all_reduce", source + helper, lab.defines)).message
    assert message.startswith("IndexError: list index out of range (your line 2: ")
    assert message.endswith("), on rank 2 of 3, with 1000 elements")
