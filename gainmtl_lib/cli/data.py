"""The group of commands about data: check, synth, plant."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from gainmtl_lib.cli.shared import Commands, console, named_values, parameter_options
from gainmtl_lib.parameters import read_parameters
from gainmtl_lib.settings import Settings


@click.group(cls=Commands)
def data() -> None:
    """Check a dataset, make a synthetic one, or plant a cue into photographs."""


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
    given = dict(named_values(pairs)) | {name: value for name, value in options.items() if value is not None}
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
    settings = Settings.from_yaml(*files, **dict(named_values(pairs)) | place)
    from gainmtl_lib.build import build_samples

    samples = build_samples(settings)
    console.print(
        f"{escape(str(path))}: {len(samples)} pictures, "
        + ", ".join(f"{k} {v}" for k, v in samples["split"].value_counts().items())
    )


@data.command()
@click.argument("source", type=Path)
@click.argument("out", type=Path)
@parameter_options
@click.option("--dataset-type", type=click.Choice(["generic", "mvtec", "magnetic-tile"]), help="Layout of SOURCE.")
@click.option("--cue", type=click.Choice(["mark", "lighting", "texture", "border"]), default="mark", show_default=True)
@click.option("--correlation", type=float, default=0.95, show_default=True, help="Of cue and class; 0.5 is none.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of who carries it, and where.")
def plant(
    source: Path,
    out: Path,
    files: Sequence[Path],
    pairs: Sequence[tuple[str, str]],
    dataset_type: str | None,
    cue: str,
    correlation: float,
    seed: int,
) -> None:
    """Plant a cue into the photographs in SOURCE, and write them to OUT in the generic layout.

    SOURCE is split as a training with the same parameters would split it. The cue goes along with the defects in
    train, val and test, and against them in test_shift, which shows the same test photographs once more.
    """
    given = dict(named_values(pairs)) | {"data_root": source.absolute()}
    if dataset_type is not None:
        given["dataset_type"] = dataset_type.replace("-", "_")
    settings = Settings.from_yaml(*files, **given)
    from gainmtl_lib.reports.planting import report_planting

    report_planting(console, settings, out, cue=cue, correlation=correlation, seed=seed)
