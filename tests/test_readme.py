"""The README says what is there: its commands parse, its parameters and files exist, both languages agree."""

from __future__ import annotations

import ast
import re
import shlex

import click
import pytest

import gainmtl_lib
from gainmtl_lib.cli import main
from gainmtl_lib.efficientad.distill import Distillation
from gainmtl_lib.efficientad.model import EfficientADSettings
from gainmtl_lib.settings import (
    IMAGE_COUNTERFACTUAL,
    STRATEGY_WEIGHTS,
    ParameterRecord,
    Settings,
    read_parameters,
    repository_root,
)
from gainmtl_lib.studies.plans import load_plan
from gainmtl_lib.studies.shortcut import ShortcutStudySettings

ROOT = repository_root()
LANGUAGES = ("README.md", "README.ko.md")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in LANGUAGES}
ENGLISH = TEXTS["README.md"]

FLAGS = {
    "train.py": "config data_root val_ratio seed backbone batch_size epochs device wandb no_tensorboard resume",
    "evaluate.py": "checkpoint data_root visualize vis_dir error_analysis export_results",
}
ANOMALY_FLAGS = {
    "tools/train.py": "config resume",
    "tools/inference.py": "model_path image_path output_path is_synthetic image_size",
}
ANOMALY_FIELDS = (
    "data.source data.path data.category data.image_size data.num_samples data.train_batch_size data.eval_batch_size "
    "model.name model.model_size st_weight ae_weight penalty_weight trainer.accelerator trainer.devices "
    "trainer.precision trainer.max_epochs learning_rate"
)
"""Those of the EfficientAD specification."""
FIELDS = {
    "model": "backbone_arch out_indices num_classes pretrained fpn_channels attention_channels use_counterfactual "
    "freeze_backbone_stages",
    "data": "data_root dataset_type image_size val_ratio",
    "loss": "lambda_cls lambda_am lambda_loc lambda_guide lambda_cf lambda_consist",
    "training": "num_epochs batch_size learning_rate stage1_ratio stage2_ratio stage3_ratio stage4_ratio",
    "logging": "use_tensorboard tensorboard_dir use_wandb",
}
"""Every flag and config field that the README specification shows."""
RECORDS: dict[tuple[str, ...], type[ParameterRecord]] = {
    ("efficientad", "train"): EfficientADSettings,
    ("efficientad", "distill"): Distillation,
    ("shortcut",): ShortcutStudySettings,
}
"""By command the parameters that ``-p`` and ``-f`` give; those of all others are `Settings`."""


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def mapping_rows(text: str, name: str = "mapping") -> list[list[str]]:
    table = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    lines = [line for line in table.strip().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def plan_rows(text: str) -> list[list[str]]:
    """Cells of the table of plans: name, rows, number of runs."""
    lines = [line for line in text.splitlines() if re.match(r"\| `\w+` \|.*\| \d+ \|$", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shell_lines(program: str) -> list[str]:
    lines = [line for language, body in blocks(ENGLISH) if language == "bash" for line in body.splitlines()]
    return [line for line in lines if line.split(" ")[0] == program]


def parsed(arguments: list[str]) -> click.Context:
    """The context of the innermost command, arguments parsed, nothing run."""
    command: click.Command = main
    context = main.make_context("gainmtl", list(arguments))
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command, context = found, found.make_context(name, list(arguments), parent=context)
    return context


def command_of(context: click.Context) -> tuple[str, ...]:
    """Its name, led by its group's."""
    return tuple(context.command_path.split()[1:])


def parameters_of(pairs: list[tuple[str, str]], files: list[str], record: type[ParameterRecord] = Settings) -> None:
    for file in files:
        assert set(read_parameters(ROOT / file)) <= set(record.model_fields), file
    for name, _ in pairs:
        assert name in record.model_fields, name


@pytest.mark.parametrize("line", shell_lines("gainmtl"))
def test_gainmtl_lines_parse(line):
    context = parsed(shlex.split(line, comments=True)[1:])
    record = RECORDS.get(command_of(context), Settings)
    parameters_of(context.params.get("pairs", ()), [str(file) for file in context.params.get("files", ())], record)
    if context.info_name == "run":
        assert context.params["what"] in {"all", *(name.lower() for name in STRATEGY_WEIGHTS)}
    if context.info_name == "ablation":
        assert set(context.params["rows"]) <= set(load_plan(context.params["plan_file"]).rows)


def test_parameters_are_checked_against_the_record_of_their_command():
    of_study = parsed(["shortcut", "-p", "cues", "lighting"])
    assert RECORDS[command_of(of_study)] is ShortcutStudySettings
    assert RECORDS[command_of(parsed(["efficientad", "train", "-p", "teacher", "random"]))] is EfficientADSettings
    assert command_of(parsed(["train"])) not in RECORDS
    with pytest.raises(AssertionError, match="cues"):
        parameters_of([("cues", "lighting")], [])


def test_every_command_has_a_line():
    shown = "\n".join(shell_lines("gainmtl"))
    plain = ("run", "train", "evaluate", "compare", "ablation", "shortcut", "explain", "browse", "report")
    data = ("data check", "data synth", "data plant")
    for command in (*plain, *data, "efficientad train", "efficientad predict", "efficientad distill"):
        assert f"gainmtl {command} " in shown, command


@pytest.mark.parametrize("line", shell_lines("papermill"))
def test_papermill_lines_name_what_exists(line):
    words = shlex.split(line)
    assert (ROOT / words[1]).is_file()
    files = [words[place + 1] for place, word in enumerate(words) if word == "-f"]
    pairs = [(words[place + 1], words[place + 2]) for place, word in enumerate(words) if word == "-p"]
    parameters_of(pairs, files)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [line.split()[1] for line in shell_lines("make")]
    named += [span.split()[1] for span in spans(prose(ENGLISH)) if span.startswith("make ")]
    assert {"run", "test", "unit", "lab", "execute"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_blocks_are_python_and_import_what_is_public():
    bodies = [body for language, body in blocks(ENGLISH) if language == "python"]
    assert bodies
    for body in bodies:
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "gainmtl_lib":
                assert {alias.name for alias in node.names} <= set(gainmtl_lib.__all__)


def test_every_flag_and_field_of_the_specification_is_mapped():
    flags = {f"{script} --{flag}" for script, names in FLAGS.items() for flag in names.split()}
    fields = {f"{section}.{name}" for section, names in FIELDS.items() for name in names.split()}
    mapped = {span for row in mapping_rows(ENGLISH) for span in spans(row[0])}
    assert mapped == flags | fields


def test_every_flag_and_field_of_the_efficientad_specification_is_mapped():
    flags = {f"{script} --{flag}" for script, names in ANOMALY_FLAGS.items() for flag in names.split()}
    mapped = {span for row in mapping_rows(ENGLISH, "mapping:efficientad") for span in spans(row[0])}
    assert mapped == flags | set(ANOMALY_FIELDS.split())


@pytest.mark.parametrize("row", mapping_rows(ENGLISH, "mapping:efficientad"), ids=lambda row: row[0])
def test_mapped_efficientad_parameters_and_options_exist(row):
    _, parameters, command, _ = row
    assert set(spans(parameters)) <= set(EfficientADSettings.model_fields)
    words = spans(command)[0].split()
    if words == ["-p"]:
        assert spans(parameters)
        return
    group, name, *options = words
    known = {option for parameter in main.commands[group].commands[name].params for option in parameter.opts}
    assert options and set(options) <= known


@pytest.mark.parametrize("row", mapping_rows(ENGLISH), ids=lambda row: row[0])
def test_mapped_parameters_and_options_exist(row):
    _, parameters, command, _ = row
    assert set(spans(parameters)) <= set(Settings.model_fields)
    name, *options = spans(command)[0].split()
    if name == "-p":
        assert spans(parameters)
        return
    known = {option for parameter in main.commands[name].params for option in parameter.opts}
    assert options and set(options) <= known


def test_the_table_of_weights_is_the_strategies_own():
    rows = {
        match[1]: [float(cell) for cell in match[2].split("|")[: len(STRATEGY_WEIGHTS)]]
        for match in re.finditer(r"^\| `lambda_(\w+)` \| (.*)$", ENGLISH, re.MULTILINE)
    }
    assert rows == {term: [weights[term] for weights in STRATEGY_WEIGHTS.values()] for term in STRATEGY_WEIGHTS["S1"]}


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_table_of_weights_has_the_strategies_as_columns_and_their_share_of_edits(name):
    head = re.search(r"^\| \| (S1 \| .*?) \| [^|]* \|$\n\|[-|]*$", TEXTS[name], re.MULTILINE)
    assert head and head[1].split(" | ") == list(STRATEGY_WEIGHTS)
    shares = re.search(r"^\| `image_counterfactual` \| (.*)$", TEXTS[name], re.MULTILINE)
    assert shares
    stated = [float(cell) for cell in shares[1].split("|")[: len(STRATEGY_WEIGHTS)]]
    assert stated == [Settings.from_yaml(strategy=strategy).image_counterfactual for strategy in STRATEGY_WEIGHTS]
    assert stated[-1] == IMAGE_COUNTERFACTUAL


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_runs_of_the_studies_are_counted(name):
    stated = {spans(plan)[0]: int(runs) for plan, _, runs in plan_rows(TEXTS[name])}
    plans = {plan: load_plan(plan) for plan in ("ablation", "map_stride", "annotation", "edited_share")}
    assert stated == {plan_name: len(plan.rows) * len(plan.seeds) for plan_name, plan in plans.items()}
    for grid in ("shortcut", "shortcut_full"):
        runs = len(ShortcutStudySettings.from_yaml(ROOT / "params" / "studies" / f"{grid}.yaml").cells())
        assert re.search(rf"\({runs} runs\)|\(실행 {runs}개\)", TEXTS[name]), grid


@pytest.mark.parametrize("name", LANGUAGES)
def test_links_and_files_exist(name):
    links = [target for target in re.findall(r"\]\(([^)]+)\)", prose(TEXTS[name])) if "://" not in target]
    files = [
        span
        for span in spans(prose(TEXTS[name]))
        if re.fullmatch(r"(params|notebooks|gainmtl_lib|tests|benchmarks)/[\w./-]*|\w+\.(txt|yml)", span)
    ]
    assert links and files
    missing = [path for path in [*links, *files] if not (ROOT / path).exists()]
    assert not missing


def test_both_languages_have_the_same_skeleton():
    """Headings, result markers and links in the same order; as many table rows and list items."""
    english, korean = (prose(TEXTS[name]) for name in LANGUAGES)
    for pattern in (r"^#+ ", r"^<!-- .* -->$", r"\]\((?!README)[^)]+\)", r"^\|", r"^(?:- |\d+\. )"):
        first, second = (re.findall(pattern, text, re.MULTILINE) for text in (english, korean))
        assert first == second, pattern


def test_both_languages_show_the_same_code():
    assert blocks(TEXTS["README.md"]) == blocks(TEXTS["README.ko.md"])
    assert set(spans(prose(TEXTS["README.md"]))) == set(spans(prose(TEXTS["README.ko.md"])))


def test_both_languages_map_the_same():
    english, korean = ([*mapping_rows(text), *mapping_rows(text, "mapping:efficientad")] for text in TEXTS.values())
    assert [row[:3] for row in english] == [row[:3] for row in korean]
    assert [sorted(spans(row[3])) for row in english] == [sorted(spans(row[3])) for row in korean]


@pytest.mark.parametrize("name", LANGUAGES)
def test_no_estimate_stands_as_a_result(name):
    assert "ResNet50 (baseline)" not in TEXTS[name] and "GAIN-MTL (Full)" not in TEXTS[name]
