"""How long the judges of the labs take: python bench/lab_verdicts.py [--rounds 3] [LAB ...]

For each lab, seconds until the verdict on the solution and on every wrong answer of tests/labs/answers. The first
verdict of a program also starts the server that the ranks are forks of; it stands in a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from ddp_workbook.labs import catalogue
from ddp_workbook.labs.lab import Lab, judge

ANSWERS = Path(__file__).resolve().parent.parent / "tests" / "labs" / "answers"


def seconds(lab: Lab, source: str) -> float:
    """Until the verdict."""
    earlier = [catalogue.answer(catalogue.find(name), None) for name in lab.uses]
    return judge(lab, catalogue.answer(lab, source, earlier)).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labs", nargs="*", default=[lab.name for lab in catalogue.LABS])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    first = catalogue.find(options.labs[0])
    print(f"first verdict of the program ({first.name}): {seconds(first, catalogue.solution(first)):.2f} s\n")
    print("| lab | right: median (largest) s | wrong: median (largest) s | wrong answers |\n|---|---|---|---|")
    for lab in map(catalogue.find, options.labs):
        wrong = [path.read_text(encoding="utf-8") for path in sorted((ANSWERS / lab.name / "wrong").glob("*.py"))]
        right = [seconds(lab, catalogue.solution(lab)) for _ in range(options.rounds)]
        others = [seconds(lab, source) for _ in range(options.rounds) for source in wrong]
        cells = [f"{statistics.median(times):.2f} ({max(times):.2f})" for times in (right, others)]
        print(f"| {lab.name} | {cells[0]} | {cells[1]} | {len(wrong)} |", flush=True)


if __name__ == "__main__":
    main()
