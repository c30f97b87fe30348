"""An answer: the reader's source text, run as a module of its own in every rank."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass

from ddp_workbook.labs.verdict import NOT_SOLVED, Wrong


@dataclass(frozen=True)
class Answer:
    """The source of one lab's answer and of the earlier ones that it may use."""

    name: str
    source: str
    defines: tuple[str, ...]
    """Names that the source must define."""
    earlier: tuple[Answer, ...] = ()
    """Those of earlier labs: what they define, this source may use."""
    lent: bool = False
    """It is the reference solution, in place of an answer that the reader does not have."""

    @property
    def file(self) -> str:
        """Its name in tracebacks."""
        return f"<{'solution' if self.lent else 'answer'} {self.name}>"

    def load(self) -> dict[str, object]:
        """Run the source; returns its names. Raises Wrong when it cannot run or defines too little.

        Each earlier answer has names of its own; only what its lab asks for is handed on.
        """
        names: dict[str, object] = {"__name__": "answer"}
        for answer in self.earlier:
            others = answer.load()
            names |= {name: others[name] for name in answer.defines}
        # tracebacks can quote the answer
        linecache.cache[self.file] = (len(self.source), None, self.source.splitlines(keepends=True), self.file)
        try:
            exec(compile(self.source, self.file, "exec"), names)
        except BaseException as error:
            raise self.failed(error) from error
        for name in self.defines:
            if name not in names:
                raise Wrong("missing", f"the answer does not define {name}")
        return names

    def failed(self, error: BaseException) -> Wrong:
        """The answer raised this error, said with the line of the answer where it happened."""
        if isinstance(error, Wrong):
            return error
        if isinstance(error, SyntaxError) and error.filename == self.file:
            return Wrong("syntax", f"line {error.lineno} is no Python: {error.msg}")
        if isinstance(error, NotImplementedError) and not str(error):  # the stub's; torch's own say what is missing
            return Wrong(NOT_SOLVED, "not solved yet")
        if isinstance(error, SystemExit):
            return Wrong("exit", f"the answer called sys.exit{self._place(error)}; let it return")
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return Wrong("memory", f"the answer asked for more memory than the judge allows{self._place(error)}")
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        case = ", ".join(["", *getattr(error, "__notes__", [])])  # the judge's notes: on which rank, with what
        return Wrong("error", f"{reason}{self._place(error)}{case}")

    def _place(self, error: BaseException) -> str:
        mine = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        return f" (your line {mine[-1].lineno}: {mine[-1].line.strip()})" if mine and mine[-1].line else ""
