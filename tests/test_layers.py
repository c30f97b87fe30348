"""Imports run one way: what a module may import is written down here, and read off its source."""

import ast

import pytest
from conftest import ROOT

LAYERS = [
    {"errors"},
    {"config", "files", "record", "timings"},
    {"devices", "recipes", "rendezvous", "scaling", "shared_memory", "tally", "torchrun_plugin"},
    {"communication"},
    {"datasets", "models", "distributed", "flags", "plots", "summary"},
    {
        "endings",
        "loader",
        "checkpoint",
        "costmodel",
        "plots_speed",
        "report.diagrams",
        "report.members",
    },
    {"resume"},
    {"watch"},
    {"claims", "engine", "plots_cost", "plots_elastic"},
    {"prediction", "progress", "report.build", "report.costs", "results", "launch"},
    {"elastic"},
    {"team"},
    {"anatomy", "benchmark", "notebooks", "ranks"},
    {"doctor", "experiment", "survey"},
    {"course", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NO_TORCH = {
    "errors",
    "config",
    "files",
    "record",
    "timings",
    "costmodel",
    "recipes",
    "scaling",
    "plots",
    "plots_speed",
    "plots_cost",
    "plots_elastic",
    "claims",
    "prediction",
    "summary",
    "report.build",
    "report.costs",
    "report.members",
}


def modules() -> dict[str, ast.Module]:
    package = ROOT / "ddp_workbook"
    found = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(names: set[str]) -> set[str]:
    return {name.removeprefix("ddp_workbook.") for name in names if name.startswith("ddp_workbook.")} & set(LEVEL)


def test_every_module_has_a_layer():
    assert set(modules()) == set(LEVEL)


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_only_from_below(name):
    found = imports(modules()[name])
    above = {other for other in inside(found) - {name} if LEVEL[other] > LEVEL[name]}
    assert not above
    assert not {module for module in found if module.split(".")[0] in ("distributed_train", "tests", "conftest")}


def test_reading_results_needs_no_torch():
    found = modules()
    for name in NO_TORCH:
        names = imports(found[name])
        assert not {module for module in names if module.split(".")[0] in ("torch", "torchvision")}, name
        assert inside(names) <= NO_TORCH | {"report.diagrams"}, name


def test_no_file_is_long():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("ddp_workbook/**/*.py"), *ROOT.glob("tests/*.py")]:
        assert len(path.read_text().splitlines()) <= 310, path
