"""Make a recipe's finished runs and newest experiment the reference, and write the README's table from it.

python bench/publish.py resnet50-cifar10
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ddp_workbook.files import save_text
from ddp_workbook.summary import insert_table, readme_table

from ddp_workbook.course import latest_experiment
from ddp_workbook.recipes import get_recipe

KEPT = ("*.json", "*.png", "*.csv", "*.txt", "*.pdf")


def main(recipe: str) -> None:
    get_recipe(recipe)
    source, target = Path("results") / recipe, Path("results") / "reference" / recipe
    target.mkdir(parents=True, exist_ok=True)
    for pattern in KEPT:
        for path in source.glob(pattern):
            shutil.copy(path, target / path.name)
            print(target / path.name)
    found = latest_experiment(recipe)
    if found and found[0] != target / "experiment":
        shutil.copytree(found[0], target / "experiment", dirs_exist_ok=True)
        print(target / "experiment", "from", found[0])
    readme = Path("README.md")
    save_text(insert_table(readme.read_text(encoding="utf-8"), readme_table(target.parent)), readme)


if __name__ == "__main__":
    main(*sys.argv[1:])
