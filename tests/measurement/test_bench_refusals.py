"""`ddp-workbook bench`, with --map and with --seeds: flags that make no sense, or none together."""

import pytest

from ddp_workbook import cli


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--recipe nothing", "unknown recipe 'nothing'"),
        ("--repeats 0", "--repeats must be at least 2"),
        ("--steps 0", "--steps must be at least 1"),
        ("--epochs 0", "--epochs must be at least 1"),
        ("--steps 5 --epochs 5", "either --steps or --epochs"),
        ("--process-counts 0", "a process count must be"),
        ("--recipe cnn-digits --scaling weak --process-counts 2 32", "larger than a process's share of 44 training"),
        ("--map --process-counts 2 4", "--map takes one process count, not 2"),
        ("--map --process-counts 1", "a process count must be from 2 to 64, not 1"),
        ("--map --largest-batch 15", "--largest-batch must be at least 16"),
        ("--map --steps 3", "--steps has no meaning for --map"),
        ("--map --comm-hook bf16", "--comm-hook has no meaning for --map"),
        ("--largest-batch 64", "--largest-batch has no meaning for anything but --map"),
        ("--seeds 0", "--seeds must be from 2 to 1000, not 0: one seed has no spread"),
        ("--seeds 1", "--seeds must be from 2 to 1000, not 1"),
        ("--seeds -3", "--seeds must be from 2 to 1000, not -3"),
        ("--seeds 5000", "--seeds must be from 2 to 1000, not 5000"),
        ("--seeds two", "--seeds"),
        ("--seeds 2 --epochs 0", "--epochs must be at least 1"),
        ("--seeds 2 --process-counts 2 4", "--seeds takes one process count, not 2"),
        ("--seeds 2 --process-counts 1", "a process count must be from 2 to 64, not 1"),
        ("--seeds 2 --process-counts 3", "cannot be split evenly among 3 processes"),
        ("--seeds 2 --repeats 3", "--repeats has no meaning for --seeds"),
        ("--seeds 2 --map", "--seeds has no meaning for --map"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, refuse, flags, expected):
    code, printed = refuse(cli.main, "ddp-workbook", ["bench", *flags.split(), "--output-dir", str(tmp_path / "out")])
    assert code == 2
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "out").exists()
