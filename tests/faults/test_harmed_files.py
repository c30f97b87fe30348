"""Checkpoints corrupted at random, disks that are full, and exactness where it takes long to show."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, make_data, run_on_ranks
from helper_interrupted_runs import (
    RUNS,
    SMALL,
    STOPS,
    compare_resumed,
    in_folder,
    same,
    stop_early,
    train,
    use_tiny_model_and_check_every_step,
)
from helper_records import make_run
from helper_tries import tries

from ddp_workbook.analysis import plots
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import save_record, write_atomically
from ddp_workbook.runs import stopping
from ddp_workbook.runs.checkpoint import checkpoint_folder, read_checkpoint, saved_checkpoints
from ddp_workbook.runs.resume import newest_complete

DRAWS = random.Random(int(os.environ.get("FAULT_SEED", "0")))


def test_every_corrupt_checkpoint_is_recognized(tmp_path, monkeypatch):
    """Truncated at a random length or with one byte changed: the previous one is used, and a run resumes from it."""
    use_tiny_model_and_check_every_step(monkeypatch.setattr)
    config = stop_early(tmp_path)
    folder = checkpoint_folder(config, "baseline")
    newest, previous = saved_checkpoints(folder)
    complete, expected = newest.read_bytes(), read_checkpoint(previous)
    recognized = 0
    for attempt in range(1, tries(200) + 1):
        place = DRAWS.randrange(len(complete))
        other = complete[place] ^ DRAWS.randrange(1, 256)
        changed = complete[:place] + bytes([other]) + complete[place + 1 :]
        newest.write_bytes(complete[:place] if attempt % 2 else changed)
        lines = []
        path, content = newest_complete(folder, lines.append)
        named = len(lines) == 1 and (f"{newest} is truncated" in lines[0] or f"{newest} is corrupt" in lines[0])
        recognized += path == previous and same(content["model"], expected["model"]) and named
    print(f"\ncorrupted {attempt}: {recognized} recognized, and the previous one used")
    assert recognized == attempt
    expected = train(in_folder(config, tmp_path / "uninterrupted"), make_data())
    assert same(expected, train(config, make_data(), resume=True))


def test_three_ranks_resume_exactly(tmp_path):
    """From three on, a value's place in DDP's buckets decides the order of its sum, and so its last bit."""
    expected = {name: (f"step-{at:06d}", True) for name, at in zip(RUNS, STOPS, strict=True)}
    assert run_on_ranks(compare_resumed, 3, 3, tmp_path) == [expected] * 3


def test_a_resnet_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 0)
    run = replace(SMALL, model="resnet50", dropout=0.0, augment=True, batch_size=8, epochs=2, precision="auto")
    complete, interrupted = in_folder(run, tmp_path / "complete"), in_folder(run, tmp_path / "interrupted")
    expected = train(complete, make_data())
    assert not train(interrupted, make_data(), stop_at=8)
    assert same(expected, train(interrupted, make_data(), resume=True))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 10 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system does not let root mount (a container without the right to)")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place):
    with (place / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


WRITERS = {
    "record": lambda path: save_record(make_run()[0], path),
    "model": lambda path: write_atomically(path, lambda file: torch.save(torch.ones(100_000), file)),
    "figure": lambda path: plots.save_png(plots.training_plots(*make_run(kind="distributed")), path),
    "PDF": lambda path: write_atomically(path, lambda file: file.write(b"%PDF" + bytes(100_000))),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_costs_no_earlier_file(kind, small_disk):
    path = small_disk / "earlier"
    path.write_bytes(b"earlier")
    fill(small_disk)
    with pytest.raises(InputError, match="No space left on device") as refusal:
        WRITERS[kind](path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == b"earlier"
    assert sorted(one.name for one in small_disk.iterdir()) == ["earlier", "filler"]


@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]])
def test_a_run_whose_disk_fills_up_ends_with_one_line(launcher, small_disk, tmp_path):
    """The MLP with Adam needs 6.8 MB a checkpoint: one goes onto the disk, the second does not."""
    command = [sys.executable, *launcher, "distributed_train.py", "--recipe", "mlp-digits", "--checkpoint-every", "20"]
    places = ["--results-dir", str(tmp_path / "results"), "--checkpoint-dir", str(small_disk)]
    done = subprocess.run([*command, *places], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    refusals = [line for line in done.stderr.splitlines() if line.startswith("distributed_train.py: error: ")]
    assert len(refusals) == 1, done.stderr
    assert "No space left on device" in refusals[0]
    assert done.returncode == (1 if launcher else 2)  # torchrun's own code, and the script's
    assert launcher or len(done.stderr.splitlines()) == 1
    folder = small_disk / f"{'distributed' if launcher else 'baseline'}_mlp_digits"
    assert newest_complete(folder, print)[0].name == "step-000020.pt"
    assert [path.name for path in folder.iterdir()] == ["step-000020.pt"]
