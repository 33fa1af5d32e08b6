"""A trained model as it runs on the line: pixels in, verdict and maps out; also from ONNX, OpenVINO or PyTorch files.

B pictures of H x W pixels, the network's input; h x w cells of the deciding map.
"""

import copy
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.special import expit
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gainmtl_lib import evaluation, metrics
from gainmtl_lib.dataset import Batch
from gainmtl_lib.devices import checked_device, inference_autocast
from gainmtl_lib.efficientad.data import SplitProvider
from gainmtl_lib.efficientad.evaluate import QUANTILE_SCALE
from gainmtl_lib.efficientad.model import BORDER, EfficientADModel
from gainmtl_lib.efficientad.train import MAP, EfficientADRun, open_run
from gainmtl_lib.labels import Pixels, Resize
from gainmtl_lib.layouts import CLASS_NAMES
from gainmtl_lib.metrics import MapScale
from gainmtl_lib.model import OUTSIDE_SOURCES, GAINMTLModel, Tiles, defect_probability, margin_of
from gainmtl_lib.progress import counted
from gainmtl_lib.runs import Run, RunError, written
from gainmtl_lib.settings import PARTS, UserError

logger = logging.getLogger(__name__)

Kind = Literal["onnx", "openvino", "torch"]
Precision = Literal["float32", "float16", "int8"]


class ExportError(UserError, RuntimeError):
    """A model that cannot be exported, or an exported one that cannot be used; names it and what to do."""


# --- What is known of a model beside its weights


class Evidence(BaseModel):
    """How S8's margin is read from its map, see `EvidenceHead`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def margin(self, evidence: NDArray[np.float32]) -> float:
        """Of one map, (h, w)."""
        strongest = np.sort(evidence, axis=None)[::-1]
        parts = zip(self.cells, self.scale, self.offset, strict=True)
        return max(scale * float(strongest[:count].mean()) + offset for count, scale, offset in parts)


class Card(BaseModel):
    """What a model's user must know: its identity, what goes in, and what its outputs mean. Kept in every export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: Literal["GAIN-MTL", "EfficientAD"]
    strategy: str
    run: str  # experiment, name and seed
    weights: str  # SHA-256 of the run's model.safetensors
    version: str  # of the project that made it
    origin: str  # of the backbone's weights, or of the teacher
    precision: Precision = "float32"

    image_size: tuple[int, int]  # at which a picture is looked at, (height, width)
    input_size: tuple[int, int]  # of the network; smaller where a picture is looked at in tiles
    resize: Resize
    tile_overlap: float
    class_names: tuple[str, str] = CLASS_NAMES
    defect_types: tuple[str, ...] = ()  # that the model tells apart

    threshold: float  # probability from which a picture is called defective
    threshold_from: str
    calibration: tuple[float, float]  # of the score, see `metrics.fit_calibration`
    map_scale: tuple[float, float] | None  # floor and ceiling of the deciding map, see `MapScale`
    localization_floor: float | None  # above which the localization counts for a normal verdict; None: nowhere
    novelty_threshold: float | None  # of EfficientAD, the score above which a picture is unlike the normal ones
    border: int = 0  # cells at each edge of the map that the network leaves out, in EfficientAD without padding
    evidence: Evidence | None  # of S8
    validation: dict[str, tuple[float, ...]]  # by class the probabilities, from which a recall is chosen

    @property
    def outputs(self) -> list[str]:
        """Those of `OUTPUTS` that the model has, in order."""
        localizes = self.system == "EfficientAD" or bool({*PARTS[self.strategy]} & {"localization", "evidence"})
        there = {"localization": localizes, "types": bool(self.defect_types)}
        return [name for name in OUTPUTS if there.get(name, True)]

    @property
    def scale(self) -> MapScale | None:
        """Of the deciding map."""
        return None if self.map_scale is None else MapScale(*self.map_scale)

    def located(self, anomaly_map: Any) -> Any:
        """EfficientAD's localization by its map, an array or a tensor of any shape: one half at the floor of its scale,
        1 at the ceiling."""
        floor, ceiling = self.map_scale or (0.0, 1.0)
        return (0.5 + 0.5 * (anomaly_map - floor) / max(ceiling - floor, 1e-6)).clip(0, 1)

    @classmethod
    def read(cls, text: str, place: Path) -> Self:
        """What an export holds; `ExportError` where it is none of this project, or of a version with other fields."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            reason = " ".join(str(error.errors()[0]["msg"]).split()) if text else "it holds no card"
            raise ExportError(f"{place}: no model that gainmtl export wrote: {reason}") from None


def card_of(run: Run | EfficientADRun) -> Card:
    """Of an evaluated run; `RunError` where it is not, or its attention needs masks from outside."""
    table, measured = evaluation.stored_tables(run, need_test=False)
    if missing := [name for name in ("calibration", "map_scales") if name not in measured]:
        raise RunError(f"{run.folder}: its evaluation lacks {missing[0]}; {evaluation.AGAIN.format(run.folder)}")
    known: dict[str, Any] = {
        "run": "/".join(run.settings.run_dir.parts[-3:]),
        "weights": evaluation.file_digest(run.folder / "model.safetensors"),
        "version": version("gainmtl"),
        "image_size": run.settings.image_size,
        "resize": run.settings.resize,
        "calibration": tuple(measured["calibration"]),
        "threshold_from": measured["threshold_from"],
    }
    if isinstance(run, EfficientADRun):
        return _of_efficientad(run, measured, known)
    return _of_strategy(run, measured, known, table[table["split"] == "val"])


def _of_efficientad(run: EfficientADRun, measured: dict[str, Any], known: dict[str, Any]) -> Card:
    scale = MapScale(**measured["map_scales"][MAP]) if MAP in measured["map_scales"] else QUANTILE_SCALE
    threshold = float(evaluation.calibrated(measured["threshold"], known["calibration"]))
    return Card(
        system="EfficientAD", strategy="EfficientAD", origin=run.teacher, input_size=run.settings.image_size,
        tile_overlap=0.25, threshold=threshold, map_scale=(scale.floor, scale.ceiling), localization_floor=0.5,
        evidence=None, validation={}, novelty_threshold=measured["novelty_threshold"],
        border=0 if run.settings.padding else BORDER, **known,
    )  # fmt: skip


def _of_strategy(run: Run, measured: dict[str, Any], known: dict[str, Any], val: pd.DataFrame) -> Card:
    its = run.settings
    if its.strategy == "S6" and its.mask_source in OUTSIDE_SOURCES:
        needs = f"its attention takes masks from outside (mask_source '{its.mask_source}')"
        raise RunError(f"{run.folder}: {needs}, which a picture alone has not; train it with mask_source localization")
    cam, localization = (measured["map_scales"].get(name) for name in ("cam", "localization"))
    height, width = its.tile_size or its.image_size
    floor = 0.5 if its.has("evidence") else None if localization is None else max(0.5, localization["floor"])
    of_class = {name: val.loc[val["label"] == label, "probability"] for label, name in enumerate(CLASS_NAMES)}
    head, evidence = getattr(run.model, "evidence", None), None
    if head is not None:
        scale, offset = head.log_scale.detach().exp().tolist(), head.offset.detach().tolist()
        evidence = Evidence(cells=head.cells, scale=tuple(scale), offset=tuple(offset))
    return Card(
        system="GAIN-MTL", strategy=its.strategy, origin=run.manifest["pretrained"],
        input_size=(min(its.image_size[0], height), min(its.image_size[1], width)), tile_overlap=its.tile_overlap,
        threshold=measured["threshold"], map_scale=None if cam is None else (cam["floor"], cam["ceiling"]),
        localization_floor=floor, evidence=evidence, novelty_threshold=None,
        defect_types=tuple(run.manifest.get("defect_types", ())),
        validation={name: tuple(part.round(6)) for name, part in of_class.items()}, **known,
    )  # fmt: skip


# --- The model itself: pixels in, verdict and maps out

OUTPUTS = ("verdict", "probability", "score", "map", "localization", "types")
"""Of every form, in this order; S1 to S3 have no localization, and a run without named defect types no types."""


class LineModel(nn.Module):
    """Either system as one network, from 8-bit pixels to what the line needs.

    Shape: RGB uint8 (B, H, W, 3) -> ``verdict``, bool (B,); ``probability`` of a defect, in [0, 1], (B,); the ``score``
    it is of, margin or anomaly score, unbounded (B,); the deciding ``map``, (B, h, w); ``localization``, in [0, 1],
    (B, H, W), a defect from 0.5 on; ``types``, of a defect the probability of each of `Card.defect_types`, (B, types).
    """

    def __init__(self, model: GAINMTLModel | EfficientADModel, card: Card) -> None:
        super().__init__()
        self.model, self.card = model.eval(), card

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        images = pictures.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
        if isinstance(self.model, EfficientADModel):
            found = self.model(images)
            slope, offset = self.card.calibration
            probability = torch.sigmoid(slope * found.score + offset)
            told = (found.score, found.cells[:, 0], self.card.located(found.anomaly_map[:, 0]))
        else:
            output = self.model(images)
            probability = defect_probability(output.logits, self.card.calibration)
            maps = (output.cam, output.localization_map)
            told = (margin_of(output.logits), *(one[:, 0].float() for one in maps if one is not None))
            if output.type_logits is not None:
                told = (*told, output.type_logits.softmax(dim=1))
        return (probability >= self.card.threshold, probability, *told)


class Judged(NamedTuple):
    """What a model says of one picture or tile."""

    score: float
    map: NDArray[np.float32]  # (h, w)
    localization: NDArray[np.float32] | None = None  # (H, W)
    types: NDArray[np.float32] | None = None  # (types,)


class Judge(ABC):
    """A model that is ready to judge, in whatever form."""

    card: Card
    any_size = False  # whether the network takes pictures of other sizes than `Card.input_size`

    @abstractmethod
    def outputs(self, pictures: Pixels) -> Sequence[NDArray[Any]]:
        """`Card.outputs` of pictures of the input size, uint8 (B, H, W, 3)."""

    def probability(self, score: float) -> float:
        """Of a defect."""
        slope, offset = self.card.calibration
        return float(expit(slope * score + offset))

    def judge(self, pictures: Pixels) -> list[Judged]:
        """Pictures of the input size, uint8 (B, H, W, 3)."""
        told = dict(zip(self.card.outputs, self.outputs(pictures), strict=True))
        return [
            Judged(
                score=float(score),
                **{name: told[name][place] for name in ("map", "localization", "types") if name in told},
            )
            for place, score in enumerate(told["score"])
        ]

    def judge_in_tiles(self, picture: Pixels, at_once: int) -> Judged:
        """One picture of any size, uint8 (height, width, 3), by overlapping tiles of the input size.

        Beyond the picture memory is that of `at_once` tiles, and of the maps of all: two values at most for 16 pixels
        of a tile. Where the picture is no multiple of 32, or smaller than a tile, it is mirrored at its edges. The
        localization is a quarter as fine. The score is that of the joined map in S8 and EfficientAD, whose decision it
        is, and of the other strategies the highest of a tile, which also names the type.
        """
        height, width = picture.shape[:2]
        tile = self.card.input_size
        size = tuple(max(own, -(-side // 32) * 32) for side, own in zip((height, width), tile))
        tiles, parts = Tiles((size[0], size[1]), tile, self.card.tile_overlap), []
        for start in range(0, len(tiles.places), at_once):
            places = tiles.places[start : start + at_once]
            for part in self.judge(np.stack([_padded(picture, place) for place in places])):
                fine = part.localization
                if fine is not None:
                    fine = fine.reshape(fine.shape[0] // 4, 4, fine.shape[1] // 4, 4).mean((1, 3))
                parts.append(part._replace(localization=fine))
        border, worst = self.card.border, max(parts, key=lambda part: part.score)
        joined = _joined(tiles, [part.map for part in parts], (height, width), border=border)
        if self.card.system == "EfficientAD":  # of its map alone, because a tile's edges say nothing
            cell = tile[0] // worst.map.shape[0]
            seen = joined[border : size[0] // cell - border, border : size[1] // cell - border]
            # Of a picture that lies within the border only its mirror image is seen.
            return Judged(float(seen.max()) if seen.size else worst.score, joined, self.card.located(joined))
        score = worst.score if self.card.evidence is None else self.card.evidence.margin(joined)
        located = [part.localization for part in parts if part.localization is not None]
        return Judged(score, joined, _joined(tiles, located, (height, width)) if located else None, worst.types)


def _padded(picture: Pixels, place: tuple[slice, slice]) -> Pixels:
    part = picture[place]
    missing = [(0, at.stop - at.start - side) for at, side in zip(place, part.shape)]
    return np.pad(part, (*missing, (0, 0)), mode="symmetric")


def _joined(
    tiles: Tiles, maps: Sequence[NDArray[np.float32]], picture: tuple[int, int], *, border: int = 0
) -> NDArray[np.float32]:
    """Maps of the tiles as one of the picture, what was added to it cut off."""
    whole = tiles.join([torch.from_numpy(np.asarray(one, np.float32))[None, None] for one in maps], border=border)
    rows, columns = (-(-side * whole.shape[2 + axis] // tiles.size[axis]) for axis, side in enumerate(picture))
    return whole[0, 0, :rows, :columns].numpy()


class EagerJudge(Judge):
    """A run's own model."""

    any_size = True

    def __init__(self, run: Run | EfficientADRun, *, device: str | None = None) -> None:
        self.card = card_of(run)
        own = run.settings.accelerator if isinstance(run, EfficientADRun) else run.settings.device
        self.device, model = checked_device(device or own), copy.copy(run.model)
        if isinstance(model, GAINMTLModel):
            model.tile_size = None  # tiles are cut from the picture, not from its tensor
        # EfficientAD's scale was measured in the training's precision, the strategies' in single precision.
        self.precision = run.settings.precision if isinstance(run, EfficientADRun) else "32"
        self.module = LineModel(model, self.card).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def outputs(self, pictures: Pixels) -> Sequence[NDArray[Any]]:
        with inference_autocast(self.precision, self.device), torch.inference_mode():
            return [one.float().cpu().numpy() for one in self.module(torch.from_numpy(pictures).to(self.device))]


# --- Files of ONNX, OpenVINO and PyTorch

KEY = "gainmtl"  # under which a file holds its card


def _needs(package: str) -> Any:
    """A package of the extra, imported."""
    from importlib import import_module

    try:
        return import_module(package)
    except ModuleNotFoundError:
        how = "pip install --constraint constraints.txt --editable '.[export]'"
        raise ExportError(f"the package {package} is missing; {how}") from None


class OnnxJudge(Judge):
    """A file of ONNX, in ONNX Runtime on the CPU, or on CUDA where its package has that."""

    def __init__(self, place: Path, *, threads: int) -> None:
        runtime = _needs("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        kinds = ("CUDAExecutionProvider", "CPUExecutionProvider")
        there = [kind for kind in kinds if kind in runtime.get_available_providers()]
        try:
            self.session = runtime.InferenceSession(str(place), options, there)
        except Exception as error:  # ONNX Runtime has a class of its own for each kind
            raise ExportError(f"{place}: no ONNX model that can be read: {_first_line(error)}") from None
        self.card = Card.read(self.session.get_modelmeta().custom_metadata_map.get(KEY, ""), place)

    def outputs(self, pictures: Pixels) -> Sequence[NDArray[Any]]:
        return self.session.run(None, {"pictures": pictures})


class OpenVINOJudge(Judge):
    """A folder of OpenVINO, compiled for the CPU."""

    def __init__(self, place: Path, *, threads: int) -> None:
        openvino = _needs("openvino")
        try:
            model = openvino.Core().read_model(place / "model.xml")
        except RuntimeError as error:
            raise ExportError(f"{place}: no OpenVINO model that can be read: {_first_line(error)}") from None
        self.card = Card.read(model.get_rt_info(KEY).value if model.has_rt_info(KEY) else "", place)
        # In float32 as it was exported: left alone, CPUs with bf16 compute in that.
        exact = {} if self.card.precision != "float32" else {"INFERENCE_PRECISION_HINT": "f32"}
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"} | exact
        self.compiled = openvino.Core().compile_model(model, "CPU", options)

    def outputs(self, pictures: Pixels) -> Sequence[NDArray[Any]]:
        return [*self.compiled(pictures).values()]


class ProgramJudge(Judge):
    """An ``ExportedProgram`` of PyTorch, on the CPU."""

    def __init__(self, place: Path) -> None:
        held = {f"{KEY}.json": ""}
        try:
            program = torch.export.load(place, extra_files=held)
        except Exception as error:  # whatever a foreign file makes the reader raise
            raise ExportError(f"{place}: no exported program that can be read: {_first_line(error)}") from None
        text: Any = held[f"{KEY}.json"]
        self.card = Card.read(text.decode() if isinstance(text, bytes) else text, place)
        self.module = program.module()

    def outputs(self, pictures: Pixels) -> Sequence[NDArray[Any]]:
        with torch.inference_mode():
            return [one.numpy() for one in self.module(torch.from_numpy(pictures))]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().partition("\n")[0].split())[:200] or type(error).__name__


def is_export(place: Path) -> bool:
    """By its name or what is in it; else it is a run's folder."""
    return place.suffix in (".onnx", ".pt2") or (place / "model.xml").is_file()


def open_judge(
    place: str | Path | Run | EfficientADRun,
    *,
    device: str | None = None,
    threads: int | None = None,
    trust: bool = False,
) -> Judge:
    """A finished and evaluated run of either system, or what `export_run` made of one, ready to judge.

    Args:
        place: the run or its folder, a file ``.onnx`` or ``.pt2``, or a folder with OpenVINO's ``model.xml``.
        device: of a run, see `checked_device`; None is where it was trained.
        threads: of an export; None is as many as PyTorch has.
        trust: that a file ``.pt2`` is one's own. PyTorch's reader can run code that such a file holds; those of the
            other formats cannot.

    `RunError`, `ExportError`: nothing that can be used there.
    """
    if isinstance(place, Run | EfficientADRun):
        return EagerJudge(place, device=device)
    place, threads = Path(place), threads or torch.get_num_threads()
    if is_export(place):
        if not place.exists():
            raise ExportError(f"{place}: no such file")
        if device not in (None, "auto", "cpu"):
            raise ExportError(f"{place}: an exported model chooses its device by itself; leave device '{device}' out")
    if place.suffix == ".onnx":
        return OnnxJudge(place, threads=threads)
    if (place / "model.xml").is_file():
        return OpenVINOJudge(place, threads=threads)
    if place.suffix == ".pt2":
        if not trust:
            why = "PyTorch reads this format in a way that can run code which a file holds"
            raise ExportError(f"{place}: {why}; give --trust for a file of your own, or export to onnx or openvino")
        return ProgramJudge(place)
    return EagerJudge(open_run(place), device=device)


# --- From a run to a file

LARGEST_DIFFERENCE = 1e-4  # of a probability, in float32
LARGEST_CHANGE = 0.01  # share of verdicts that may change, in float16 and int8
SAMPLES = 300  # tiles at most from which INT8 takes its ranges, NNCF's own number
OPENVINO = ("model.bin", "model.xml")  # what an export to OpenVINO consists of, in the order in which it is replaced


class Agreement(NamedTuple):
    """What an export says of the run's validation pictures, beside what the run says."""

    pictures: int
    changed: int  # verdicts, or types of what is called defective
    largest: float  # difference of probability
    mean: float
    auroc: float  # of the run
    auroc_exported: float


def export_run(
    run: Run | EfficientADRun,
    output: Path | None = None,
    *,
    kind: Kind = "onnx",
    precision: Precision = "float32",
    largest_change: float = LARGEST_CHANGE,
) -> tuple[Path, Agreement]:
    """Write a run as one file (``onnx``, ``torch``) or folder (``openvino``), with its `Card`; dynamic in the batch.

    It is judged beside the run on the run's validation pictures before it is put in place, and refused, `ExportError`,
    unless in float32 probabilities agree to `LARGEST_DIFFERENCE` and verdicts are the same, or in the others at most
    `largest_change` of the verdicts change. For this the run judges on the CPU in float32, whatever it was trained in.

    Args:
        run: finished and evaluated, of either system.
        output: by default ``exports/<kind>-<precision>`` with the format's suffix, in the run's folder. An earlier
            export there is replaced, a folder with anything else in it refused.
        precision: int8 is quantised by NNCF on validation pictures, see `_samples`; ``torch`` is float32 only.
    """
    if kind == "torch" and precision != "float32":
        raise ExportError(f"format torch is of float32, got {precision}; float16 and int8 are for onnx and openvino")
    suffix = {"onnx": ".onnx", "openvino": "", "torch": ".pt2"}[kind]
    output = output or run.folder / "exports" / f"{kind}-{precision}{suffix}"
    if output.suffix != suffix and kind != "openvino":
        raise ExportError(f"{output}: a file of format {kind} ends in {suffix}")
    _check_place(output, kind)
    judge, loader = EagerJudge(run, device="cpu"), _validation(run)
    judge.precision = "32"
    judge.card = judge.module.card = judge.card.model_copy(update={"precision": precision})
    samples = _samples(loader, judge.card)
    with written(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=output.parent) as folder:
            made = Path(folder) / output.name
            write_export(judge.module, samples, made, kind)
            agreement = _agreement(judge, open_judge(made, trust=True), loader)
            exact = precision == "float32"
            limit, share = (LARGEST_DIFFERENCE, 0.0) if exact else (1.0, largest_change)
            # So put that NaN does not agree.
            if not (agreement.largest <= limit and agreement.changed <= share * agreement.pictures):
                told = f"on validation {agreement.changed} of {agreement.pictures} verdicts differ from the run's"
                told += f", probabilities by up to {agreement.largest:.2g}"
                allowed = f"allowed are {share:.1%} of the verdicts" + f" and {limit:g} of a probability" * exact
                raise ExportError(f"{output}: not written: {told}; {allowed}")
            _put(made, output)
    return output, agreement


def _check_place(output: Path, kind: Kind) -> None:
    """`ExportError` where something stands that is no earlier export of this form."""
    if kind == "openvino" and output.is_file():
        raise ExportError(f"{output}: a file, where openvino writes a folder; remove it, or choose another place")
    if kind != "openvino" and output.is_dir():
        raise ExportError(f"{output}: a folder, where {kind} writes a file; remove it, or choose another place")
    if output.is_dir() and (other := {one.name for one in output.iterdir()}.difference(OPENVINO)):
        told = f"holds {min(other)}, and openvino writes a folder of its own, with {' and '.join(OPENVINO)} alone"
        raise ExportError(f"{output}: {told}; choose one that is not there yet, such as {output / 'openvino'}")


def _put(made: Path, output: Path) -> None:
    if not output.is_dir():
        made.replace(output)
        return
    (output / "model.xml").unlink(missing_ok=True)  # by which it is found: first gone and last there, never of another
    for name in OPENVINO:
        (made / name).replace(output / name)


def _validation(run: Run | EfficientADRun) -> DataLoader[Batch]:
    data = SplitProvider(run.settings) if isinstance(run, EfficientADRun) else evaluation.evaluated_data(run)
    return data.loader("val")


def _pixels(batch: Batch) -> Pixels:
    """Pictures at the size at which they are looked at, (B, H, W, 3)."""
    return np.ascontiguousarray(batch.images.mul(255).round().byte().permute(0, 2, 3, 1).numpy())


def _samples(loader: DataLoader[Batch], card: Card) -> Pixels:
    """What INT8 takes its ranges from, (N, H, W, 3): of `_tiles`, if there are more, `SAMPLES` drawn evenly. The other
    precisions need no more than the shape."""
    if card.precision != "int8":
        return np.zeros((1, *card.input_size, 3), np.uint8)
    rng, kept, count = np.random.default_rng(0), np.empty((SAMPLES, *card.input_size, 3), np.uint8), 0
    for count, tile in enumerate(_tiles(loader, card, rng), start=1):
        place = count - 1 if count <= SAMPLES else rng.integers(count)
        if place < SAMPLES:
            kept[place] = tile
    return kept[:count]


def _tiles(loader: DataLoader[Batch], card: Card, rng: np.random.Generator) -> Iterator[Pixels]:
    """Of every picture a tile anywhere in it, and the one that shows most of the defect where that is known."""
    places = Tiles(card.image_size, card.input_size, card.tile_overlap).places
    for batch in loader:
        for picture, mask in zip(_pixels(batch), batch.masks[:, 0], strict=True):
            chosen = {int(rng.integers(len(places)))}
            if mask.any():
                chosen.add(int(np.argmax([mask[place].sum() for place in places])))
            yield from (picture[places[number]] for number in sorted(chosen))


def _agreement(judge: Judge, exported: Judge, loader: DataLoader[Batch]) -> Agreement:
    told = []
    for batch in counted(loader, len(loader), "validation, batch", log=logger):
        for picture, label in zip(_pixels(batch), batch.labels.tolist(), strict=True):
            told.append((label, *_verdict(judge, picture), *_verdict(exported, picture)))
    labels, verdict, prob, verdict_exported, prob_exported = map(np.array, zip(*told, strict=True))
    away = np.abs(prob - prob_exported)
    return Agreement(
        len(told), int((verdict != verdict_exported).sum()), float(away.max()),
        float(away.mean()), metrics.auroc(labels, prob), metrics.auroc(labels, prob_exported),
    )  # fmt: skip


def _verdict(judge: Judge, picture: Pixels) -> tuple[int, float]:
    """0 for normal, else 1 and above for the type, and the probability of a defect: the network's own outputs, or where
    it sees a picture in tiles, what they make together."""
    if picture.shape[:2] == judge.card.input_size:
        told = dict(zip(judge.card.outputs, judge.outputs(picture[None]), strict=True))
        defective, probability = bool(told["verdict"][0]), float(told["probability"][0])
        types = told["types"][0] if "types" in told else None
    else:
        judged = judge.judge_in_tiles(picture, at_once=1)
        probability, types = judge.probability(judged.score), judged.types
        defective = probability >= judge.card.threshold
    return int(defective) * (1 + (0 if types is None else int(types.argmax()))), probability


def _program(module: LineModel, pixels: Pixels) -> torch.export.ExportedProgram:
    """Dynamic in the batch; two pictures, because of one PyTorch would keep that."""
    example = torch.from_numpy(np.repeat(pixels[:1], 2, axis=0))
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _write_program(module: LineModel, pixels: Pixels, path: Path) -> None:
    content = BytesIO()  # on a full disk PyTorch's own writer ends the process
    torch.export.save(_program(module, pixels), content, extra_files={f"{KEY}.json": module.card.model_dump_json()})
    path.write_bytes(content.getbuffer())


def _write_onnx(module: LineModel, pixels: Pixels, path: Path) -> None:
    onnx, _ = _needs("onnx"), _needs("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        made: Any = torch.onnx.export(
            _program(module, pixels),
            input_names=["pictures"],
            output_names=module.card.outputs,
            dynamo=True,
            verbose=False,
        )
    model = made.model_proto
    if module.card.precision == "float16":
        model = _needs("onnxruntime.transformers.float16").convert_float_to_float16(model, keep_io_types=True)
    elif module.card.precision == "int8":
        model = _quantised(model, [{"pictures": one[None]} for one in pixels])
    onnx.helper.set_model_props(model, {KEY: module.card.model_dump_json()})
    onnx.save(model, path)


def _write_openvino(module: LineModel, pixels: Pixels, path: Path) -> None:
    openvino = _needs("openvino")
    model = openvino.convert_model(_program(module, pixels))
    for output, name in zip(model.outputs, module.card.outputs, strict=True):
        output.get_tensor().set_names({name})
    if module.card.precision == "int8":
        model = _quantised(model, [one[None] for one in pixels])
    model.set_rt_info(module.card.model_dump_json(), KEY)
    openvino.save_model(model, path / "model.xml", compress_to_fp16=module.card.precision == "float16")


def _quantised(model: Any, samples: list[Any]) -> Any:
    nncf = _needs("nncf")
    return nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))


def write_export(module: LineModel, pixels: Pixels, path: Path, kind: Kind) -> None:
    """Write a model to a path that is free, nothing checked; of `pixels`, (N, H, W, 3), INT8 takes its ranges."""
    {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_program}[kind](module, pixels, path)
