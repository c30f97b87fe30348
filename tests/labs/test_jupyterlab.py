"""A lab in JupyterLab, as a reader does it: typed into a cell of the notebook, in a real browser."""

import os
import secrets
import socket
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT
from helper_browser import RUN_CELL, browser, find_browser

from ddp_workbook.labs import catalogue

LAB = catalogue.LABS[0]
WRONG = "def shift(mine, wire):\n    return mine\n"

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on this machine")


@pytest.fixture
def notebook(tmp_path):
    """The first lab's cells of the first lab notebook, without outputs, and an empty cell."""
    cells = [cell for cell in nbformat.read(ROOT / "labs" / "01_messages.ipynb", 4).cells if cell.cell_type == "code"]
    first = next(cell for cell in cells if f"%%lab {LAB.name}" in cell.source)
    path = tmp_path / "workbook" / "labs" / "lab.ipynb"
    path.parent.mkdir(parents=True)
    (tmp_path / "workbook" / "distributed_train.py").touch()
    sources = [cells[0].source, first.source, ""]
    nbformat.write(nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    ), path)  # fmt: skip
    return path


@pytest.fixture
def page(notebook, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token, root = secrets.token_hex(16), notebook.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token, "HOME": str(tmp_path / "home"),
                   "IPYTHONDIR": str(tmp_path / "ipython")}  # fmt: skip
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"],
            cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(port, server)
        url = f"http://127.0.0.1:{port}/doc/tree/labs/{notebook.name}?token={token}&reset"
        with browser(url, tmp_path / "browser") as page:
            # The status bar has the kernel's state once it is connected; before that, a cell that is run asks for one.
            page.wait(
                "document.querySelectorAll('.jp-CodeCell').length == 3 && document.body.innerText.includes('| Idle')"
            )
            yield page
            page.screenshot(tmp_path / "end.png")
    finally:
        server.terminate()
        server.wait(30)


def wait_for(port, server):
    import time

    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None and time.monotonic() < deadline, "JupyterLab does not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)


def run_cell(page, number, text=None):
    """Type the text into a cell, if there is one, run it, and return the whole output as soon as the kernel is idle."""
    page.click(".jp-CodeCell .cm-content", number)
    if text is not None:
        page.replace_text(text)
    cell = f"document.querySelectorAll('.jp-CodeCell')[{number}]"
    prompt = f"{cell}.querySelector('.jp-InputPrompt').innerText"
    before = page.evaluate(prompt)
    page.press(RUN_CELL)
    page.wait(f"/\\d/.test({prompt}) && {prompt} != {before!r}")
    return page.evaluate(f"{cell}.querySelector('.jp-OutputArea')?.innerText || ''")


def test_a_lab_from_the_stub_to_the_board(page):
    name = LAB.name
    assert f"0 of {len(catalogue.LABS)} solved" in run_cell(page, 0)
    assert f"{name}: not solved yet" in run_cell(page, 1)
    assert "returned its own tensor" in run_cell(page, 1, f"%%lab {name}\n{WRONG}")
    assert "hint 1 of 3" in run_cell(page, 2, f'hint("{name}")')
    assert f"{name}: solved (" in run_cell(page, 1, f"%%lab {name}\n{catalogue.solution(LAB)}")
    board = run_cell(page, 2, "status()")
    [line] = [line.split() for line in board.splitlines() if name in line.split()]
    assert line[:5] == ["1", name, "solved", "2", "1"]
    assert f"1 of {len(catalogue.LABS)} solved" in board
