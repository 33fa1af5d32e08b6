"""The shape of the repository: imports point one way, requirements agree, nothing unfinished is left."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter

import nbformat
import pytest
import yaml

from gainmtl_lib.settings import repository_root

ROOT = repository_root()
LIBRARY = ROOT / "gainmtl_lib"
CORE = [
    "settings", "wording", "progress", "runs", "readers", "labels", "dataset", "backbone", "model", "losses", "metrics",
    "stats", "train", "evaluation", "data_check", "figures", "explain",
]  # fmt: skip
"""What a newcomer reads, in an order in which each file imports only those before it."""
KITS = ["synthetic", "edits", "efficientad", "studies", "browser", "audit"]
COMMANDS = ["notebooks", "console", "cli"]
LAZY = {("runs", "model"), ("dataset", "synthetic"), ("dataset", "edits"), ("evaluation", "efficientad")}
"""Where the core loads a kit (results are read without loading a network), inside a function, because a parameter asks for it."""


def imports():
    """Importing package or module, imported one, and whether it is at the top of the file."""
    for path in sorted(LIBRARY.rglob("*.py")):
        importer = path.relative_to(LIBRARY).with_suffix("").parts[0]
        if importer == "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gainmtl_lib"):
                names = [f"{node.module}.{name.name}" for name in node.names]
                for name in {name.split(".")[1] for name in names}:
                    yield importer, name, node in tree.body


def test_imports_point_one_way():
    order = [*CORE, *KITS, *COMMANDS]
    found = {(a, b) for a, b, at_top in imports() if a != b and (at_top or (a, b) not in LAZY)}
    assert len(found) > 20
    assert not {(a, b) for a, b in found if order.index(a) < order.index(b) and b not in KITS}
    assert not {(a, b) for a, b in found if a in CORE and b in KITS}


def test_a_file_loads_without_the_ones_that_import_it():
    """No circle between the files of a kit either."""
    graph = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    TopologicalSorter({name: needs & set(graph) for name, needs in graph.items()}).prepare()


def test_every_module_is_placed():
    modules = {path.relative_to(LIBRARY).with_suffix("").parts[0] for path in LIBRARY.rglob("*.py")} - {"__init__"}
    assert modules == {*CORE, *KITS, *COMMANDS}


def test_environment_has_the_requirements_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert set(pip) == wanted and len(pip) == len(wanted)
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_environment_gives_every_dependency_a_purpose():
    lines = [line for line in (ROOT / "environment.yml").read_text().splitlines() if re.match(r"\s+- [a-z]", line)]
    bare = [line for line in lines if not line.rstrip().endswith(":") and "#" not in line and "conda-forge" not in line]
    assert not bare


def test_constraints_pin_every_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert {re.split(r"[<>=\[]", name)[0].lower() for name in needed} <= pinned


@pytest.mark.parametrize("pattern", [r"\bTODO\b", r"\bFIXME\b", r"NotImplementedError", r"pytest\.skip", r"\bxfail\b"])
def test_nothing_unfinished_is_left(pattern):
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "benchmarks").glob("*.py")]
    assert len(files) > 30
    assert not [path.name for path in files if re.search(pattern, written(path))]


def written(path):
    """What somebody wrote in a file; a notebook's pictures are text that may spell anything."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
