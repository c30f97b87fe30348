"""Run the notebooks from the command line: parameters in, progress out, the executed copy on disk.

Parameters work as in papermill (a cell tagged `parameters`, a cell with other values injected after it), but unknown
names are rejected and the output of long cells is shown as it comes.
"""

from __future__ import annotations

import ast
import hashlib
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

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


class NotebookError(RuntimeError):
    """A cell failed; the message says which, and how."""


class _Client(NotebookClient):
    """Shows which cell is running, and what a cell that takes long prints."""

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

    def _announce(self, cell: NotebookNode, cell_index: int) -> None:
        self.cell_started, self.rest = time.monotonic(), ""
        if cell_index in self.cells and cell.source.strip():
            number = self.cells.index(cell_index) + 1
            minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
            first = next((line for line in cell.source.splitlines() if line.strip()), "")[:60]
            print(f"[{minutes:>2}:{seconds:02}] {self.name}  cell {number}/{len(self.cells)}  {first}", flush=True)

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
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

    Raises NotebookError with the failing cell's own error.
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
    except CellExecutionError as error:
        raise NotebookError(f"{source.name} failed: {error.ename}: {error.evalue} (see {target})") from None
    finally:
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

    Raises InputError for a parameter that none of them has.
    """
    started = time.monotonic()
    known = {name: parameters_of(read_notebook(folder / name)) for name in COURSE}
    for parameter in parameters:
        if not any(parameter in names for names in known.values()):
            every = sorted({name for names in known.values() for name in names})
            raise InputError(f"unknown notebook parameter {parameter}; choose one of: {', '.join(every)}")
    for name in COURSE:
        own = {parameter: value for parameter, value in parameters.items() if parameter in known[name]}
        run_notebook(folder / name, output_dir / name, own, started)
