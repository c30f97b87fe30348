"""torchrun as a subprocess that is checked, for notebooks and the command line."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil

from ddp_workbook.devices import choose_threads
from ddp_workbook.distributed.parent import kill_family
from ddp_workbook.distributed.processes import MOST_PROCESSES
from ddp_workbook.distributed.quiet_gloo import GLOO_LINE
from ddp_workbook.errors import InputError, message_in

SECONDS_TO_STOP = 35  # torchrun itself waits 30 s for its ranks before it kills them
SECONDS_TO_READ = 5
STOPPING = "stopping within 30 s: the ranks finish their step and write a checkpoint; stop again to kill them now"
TORCHRUN_LOG = re.compile(r"[IWE]\d{4} ")  # how torchrun's own messages begin
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LaunchError(RuntimeError):
    """The processes did not finish; the message is the error of the rank that failed first."""


def check_process_count(processes: int) -> None:
    """Raise InputError for a number of processes that cannot be started."""
    if not 1 <= processes <= MOST_PROCESSES:
        raise InputError(f"the number of processes must be from 1 to {MOST_PROCESSES}, not {processes}")


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def training_script() -> ModuleType:
    """distributed_train.py of the current folder, imported. Raises InputError where it is not."""
    _require_here(Path("distributed_train.py"))
    if "" not in sys.path:  # as in an installed command, or a script of another folder
        sys.path.insert(0, "")
    return importlib.import_module("distributed_train")


def _require_here(script: Path) -> None:
    if not script.is_file():
        raise InputError(f"{script} is not here; run this from the workbook's folder")


class Launch:
    """A torchrun on this machine that runs in the background: wait() shows its output, stop() ends it.

    It starts `script` on `processes` ranks. When a rank dies, torchrun restarts all of them, at most `restarts` times.
    What is still running when Python exits is stopped; torchrun itself notices when Python is killed.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        processes: int,
        script: Path = Path("distributed_train.py"),
        restarts: int = 0,
    ) -> None:
        check_process_count(processes)
        _require_here(script)
        self.script = script
        self._folder = tempfile.TemporaryDirectory(prefix="torchrun-")
        self._error_file = Path(self._folder.name) / "error.json"
        module = [sys.executable, "-m", "ddp_workbook.distributed.agent", str(os.getpid())]
        options = [f"--nproc_per_node={processes}", f"--max-restarts={restarts}", str(script), *map(str, arguments)]
        self._process = _start([*module, *options], _environment(processes, self._error_file))
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: there will be no more
        self._reader = threading.Thread(target=self._read, daemon=True)  # else a full pipe would stop the ranks
        self._reader.start()
        atexit.register(self.stop)

    def _read(self) -> None:
        for line in self._process.stdout:
            if not GLOO_LINE.search(line):
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait(self, on_line: Callable[[str], None] = show) -> None:
        """Pass each line of output to `on_line`, those of the past first, until the run has ended.

        Unlike `!torchrun` in a notebook, it raises when a rank fails: InputError when the script rejected its input,
        else LaunchError with that rank's own error. When it is interrupted, it ends every process that was started.
        """
        rejection = None
        try:
            for line in self._output():
                rejection = rejection or message_in(line, self.script.name)
                if rejection is None:  # after a rejection torchrun only adds its own traceback
                    on_line(line)
            code = self._process.wait()
            first_error = _first_error(self._error_file)
        finally:
            self.stop(on_line)
        if rejection:
            raise InputError(rejection)
        if code:
            raise LaunchError(first_error or f"torchrun ended with exit code {code}")

    def _output(self) -> Iterator[str]:
        while True:
            with suppress(queue.Empty):
                line = self._lines.get(timeout=1)  # with a time-out, Ctrl-C arrives on every system
                if line is None:
                    return
                yield line

    def stop(self, on_line: Callable[[str], None] = show) -> None:
        """End what still runs: torchrun asks the ranks to stop, and kills them after 30 s. Harmless when nothing runs.

        An interrupt while it waits, such as a second press of the stop button, kills everything at once.
        """
        atexit.unregister(self.stop)
        ranks: list[psutil.Process] = []
        try:
            ranks += _children(self._process)
            if self._process.poll() is None:
                self._process.terminate()
                on_line(STOPPING)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(SECONDS_TO_STOP)
        finally:
            ranks += _children(self._process)  # torchrun may have restarted them
            self._process.kill()
            for rank in ranks:
                kill_family(rank)
            self._process.wait()
            self._reader.join(SECONDS_TO_READ)
            if not self._reader.is_alive():
                self._process.stdout.close()
            self._folder.cleanup()
        for line in self._last_lines():
            on_line(line)

    def _last_lines(self) -> Iterator[str]:
        """What the ranks printed while they stopped, without torchrun's own words about that."""
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                if not TORCHRUN_LOG.match(line):
                    yield line


def torchrun(
    arguments: Sequence[str],
    processes: int,
    script: Path = Path("distributed_train.py"),
    on_line: Callable[[str], None] = show,
    restarts: int = 0,
) -> None:
    """Run `script` on `processes` ranks of this machine to its end, as Launch does."""
    Launch(arguments, processes, script, restarts).wait(on_line)


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


def _children(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that this one has started, and those that they have started."""
    with suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            return psutil.Process(process.pid).children(recursive=True)
    return []


def _first_error(error_file: Path) -> str | None:
    """Error of the rank that failed first, with the call that raised it."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        message = json.loads(error_file.read_text())["message"]
        if isinstance(message, str):
            return message
        return f"{message['message']}\n{message['extraInfo']['py_callstack']}".rstrip()
    return None
