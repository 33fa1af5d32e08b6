"""The documents say what is there: commands parse, parameters, files and figures exist, both READMEs agree."""

import ast
import math
import re
import shlex
from importlib import import_module
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import yaml

from gainmtl_lib import EfficientADSettings
from gainmtl_lib.cli import main
from gainmtl_lib.efficientad.distill import Distillation
from gainmtl_lib.settings import STRATEGY_WEIGHTS, Settings, read_parameters, repository_root
from gainmtl_lib.studies.plans import load_plan
from gainmtl_lib.studies.shortcut import ShortcutStudySettings
from gainmtl_lib.wording import METRICS

ROOT = repository_root()
REFERENCE = ROOT / "outputs" / "reference"
READMES = ("README.md", "README.ko.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*READMES, *PAGES)}

SPECIFIED = {
    "mapping": {
        "train.py --": "config data_root val_ratio seed backbone batch_size epochs device wandb no_tensorboard resume",
        "evaluate.py --": "checkpoint data_root visualize vis_dir error_analysis export_results",
        "model.": "backbone_arch out_indices num_classes pretrained fpn_channels attention_channels use_counterfactual "
        "freeze_backbone_stages",
        "data.": "data_root dataset_type image_size val_ratio",
        "loss.": "lambda_cls lambda_am lambda_loc lambda_guide lambda_cf lambda_consist",
        "training.": "num_epochs batch_size learning_rate stage1_ratio stage2_ratio stage3_ratio stage4_ratio",
        "logging.": "use_tensorboard tensorboard_dir use_wandb",
    },
    "mapping:efficientad": {
        "tools/train.py --": "config resume",
        "tools/inference.py --": "model_path image_path output_path is_synthetic image_size",
        "data.": "source path category image_size num_samples train_batch_size eval_batch_size",
        "model.": "name model_size",
        "trainer.": "accelerator devices precision max_epochs",
        "": "st_weight ae_weight penalty_weight learning_rate",
    },
}
"""Every flag and config field that the specification shows."""
RECORDS = {"efficientad train": EfficientADSettings, "efficientad distill": Distillation}
RECORDS |= {"shortcut": ShortcutStudySettings}
"""By command the parameters that ``-p`` and ``-f`` give; those of all others are `Settings`."""


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def between(page: str, marker: str) -> str:
    return TEXTS[page].split(f"<!-- {marker} -->")[1].split(f"<!-- /{marker} -->")[0]


def section(page: str, heading: str) -> str:
    return TEXTS[page].split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows, without heads."""
    bodies = re.sub(r"^\|.*\n\|[-| ]+\|$", "", text, flags=re.MULTILINE)
    lines = re.findall(r"^\|(.*)\|$", bodies, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def shell_lines(program: str) -> list[str]:
    """Of every page, each once; a leading variable is left out."""
    bodies = [body for text in TEXTS.values() for language, body in blocks(text) if language == "bash"]
    lines = [re.sub(r"^[A-Z_]+=\S+ ", "", line) for body in bodies for line in body.splitlines()]
    table = [span for text in TEXTS.values() for row in rows(prose(text)) for span in spans(row[0])]
    return sorted({line for line in (*lines, *table) if line.split(" ")[0] == program})


def leaves(group: click.Group = main, path: str = "") -> dict[str, click.Command]:
    """Every command by its full name."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{path}{name} ") if isinstance(command, click.Group) else {path + name: command}
    return found


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """A line's command and its arguments; nothing is run."""
    words, commands = shlex.split(line)[1:], leaves()
    name = " ".join(words[:2]) if words[0] not in commands else words[0]
    parent = click.Context(main, **main.context_settings)
    return name, commands[name].make_context(name, words[len(name.split()) :], parent=parent).params


@pytest.mark.parametrize("line", shell_lines("gainmtl"))
def test_gainmtl_lines_parse_and_name_parameters_of_their_command(line):
    name, given = parsed(line)
    record = RECORDS.get(name, Settings)
    for file in given.get("files", ()):
        assert set(read_parameters(ROOT / file)) <= set(record.model_fields), file
    assert set(given.get("values", ())) <= set(record.model_fields)
    if name == "run":
        assert given["what"].upper() in {"ALL", *STRATEGY_WEIGHTS}
    if name == "ablation" and given["plan_file"] != "PLAN":
        assert set(given["rows"]) <= set(load_plan(given["plan_file"]).rows)


@pytest.mark.parametrize("name", READMES)
def test_every_command_stands_in_the_table(name):
    table = {span for row in rows(TEXTS[name]) for span in spans(row[0]) if span.startswith("gainmtl ")}
    assert {parsed(span)[0] for span in table} == set(leaves())


def test_papermill_lines_and_make_targets_name_what_exists():
    for line in shell_lines("papermill"):
        files = [line.split()[1], *re.findall(r" -f (\S+)", line)]
        assert all((ROOT / file).is_file() for file in files)
        assert set(re.findall(r" -p (\S+)", line)) <= set(Settings.model_fields)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    code = [span for text in TEXTS.values() for span in spans(prose(text))]
    named = {line.split()[1] for line in (*code, *shell_lines("make")) if re.match(r"make \w", line)}
    assert {"run", "test", "unit", "lab", "execute", "browser"} <= named <= set(targets)


def test_python_blocks_import_what_is_there():
    bodies = [body for text in TEXTS.values() for language, body in blocks(text) if language == "python"]
    nodes = [node for body in bodies for node in ast.walk(ast.parse(body)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in nodes if str(node.module).startswith("gainmtl_lib")]
    assert own
    for node in own:
        found = import_module(str(node.module))
        assert {alias.name for alias in node.names} <= set(getattr(found, "__all__", dir(found))), node.module


@pytest.mark.parametrize(("marker", "record"), [("mapping", Settings), ("mapping:efficientad", EfficientADSettings)])
def test_every_flag_and_field_of_the_specification_is_mapped_to_what_exists(marker, record):
    table = rows(between("docs/specification.md", marker))
    specified = {prefix + name for prefix, names in SPECIFIED[marker].items() for name in names.split()}
    assert {span for row in table for span in spans(row[0])} == specified
    for _, parameters, command, _ in table:
        assert set(spans(parameters)) <= set(record.model_fields)
        path, *options = re.split(r" (?=--)", spans(command)[0])
        assert options or (path == "-p" and spans(parameters))
        assert not options or set(options) <= {option for found in leaves()[path].params for option in found.opts}


@pytest.mark.parametrize(("heading", "record"), [
    ("GAIN-MTL", Settings), ("EfficientAD", EfficientADSettings),
    ("Distillation", Distillation), ("The shortcut study", ShortcutStudySettings),
])  # fmt: skip
def test_the_page_of_parameters_lists_each_with_its_default(heading, record):
    text = section("docs/parameters.md", heading)
    listed = {name: spans(row[1]) for row in rows(text) for name in spans(row[0])}
    shared = set(spans(text.split("|")[0])) if record is EfficientADSettings else set()
    assert set(listed) | shared == set(record.model_fields) - {"images", "output"}
    required = {"teacher": "random", "images": "pictures", "output": "teacher.safetensors"}
    required = {name: value for name, value in required.items() if name in record.model_fields}
    stated = {name: yaml.safe_load(default[0]) for name, default in listed.items() if name not in required}
    assert record(**required, **stated) == record(**required)


def test_the_table_of_weights_is_the_strategies_own():
    every = [Settings(strategy=strategy).plain() for strategy in STRATEGY_WEIGHTS]
    table = {spans(row[0])[0]: row[1:9] for row in rows(section("docs/method.md", "Strategies and loss weights"))}
    assert set(table) == {"image_counterfactual", *(f"lambda_{term}" for term in STRATEGY_WEIGHTS["S1"])}
    for name, cells in table.items():
        assert list(map(float, cells)) == [settings[name] for settings in every], name


def test_the_runs_of_the_studies_are_counted():
    for names, *_, runs in rows(TEXTS["docs/studies.md"]):
        name = spans(names)[0]
        if name.startswith("params/"):
            study = ShortcutStudySettings.from_yaml(ROOT / name)
            assert math.prod(map(len, (study.cues, study.correlations, study.strategies, study.seeds))) == int(runs)
        else:
            assert len(list(load_plan(name).cells())) == int(runs)


def figures(cells: list[str]) -> list[float]:
    """The first number of each cell; NaN where there is none."""
    return [float((re.findall(r"\d+\.\d+", cell) or ["nan"])[0]) for cell in cells]


def test_stated_figures_are_those_of_the_studies_tables():
    table = pd.read_csv(REFERENCE / "quick" / "comparison.csv", index_col=["strategy", "split"])
    for name, *cells in rows(between("docs/results.md", "result:quick")):
        accuracy, *others = table.loc[(name, "test"), "accuracy":]
        expected = [accuracy, table.loc[(name, "test_shift"), "accuracy"], *others]
        assert figures(cells) == pytest.approx(expected, abs=6e-4, nan_ok=True), name
    wanted = [("test", "accuracy"), ("test_shift", "accuracy"), ("test_shift", "auroc"), ("test", "cam_iou")]
    for study in ("shortcut", "ablation", "map_stride", "annotation"):
        runs = pd.read_csv(REFERENCE / study / "runs.csv").groupby(["row", "split"])
        for name, *cells in rows(between("docs/results.md", f"result:{study}")):
            of_row = [runs.get_group((name, split))[metric] for split, metric in wanted]
            expected = [value for one in of_row for value in (one.mean(), one.min(), one.max())]
            stated = [float(number) for cell in cells for number in re.findall(r"\d\.\d+", cell)]
            assert stated == pytest.approx(expected, abs=6e-4), name
    columns = ["auroc", "average_precision", "cam_iou", "counterfactual_accuracy"]
    chosen = pd.read_csv(REFERENCE / "fine_tuning" / "runs.csv").groupby(["row", "split"])[columns]
    for name, *cells in rows(between("docs/results.md", "result:fine_tuning")):
        expected = chosen.get_group((name, "val")).agg(["mean", "min", "max"]).to_numpy().T.ravel()
        stated = [float(number) for cell in cells for number in re.findall(r"\d\.\d+", cell)]
        assert stated == pytest.approx(expected[~np.isnan(expected)], abs=6e-4), name
    runs = pd.read_csv(REFERENCE / "baselines" / "runs.csv").groupby(["row", "split"])
    of_mark = [(split, metric) for metric in ("accuracy", "auroc") for split in ("test", "test_shift")]
    for page in (*READMES, "docs/results.md"):
        for name, _, *cells in rows(between(page, "result:shortcut_tiles")):
            of_row = [runs.get_group((name, split))[metric] for split, metric in (*of_mark, ("test", "point_game"))]
            expected = [value for one in of_row for value in (one.mean(), one.min(), one.max())]
            stated = [float(number) for cell in cells for number in re.findall(r"\d\.\d+", cell)]
            assert stated == pytest.approx(expected, abs=6e-4), f"{page}: {name}"


@pytest.mark.parametrize("study", ["magnetic_tile", "ball_screw"])
def test_stated_figures_of_photographs_are_those_of_their_runs(study):
    text, columns = between("docs/results.md", f"result:{study}"), {label: name for name, label in METRICS.items()}
    runs = pd.read_csv(REFERENCE / study / "runs.csv").groupby(["row", "split"])
    strategies = re.findall(r"^\| \| (.*) \|$", text, re.MULTILINE)[0].split(" | ")
    for label, *cells in rows(text):
        metric, same_days = re.subn(", same days$", "", label)
        for strategy, cell in zip(strategies, cells, strict=True):
            of_row = runs.get_group((strategy, "test_within" if same_days else "test"))[columns[metric]]
            expected = of_row.agg(["mean", "min", "max"]) if "to" in cell else of_row.agg(["mean"])
            stated = [float(number) for number in re.findall(r"\d\.\d+", cell)] or [np.nan]
            assert stated == pytest.approx(expected.to_list(), abs=6e-4, nan_ok=True), f"{label}: {strategy}"


SPLITS = {"mark reversed": "test_shift", "cue reversed": "test_shift", "same days": "test_within"}
"""Columns that show the metric of the column before on another split."""


@pytest.mark.parametrize(
    "study",
    [
        "shortcut_tiles_strategies",
        "shortcut_tiles_edits",
        "shortcut_tiles_cues",
        "magnetic_tile_strategies",
        "ball_screw_strategies",
    ],
)
def test_stated_figures_of_every_strategy_are_those_of_the_runs(study):
    text, names = between("docs/results.md", f"result:{study}"), {label: name for name, label in METRICS.items()}
    head = [cell.strip(" *") for cell in text.strip().splitlines()[0].strip("|").split("|")]
    labels = head[1 + (head[0] == "cue") :]
    columns = [("test", names[label]) if label not in SPLITS else (SPLITS[label], names[labels[place - 1]])
               for place, label in enumerate(labels)]  # fmt: skip
    for first, *cells in rows(text):
        folder, name, cells = (
            (f"shortcut_tiles_{first}", *cells[:1], cells[1:]) if head[0] == "cue" else (study, first, cells)
        )
        runs = pd.read_csv(REFERENCE / folder / "runs.csv").groupby(["row", "split"])
        for (split, metric), cell in zip(columns, cells, strict=True):
            of_row = runs.get_group((name, split))[metric]
            expected = of_row.agg(["mean", "min", "max"]) if "to" in cell else of_row.agg(["mean"])
            stated = [float(number) for number in re.findall(r"\d\.\d+", cell)] or [np.nan]
            assert stated == pytest.approx(expected.to_list(), abs=6e-4, nan_ok=True), f"{name}: {metric}"


def test_the_readmes_say_of_ball_screws_what_the_runs_hold():
    columns = ["accuracy", "point_game", "counterfactual_accuracy"]
    runs = pd.read_csv(REFERENCE / "ball_screw" / "runs.csv").query("split == 'test'")
    expected = runs.groupby("row")[columns].mean().loc[["S1", "S8"]].to_numpy().T.ravel()
    for page in READMES:
        line = re.findall(r"^- .*(?:\n  .*)*", between(page, "result:shortcut_tiles"), re.MULTILINE)[-1]
        stated = [float(number) for number in re.findall(r"0\.\d+", line)]
        assert stated == pytest.approx(expected, abs=6e-4), page


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", TEXTS)
def test_links_anchors_and_files_exist(name):
    place = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)]+)\)", prose(TEXTS[name])):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            assert (place / path).exists(), target
            assert not anchor or anchor in anchors((place / path).read_text(encoding="utf-8")), target
    files = re.findall(r"`((?:params|notebooks|gainmtl_lib|tests|benchmarks)/[\w./-]*)`", prose(TEXTS[name]))
    if name == "docs/contributing.md":
        files += [f"gainmtl_lib/{span}" for row in rows(TEXTS[name]) for span in spans(row[0])]
    assert [path for path in files if not (ROOT / path).exists()] == []
    assert "GAIN-MTL (Full)" not in TEXTS[name], "the specification's estimate is no result"


def test_the_readmes_are_short_and_say_the_same():
    english, korean = (TEXTS[name] for name in READMES)
    assert all(len(TEXTS[name].splitlines()) <= 250 for name in READMES)
    assert blocks(english) == blocks(korean)
    assert sorted(spans(prose(english))) == sorted(spans(prose(korean)))
    for pattern in (r"^#+ ", r"^<!-- .* -->$", r"\]\((?!README)[^)]+\)", r"^\|", r"^- "):
        first, second = (re.findall(pattern, prose(text), re.MULTILINE) for text in (english, korean))
        assert first == second, pattern
