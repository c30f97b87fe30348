"""torchrun as a subprocess that is checked, for notebooks and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ddp_workbook.devices import choose_threads
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.errors import InputError, message_in

SECONDS_TO_STOP = 10
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(RuntimeError):
    """The processes did not finish; the message is the error of the rank that failed first."""


def check_process_count(processes: int) -> None:
    """Raise InputError for a number of processes that cannot be started."""
    if not 1 <= processes <= MOST_PROCESSES:
        raise InputError(f"the number of processes must be from 1 to {MOST_PROCESSES}, not {processes}")


def torchrun(
    arguments: Sequence[str],
    processes: int,
    script: Path = Path("distributed_train.py"),
    on_line: Callable[[str], None] = lambda line: print(line, flush=True),
    restarts: int = 0,
) -> None:
    """Run `script` on `processes` ranks of this machine and pass each line of output to `on_line` as it comes.

    When a rank dies, torchrun restarts all of them, at most `restarts` times.

    Unlike `!torchrun` in a notebook, it raises when a rank fails: InputError when the script rejected its input, else
    LaunchError with that rank's own error. When it is interrupted, it ends every process that it started.
    """
    check_process_count(processes)
    if not script.is_file():
        raise InputError(f"{script} is not here; run this from the workbook's folder")
    with tempfile.TemporaryDirectory(prefix="torchrun-") as folder:
        error_file = Path(folder) / "error.json"
        module = [sys.executable, "-m", "ddp_workbook.distributed.rendezvous"]  # torchrun with a store on loopback only
        options = [f"--nproc_per_node={processes}", f"--max-restarts={restarts}", str(script), *map(str, arguments)]
        process = _start([*module, *options], _environment(processes, error_file))
        rejection = None
        try:
            for line in process.stdout:
                rejection = rejection or message_in(line.rstrip("\n"), script.name)
                if rejection is None:  # after a rejection torchrun only adds its own traceback
                    on_line(line.rstrip("\n"))
            code = process.wait()
        finally:
            _stop(process)
        if rejection:
            raise InputError(rejection)
        if code:
            raise LaunchError(_first_error(error_file) or f"torchrun ended with exit code {code}")


def _environment(processes: int, error_file: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in TORCHRUN_VARIABLES}
    kept.setdefault("OMP_NUM_THREADS", str(choose_threads(0, processes)))  # else torchrun sets it to 1, with a banner
    if os.name == "nt":
        kept.setdefault("USE_LIBUV", "0")  # torch's Windows builds come without it (pytorch issue 139990)
    return kept | {"TORCHELASTIC_ERROR_FILE": str(error_file)}


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """In its own process group, so that Ctrl-C reaches this process only, which then ends the others in order."""
    own_group = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    return subprocess.Popen(command, env=environment, **output, **own_group)


def _stop(process: subprocess.Popen) -> None:
    """End what still runs: first by a request, so that torchrun ends its ranks, then by force."""
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            ranks = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
            for rank in ranks:
                with suppress(psutil.NoSuchProcess):
                    rank.kill()
        process.kill()
        process.wait()
    process.stdout.close()


def _first_error(error_file: Path) -> str | None:
    """Error of the rank that failed first, with the call that raised it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        message = json.loads(error_file.read_text())["message"]
        if isinstance(message, str):
            return message
        return f"{message['message']}\n{message['extraInfo']['py_callstack']}".rstrip()
    return None
