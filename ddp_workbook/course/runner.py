"""Run the notebooks from the command line: parameters in, progress out, the executed copy on disk.

Parameters work as in papermill (a cell tagged `parameters`, a cell with other values injected after it), but unknown
names are rejected and the output of long cells is shown as it comes. A stop signal ends the cell that runs, as the stop
button of Jupyter does: a training writes its checkpoint.
"""

from __future__ import annotations

import ast
import asyncio
import atexit
import hashlib
import os
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbclient.util import run_sync
from nbformat import NotebookNode

from ddp_workbook.course.interrupts import Interrupted, restore, stop_handlers
from ddp_workbook.course.one_course import IN_COURSE, course_of
from ddp_workbook.errors import InputError
from ddp_workbook.records.files import write_atomically

COURSE = (
    "01_environment_setup.ipynb",
    "02_baseline_training.ipynb",
    "03_distributed_training.ipynb",
    "04_testing_and_benchmarking.ipynb",
)
CELL_TIMEOUT = 6 * 3600  # seconds; on a slow laptop one cell trains for hours
SECONDS_WITHOUT_OUTPUT = 5  # a cell that runs longer shows what it prints
SECONDS_TO_END = 90  # for a kernel: what it started, a torchrun for instance, has to end first


class NotebookError(RuntimeError):
    """A cell failed; the message says which, and how."""


class _Stopped(Exception):
    """No further cell begins."""


class _Client(NotebookClient):
    """Shows which cell is running, and what a cell that takes long prints; ends in order on a stop signal."""

    def __init__(self, notebook: NotebookNode, name: str, started: float, folder: Path) -> None:
        super().__init__(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            coalesce_streams=True,
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": str(folder)}},
        )
        self.name, self.started = name, started
        self.cell_started, self.rest = started, ""  # rest: what the current cell has printed of an incomplete line
        self.cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self.on_cell_start = self._announce
        self.number = 0  # of the cell that runs, from 1
        self.executing = False  # the kernel has begun with it
        self.stopped_by = 0  # the first stop signal
        self.tasks = [None]  # that of the whole notebook, then those of signals

    async def async_execute(self, **kwargs: object) -> NotebookNode:
        before, self.tasks = stop_handlers(), [asyncio.current_task()]
        try:
            return await super().async_execute(**kwargs)
        except asyncio.CancelledError:
            raise _Stopped from None
        finally:
            for number in before:
                with suppress(NotImplementedError):  # on Windows, where none was added
                    asyncio.get_running_loop().remove_signal_handler(number)
            restore(before)
            atexit.unregister(self._cleanup_kernel)  # nbclient forgets it when a kernel ends while it starts

    execute = run_sync(async_execute)  # as in the class above, whose own is bound to its own async_execute

    async def async_start_new_kernel(self, **kwargs: object) -> None:
        """Where nbclient has just set its signal handlers. They kill the kernel: no checkpoint would be written."""
        for number, handler in stop_handlers().items():
            if handler is not signal.SIG_IGN:
                with suppress(NotImplementedError):  # on Windows: run_notebook() then gets a KeyboardInterrupt
                    asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        await super().async_start_new_kernel(env=os.environ | {IN_COURSE: "1"}, **kwargs)

    def _stop(self, number: int) -> None:
        """The first signal interrupts the cell; a second one does not wait for its end."""
        if self.stopped_by:
            self._send(signal.SIGKILL)
            return
        self.stopped_by = number
        if self.km:
            self.km.shutdown_wait_time = SECONDS_TO_END
        if self.executing:
            self._send(signal.SIGINT)
        print("        stopping; once more: at once, without a checkpoint", flush=True)

    def _send(self, number: int) -> None:
        """A signal to the kernel and the processes of its cells."""

        async def send() -> None:
            if self.km:
                with suppress(RuntimeError):  # it has ended
                    await self.km.signal_kernel(number)

        self.tasks.append(asyncio.ensure_future(send()))

    @property
    def place(self) -> str:
        """Which cell of which notebook."""
        return f"{self.name}, cell {self.number} of {len(self.cells)}"

    def _announce(self, cell: NotebookNode, cell_index: int) -> None:
        self.cell_started, self.rest, self.executing = time.monotonic(), "", False
        if cell_index in self.cells and cell.source.strip():
            self.number = number = self.cells.index(cell_index) + 1
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            first = next((line for line in cell.source.splitlines() if line.strip()), "")[:60]
            print(f"[{minutes:>2}:{seconds:02}] {self.name}  cell {number}/{len(self.cells)}  {first}", flush=True)
        if self.stopped_by:
            raise _Stopped

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        if msg["msg_type"] == "execute_input":  # from now on an interrupt ends the cell
            self.executing = True
            if self.stopped_by:
                self._send(signal.SIGINT)
        elif msg["msg_type"] == "status" and msg["content"]["execution_state"] == "idle":
            self.executing = False
            if self.stopped_by:
                self.tasks[0].cancel()  # a cell that is interrupted very early ends without the awaited reply
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            self._show(msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)

    def _show(self, text: str) -> None:
        """Print the complete lines of a slow cell; of a line that a progress bar overwrites, only its last version."""
        *lines, self.rest = [line.rpartition("\r")[2] for line in (self.rest + text).split("\n")]
        if time.monotonic() - self.cell_started > SECONDS_WITHOUT_OUTPUT:
            for line in filter(str.strip, lines):
                print(f"        {line}", flush=True)


def source_digest(notebook: NotebookNode) -> str:
    """SHA-256 of a notebook's code, without injected parameters: says which code the outputs came from."""
    code = [c.source for c in notebook.cells if c.cell_type == "code" and "injected-parameters" not in _tags(c)]
    return hashlib.sha256("\n\0".join(code).encode()).hexdigest()


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def read_notebook(path: Path) -> NotebookNode:
    """Raises InputError when it cannot be read."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); run this from the workbook's folder") from error


def parameters_of(notebook: NotebookNode) -> dict[str, object]:
    """Names and defaults in the cell that is tagged `parameters`; {} without one."""
    for cell in notebook.cells:
        if "parameters" in _tags(cell):
            assignments = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
            return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}
    return {}


def inject(notebook: NotebookNode, parameters: dict[str, object]) -> None:
    """Add a cell with other values after the `parameters` cell. Raises InputError for a name that is not there."""
    if not parameters:
        return
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise InputError(f"unknown notebook parameter {name}; choose one of: {', '.join(known) or 'none here'}")
    source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    position = next(i for i, c in enumerate(notebook.cells) if "parameters" in _tags(c))
    notebook.cells.insert(position + 1, cell)


def run_notebook(source: Path, target: Path, parameters: dict[str, object], started: float) -> None:
    """Execute every cell in a fresh kernel and write the result to `target`, failed or not.

    Raises NotebookError with the failing cell's own error, or InputError where it was one. Raises Interrupted after a
    stop signal; `target` then stays as it was, unless all cells were done.
    """
    notebook = read_notebook(source)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata["workbook"] = {"outputs_of": source_digest(notebook)}
    inject(notebook, parameters)
    client = _Client(notebook, source.stem, started, source.resolve().parent)
    try:
        client.execute()
    except KeyboardInterrupt:  # where asyncio handles no signals: on Windows
        raise Interrupted(signal.SIGINT, client.place) from None
    except Exception as error:
        if client.stopped_by:
            raise Interrupted(client.stopped_by, client.place) from None
        _write(notebook, target)
        raise _explained(error, source.name, target) from None
    _write(notebook, target)
    if client.stopped_by:  # after its last cell
        raise Interrupted(client.stopped_by, client.place)


def run_lab_notebooks(folder: Path) -> None:
    """Execute folder/labs/*.ipynb with their stubs, where no reader's answers are, and keep the outputs in them."""
    with tempfile.TemporaryDirectory() as empty:
        place = Path(empty) / "labs"
        place.mkdir()
        shutil.copy(folder / "distributed_train.py", place.parent)  # by which the labs know the workbook's folder
        for path in sorted((folder / "labs").glob("*.ipynb")):
            run_notebook(Path(shutil.copy(path, place)), path, {}, time.monotonic())


def _explained(error: Exception, name: str, target: Path) -> Exception:
    """What to raise for an error of a notebook's kernel; another one as it is."""
    if isinstance(error, CellExecutionError):
        if error.ename == InputError.__name__:
            return InputError(f"{name}: {error.evalue} (see {target})")
        return NotebookError(f"{name} failed: {error.ename}: {error.evalue} (see {target})")
    if isinstance(error, (CellTimeoutError, DeadKernelError)):
        return NotebookError(f"{name} failed: {type(error).__name__}: {error} (see {target})")
    return error


def _write(notebook: NotebookNode, target: Path) -> None:
    _strip(notebook)
    text = nbformat.writes(notebook) + "\n"
    write_atomically(target, lambda file: file.write(text.encode()))


def _strip(notebook: NotebookNode) -> None:
    """Remove metadata that differs from run to run without meaning anything."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def stale_reason(path: Path) -> str | None:
    """Why a notebook's saved outputs do not come from one run of its present cells; None when they do."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        return "the cells were not run once each, in order"
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        return "a cell failed"
    if any("injected-parameters" in _tags(cell) for cell in code):
        return "it was run with other parameters than its own"
    if notebook.metadata.get("workbook", {}).get("outputs_of") != source_digest(notebook):
        return "a cell was changed after the outputs were made"
    return None


def run_course(folder: Path, output_dir: Path, parameters: dict[str, object]) -> None:
    """Execute the notebooks in order; a parameter goes to every notebook that has it.

    Raises InputError for a parameter that none of them has, and where another course is at work in the folder. After a
    stop signal it raises Interrupted, which says where that came and how to resume.
    """
    started = time.monotonic()
    known = {name: parameters_of(read_notebook(folder / name)) for name in COURSE}
    for parameter in parameters:
        if not any(parameter in names for names in known.values()):
            every = sorted({name for names in known.values() for name in names})
            raise InputError(f"unknown notebook parameter {parameter}; choose one of: {', '.join(every)}")
    with course_of(folder / "results"):
        try:
            for name in COURSE:
                own = {parameter: value for parameter, value in parameters.items() if parameter in known[name]}
                run_notebook(folder / name, output_dir / name, own, started)
        except Interrupted as stop:
            where = f" in {stop}" if str(stop) else ""
            again = "the same command without --retrain" if parameters.get("RETRAIN") else "the same command"
            raise Interrupted(
                stop.number,
                f"stopped by {signal.Signals(stop.number).name}{where}; to resume: {again}, which does not repeat a "
                f"training that has finished",
            ) from None
