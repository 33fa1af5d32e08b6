"""The group of commands of the second system: train, predict, distill."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from gainmtl_lib.cli.shared import Commands, console, named_values, parameter_options
from gainmtl_lib.parameters import read_parameters


@click.group(cls=Commands)
def efficientad() -> None:
    """EfficientAD: find anomalies from good parts alone."""


@efficientad.command()
@parameter_options
@click.option("--category", metavar="NAME|all", help="Of MVTec AD; all: each one in data_root, a run of its own.")
@click.option("--resume", type=Path, help="Go on from this checkpoint instead of the run's own last one.")
@click.option("--force", is_flag=True, help="Start anew, dropping what the run's folder holds.")
def train(
    files: Sequence[Path],
    pairs: Sequence[tuple[str, str]],
    category: str | None,
    resume: Path | None,
    force: bool,
) -> None:
    """Train and evaluate. An unfinished run goes on; a finished one is reported."""
    from gainmtl_lib.reports.anomalies import train_and_report

    if category == "all" and resume is not None:
        raise click.UsageError("--resume is for one run; give --category NAME")
    train_and_report(console, files, dict(named_values(pairs)), category=category, resume=resume, force=force)


@efficientad.command()
@click.argument("places", metavar="[RUN|CHECKPOINT] [PICTURE|FOLDER]…", nargs=-1, type=Path)
@click.option("--model-path", type=Path, help="The run's folder or checkpoint file, in place of the first argument.")
@click.option("--image-path", "image_paths", multiple=True, type=Path, help="One more picture or folder of pictures.")
@click.option(
    "--is-synthetic",
    type=bool,
    default=False,
    help="True: the pictures are the run's own synthetic test pictures, with their ground truth.",
)
@click.option(
    "--output",
    "--output-path",
    "output",
    required=True,
    type=Path,
    help="Folder for the pictures and scores.csv; or the file of one picture, its scores beside it.",
)
@click.option("--image-size", type=int, nargs=2, help="Height and width to compute at; the training's by default.")
@click.option("--mask", "masks", multiple=True, type=Path, help="Ground truth; one for each picture, in order.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; the run's accelerator by default.")
def predict(
    places: Sequence[Path], model_path: Path | None, image_paths: Sequence[Path], is_synthetic: bool, **options: Any
) -> None:
    """Score pictures, and draw each beside its heat map and its ground truth, where there is one.

    Ground truth is found for the pictures of a dataset whose masks lie where a training would find them.
    """
    from gainmtl_lib.reports.anomaly_pictures import predict_and_report

    if model_path is None and not places:
        raise click.UsageError("give the folder of a run or a checkpoint file, first or as --model-path")
    model, *pictures = places if model_path is None else (model_path, *places)
    pictures += image_paths
    if bool(pictures) == is_synthetic:
        raise click.UsageError("give either pictures or --is-synthetic True")
    sys.exit(0 if predict_and_report(console, model, pictures, **options) else 1)


@efficientad.command()
@click.argument("images", metavar="IMAGES", type=Path)
@click.argument("output", metavar="OUTPUT", type=Path)
@parameter_options
@click.option("--backbone", help="Any timm name; wide_resnet101_2 by default.")
@click.option("--backbone-weights", type=Path, help="File of its weights; by default those that go by its name.")
@click.option("--model-size", type=click.Choice(["S", "M"]), help="Of the teacher; S by default.")
@click.option("--steps", type=int, help="60000 by default.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; auto by default.")
@click.option("--force", is_flag=True, help="Start anew, dropping OUTPUT and unfinished work.")
def distill(
    images: Path, output: Path, files: Sequence[Path], pairs: Sequence[tuple[str, str]], force: bool, **options: Any
) -> None:
    """Make a teacher: distill a backbone on the pictures in the folder IMAGES into the file OUTPUT.

    Interrupted work goes on with the same command. OUTPUT (.safetensors) is what the parameter 'teacher' names.
    """
    values = {name: value for file in files for name, value in read_parameters(file).items()}
    values |= dict(named_values(pairs)) | {name: value for name, value in options.items() if value is not None}
    if own := sorted({"images", "output", "force"} & values.keys()):
        raise click.UsageError(
            f"'{own[0]}' is no parameter here; IMAGES and OUTPUT are arguments, --force is an option"
        )
    from gainmtl_lib.efficientad.distill import distill as distilled

    path = distilled(images, output, force=force, **values)
    console.print(f"teacher: {escape(str(path))}")
