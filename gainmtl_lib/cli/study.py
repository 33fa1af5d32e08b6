"""Commands about the strategies: run, train, evaluate, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from gainmtl_lib.cli.shared import console, named_values, parameter_options
from gainmtl_lib.parameters import SettingsError, read_parameters
from gainmtl_lib.settings import STRATEGY_WEIGHTS, Settings


@click.command()
@click.argument("what", metavar="s1…s7|all")
@parameter_options
@click.option("--force", is_flag=True, help="Start anew instead of reusing or continuing runs.")
def run(what: str, files: Sequence[Path], pairs: Sequence[tuple[str, str]], force: bool) -> None:
    """Execute a strategy's notebook, or the whole collection, headless.

    Parameters that are not given are those of the notebook, which are the quick study's.
    """
    from gainmtl_lib import study
    from gainmtl_lib.reports.comparison import print_comparison

    overrides = dict(named_values(pairs))
    if what.lower() == "all":
        experiment = study.run_all(files, overrides, force=force)
        print_comparison(console, experiment)
        return
    if what.upper() not in STRATEGY_WEIGHTS:
        raise click.UsageError(f"'{what}' is no strategy; expected one of {', '.join(STRATEGY_WEIGHTS)} or all")
    executed = study.run_strategy(what.upper(), files, overrides, force=force)
    console.print(f"executed notebook: {escape(str(executed))}")


@click.command()
@parameter_options
@click.option("--strategy", help="S1 … S7; takes the strategy's loss weights along.")
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
        *files, **dict(named_values(pairs)) | given | ({"use_tensorboard": False} if no_tensorboard else {})
    )
    from gainmtl_lib.training.fit import fit

    finished = fit(settings, resume=resume, force=force)
    console.print(f"run: {escape(str(finished.folder))}")


@click.command("evaluate")
@click.argument("run_folder", metavar="[RUN]", required=False, type=Path)
@click.option("--checkpoint", type=Path, help="A checkpoint file, in place of RUN.")
@click.option("--data-root", type=Path, help="Other data than the run was trained on.")
@click.option(
    "--mask-source",
    type=click.Choice(["localization", "efficientad", "external", "none", "other", "oracle", "all"]),
    help="S6 only; other is another picture's mask, oracle leaks the label, all compares the sources.",
)
@click.option("--external-mask-dir", type=Path, help="Masks for --mask-source external, found by stem.")
@click.option(
    "--efficientad-run",
    type=Path,
    help="A finished EfficientAD run: flags novel pictures; makes the masks of --mask-source efficientad.",
)
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--visualize", is_flag=True, help="Write a picture of every test image with its maps.")
@click.option("--vis-dir", type=Path, help="Where --visualize writes; the run's figures folder by default.")
@click.option("--error-analysis", is_flag=True, help="List missed defects, then the right for the wrong reason.")
@click.option(
    "--reasons", is_flag=True, help="Ask what the verdicts rest on: test pictures with defects healed and pasted."
)
@click.option("--export-results", type=Path, help="Write the summary to this JSON file.")
@click.option("--force", is_flag=True, help="Evaluate anew although results are stored.")
def evaluate_command(**options: Any) -> None:
    """Evaluate a run of either system, or a checkpoint of a strategy, on its test splits."""
    from gainmtl_lib.reports.evaluation import evaluate_and_report

    evaluate_and_report(console, **options)


@click.command("compare")
@click.argument("experiment", type=Path, default=Path("outputs/quick"))
@click.option("--export", type=Path, help="Write the table (CSV, Markdown) and the figures to this folder.")
def compare_command(experiment: Path, export: Path | None) -> None:
    """Print the comparison of the strategies of an experiment's folder."""
    from gainmtl_lib.reports.comparison import print_comparison

    print_comparison(console, experiment, export=export)
