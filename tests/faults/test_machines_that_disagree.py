"""Two real torchruns whose ranks meet with other flags or other data: both end within seconds, and both say why."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from helper_tries import tries
from PIL import Image

FLAGS = ["--recipe", "mlp-digits", "--device", "cpu", "--precision", "fp32", "--threads", "1", "--batch-size", "4"]
SCRIPT = """
import contextlib, distributed_train
join = distributed_train.process_group
@contextlib.contextmanager
def group(*arguments):
    with join(*arguments):
        print("the ranks have met", flush=True)
        yield
distributed_train.process_group = group
distributed_train.main()
"""


class Machine:
    """One torchrun with one rank, and its lines with the times at which they came."""

    def __init__(self, command, environment):
        self.lines = []
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait(self):
        try:
            return self.process.wait(90)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join()


def start_two(folder, flags):
    """The README's command on both, with their own flags; the time-out is long, so that it helps nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DDP_TIMEOUT": "600", "PYTHONPATH": str(ROOT)}
    machines = []
    for number, own in enumerate(flags):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", f"--rdzv-conf=is_host={int(number == 0)}",
            "--local-addr=127.0.0.1", str(script), *FLAGS, "--results-dir", str(folder / str(number) / "r"),
            "--checkpoint-dir", str(folder / str(number) / "c"), *own,
        ]  # fmt: skip
        machines.append(Machine(command, environment))
    return machines


def save_images(folder, red):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (folder / place).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (32, 32), (red, number, 0)).save(folder / place / f"{number}.png")


def other_rates(folder):
    return [["--lr", "0.001"], ["--lr", "0.01"]], ["the ranks differ in --lr: 0.001 on rank 0, 0.01 on rank 1"] * 2


def other_images(folder):
    for number in range(2):
        save_images(folder / f"data{number}", red=100 + number)
    flags = [["--dataset", "imagefolder", "--data-dir", str(folder / f"data{number}")] for number in range(2)]
    return flags, ["the ranks differ in the images (fingerprint): "] * 2


def no_images(folder):
    flags, _ = other_images(folder)
    flags[1][-1] = str(folder / "nowhere")
    return flags, ["rank 1: ", f"{folder / 'nowhere' / 'train'} must hold one folder of images per class"]


CASES = [other_rates, other_images, no_images]


@pytest.mark.parametrize("case", CASES[: tries(len(CASES))])
def test_machines_that_disagree_end_soon_and_say_why(case, tmp_path):
    flags, answers = case(tmp_path)
    machines = start_two(tmp_path, flags)
    assert [machine.wait() for machine in machines] == [1, 1]  # torchrun's own code
    for machine, answer in zip(machines, answers, strict=True):
        [(refused, line)] = [one for one in machine.lines if one[1].startswith("distributed_train.py: error: ")]
        assert answer in line
        assert not any("lost connection" in line for _, line in machine.lines)
        [met] = [when for when, line in machine.lines if line == "the ranks have met"]
        print(f"\n{case.__name__}: refused {refused - met:.1f} s after the ranks had met")
        assert refused - met < 10
    assert not [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.pth")]
