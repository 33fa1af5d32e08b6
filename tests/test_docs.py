"""The documents say what is there: commands parse, parameters, files and figures exist, both READMEs agree."""

import ast
import math
import re
import shlex
from importlib import import_module
from typing import Any

import click
import pandas as pd
import pytest
import yaml

from gainmtl_lib import EfficientADSettings
from gainmtl_lib.cli import main
from gainmtl_lib.efficientad.distill import Distillation
from gainmtl_lib.settings import STRATEGY_WEIGHTS, Settings, read_parameters, repository_root
from gainmtl_lib.studies.plans import load_plan
from gainmtl_lib.studies.shortcut import ShortcutStudySettings

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


SPLITS = {"mark reversed": "test_shift", "cue reversed": "test_shift", "same days": "test_within"}
"""By what a label ends with; alone it means the metric of the column before."""
STUDIES = {"shortcut_tiles": "baselines"}
"""Whose table is shown, where the marker does not name it."""
RANGES = [
    "shortcut_tiles", "shortcut_tiles_strategies", "shortcut_tiles_edits", "shortcut_tiles_cues", "magnetic_tile",
    "magnetic_tile_strategies", "magnetic_tile_larger", "ball_screw", "ball_screw_strategies", "fine_tuning",
    "shortcut", "ablation", "map_stride", "annotation",
]  # fmt: skip


def lines(table: str) -> list[list[str]]:
    """Cells of each line of a text's first table, without emphasis; its second line is left out."""
    first = re.findall(r"^\|.*\|$(?:\n\|.*\|$)*", table, re.MULTILINE)[0].splitlines()
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in first[:1] + first[2:]]


def frame(table: str) -> pd.DataFrame:
    head, *others = lines(table)
    return pd.DataFrame(others, columns=pd.Index(head)).set_index(head[0])


def committed(study: str, split: str) -> pd.DataFrame:
    """Strings "mean (lowest to highest)" of a study's own table, the mean alone where all seeds give it."""
    text = (REFERENCE / study / "table.md").read_text(encoding="utf-8")
    table = frame(text.split(f"**range over seeds: {split}**")[1])
    return table.replace(r"^(\S+) \(\1 to \1\)$", r"\1", regex=True)


def splits_of(labels: list[str], split: str) -> list[tuple[str, str]]:
    """Split and metric that each label of a row or column means."""
    found: list[tuple[str, str]] = []
    for label in labels:
        metric, condition = re.fullmatch(rf"(.*?)(?:, )?({'|'.join(SPLITS)})?", label).groups()  # type: ignore[union-attr]
        found.append((SPLITS.get(condition, split), metric or found[-1][1]))
    return found


def expected(study: str, labels: list[str], row: str) -> list[str]:
    """What the committed tables of `study` hold of a row, by a page's labels."""
    metrics = splits_of(labels, "val" if study == "fine_tuning" else "test")
    return [committed(study, split).loc[row, metric] for split, metric in metrics]


@pytest.mark.parametrize("marker", RANGES)
def test_stated_ranges_are_those_of_the_studies_tables(marker):
    head, *stated = lines(between("docs/results.md", f"result:{marker}"))
    if marker in ("magnetic_tile", "ball_screw"):  # strategies side by side
        table = list(zip(*[head, *stated], strict=True))
        head, stated = list(table[0]), [list(cells) for cells in table[1:]]
    told = {"shortcut_tiles": 2, "shortcut_tiles_cues": 2}.get(marker, 1)
    for cells in stated:
        row, study = cells[0], STUDIES.get(marker, marker)
        if marker == "shortcut_tiles_cues":
            study, row = f"shortcut_tiles_{cells[0]}", cells[1]
        assert cells[told:] == expected(study, head[told:], row), row


@pytest.mark.parametrize("page", READMES)
def test_the_readmes_table_is_that_of_the_results(page):
    stated, results = (lines(between(name, "result:shortcut_tiles")) for name in (page, "docs/results.md"))
    assert [cells[:1] + cells[2:] for cells in stated[1:]] == [cells[:1] + cells[2:] for cells in results[1:]]


def test_stated_figures_of_the_quick_study_are_those_of_its_table():
    tables = (REFERENCE / "quick" / "table.md").read_text(encoding="utf-8").split("`test_shift`:")
    test, reversed_ = map(frame, tables)
    stated = frame(between("docs/results.md", "result:quick"))
    assert list(stated.pop("accuracy, mark reversed")) == list(reversed_["accuracy"])
    pd.testing.assert_frame_equal(stated, test, check_names=False)


def test_stated_figures_of_efficientad_are_those_of_its_tables():
    folders = {"magnetic tiles, float32": "magnetic_tile_compared", "magnetic tiles": "efficientad/magnetic_tile",
               "magnetic tiles, random teacher": "efficientad/magnetic_tile_random",
               "ball screws": "efficientad/ball_screw"}  # fmt: skip
    folders |= dict.fromkeys(("quick study, `test`", "quick study, `test_shift`"), "quick")
    stated = frame(between("docs/results.md", "result:efficientad")).iloc[:, :6]
    assert list(stated.index) == list(folders)
    for name, folder in folders.items():
        table = frame((REFERENCE / folder / "efficientad.md").read_text(encoding="utf-8"))
        split = "test_shift" if "test_shift" in name else "test"
        assert stated.loc[name].to_dict() == table.loc[f"EfficientAD, seed 42, {split}", stated.columns].to_dict()


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
