"""The command ``gainmtl``: thin commands over the library's functions.

Options are spelt with hyphens or underscores. Parameters come from files (``-f``, later ones win) and from
``-p NAME VALUE`` pairs, which win over files. (click and not typer: typer has no repeated pairs.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.parameters import SettingsError, read_parameters, repository_root
from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import STRATEGY_WEIGHTS, Settings

# In a file or a pipe there is no width to fit: tables keep theirs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


TRAINING = ("run", "train")
"""Commands that a second call continues where an interruption left them."""


class Commands(click.Group):
    """Takes underscores for hyphens, and turns the library's errors into one message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that is meant for the user becomes a message without a traceback."""
        try:
            return super().invoke(ctx)
        except _known_errors() as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            goes_on = "; the same command goes on from the last finished epoch"
            raise click.ClickException(f"interrupted{goes_on if ctx.invoked_subcommand in TRAINING else ''}") from None


def _known_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is meant for the user. Imported late: `gainmtl --help` should not load torch."""
    errors: list[type[Exception]] = [SettingsError]
    for module, name in (
        ("gainmtl_lib.files", "FileError"),
        ("gainmtl_lib.devices", "DeviceError"),
        ("gainmtl_lib.data.samples", "DataError"),
        ("gainmtl_lib.models.backbone", "ModelError"),
        ("gainmtl_lib.runs", "RunError"),
        ("gainmtl_lib.training.module", "TrainingDivergedError"),
        ("gainmtl_lib.notebooks", "NotebookError"),
        ("gainmtl_lib.serve", "ServeError"),
    ):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _hyphens(token: str) -> str:
    return token.replace("_", "-")


SPELLING = {"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, context_settings=SPELLING)
def main() -> None:
    """Defect classification that is right for the right reason."""
    show_progress()


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-f FILE`` and ``-p NAME VALUE``, both repeatable."""
    files = click.option("-f", "--config", "files", multiple=True, type=Path, help="Parameter file; later ones win.")
    pairs = click.option(
        "-p", "pairs", multiple=True, nargs=2, metavar="NAME VALUE", help="One parameter; wins over files."
    )
    return files(pairs(command))


@main.command()
@click.argument("what", metavar="s1…s6|all")
@parameter_options
@click.option("--force", is_flag=True, help="Start anew instead of reusing or continuing runs.")
def run(what: str, files: Sequence[Path], pairs: Sequence[tuple[str, str]], force: bool) -> None:
    """Execute a strategy's notebook, or the whole collection, headless.

    Parameters that are not given are those of the notebook, which are the quick study's.
    """
    from gainmtl_lib import study
    from gainmtl_lib.reports.comparison import print_comparison

    overrides = dict(_pairs(pairs))
    if what.lower() == "all":
        experiment = study.run_all(files, overrides, force=force)
        print_comparison(console, experiment)
        return
    if what.upper() not in STRATEGY_WEIGHTS:
        raise click.UsageError(f"'{what}' is no strategy; expected one of {', '.join(STRATEGY_WEIGHTS)} or all")
    executed = study.run_strategy(what.upper(), files, overrides, force=force)
    console.print(f"executed notebook: {escape(str(executed))}")


@main.command()
@parameter_options
@click.option("--strategy", help="S1 … S6; takes the strategy's loss weights along.")
@click.option("--data-root", help="Folder of the data.")
@click.option("--backbone", "backbone_arch", help="b0-b3, s, m, l, xl, or a timm model name.")
@click.option("--batch-size", type=int)
@click.option("--epochs", "num_epochs", type=int)
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>.")
@click.option("--seed", type=int)
@click.option("--val-ratio", type=float, help="Share of the training data used for validation.")
@click.option("--wandb", "use_wandb", is_flag=True, default=None, help="Log to Weights & Biases.")
@click.option("--no-tensorboard", is_flag=True, help="Do not write TensorBoard logs.")
@click.option("--resume", type=Path, help="Go on from this checkpoint instead of the run's own last one.")
@click.option("--force", is_flag=True, help="Start anew, dropping what the run's folder holds.")
def train(
    files: Sequence[Path],
    pairs: Sequence[tuple[str, str]],
    no_tensorboard: bool,
    resume: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Train one strategy without a notebook. An unfinished run goes on; a finished one is reported."""
    given = {name: value for name, value in options.items() if value is not None}
    for path in files:
        named = read_parameters(path).get("strategy")
        if None not in (named, options["strategy"]) and named != options["strategy"]:
            raise SettingsError(f"{path}: strategy is {named!r}, but --strategy is {options['strategy']!r}; give one")
    settings = Settings.from_yaml(
        *files, **dict(_pairs(pairs)) | given | ({"use_tensorboard": False} if no_tensorboard else {})
    )
    from gainmtl_lib.training.fit import fit

    finished = fit(settings, resume=resume, force=force)
    console.print(f"run: {escape(str(finished.folder))}")


@main.command("evaluate")
@click.argument("run_folder", metavar="[RUN]", required=False, type=Path)
@click.option("--checkpoint", type=Path, help="A checkpoint file, in place of RUN.")
@click.option("--data-root", type=Path, help="Other data than the run was trained on.")
@click.option("--mask-source", type=click.Choice(["localization", "external", "none", "oracle"]), help="S6 only.")
@click.option("--external-mask-dir", type=Path, help="Masks for --mask-source external, found by stem.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--visualize", is_flag=True, help="Write a picture of every test image with its maps.")
@click.option("--vis-dir", type=Path, help="Where --visualize writes; the run's figures folder by default.")
@click.option("--error-analysis", is_flag=True, help="List missed defects, then the right for the wrong reason.")
@click.option("--export-results", type=Path, help="Write the summary to this JSON file.")
@click.option("--force", is_flag=True, help="Evaluate anew although results are stored.")
def evaluate_command(**options: Any) -> None:
    """Evaluate a run, or a checkpoint, on its test splits."""
    from gainmtl_lib.reports.evaluation import evaluate_and_report

    evaluate_and_report(console, **options)


@main.command("compare")
@click.argument("experiment", type=Path, default=Path("outputs/quick"))
@click.option("--export", type=Path, help="Write the table (CSV, Markdown) and the figures to this folder.")
def compare_command(experiment: Path, export: Path | None) -> None:
    """Print the comparison of the strategies of an experiment's folder."""
    from gainmtl_lib.reports.comparison import print_comparison

    print_comparison(console, experiment, export=export)


@main.command()
@click.argument("run_folder", metavar="RUN", type=Path)
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True, type=Path)
@click.option("--mask", "masks", multiple=True, type=Path, help="Where the defect is; one for each image, in order.")
@click.option("--class-names", nargs=2, default=("normal", "defective"), show_default=True)
@click.option("--mask-source", type=click.Choice(["localization", "none"]), help="S6 only; the run's own by default.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--output", "folder", type=Path, help="Where the figures go; RUN/explanations by default.")
@click.option("--export-results", type=Path, help="Write the answers to this JSON file.")
def explain(run_folder: Path, images: Sequence[Path], **options: Any) -> None:
    """Explain pictures: verdict, where the model looked, and whether it says so without the defect."""
    from gainmtl_lib.reports.explanations import explain_pictures

    sys.exit(0 if explain_pictures(console, run_folder, images, **options) else 1)


@main.command()
@click.argument("run_folders", metavar="RUN…", nargs=-1, required=True, type=Path)
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option("--port", type=int, help="A free one by default.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def browse(run_folders: Sequence[Path], data_root: Path | None, port: int | None, no_browser: bool) -> None:
    """Open the CAM browser as a page of its own, on this machine only, behind a token."""
    from gainmtl_lib.serve import serve_browser

    serve_browser(run_folders, port=port, open_browser=not no_browser, data_root=data_root)


@main.command()
@click.argument("run_folder", metavar="RUN", type=Path)
@click.option("--output", type=Path, help="HTML file; RUN/report.html by default.")
@click.option(
    "--required-recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.99,
    show_default=True,
    help="Share of defects to be found.",
)
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option(
    "--faithfulness/--no-faithfulness",
    default=False,
    show_default=True,
    help="Measure first, unless it is stored, whether the decision follows the map; takes the model and minutes.",
)
def report(
    run_folder: Path, output: Path | None, required_recall: float, data_root: Path | None, faithfulness: bool
) -> None:
    """Write a run's audit report: one HTML file that opens offline and prints."""
    from gainmtl_lib.explain.measured_faithfulness import measure_faithfulness
    from gainmtl_lib.explain.report import write_report
    from gainmtl_lib.runs import load_run

    finished = load_run(run_folder)
    if faithfulness:
        measure_faithfulness(finished, data_root=data_root)
    path = write_report(finished, output, required_recall=required_recall, data_root=data_root)
    console.print(f"report: {escape(str(path))}")


@main.group(cls=Commands)
def data() -> None:
    """Check a dataset, or make a synthetic one."""


@data.command()
@click.argument("path", type=Path)
@parameter_options
@click.option("--dataset-type", type=click.Choice(["generic", "mvtec", "magnetic-tile", "synthetic"]))
@click.option("--image-size", type=int, nargs=2, help="Height and width; 512 512 by default.")
@click.option("--val-ratio", type=float, help="0.2 by default, unless the data has a validation folder.")
@click.option("--group-pattern", help="Regular expression on the file name; equal first groups are one part.")
@click.option("--contact-sheet", type=Path, help="Write a picture of samples with mask outlines to this file.")
def check(
    path: Path,
    files: Sequence[Path],
    pairs: Sequence[tuple[str, str]],
    dataset_type: str | None,
    contact_sheet: Path | None,
    **options: Any,
) -> None:
    """Lint the dataset in PATH, split as a training with the same parameters would split it.

    The exit status is 1 when a training would refuse the data. Warnings, about what could mislead one, leave it 0.
    """
    options["dataset_type"] = None if dataset_type is None else dataset_type.replace("-", "_")
    given = dict(_pairs(pairs)) | {name: value for name, value in options.items() if value is not None}
    settings = Settings.from_yaml(*files, **given | {"data_root": path.absolute()})
    has_val_ratio = "val_ratio" in given or any("val_ratio" in read_parameters(file) for file in files)
    from gainmtl_lib.reports.data import report_data_check

    val_ratio = settings.val_ratio if has_val_ratio else None
    ok = report_data_check(console, settings, val_ratio=val_ratio, contact_sheet_path=contact_sheet)
    sys.exit(0 if ok else 1)


@data.command()
@click.argument("path", type=Path)
@parameter_options
def synth(path: Path, files: Sequence[Path], pairs: Sequence[tuple[str, str]]) -> None:
    """Make synthetic surfaces in PATH, in the generic layout."""
    place = {"data_root": path.absolute(), "dataset_type": "synthetic"}
    settings = Settings.from_yaml(*files, **dict(_pairs(pairs)) | place)
    from gainmtl_lib.build import build_samples

    samples = build_samples(settings)
    console.print(
        f"{escape(str(path))}: {len(samples)} pictures, "
        + ", ".join(f"{k} {v}" for k, v in samples["split"].value_counts().items())
    )


@main.command()
@click.argument("names", nargs=-1)
def notebooks(names: Sequence[str]) -> None:
    """Execute the committed notebooks in place with their own parameters, and clean them."""
    from gainmtl_lib.notebooks import refresh

    folder = repository_root() / "notebooks"
    for path in sorted(folder.glob("*.ipynb")):
        if not names or path.stem in names or path.stem[:2] in names:
            refresh(path)


def _pairs(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, _value(text)) for name, text in pairs]


def _value(text: str) -> Any:
    """A command line's value as YAML reads it, except that 1e-4 is a number; text that is no YAML is itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date, 2024-13-01
        return text


if __name__ == "__main__":
    main()
