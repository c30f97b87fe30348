"""A headless Chromium that is told what to do through its DevTools protocol; nothing but websocket-client is needed."""

import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SELECT_ALL = {"key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65, "modifiers": 2, "commands": ["selectAll"]}
RUN_CELL = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8}


def find_browser() -> str | None:
    """The program, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page. Coordinates are CSS pixels."""

    def __init__(self, address: str) -> None:
        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.number = 0

    def call(self, method: str, **parameters: object) -> dict:
        """One command, and its result."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, script: str) -> object:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> None:
        """Return as soon as the expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.1)

    def click(self, selector: str, number: int = 0) -> None:
        """A click into the middle of the element."""
        x, y = self.evaluate(
            f"(() => {{const box = document.querySelectorAll({selector!r})[{number}].getBoundingClientRect();"
            f"return [box.x + box.width / 2, box.y + box.height / 2]}})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: dict) -> None:
        """A key, pressed and released."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **key)

    def replace_text(self, text: str) -> None:
        """Type over everything in the editor that has the focus."""
        self.press(SELECT_ALL)
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """The page as a PNG file."""
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(url: str, folder: Path):
    """A page that shows the URL; the browser keeps its files in `folder`, and ends with the block."""
    program = find_browser()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,1600"]
    process = subprocess.Popen(
        [program, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + 60
        while not port_file.is_file() or not port_file.read_text().split():
            assert time.monotonic() < deadline and process.poll() is None, "the browser does not start"
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            if pages:
                break
            time.sleep(0.1)
        page = Page(pages[0]["webSocketDebuggerUrl"])
        yield page
        page.socket.close()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
