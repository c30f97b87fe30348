"""The simulated link: deadlocks are reported exactly, and its meters agree with closed forms."""

import pytest
import torch

from ddp_workbook.labs.wire import MOST_MESSAGES, Deadlock, RankFailed, Simulation


def test_messages_arrive_in_order_and_are_copies():
    tensors = [torch.full((3,), float(number)) for number in range(4)]

    def program(wire):
        if wire.rank == 0:
            for tensor in tensors:
                wire.send(tensor, 1)
            return None
        return [wire.recv(0) for _ in tensors]

    _, received = Simulation(2, seed=1).run(program)
    assert [tensor[0].item() for tensor in received] == [0, 1, 2, 3]
    received[0].add_(5)
    assert tensors[0][0] == 0


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_circle_of_sends_is_reported_rank_by_rank(size):
    with pytest.raises(Deadlock) as found:
        Simulation(size, seed=3).run(lambda wire: wire.send(torch.ones(1), (wire.rank + 1) % size))
    assert found.value.waiting == {rank: f"waits to send to {(rank + 1) % size}" for rank in range(size)}


def test_a_deadlock_names_the_ranks_that_have_returned():
    with pytest.raises(Deadlock, match=r"1 waits to receive from 0; returned: 0, 2$"):
        Simulation(3, seed=5).run(lambda wire: wire.recv(0) if wire.rank == 1 else None)


def test_no_order_of_turns_hides_a_deadlock():
    """0 waits for 1, which must first send to 2, which must first send to 0: stuck in every schedule. With the calls of
    rank 2 the other way round it is fine in every schedule."""

    def program(wire, first):
        if wire.rank == 0:
            return [wire.recv(1), wire.recv(2)]
        if wire.rank == 1:
            return [wire.send(torch.ones(1), other) for other in (2, 0)]
        calls = {"send": lambda: wire.send(torch.ones(1), 0), "recv": lambda: wire.recv(1)}
        return [calls.pop(first)(), *(call() for call in calls.values())]

    for seed in range(50):
        Simulation(3, seed).run(lambda wire: program(wire, "recv"))
        with pytest.raises(Deadlock, match="0 waits to receive from 1, 1 waits to send to 2, 2 waits to send to 0"):
            Simulation(3, seed).run(lambda wire: program(wire, "send"))


def test_a_seed_repeats_the_same_order_and_seeds_differ():
    def order(seed):
        turns = []

        def program(wire):
            for _ in range(4):
                turns.append(wire.rank)
                wire.isend(torch.ones(1), (wire.rank + 1) % 3)
            for _ in range(4):
                wire.recv((wire.rank - 1) % 3)

        Simulation(3, seed).run(program)
        return turns

    assert order(7) == order(7)
    assert len({tuple(order(seed)) for seed in range(8)}) > 1


def test_the_meters_of_a_ring_are_the_closed_form():
    """Every rank passes a tensor N - 1 times to the right: N - 1 messages, as many steps, (N - 1) M bytes each way."""
    size = 5

    def program(wire):
        tensor = torch.ones(10)
        for _ in range(size - 1):
            sending = wire.isend(tensor, (wire.rank + 1) % size)
            tensor = wire.recv((wire.rank - 1) % size)
            sending.wait()

    simulation = Simulation(size, seed=2)
    simulation.run(program)
    for wire in simulation.wires:
        meter = wire.meter
        assert (meter.messages, meter.steps, meter.sent, meter.received) == (4, 4, 4 * 40, 4 * 40)


def test_a_chain_needs_as_many_steps_as_it_has_links():
    def program(wire):
        if wire.rank:
            wire.recv(wire.rank - 1)
        if wire.rank < 3:
            wire.send(torch.ones(1), wire.rank + 1)

    simulation = Simulation(4, seed=2)
    simulation.run(program)
    assert [wire.meter.steps for wire in simulation.wires] == [1, 2, 3, 3]


def test_a_server_receives_one_message_after_another():
    """Clients send at the same time, but one rank takes one message in a step."""
    simulation = Simulation(4, seed=2)
    simulation.run(lambda wire: wire.send(torch.ones(1), 0) if wire.rank else [wire.recv(n) for n in (1, 2, 3)])
    assert simulation.wires[0].meter.steps == 3


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (lambda wire: wire.send(torch.ones(1), 2), "there are ranks 0 to 1"),
        (lambda wire: wire.send(torch.ones(1), wire.rank), "cannot send to itself"),
        (lambda wire: wire.recv(-1), "there are ranks 0 to 1"),
        (lambda wire: wire.send([1.0], 1 - wire.rank), "not list"),
        (lambda wire: wire.isend(torch.ones(1), 1 - wire.rank), "never received"),
    ],
)
def test_wrong_use_is_an_error_of_the_rank(program, message):
    with pytest.raises(RankFailed, match=message):
        Simulation(2, seed=1).run(program)


def test_messages_without_end_are_stopped():
    def program(wire):
        while True:
            wire.isend(torch.ones(1), 1 - wire.rank)
            wire.recv(1 - wire.rank)

    with pytest.raises(RankFailed, match=f"more than {MOST_MESSAGES} messages"):
        Simulation(2, seed=1).run(program)
