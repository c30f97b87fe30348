"""Two machines for real: two network namespaces of this Linux with a virtual cable between them. Needs root."""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ddp_workbook.analysis.costmodel import Link
from ddp_workbook.distributed.launch import torchrun
from ddp_workbook.records.run import load_run
from ddp_workbook.specs import DATASETS

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.177.0.1", "10.177.0.2")
FLAGS = ["--recipe", "mlp-digits", "--device", "cpu", "--precision", "fp32", "--threads", "1"]


def ip(*arguments, check=True):
    return subprocess.run(["ip", *map(str, arguments)], check=check, capture_output=True, text=True)


def why_not():
    """The reason for which there can be no namespaces here; empty when there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if not shutil.which("ip"):
        return "the command ip (iproute2) is missing"
    name = f"ddp-probe-{os.getpid()}"
    made = ip("netns", "add", name, check=False)
    ip("netns", "del", name, check=False)
    return made.stderr.strip() if made.returncode else ""


REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)


class Node:
    """One torchrun in one namespace, its lines as they come."""

    def __init__(self, command, environment):
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self._read()), daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
        return []

    def wait(self, seconds):
        code = self.process.wait(seconds)
        self.reader.join(10)
        return code

    def stop(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()


class Cable:
    """Two namespaces, an interface in each, a cable between them."""

    def __init__(self):
        self.names = [f"ddp-{os.getpid()}-{end}" for end in "ab"]
        self.ends = ["cable-a", "cable-b"]
        self.nodes = []
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.ends[0], "netns", self.names[0], "type", "veth", "peer", "name", self.ends[1],
           "netns", self.names[1])  # fmt: skip
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")

    def remove(self):
        for node in self.nodes:
            node.stop()
        for name in self.names:
            ip("netns", "del", name, check=False)

    def cut(self):
        ip("-n", self.names[0], "link", "set", self.ends[0], "down")

    def restore(self):
        ip("-n", self.names[0], "link", "set", self.ends[0], "up")

    def limit(self, rate):
        """So many bits a second, as tc writes them, in both directions; false where tc or its filter is missing."""
        if not shutil.which("tc"):
            return False
        for name, end in zip(self.names, self.ends, strict=True):
            command = ["tc", "-n", name, "qdisc", "replace", "dev", end, "root", "tbf", "rate", rate, "burst", "64kb"]
            if subprocess.run([*command, "latency", "100ms"], capture_output=True, check=False).returncode:
                return False
        return True

    def start(self, script, arguments, timeout=60):
        """torchrun on both nodes, one rank each: README's command."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DDP_TIMEOUT": str(timeout), "PYTHONPATH": str(ROOT)}
        environment.pop("GLOO_SOCKET_IFNAME", None)
        for index, (name, address) in enumerate(zip(self.names, ADDRESSES, strict=True)):
            # a namespace has no name of its own: what a name server says elsewhere is said by is_host and local-addr
            conf = f"is_host={int(index == 0)},read_timeout=20"
            torchrun = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29400", "--rdzv-id=test",
                f"--rdzv-conf={conf}", f"--local-addr={address}",
            ]  # fmt: skip
            own = [one.replace("NODE", str(index)) for one in map(str, arguments)]
            command = ["ip", "netns", "exec", name, *torchrun, str(script), *own]
            self.nodes.append(Node(command, environment))
        return self.nodes

    def all_lines(self):
        return [line for node in self.nodes for line in node.lines]


@pytest.fixture
def cable():
    made = Cable()
    try:
        yield made
    finally:
        made.remove()


def until(holds, seconds, what):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


def alive(nodes):
    return [node for node in nodes if node.process.poll() is None]


def ranks_of(node):
    """Its running children; a torchrun that is busy with its store has not yet buried those that ended."""
    children = psutil.Process(node.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def epochs_seen(cable):
    return sum(line.startswith("epoch") for line in cable.all_lines())


def folders(path):
    return ["--results-dir", str(path / "r"), "--checkpoint-dir", str(path / "c")]


def losses(path):
    _, history = load_run(path / "r" / "mlp-digits", "distributed")
    return [(epoch.train_loss, epoch.test_loss) for epoch in history.epochs]


def test_a_cut_of_five_seconds_changes_nothing_but_the_time(cable, tmp_path):
    """The history equals that of two ranks on one machine, to the last bit."""
    flags = [*FLAGS, "--epochs", "12"]
    torchrun([*flags, *folders(tmp_path / "one machine")], 2, ROOT / "distributed_train.py", lambda line: None)
    nodes = cable.start("distributed_train.py", [*flags, *folders(tmp_path / "NODE")])
    until(lambda: epochs_seen(cable) >= 3, 60, "third epoch")
    before = epochs_seen(cable)
    cable.cut()
    time.sleep(5)
    during = epochs_seen(cable) - before
    cable.restore()
    assert [node.wait(100) for node in nodes] == [0, 0], "\n".join(cable.all_lines())
    assert during <= 1  # an epoch that was over when the cable went
    found = [
        path for path in (tmp_path / "0", tmp_path / "1") if (path / "r/mlp-digits/distributed_metrics.json").exists()
    ]
    assert len(found) == 1
    assert losses(found[0]) == losses(tmp_path / "one machine")


def test_a_permanent_cut_ends_both_with_one_clear_line_within_the_timeout(cable, tmp_path):
    timeout = 10
    nodes = cable.start("distributed_train.py", [*FLAGS, "--epochs", "500", *folders(tmp_path / "NODE")], timeout)
    until(lambda: epochs_seen(cable) >= 3, 60, "third epoch")
    cable.cut()
    cut = time.monotonic()
    until(lambda: all("lost connection" in "\n".join(node.lines) for node in nodes), timeout + 10, "clear line")
    reported = time.monotonic() - cut
    until(lambda: not any(ranks_of(node) for node in alive(nodes)), 30, "end of the ranks")
    assert nodes[0].wait(30) != 0  # the torchrun that holds the store
    ended = time.monotonic() - cut
    print(f"reported after {reported:.1f} s, ranks and first torchrun ended after {ended:.1f} s")
    for node in alive(nodes):  # the other one's torchrun may wait for the store for ever: launch/README.md says so
        assert not ranks_of(node)
        node.process.kill()
        assert node.wait(15) != 0
    for node in nodes:
        mine = [line for line in node.lines if line.startswith("distributed_train.py:")]
        assert len(mine) == 1
        assert "did not respond for DDP_TIMEOUT=10 s" in mine[0]
        assert not any(line.startswith("[rank") for line in node.lines)
    assert not list(tmp_path.rglob("*_metrics.json"))


MEASURE = """
import sys, time
import torch, torch.distributed as dist
from ddp_workbook.devices import choose_device
from ddp_workbook.distributed.process_group import process_group, read_world
world = read_world()
with process_group(world, "gloo", torch.device("cpu")):
    values = torch.ones(int(sys.argv[1]) // 4)
    for _ in range(int(sys.argv[2])):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(values)
        print("took", time.perf_counter() - start, flush=True)
"""


@pytest.mark.parametrize("megabits", [100, 400])
def test_a_limited_rate_is_what_the_cost_model_says(cable, tmp_path, megabits):
    """2(N-1)/N * M/B: two ranks move M bytes each over a cable whose rate is known."""
    if not cable.limit(f"{megabits}mbit"):
        pytest.skip("tc cannot limit a rate here")
    size, repeats = 4_000_000, 7
    program = tmp_path / "measure.py"
    program.write_text(MEASURE)
    nodes = cable.start(program, [size, repeats])
    assert [node.wait(100) for node in nodes] == [0, 0], "\n".join(cable.all_lines())
    taken = [[float(line.split()[1]) for line in node.lines if re.match(r"took \d", line)][1:] for node in nodes]
    slowest = [max(pair) for pair in zip(*taken, strict=True)]
    predicted = Link(latency=1e-4, bandwidth=megabits * 1e6 / 8).all_reduce(size, 2)
    measured = statistics.median(slowest)
    print(f"{megabits} Mbit/s: predicted {predicted:.3f} s, measured {measured:.3f} s ({min(slowest):.3f} to "
          f"{max(slowest):.3f})")  # fmt: skip
    assert predicted * 0.9 < measured < predicted * 1.35  # headers take 3 to 5 %; the filter lets a burst pass


def seconds_per_step(path):
    """Of the epochs after the first, with the bytes of gradients in a step."""
    run, history = load_run(path / "r" / "mlp-digits", "distributed")
    steps = DATASETS["digits"].images[0] // 2 // run.config.batch_size
    rest = history.epochs[1:]
    return statistics.median(e.train_seconds for e in rest) / steps, rest[0].communication.gradient_bytes / steps


def test_a_training_step_over_a_limited_rate_is_what_the_cost_model_says(cable, tmp_path):
    """The step as it is on one machine, and on top what 100 Mbit/s take for its gradients."""
    if not cable.limit("100mbit"):
        pytest.skip("tc cannot limit a rate here")
    flags = [*FLAGS, "--epochs", "4"]
    torchrun([*flags, *folders(tmp_path / "here")], 2, ROOT / "distributed_train.py", lambda line: None)
    nodes = cable.start("distributed_train.py", [*flags, *folders(tmp_path / "NODE")])
    assert [node.wait(150) for node in nodes] == [0, 0], "\n".join(cable.all_lines())
    near, size = seconds_per_step(tmp_path / "here")
    far, _ = seconds_per_step(next(path.parents[2] for path in tmp_path.glob("[01]/r/mlp-digits/*_metrics.json")))
    predicted = near + Link(latency=1e-4, bandwidth=100e6 / 8).all_reduce(size, 2)
    print(f"step: {1000 * near:.1f} ms here, predicted {1000 * predicted:.1f} ms, measured {1000 * far:.1f} ms")
    assert predicted * 0.85 < far < predicted * 1.3
