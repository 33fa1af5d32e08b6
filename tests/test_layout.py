"""The shape of the repository: imports point one way, requirements agree, nothing unfinished is left."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter

import nbformat
import yaml

from gainmtl_lib.settings import repository_root

ROOT = repository_root()
LIBRARY = ROOT / "gainmtl_lib"
MODULES = {path.relative_to(LIBRARY).with_suffix("").parts: path for path in sorted(LIBRARY.rglob("*.py"))}
CORE = [
    "settings", "wording", "progress", "devices", "launch", "processes", "runs", "findings", "pictures", "annotations", "layouts", "readers", "labels",
    "dataset", "backbone", "model", "losses", "metrics", "stats", "defect_types", "train", "evaluation", "confounders", "data_check", "figures", "explain",
]  # fmt: skip
"""What a newcomer reads, in an order in which each file imports only those before it."""
KITS = ["synthetic", "edits", "efficientad", "studies", "browser", "audit"]
COMMANDS = ["export", "predict", "notebooks", "console", "cli"]
LAZY = {
    ("runs", "model"), ("runs", "studies"), ("dataset", "synthetic"), ("dataset", "edits"), ("evaluation", "efficientad"),
}  # fmt: skip
"""Where the core loads a kit (results are read without loading a network), in a function, because a parameter asks for it."""


def imports():
    """Importing package or module, imported one, and whether it is at the top of the file."""
    for (importer, *_), path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gainmtl_lib"):
                for name in {f"{node.module}.{name.name}".split(".")[1] for name in node.names}:
                    yield importer, name, node in tree.body


def test_imports_point_one_way_and_the_core_imports_no_kit():
    order = [*CORE, *KITS, *COMMANDS]
    assert {parts[0] for parts in MODULES} - {"__init__"} == set(order)
    found = {(a, b) for a, b, at_top in imports() if a not in (b, "__init__") and (at_top or (a, b) not in LAZY)}
    assert len(found) > 20
    assert not {(a, b) for a, b in found if order.index(a) < order.index(b)}


def test_a_file_loads_without_the_ones_that_import_it():
    """No circle between the files of a kit either."""
    graph = {}
    for parts, path in MODULES.items():
        body = ast.parse(path.read_text(encoding="utf-8")).body
        needs = {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
        needs |= {
            f"{node.module}.{name.name}" for node in body if isinstance(node, ast.ImportFrom) for name in node.names
        }
        graph[".".join(("gainmtl_lib", *parts))] = needs
    TopologicalSorter({name: needs & set(graph) for name, needs in graph.items()}).prepare()


def test_environment_and_constraints_have_the_requirements_of_pyproject_each_with_a_purpose():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert set(pip) == wanted and len(pip) == len(wanted)
    assert f"python{project['requires-python']}" in environment
    lines = [line for line in text.splitlines() if re.match(r"\s+- [a-z]", line) and "conda-forge" not in line]
    assert not [line for line in lines if not line.rstrip().endswith(":") and "#" not in line]
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in constraints if "==" in line}
    extras = project["optional-dependencies"]  # what 'make' installs
    needed = [*project["dependencies"], *extras["dev"], *extras["export"], *extras["cluster"], *extras["mlflow"]]
    assert {re.split(r"[<>=\[]", name)[0].lower() for name in needed} <= pinned


def written(path):
    """What somebody wrote in a file; a notebook's pictures are text that may spell anything."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)


def test_nothing_unfinished_is_left():
    files = [*LIBRARY.rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "benchmarks").glob("*.py")]
    unfinished = r"\bTODO\b|\bFIXME\b|NotImplementedError|pytest\.skip|\bxfail\b"
    assert len(files) > 30 and not [path.name for path in files if re.search(unfinished, written(path))]


def test_committed_results_name_no_place_of_the_machine_that_made_them():
    results = [
        path for path in (ROOT / "outputs" / "reference").rglob("*") if path.suffix in {".yaml", ".json", ".csv", ".md"}
    ]
    absolute = re.compile(r"(?<![\w.)/:])/[\w.-]+/[\w.-]+")
    assert len(results) > 20 and not [
        path.name for path in results if absolute.search(path.read_text(encoding="utf-8"))
    ]
