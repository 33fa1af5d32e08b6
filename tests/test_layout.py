"""The shape of the repository: imports point one way, requirements agree, nothing unfinished is left."""

import ast
import re
import tomllib

import nbformat
import pytest
import yaml

from gainmtl_lib.parameters import repository_root

ROOT = repository_root()
LIBRARY = ROOT / "gainmtl_lib"
ORDER = [
    {"wording", "files", "progress", "devices", "records"},
    {"parameters"},
    {"run_settings"},
    {"settings"},
    {"data", "models", "metrics", "decisions", "map_scale", "plans"},
    {"build", "pixel_metrics"},
    {"runs"},
    {"claims"},
    {"training"},
    {"efficientad"},
    {"evaluation"},
    {"explain"},
    {"notebooks", "study", "reports", "serve"},
    {"cli"},
]
"""Each group may import what stands before it, and its own package; siblings in a group do not know each other."""

FRIENDS = {("study", "notebooks")}


def imports():
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if node.module != "gainmtl_lib" else [f"gainmtl_lib.{n.name}" for n in node.names]
            elif isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            for name in names:
                if name.startswith("gainmtl_lib."):
                    yield parts[0], name.split(".")[1]


def rank(module):
    return next(place for place, group in enumerate(ORDER) if module in group)


def test_imports_point_one_way():
    found = set(imports())
    assert len(found) > 20
    wrong = {(a, b) for a, b in found if a != b and rank(a) <= rank(b) and (a, b) not in FRIENDS}
    assert not wrong


def test_every_module_is_placed():
    modules = {path.relative_to(LIBRARY).with_suffix("").parts[0] for path in LIBRARY.rglob("*.py")} - {"__init__"}
    assert modules == set().union(*ORDER)


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


def test_every_module_has_its_test():
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    top = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "records", "progress"}
    named = {"build": "fit", "cli": "commands", "run_settings": "settings", "study": "commands"}
    assert {named.get(name, name) for name in top} <= tested
