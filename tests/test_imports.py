"""Imports go one way, from the wings above to the wings below; and the sizes of files and folders.

Every import is read from the source, those inside functions too: they are dependencies like all others.
"""

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions

import pytest
from conftest import ROOT

PACKAGE = "ddp_workbook"
SCRIPT = "distributed_train"
# From the ground up. A module may import from its own wing and from lower levels; modules of the package's root that
# share a level may import each other, as long as there is no circle.
LEVELS = (
    {"errors", "specs", "config"},
    {"records"},
    {"recipes", "flags", "devices", "analysis"},
    {"distributed", "report"},
    {"training"},
    {"runs"},
    {SCRIPT, "measurement"},
    {"course", "labs"},
    {"cli", "torchrun_plugin"},
)
LEVEL = {wing: level for level, wings in enumerate(LEVELS) for wing in wings}
WITHOUT_TORCH = ("records", "analysis", "report")
MOST_LINES = 300
MOST_IN_ROOT = 9


def read_sources() -> dict[str, str]:
    """The source of each module by its dotted name; a package's __init__.py has the package's name."""
    sources = {SCRIPT: (ROOT / f"{SCRIPT}.py").read_text()}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def imported_names(source: str) -> set[str]:
    """Every dotted name that the source imports anywhere: `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the module's whole name, not a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def read_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """For each module, the modules among the sources that it imports."""
    return {module: imported_names(source) & set(sources) - {module} for module, source in sources.items()}


def wing(module: str) -> str:
    """The wing that a module belongs to; modules of the package's root are each their own."""
    return module.split(".")[1] if "." in module else module


def imports_upward(graph: dict[str, set[str]], packages: set[str]) -> list[tuple[str, str]]:
    """Pairs of a module and one that it must not import; `packages` are the wings that are folders."""

    def allowed(module: str, other: str) -> bool:
        first, second = wing(module), wing(other)
        if first == second or LEVEL[second] < LEVEL[first]:
            return True
        return LEVEL[second] == LEVEL[first] and not {first, second} & packages

    return [
        (module, other)
        for module, others in graph.items()
        for other in others - {PACKAGE}
        if module != PACKAGE and not allowed(module, other)
    ]


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of a circle of imports, the first one repeated at the end; None where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The module, and all modules that it imports, directly or through others."""
    found, waiting = set(), [start]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += graph[module]
    return found


SOURCES = read_sources()
GRAPH = read_graph(SOURCES)
FOLDERS = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}


def modules_of(*wings: str) -> list[str]:
    return [module for module in SOURCES if wing(module) in wings]


def test_every_wing_has_a_level():
    assert {wing(module) for module in SOURCES} - {PACKAGE} <= set(LEVEL)
    assert GRAPH["ddp_workbook.training.loop"] >= {"ddp_workbook.devices", "ddp_workbook.distributed.ddp"}


def test_modules_import_from_their_own_wing_or_lower_ones():
    assert imports_upward(GRAPH, FOLDERS) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("training.loop", "from ddp_workbook.runs.resume import CheckpointManager", True),
        ("training.loop", "def train():\n    import ddp_workbook.runs.resume", True),
        ("training.loop", "if True:\n    from ddp_workbook.runs import resume as r", True),
        ("training.loop", "def train():\n    import distributed_train", True),
        ("analysis.tables", "from ddp_workbook.devices import has_bf16", True),  # one level, but a wing
        ("flags", "from ddp_workbook import recipes", False),
        ("runs.resume", "from ddp_workbook.training.loop import fit", False),
        ("training.loop", "import runs.resume, torch", False),
    ],
)
def test_an_import_of_a_higher_wing_is_found(module, source, found):
    others = ("recipes", "devices", "runs.resume", "training.loop")
    sources = {f"ddp_workbook.{name}": "" for name in others} | {SCRIPT: "", f"ddp_workbook.{module}": source}
    assert bool(imports_upward(read_graph(sources), FOLDERS)) == found


def test_there_is_no_circle():
    assert find_circle(GRAPH) is None


def test_a_circle_through_an_import_inside_a_function_is_found():
    """The circle that this package once had."""
    rendezvous, plugin = "ddp_workbook.distributed.rendezvous", "ddp_workbook.torchrun_plugin"
    sources = {
        rendezvous: "from ddp_workbook.torchrun_plugin import create_handler",
        plugin: "def create_handler(p):\n    from ddp_workbook.distributed.rendezvous import LoopbackRendezvous",
    }
    circle = find_circle(read_graph(sources))
    assert set(circle) == {rendezvous, plugin}
    assert find_circle(read_graph(sources | {plugin: ""})) is None


@pytest.mark.parametrize("module", modules_of(*WITHOUT_TORCH))
def test_reading_results_needs_no_torch(module):
    for other in reachable(GRAPH, module):
        names = {name.split(".")[0] for name in imported_names(SOURCES[other])}
        assert not names & {"torch", "torchvision"}, f"{module} imports torch through {other}"


def test_the_libraries_that_read_results_need_no_torch_either():
    """torch takes seconds to import, and none of them asks for it."""
    modules = ", ".join(modules_of(*WITHOUT_TORCH))
    program = f"import sys, {modules}\nprint({{'torch', 'torchvision'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", modules_of("training"))
def test_training_knows_no_files_figures_or_signals(module):
    for other in reachable(GRAPH, module):
        assert wing(other) not in {"runs", "analysis", "report"}, f"{module} imports {other}"
        assert "signal" not in imported_names(SOURCES[other]), f"{module} imports signal through {other}"


def test_every_library_that_is_imported_is_declared_with_its_oldest_version():
    """What only comes with another library has no lower bound, so make test-oldest would not try an old one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [line.split(">=")[0] for line in project["dependencies"] if ">=" in line]
    assert len(declared) == len(project["dependencies"])
    roots = {name.split(".")[0] for source in SOURCES.values() for name in imported_names(source)}
    libraries = roots - sys.stdlib_module_names - {PACKAGE, SCRIPT}
    providers = packages_distributions()
    assert "torch" in libraries
    assert [name for name in libraries if not set(declared) & {one.lower() for one in providers[name]}] == []


def test_no_file_is_long():
    folders = (PACKAGE, "tests", "bench", "labs")
    paths = [ROOT / f"{SCRIPT}.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert f"tests/{__name__}.py" in lengths
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_the_packages_root_is_short():
    entries = [path for path in (ROOT / PACKAGE).iterdir() if path.name != "__pycache__"]
    assert sum(path.suffix == ".py" for path in entries) <= MOST_IN_ROOT
    assert sum(path.is_dir() for path in entries) <= MOST_IN_ROOT


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_a_wings_init_is_only_a_docstring(folder):
    """It re-exports nothing: torchrun loads the plug-in early, and processes must not import what they do not need."""
    tree = ast.parse(SOURCES[f"{PACKAGE}.{folder}"])
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1
