"""%%ranks cells: each rank knows its place, lines stay complete, and the first error ends all ranks."""

import time

import psutil
import pytest

from ddp_workbook.distributed.launch import LaunchError
from ddp_workbook.distributed.ranks import run_on_ranks
from ddp_workbook.errors import InputError


def test_ranks_meet_and_their_lines_stay_complete():
    code = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
value = torch.tensor(dist.get_rank() + 1)
dist.all_reduce(value)
print("a" * 100, end=" ")
print(os.environ["LOCAL_RANK"], value.item())
print("no line end", end="")
"""
    lines = []
    run_on_ranks(code, 3, lines.append)
    assert sorted(lines) == sorted([f"{'a' * 100} {rank} 6" for rank in range(3)] + ["no line end"] * 3)


def test_joining_a_group_prints_nothing(tmp_path):
    """What C++ code writes does not pass through sys.stdout, but a notebook shows it in the cell all the same."""
    code = f"""
import os
import torch.distributed as dist

path = os.path.join({str(tmp_path)!r}, os.environ["RANK"])
os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), 1)
os.write(1, b"this is seen")
dist.init_process_group("gloo")
dist.new_group()
dist.destroy_process_group()
"""
    run_on_ranks(code, 2)
    assert [(tmp_path / name).read_text() for name in "01"] == ["this is seen"] * 2


def test_every_call_has_fresh_processes():
    lines = []
    for _ in range(2):
        run_on_ranks("import builtins\nprint(hasattr(builtins, 'mark'))\nbuiltins.mark = 1", 1, lines.append)
    assert lines == ["False", "False"]


def test_the_first_error_is_raised_with_the_cells_own_lines():
    code = "import os, time\nif os.environ['RANK'] == '1':\n    1 / 0\ntime.sleep(60)"
    start = time.monotonic()
    with pytest.raises(LaunchError, match=r'(?s)rank 1 failed.*"<cell>", line 3.*1 / 0.*ZeroDivisionError') as raised:
        run_on_ranks(code, 2)
    assert "ranks.py" not in str(raised.value)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("code", ["import sys; sys.exit()", "import sys; sys.exit(0)", "raise SystemExit"])
def test_a_cell_may_end_itself(code):
    lines = []
    run_on_ranks(f"print('so far')\n{code}", 1, lines.append)
    assert lines == ["so far"]


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise SystemExit('no data')"])
def test_an_exit_with_a_code_is_a_failure(code):
    with pytest.raises(LaunchError, match="rank 0 failed"):
        run_on_ranks(code, 1)


@pytest.mark.parametrize(
    ("code", "cause"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "SIGKILL, perhaps because memory")]
)
def test_a_rank_that_dies_is_reported(code, cause):
    with pytest.raises(LaunchError, match=rf"^rank 1 died without an error of its own \({cause}"):
        run_on_ranks(f"import os, time\nif os.environ['RANK'] == '1': {code}\ntime.sleep(60)", 2)


def test_an_interrupt_leaves_no_process():
    found = []

    def interrupt(line):
        found.append(int(line))
        if len(found) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_ranks("import os, time\nprint(os.getpid())\ntime.sleep(300)", 2, interrupt)
    assert len(found) == 2
    assert not any(psutil.pid_exists(pid) for pid in found)


WITH_A_LOADER = """
import os, time
from torch.utils.data import DataLoader, Dataset

class Mine(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        {item}

for batch in DataLoader(Mine(), num_workers=1, batch_size=4):
    print(batch.tolist())
"""


def test_a_data_loader_may_have_workers():
    lines = []
    run_on_ranks(WITH_A_LOADER.format(item="return index"), 2, lines.append)
    assert lines == ["[0, 1, 2, 3]"] * 2


def test_the_workers_of_a_data_loader_end_with_their_rank():
    found = []

    def interrupt(line):
        found.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_ranks(WITH_A_LOADER.format(item="print(os.getpid()); time.sleep(300)"), 1, interrupt)
    deadline = time.monotonic() + 2  # it becomes a child of the system's first process, which takes notice of its end
    while (left := psutil.pid_exists(found[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def test_no_port_is_open_beyond_this_machine():
    code = """
import time
import torch.distributed as dist

dist.init_process_group("gloo")
dist.barrier()
print("met")
time.sleep(1)
"""
    found = []

    def look(_):
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            connections = process.net_connections("inet")
            found.extend(one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN)

    run_on_ranks(code, 2, look)
    assert found
    assert set(found) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.parametrize("processes", [0, 65])
def test_absurd_numbers_of_processes_are_refused(processes):
    with pytest.raises(InputError, match="from 1 to 64"):
        run_on_ranks("", processes)
