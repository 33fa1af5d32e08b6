"""The command ``gainmtl``: thin commands over the library's functions.

Options are spelt with hyphens or underscores. Parameters come from files (``-f``, later ones win) and from
``-p NAME VALUE`` pairs, which win over files. (click and not typer: typer has no repeated pairs.) What a command needs
is imported when it runs, so that ``--help`` does not wait for PyTorch.
"""

import sys
from collections.abc import Callable, Sequence
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any, get_args

import click
import yaml
from rich.console import Console
from rich.markup import escape

from gainmtl_lib.launch import Launch, LaunchError
from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import (
    STRATEGY_WEIGHTS,
    TEXTS,
    Cue,
    Settings,
    SettingsError,
    UserError,
    in_checkout,
    read_parameters,
)

# In a file or a pipe there is no width to fit: tables keep theirs.
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


GOES_ON = {"main": ("run", "train", "ablation", "shortcut", "predict"), "efficientad": ("train", "distill")}
"""By their group the commands that a second call continues where an interruption left them."""

# As options write them; a name of a layout is a word of `dataset_type`.
KINDS = [kind.replace("_", "-") for kind in get_args(Settings.model_fields["dataset_type"].annotation)]
Files = Sequence[Path]
Values = dict[str, Any]


class Commands(click.Group):
    """Takes underscores for hyphens, and turns the library's errors into one message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error that is meant for the user becomes a message without a traceback."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if _is_repeated():
                ctx.exit(1)
            raise click.ClickException(str(error)) from None
        except OSError as error:
            if error.errno not in (EACCES, EPERM, EROFS, ENOSPC) or not error.filename:
                raise
            advice = "give the right to write there, or choose another place (outputs_dir, --output, --vis-dir)"
            raise click.ClickException(f"{error.filename}: cannot be written: {error.strerror}; {advice}") from None
        except KeyboardInterrupt:
            if Launch.found().launcher == "torchrun" and not Launch.found().is_main:
                ctx.exit(1)
            goes_on = "; the same command goes on from where it was last saved"
            raise click.ClickException(
                f"interrupted{goes_on if ctx.invoked_subcommand in GOES_ON.get(str(ctx.command.name), ()) else ''}"
            ) from None


def _is_repeated() -> bool:
    """Whether another process that torchrun started on this node fails alike: all do until they have come together."""
    if Launch.found().launcher != "torchrun" or Launch.found().local_rank == 0:
        return False
    import torch.distributed as dist

    return not dist.is_initialized()


def value_of(name: str, text: str) -> Any:
    """A command line's value as a parameter file has it, except that 1e-4 is a number; no YAML is text."""
    if name in TEXTS and (name == "experiment" or text not in ("", "null", "~", "Null", "NULL")):
        return text
    for read in (int, float, yaml.safe_load):
        try:
            return read(text)
        except (yaml.YAMLError, ValueError):  # of safe_load the latter: what looks like a date, 2024-13-01
            continue
    return text


files_option = click.option("-f", "--config", "files", multiple=True, type=Path, help="Parameter file; later ones win.")
values_option = click.option(
    "-p", "values", multiple=True, nargs=2, metavar="NAME VALUE", help="One parameter; wins over files.",
    callback=lambda _context, _option, pairs: {name: value_of(name, text) for name, text in pairs},
)  # fmt: skip


def parameter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-f FILE`` and ``-p NAME VALUE``, both repeatable."""
    return files_option(values_option(command))


def _one_place(context: click.Context, option: click.Parameter, value: Any) -> Any:
    other = "workers" if option.name == "scheduler" else "scheduler"
    if value is not None and context.params.get(other) is not None:
        raise click.UsageError(
            "--workers runs on this machine, --scheduler on a cluster that is there; give one of them"
        )
    return value


def cluster_options(workers: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--workers N``, with this help, or ``--scheduler ADDRESS``."""
    own = click.option("--workers", type=click.IntRange(min=1), callback=_one_place, help=workers)
    scheduler = click.option(
        "--scheduler", metavar="ADDRESS|FILE", callback=_one_place,
        help="Of a Dask cluster, whose workers make the runs: tcp://host:8786, or a scheduler file.",
    )  # fmt: skip
    return lambda command: own(scheduler(command))


def given(options: Values) -> Values:
    """Those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def refuse_several(name: str) -> None:
    """`LaunchError` where torchrun has started several processes for a command of one."""
    found = Launch.found()
    if found.launcher == "torchrun" and found.count > 1:
        why = f"gainmtl {name} is for one process, and torchrun started {found.count}"
        raise LaunchError(f"{why}; with devices above 1 it starts what a training needs by itself")


# --- Strategies


@click.command()
@click.argument("what", metavar="s1…s8|all")
@parameter_options
@cluster_options("Notebooks at once; by default what suits the machine.")
@click.option("--force", is_flag=True, help="Start anew instead of reusing or continuing runs.")
def run(what: str, files: Files, values: Values, force: bool, **place: Any) -> None:
    """Execute a strategy's notebook, or the whole collection, headless.

    Parameters that are not given are those of the notebook, which are the quick study's. Notebooks that do not need
    each other's results run side by side, each with its share of the cores.
    """
    from gainmtl_lib.notebooks import run_all, run_strategy

    if what.lower() == "all":
        from gainmtl_lib.console import print_comparison

        print_comparison(console, run_all(files, values, force=force, **place))
        return
    if what.upper() not in STRATEGY_WEIGHTS:
        raise click.UsageError(f"'{what}' is no strategy; expected one of {', '.join(STRATEGY_WEIGHTS)} or all")
    if named := given(place):
        raise click.UsageError(f"--{min(named)} is for 'all': one strategy is one notebook")
    console.print(f"executed notebook: {escape(str(run_strategy(what.upper(), files, values, force=force)))}")


@click.command()
@parameter_options
@click.option("--strategy", help="S1 … S8; takes the strategy's loss weights along.")
@click.option("--data-root", help="Folder of the data.")
@click.option("--backbone", "backbone_arch", help="b0-b3, s, m, l, xl, lite0-lite2, or a timm model name.")
@click.option("--batch-size", type=int)
@click.option("--epochs", "num_epochs", type=int)
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>.")
@click.option("--seed", type=int)
@click.option("--val-ratio", type=float, help="Share of the training data used for validation.")
@click.option("--wandb", "use_wandb", is_flag=True, default=None, help="Log to Weights & Biases.")
@click.option("--no-tensorboard", is_flag=True, help="Do not write TensorBoard logs.")
@click.option("--resume", type=Path, help="Go on from this checkpoint instead of the run's own last one.")
@click.option("--force", is_flag=True, help="Start anew, dropping what the run's folder holds.")
def train(files: Files, values: Values, no_tensorboard: bool, resume: Path | None, force: bool, **options: Any) -> None:
    """Train one strategy without a notebook. An unfinished run goes on; a finished one is reported."""
    for path in files:
        named = read_parameters(path).get("strategy")
        if None not in (named, options["strategy"]) and named != options["strategy"]:
            raise SettingsError(f"{path}: strategy is {named!r}, but --strategy is {options['strategy']!r}; give one")
    quiet = {"use_tensorboard": False} if no_tensorboard else {}
    settings = Settings.from_yaml(*files, **values | given(options) | quiet)
    from gainmtl_lib.train import fit

    finished = fit(settings, resume=resume, force=force)
    if Launch.of(settings).is_main:
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
@click.option("--efficientad-run", type=Path, help="Flags novel pictures; makes --mask-source efficientad's masks.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--visualize", is_flag=True, help="Write a picture of every test image with its maps.")
@click.option("--vis-dir", type=Path, help="Where --visualize writes; the run's figures folder by default.")
@click.option("--error-analysis", is_flag=True, help="List missed defects, then the right for the wrong reason.")
@click.option("--reasons", is_flag=True, help="Ask what the verdicts rest on, by pictures healed and pasted.")
@click.option("--export-results", type=Path, help="Write the summary to this JSON file.")
@click.option("--force", is_flag=True, help="Evaluate anew although results are stored.")
def evaluate_command(**options: Any) -> None:
    """Evaluate a run of either system, or a checkpoint of a strategy, on its test splits."""
    from gainmtl_lib.console import evaluate_and_report

    evaluate_and_report(console, **options)


@click.command("compare")
@click.argument("experiment", type=Path, default=Path("outputs/quick"))
@click.option("--export", type=Path, help="Write the table (CSV, Markdown) and the figures to this folder.")
def compare_command(experiment: Path, export: Path | None) -> None:
    """Print the comparison of the strategies of an experiment's folder."""
    from gainmtl_lib.console import print_comparison

    print_comparison(console, experiment, export=export)


# --- Studies


@click.command("ablation")
@click.argument("plan_file", metavar="[PLAN]", default="ablation")
@values_option
@click.option("--seeds", help="These seeds of the plan only, with commas: 0,1.")
@click.option("--rows", multiple=True, metavar="NAME", help="This row of the plan only; repeatable.")
@click.option("--export", type=Path, help="Write tables (CSV, Markdown) and figures to this folder.")
@click.option("--reasons", is_flag=True, help="Ask every run for its reasons besides: the accuracy on edited pictures.")
@cluster_options("Runs at once, by processes of this machine, each with its share of the cores.")
@click.option("--only-report", is_flag=True, help="Train nothing; report the runs that are there.")
def ablation(plan_file: str, values: Values, seeds: str | None, rows: Sequence[str], **options: Any) -> None:
    """Run a study's plan, compare its rows, and say which steps made a difference.

    PLAN is a file, or the name of one in params/studies, such as ablation or magnetic_tile.
    Runs that are there are reused, and after an interruption the same command goes on. The exit status is 1 when a
    run failed.
    """
    from gainmtl_lib.studies.plans import load_plan

    try:
        numbers = None if seeds is None else [int(part) for part in seeds.split(",")]
    except ValueError:
        raise SettingsError(f"--seeds must be whole numbers with commas between, got {seeds!r}") from None
    plan = load_plan(plan_file, **values).only(rows=rows or None, seeds=numbers)
    from gainmtl_lib.studies.ablation import run_and_report

    sys.exit(1 if run_and_report(console, plan, **options) else 0)


@click.command()
@parameter_options
@click.option("--export", type=Path, help="Write tables (CSV, Markdown) and figures to this folder.")
@cluster_options("Runs at once, by processes of this machine, each with its share of the cores.")
@click.option("--only-report", is_flag=True, help="Train nothing; report on the runs that are there.")
def shortcut(files: Files, values: Values, **options: Any) -> None:
    """Train under cues that go along with the class, and ask which strategy follows them.

    Parameters that are not given are those of params/studies/shortcut.yaml. What is there already is reused; a
    second call goes on where the first was interrupted. The exit status is 1 when a run failed.
    """
    from gainmtl_lib.studies.ablation import run_and_report
    from gainmtl_lib.studies.shortcut import ShortcutStudySettings, shortcut_report

    settings = ShortcutStudySettings.from_yaml(*files, **values)
    sys.exit(1 if run_and_report(console, settings, shortcut_report, reasons=True, **options) else 0)


# --- New pictures: the line


@click.command("predict")
@click.argument("model", metavar="RUN|EXPORT", type=Path)
@click.argument("places", metavar="PLACE…", nargs=-1, required=True)
@click.option(
    "--output", type=Path, default=Path("verdicts.csv"), show_default=True, help="The table; a row a picture."
)
@click.option("--visualize", is_flag=True, help="Draw every picture with its defects and the deciding map.")
@click.option("--vis-dir", type=Path, help="Where --visualize writes; the table's name without its suffix by default.")
@click.option("--threshold", type=float, help="Probability from which a picture is called defective.")
@click.option("--required-recall", type=float, help="Share of defects to be found; chooses it on the run's validation.")
@click.option(
    "--efficientad-run", "novelty", type=Path, help="Flags pictures unlike the good parts though they passed."
)
@click.option("--tile-size", type=int, nargs=2, help="Look at pictures as large as they are, in tiles of this size.")
@click.option(
    "--tile-overlap", type=float, help="Share of a tile that neighbours have in common; the run's by default."
)
@click.option("--class-names", nargs=2, help="Of normal and defective, in any language.")
@click.option("--watch", is_flag=True, help="Wait for new pictures in the folders, and judge each once it is whole.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; by default where the run was trained.")
@click.option("--threads", type=click.IntRange(min=1), help="Of an exported model.")
@click.option(
    "--trust", is_flag=True, help="Read a file of PyTorch (.pt2), which could run code; for those of your own."
)
@click.option("--force", is_flag=True, help="Write the table anew, dropping what it holds.")
def predict_command(model: Path, places: Sequence[str], **options: Any) -> None:
    """Judge pictures: files, folders and patterns, by a run of either system or an export of one.

    The table grows as pictures are judged; the same command goes on where it was interrupted. The exit status is 1
    when a picture could not be judged.
    """
    from gainmtl_lib.console import predict_and_report

    sys.exit(0 if predict_and_report(console, model, places, **options) else 1)


@click.command("export")
@click.argument("run_folder", metavar="RUN", type=Path)
@click.option("--format", "kind", type=click.Choice(["onnx", "openvino", "torch"]), default="onnx", show_default=True)
@click.option("--precision", type=click.Choice(["float32", "float16", "int8"]), default="float32", show_default=True)
@click.option("--output", type=Path, help="File, or for openvino folder; in the run's folder by default.")
@click.option(
    "--largest-change", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of the validation verdicts that float16 and int8 may change.",
)  # fmt: skip
def export_command(run_folder: Path, **options: Any) -> None:
    """Write a run of either system as one file or folder that runs elsewhere.

    It is refused unless it agrees with the run on the run's validation pictures.
    """
    from gainmtl_lib.console import export_and_report

    export_and_report(console, run_folder, **options)


# --- What a run decided, and why


@click.command()
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
    from gainmtl_lib.console import explain_pictures

    sys.exit(0 if explain_pictures(console, run_folder, images, **options) else 1)


@click.command()
@click.argument("run_folders", metavar="RUN…", nargs=-1, required=True, type=Path)
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option("--ip", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 in a container.")
@click.option("--port", type=int, help="A free one by default.")
@click.option("--base-url", default="/", help="Path under which a proxy shows the page, as JupyterHub's does.")
@click.option("--no-browser", is_flag=True, help="Print the address only.")
def browse(run_folders: Sequence[Path], no_browser: bool, **options: Any) -> None:
    """Open the CAM browser as a page of its own, behind a token, on this machine only unless --ip says otherwise."""
    from gainmtl_lib.browser.serve import serve_browser

    serve_browser(run_folders, open_browser=not no_browser, **options)


@click.command()
@click.argument("run_folder", metavar="RUN", type=Path)
@click.option("--output", "path", type=Path, help="HTML file; RUN/report.html by default.")
@click.option(
    "--required-recall", type=click.FloatRange(0, 1, min_open=True), default=0.99, show_default=True,
    help="Share of defects to be found.",
)  # fmt: skip
@click.option("--data-root", type=Path, help="Where the pictures are now, if they moved.")
@click.option(
    "--faithfulness/--no-faithfulness", default=False, show_default=True,
    help="Measure first, unless it is stored, whether the decision follows the map; takes the model and minutes.",
)  # fmt: skip
def report(run_folder: Path, faithfulness: bool, **options: Any) -> None:
    """Write a run's audit report: one HTML file that opens offline and prints."""
    from gainmtl_lib.audit.report import write_report
    from gainmtl_lib.runs import load_run
    from gainmtl_lib.studies.faithfulness import measure_faithfulness

    finished = load_run(run_folder)
    if faithfulness:
        measure_faithfulness(finished, data_root=options["data_root"])
    console.print(f"report: {escape(str(write_report(finished, **options)))}")


# --- The second system


@click.group(cls=Commands)
@click.pass_context
def efficientad(ctx: click.Context) -> None:
    """EfficientAD: find anomalies from good parts alone."""
    if ctx.invoked_subcommand != "train":
        refuse_several(f"efficientad {ctx.invoked_subcommand}")


@efficientad.command("train")
@parameter_options
@click.option("--category", metavar="NAME|all", help="Of data in categories; all: each in data_root, a run of its own.")
@click.option("--resume", type=Path, help="Go on from this checkpoint instead of the run's own last one.")
@click.option("--force", is_flag=True, help="Start anew, dropping what the run's folder holds.")
def train_efficientad(files: Files, values: Values, **options: Any) -> None:
    """Train and evaluate. An unfinished run goes on; a finished one is reported."""
    from gainmtl_lib.efficientad.figures import train_and_report

    if options["category"] == "all" and options["resume"] is not None:
        raise click.UsageError("--resume is for one run; give --category NAME")
    train_and_report(console, files, values, **options)


@efficientad.command()
@click.argument("places", metavar="[RUN|CHECKPOINT] [PICTURE|FOLDER]…", nargs=-1, type=Path)
@click.option("--model-path", type=Path, help="The run's folder or checkpoint file, in place of the first argument.")
@click.option("--image-path", "image_paths", multiple=True, type=Path, help="One more picture or folder of pictures.")
@click.option("--is-synthetic", type=bool, default=False, help="True: the run's own synthetic test pictures.")
@click.option(
    "--output", "--output-path", "output", required=True, type=Path,
    help="Folder for the pictures and scores.csv; or the file of one picture, its scores beside it.",
)  # fmt: skip
@click.option("--image-size", type=int, nargs=2, help="Height and width to compute at; the training's by default.")
@click.option("--mask", "masks", multiple=True, type=Path, help="Ground truth; one for each picture, in order.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:<k>; the run's accelerator by default.")
def predict(places: Files, model_path: Path | None, image_paths: Files, is_synthetic: bool, **options: Any) -> None:
    """Score pictures, and draw each beside its heat map and its ground truth, where there is one.

    Ground truth is found for the pictures of a dataset whose masks lie where a training would find them.
    """
    from gainmtl_lib.efficientad.figures import predict_and_report

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
def distill(images: Path, output: Path, files: Files, values: Values, force: bool, **options: Any) -> None:
    """Make a teacher: distill a backbone on the pictures in the folder IMAGES into the file OUTPUT.

    Interrupted work goes on with the same command. OUTPUT (.safetensors) is what the parameter 'teacher' names.
    """
    values = {name: value for file in files for name, value in read_parameters(file).items()} | values | given(options)
    if own := sorted({"images", "output", "force"} & values.keys()):
        raise click.UsageError(
            f"'{own[0]}' is no parameter here; IMAGES and OUTPUT are arguments, --force is an option"
        )
    from gainmtl_lib.efficientad.distill import distill as distilled

    path = distilled(images, output, force=force, **values)
    console.print(f"teacher: {escape(str(path))}")


# --- Data


@click.group(cls=Commands)
def data() -> None:
    """Check a dataset, make a synthetic one, or plant a cue into photographs."""


@data.command()
@click.argument("path", type=Path)
@parameter_options
@click.option("--dataset-type", type=click.Choice(KINDS))
@click.option("--image-size", type=int, nargs=2, help="Height and width; 512 512 by default.")
@click.option("--val-ratio", type=float, help="0.2 by default, unless the data has a validation folder.")
@click.option("--group-pattern", help="Regular expression on the file name; equal first groups are one part.")
@click.option("--contact-sheet", type=Path, help="Write a picture of samples with mask outlines to this file.")
def check(
    path: Path, files: Files, values: Values, dataset_type: str | None, contact_sheet: Path | None, **options: Any
) -> None:
    """Lint the dataset in PATH, split as a training with the same parameters would split it.

    The exit status is 1 when a training would refuse the data. Warnings, about what could mislead one, leave it 0.
    """
    options["dataset_type"] = dataset_type and dataset_type.replace("-", "_")
    values |= given(options)
    settings = Settings.from_yaml(*files, **values | {"data_root": path.absolute()})
    has_val_ratio = "val_ratio" in values or any("val_ratio" in read_parameters(file) for file in files)
    from gainmtl_lib.console import report_data_check

    val_ratio = settings.val_ratio if has_val_ratio else None
    ok = report_data_check(console, settings, val_ratio=val_ratio, contact_sheet_path=contact_sheet)
    sys.exit(0 if ok else 1)


@data.command()
@click.argument("path", type=Path)
@parameter_options
def synth(path: Path, files: Files, values: Values) -> None:
    """Make synthetic surfaces in PATH, in the generic layout."""
    place = {"data_root": path.absolute(), "dataset_type": "synthetic"}
    settings = Settings.from_yaml(*files, **values | place)
    from gainmtl_lib.dataset import build_samples

    samples = build_samples(settings)
    console.print(
        f"{escape(str(path))}: {len(samples)} pictures, "
        + ", ".join(f"{k} {v}" for k, v in samples["split"].value_counts().items())
    )


@data.command()
@click.argument("source", type=Path)
@click.argument("out", type=Path)
@parameter_options
@click.option(
    "--dataset-type", type=click.Choice([kind for kind in KINDS if kind != "synthetic"]), help="Layout of SOURCE."
)
@click.option(
    "--cue", type=click.Choice([cue for cue in get_args(Cue) if cue != "texture"]), default="mark", show_default=True
)
@click.option("--correlation", type=float, default=0.95, show_default=True, help="Of cue and class; 0.5 is none.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of who carries it, and where.")
def plant(source: Path, out: Path, files: Files, values: Values, dataset_type: str | None, **options: Any) -> None:
    """Plant a cue into the photographs in SOURCE, and write them to OUT in the generic layout.

    SOURCE is split as a training with the same parameters would split it. The cue goes along with the defects in
    train, val and test, and against them in test_shift, which shows the same test photographs once more.
    """
    layout = given({"dataset_type": dataset_type and dataset_type.replace("-", "_")})
    settings = Settings.from_yaml(*files, **values | layout | {"data_root": source.absolute()})
    from gainmtl_lib.console import report_planting

    report_planting(console, settings, out, **options)


@click.command("notebooks")
@click.argument("names", nargs=-1)
@click.option("--workers", type=click.IntRange(min=1), help="At once; by default what suits the machine.")
def notebooks(names: Sequence[str], workers: int | None) -> None:
    """Execute the committed notebooks in place with their own parameters, and clean them."""
    from gainmtl_lib.notebooks import refresh

    paths = sorted(in_checkout("notebooks").glob("*.ipynb"))
    refresh([path.stem for path in paths if not names or {path.stem, path.stem[:2]} & set(names)], workers=workers)


COMMANDS = (
    run, train, evaluate_command, compare_command, ablation, shortcut, predict_command, export_command, explain, browse,
    report, efficientad, data, notebooks,
)  # fmt: skip


SPELLING = {"token_normalize_func": lambda token: token.replace("_", "-"), "help_option_names": ["-h", "--help"]}


@click.group(cls=Commands, commands=COMMANDS, context_settings=SPELLING)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Defect classification that is right for the right reason."""
    show_progress()
    if ctx.invoked_subcommand not in ("train", "efficientad"):
        refuse_several(str(ctx.invoked_subcommand))


if __name__ == "__main__":
    main()
