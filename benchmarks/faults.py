"""What faults leave: killed processes, full disks, damaged files, half-written pictures, files from elsewhere.

    nice python benchmarks/faults.py [kills] [disk] [fuzz] [watch] [code] [--kills 20] [--cases 200] [--seed 0]

Without a part all of them. Each command is that of the command line in a process of its own, which is forked from one
that has the library loaded, so that what is broken is the work and not the loading of PyTorch. A failure is a
traceback, a crash, a process that does not end, or a result that differs. Everything lies in a temporary folder, every
choice follows from the seed, and the exit status is the number of failures (at most 99). docs/reliability.md tells what
they gave.

kills   a study of two runs is killed at random moments of its duration, and started again.
disk    places on a disk that is full, and in folders that cannot be written to; with `unshare` a disk of its own in
        memory, else a limit on the size of files, and folders without the right to write.
fuzz    spoilt pictures, masks and label files through data check, train and predict.
watch   predict --watch, while pictures are written in pieces, renamed, replaced, cut short and taken away.
code    files that make a marker where they are executed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

# What the commands import when they run: loaded here once.
import gainmtl_lib.audit.report
import gainmtl_lib.console
import gainmtl_lib.export
import gainmtl_lib.studies.ablation  # noqa: F401
from gainmtl_lib.cli import main as gainmtl
from gainmtl_lib.dataset import build_data
from gainmtl_lib.runs import Run, run_status
from gainmtl_lib.settings import Settings, UserError

FORK = multiprocessing.get_context("fork")
LONGEST = 300.0  # seconds, after which a process counts as one that does not end

TINY: dict[str, Any] = {
    "dataset_type": "synthetic", "num_samples": 40, "image_size": 64, "backbone_arch": "b0", "pretrained": False,
    "out_indices": [3, 4], "map_stride": 16, "fpn_channels": 8, "attention_channels": 8, "head_channels": 16,
    "map_channels": 16, "evidence_share": 0.1, "num_epochs": 4, "batch_size": 8, "learning_rate": 1e-3,
    "device": "cpu", "precision": "32",
}  # fmt: skip


class Ended(NamedTuple):
    """How a command ended: its exit status (negative: by a signal; None: it did not end), and what it said."""

    status: int | None
    said: str

    @property
    def sound(self) -> bool:
        """Whether it did what was asked, or refused it with a message."""
        return self.status in (0, 1, 2) and "Traceback" not in self.said

    @property
    def refusal(self) -> str:
        """The message, one line of it."""
        return " ".join(self.said.rpartition("Error: ")[2].split()) if "Error: " in self.said else ""


def command(*words: object) -> Callable[[], Any]:
    """``gainmtl WORDS``."""
    return lambda: gainmtl([str(word) for word in words], prog_name="gainmtl")


def _told_to(log: Path, work: Callable[[], Any]) -> None:
    with log.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    work()


def begun(work: Callable[[], Any], log: Path) -> Any:
    """The process that does it; what it says goes to `log`."""
    log.write_text("")
    process = FORK.Process(target=_told_to, args=(log, work), daemon=True)
    process.start()
    return process


def ended(work: Callable[[], Any], log: Path) -> Ended:
    """How it ends, in a process of its own."""
    process = begun(work, log)
    process.join(LONGEST)
    status = process.exitcode
    if status is None:
        process.kill()
        process.join()
    return Ended(status, log.read_text(errors="replace"))


def table(title: str, rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as what they hold; the first row is the head."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text)]
    print(f"\n{title}\n")
    for row in text:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    sys.stdout.flush()


# --- kills


def _plan(root: Path) -> Path:
    root.mkdir()
    own = TINY | {"data_root": str(root / "data"), "outputs_dir": str(root / "outputs")}
    (root / "tiny.yaml").write_text(yaml.safe_dump(own))
    rows = {"S1": {"strategy": "S1"}, "S8": {"strategy": "S8", "image_counterfactual": 0.5}}
    plan = {"experiment": "killed", "base": [str(root / "tiny.yaml")], "seeds": [0], "rows": rows}
    (root / "plan.yaml").write_text(yaml.safe_dump(plan | {"steps": [["S1", "S8"]]}))
    return root / "plan.yaml"


def _runs(root: Path) -> list[Run]:
    return [Run(root / "outputs" / "killed" / name / "seed0") for name in ("s1", "s8")]


def _results(root: Path) -> list[dict[str, Any]]:
    """Losses, weights and predictions of both runs, read into memory."""
    return [
        {
            "losses": run.history[run.history["tag"] != "epoch"].sort_values(["tag", "step"]).to_numpy().tolist(),
            "weights": {name: one.clone() for name, one in load_file(run.folder / "model.safetensors").items()},
            "predictions": (run.folder / "predictions.csv").read_bytes(),
            "maps": {name: np.array(one) for name, one in run.maps.items()},
        }
        for run in _runs(root)
    ]


def _stands(root: Path) -> str:
    """How far the study had come."""
    parts = []
    for run in _runs(root):
        folder, name = run.folder, run.folder.parent.name.upper()
        last = folder / "checkpoints" / "last.ckpt"
        if not folder.is_dir():
            continue
        if not (folder / "settings.yaml").is_file():
            parts.append(f"{name} claimed")
        elif run.is_evaluated:
            parts.append(f"{name} evaluated")
        elif run_status(folder) == "complete":
            done = [path.name for path in (*folder.glob("maps/*.npy"), folder / "predictions.csv") if path.is_file()]
            parts.append(f"{name} trained" + (f", {' and '.join(sorted(done))} written" if done else ""))
        elif (folder / "model.safetensors").is_file():
            parts.append(f"{name} weights written")
        elif last.is_file():
            epoch = torch.load(last, weights_only=True, mmap=True)["epoch"] + 1
            parts.append(f"{name} {epoch} of {TINY['num_epochs']} epochs saved")
        elif run_status(folder) == "running":
            parts.append(f"{name} in its first epoch")
        else:
            parts.append(f"{name} data" if not (root / "data").is_dir() else f"{name} begun")
    return "; ".join(parts) or "nothing written"


def _difference(some: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs of two runs' results; empty where nothing does."""
    found = []
    if some["losses"] != other["losses"]:
        pairs = {(tag, step): value for tag, step, value in some["losses"]}
        there = {(tag, step): value for tag, step, value in other["losses"]}
        away = max((abs(pairs[key] - there[key]) for key in pairs.keys() & there.keys()), default=0.0)
        found.append(f"losses (by {away:.2g}; {len(pairs.keys() ^ there.keys())} values in one only)")
    away = max(
        float((some["weights"][name].double() - one.double()).abs().max()) for name, one in other["weights"].items()
    )
    if away > 0:
        found.append(f"weights (by {away:.2g})")
    found += ["predictions.csv"] * (some["predictions"] != other["predictions"])
    same = all(np.array_equal(one, other["maps"][name]) for name, one in some["maps"].items())
    return ", ".join([*found, *["maps"] * (not same)])


def _computed() -> float:
    """Seconds of computing of all processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kills(root: Path, *, count: int, rng: random.Random) -> int:
    """The study once in peace, then killed `count` times."""
    study, log = root / "study", root / "log.txt"
    study_command = command("ablation", _plan(study))
    before = _computed()
    whole = ended(study_command, log)
    duration = _computed() - before
    if whole.status != 0:
        print(whole.said)
        return 1
    expected = _results(study)
    values = sum(len(one["losses"]) for one in expected)
    rows: list[tuple[float, str, str]] = []
    late = 0  # moments that came after the end
    while len(rows) < count:
        moment = rng.uniform(0, duration)
        shutil.rmtree(study)
        _plan(study)
        process = begun(study_command, log)
        while process.exitcode is None and sum(psutil.Process(process.pid).cpu_times()[:2]) < moment:
            time.sleep(0.002)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            late += 1
            continue
        state = _stands(study)
        again = ended(study_command, log)
        if again.status == 0:
            found = [_difference(one, other) for one, other in zip(_results(study), expected, strict=True)]
            told = "; ".join(f"{name}: {one}" for name, one in zip(("S1", "S8"), found) if one) or "yes"
        else:
            told = f"NO: status {again.status}: {again.refusal or again.said[-1500:]}"
        left = [path.name for path in study.rglob(".*") if path.is_file() and path.name != ".lock"]
        told += f"; left behind: {left}" if left else ""
        rows.append((moment, state, told))
    title = f"kills: SIGKILL at {count} moments of {duration:.1f} s of computing; {values} logged values are compared"
    head = ("killed at", "what was there", "same losses, weights, predictions and maps")
    table(title, [head, *((f"{moment:5.1f} s", state, told) for moment, state, told in sorted(rows))])
    wrong = sum(told != "yes" for *_, told in rows)
    print(f"\nkills: {count - wrong} of {count} resumed to the same results; {late} more moments came after the end")
    return wrong


# --- A trained run and pictures, as the other parts need them


def _pixels(number: int, *, defective: bool, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A grainy surface, with a dark square if it is defective, and its mask."""
    rng = np.random.default_rng(number)
    pixels, mask = rng.normal(140, 25, (*size, 3)), np.zeros(size, np.uint8)
    if defective:
        top, left = rng.integers(4, size[0] - 20), rng.integers(4, size[1] - 20)
        mask[top : top + 14, left : left + 14] = 255
        pixels[mask > 0] -= 90
    return pixels.clip(0, 255).astype(np.uint8), mask


def _encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


SPLITS, KIND_SUFFIXES = ("train", "val", "test"), {"png": ".png", "jpg": ".jpg", "tif": ".tif", "bmp": ".bmp"}


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sound_data(root: Path, *, suffix: str = ".png", labels: str = "masks") -> Path:
    """Nine normal and nine defective pictures in the generic layout; labels: masks, coco, yolo, voc, labelme or csv."""
    images, notes, runs = [], [], ["ImageId,EncodedPixels"]
    for number, (split, kind) in enumerate((s, k) for s in SPLITS for k in ("normal", "defective") for _ in range(3)):
        pixels, mask = _pixels(number, defective=kind == "defective")
        stem, where = f"{split}_{kind[0]}{number}", f"{split}/{kind}"
        _write(root / "images" / where / f"{stem}{suffix}", _encoded(pixels, suffix))
        if kind == "normal":
            continue
        height, width = mask.shape
        (top, left), (bottom, right) = np.argwhere(mask).min(0).tolist(), (np.argwhere(mask).max(0) + 1).tolist()
        name, polygon = f"{stem}{suffix}", [[left, top], [right, top], [right, bottom], [left, bottom]]
        box = [left, top, right - left, bottom - top]
        images.append({"id": number, "file_name": f"{where}/{name}", "height": height, "width": width})
        outline = {"segmentation": [[left, top, right, top, right, bottom, left, bottom]]} if number % 2 else {}
        notes.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": 196, "iscrowd": 0} | outline
        )
        runs.append(f"{name},{' '.join(f'{x * height + top + 1} {bottom - top}' for x in range(left, right))}")
        shapes = [{"label": "pit", "points": polygon, "shape_type": "polygon"}]
        shape = {"version": "4.5.6", "shapes": shapes, "imagePath": name, "imageHeight": height, "imageWidth": width}
        share = [(left + right) / 2 / width, (top + bottom) / 2 / height, box[2] / width, box[3] / height]
        corners = "".join(
            f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, right, bottom))
        )
        voc = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        voc = f"<annotation>{voc}<object><name>pit</name><bndbox>{corners}</bndbox></object></annotation>"
        place, text = {
            "masks": (f"masks/{where}/{stem}.png", ""), "coco": ("", ""), "csv": ("", ""),
            "labelme": (f"labels/{where}/{stem}.json", json.dumps(shape)),
            "yolo": (f"labels/{where}/{stem}.txt", f"0 {' '.join(f'{one:.6f}' for one in share)}\n"),
            "voc": (f"Annotations/{where}/{stem}.xml", voc),
        }[labels]  # fmt: skip
        if place:
            _write(root / place, _encoded(mask) if labels == "masks" else text.encode())
    if labels == "coco":
        categories = [{"id": 1, "name": "pit"}]
        content = {"images": images, "annotations": notes, "categories": categories}
        _write(root / "annotations/instances.json", json.dumps(content).encode())
    if labels == "csv":
        _write(root / "annotations/runs.csv", "\n".join(runs).encode() + b"\n")
    return root


def _settings(data: Path, outputs: Path, **values: Any) -> dict[str, Any]:
    places = {"dataset_type": "generic", "data_root": str(data), "outputs_dir": str(outputs), "experiment": "tiny"}
    return TINY | places | {"strategy": "S8", "image_counterfactual": 0.0, "num_epochs": 1} | values


def _parameters(root: Path, data: Path, outputs: Path, **values: Any) -> Path:
    return _write(root / "tiny.yaml", yaml.safe_dump(_settings(data, outputs, **values)).encode())


def trained_run(root: Path) -> Path:
    """The folder of a run, trained for one epoch and evaluated."""
    file = _parameters(root, sound_data(root / "data"), root / "outputs")
    folder = root / "outputs/tiny/s8/seed42"
    for work in (command("train", "-f", file), command("evaluate", folder)):
        told = ended(work, root / "log.txt")
        if told.status != 0:
            raise SystemExit(told.said)
    return folder


# --- disk

DISK = 420  # MB of the disk in memory
OWN_DISK = "FAULTS_DISK_OF_ITS_OWN"
READ_ONLY = -1  # in place of bytes left: too small for a full disk
Spoilt = tuple[str, Callable[[], Any], Path, int]  # what is written, by what, where, and bytes left on a full disk


def message_of(work: Callable[[], Any]) -> Callable[[], Any]:
    """As the command line has it: an error that is meant for the user is a message."""

    def told() -> None:
        try:
            work()
        except UserError as error:
            print(f"Error: {error}")
            raise SystemExit(1) from None

    return told


def _places(disk: Path, base: Path, run: Path) -> list[Spoilt]:
    """What is about to write to a disk that `_laid_out` has filled."""
    from gainmtl_lib.browser.library import Notes

    own, new, data, pictures = disk / "run", disk / "trained", base / "data", base / "pictures"
    file = _parameters(base, data, disk / "outputs")
    logs = _parameters(base / "logs", data, base / "out", tensorboard_dir=str(disk / "tensorboard"))
    boxes = sound_data(base / "boxes", labels="coco")
    boxed = _parameters(base / "boxed", boxes, disk / "outputs", label_kind="box")
    outputs, folder = disk / "outputs", disk / "outputs/tiny/s8/seed42"
    sizes = {name: (run / "checkpoints" / name).stat().st_size for name in ("last.ckpt", "best.ckpt")}
    train, notes = command("train", "-f", file), Notes(disk / "notes.csv")
    made, small = disk / "made", ("-p", "num_samples", 20, "-p", "image_size", 64)
    export, predict = ("export", run, "--format"), ("predict", run, pictures, "--force")
    return [
        ("synthetic data", command("data", "synth", made / "data", *small), made, 20_000),
        ("planted data", command("data", "plant", data, made / "planted"), made, 20_000),
        ("outputs folder", train, outputs, 0),
        ("drawn labels", command("train", "-f", boxed), outputs, 0),
        ("checkpoint", train, folder / "checkpoints", 2_000_000),
        ("weights", train, folder, sum(sizes.values()) + 2_000_000),
        ("TensorBoard log", command("train", "-f", logs), disk / "tensorboard", 0),
        ("results of an evaluation", command("evaluate", new), new, 8_192),
        ("maps", command("evaluate", new), new / "maps", READ_ONLY),
        ("figures", command("evaluate", own, "--visualize", "--vis-dir", disk / "figures"), disk / "figures", 8_192),
        ("exported results", command("evaluate", own, "--export-results", made / "r.json"), made, 0),
        ("report", command("report", run, "--output", made / "report.html"), made, 8_192),
        ("export, ONNX", command(*export, "onnx", "--output", made / "m.onnx"), made, 1_000_000),
        ("export, OpenVINO", command(*export, "openvino", "--output", made / "openvino"), made, 1_000_000),
        ("export, PyTorch", command(*export, "torch", "--output", made / "m.pt2"), made, 1_000_000),
        ("verdicts of predict", command(*predict, "--output", made / "v.csv"), made, 8_192),
        ("pictures of predict", command(*predict, "--output", base / "v.csv", "--vis-dir", made / "v"), made, 30_000),
        ("contact sheet", command("data", "check", data, "--contact-sheet", made / "sheet.png"), made, 8_192),
        ("notes of the browser", message_of(lambda: notes.save("b.png", check_label=True, text="x" * 5000)), disk, 0),
    ]  # fmt: skip


def _stored(disk: Path) -> dict[str, str]:
    files = (path for path in disk.rglob("*") if path.is_file() and path.name not in (".lock", "filler"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _laid_out(disk: Path, run: Path) -> None:
    """What lies on the disk before anything breaks."""
    for name in ("made", "outputs", "figures", "tensorboard"):
        (disk / name).mkdir()
    shutil.copytree(run, disk / "run")
    results = shutil.ignore_patterns("checkpoints", "metrics.json", "predictions.csv", "maps")
    shutil.copytree(run, disk / "trained", ignore=results)
    _write(disk / "notes.csv", "image,check_label,note,time\na.png,yes,scratch,2026-01-01\n".encode("utf-8-sig"))


def _mounted(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def _limited(work: Callable[[], Any], room: int) -> Callable[[], Any]:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        work()

    return limited


def disk(root: Path, *, rng: random.Random) -> int:
    """Each place twice: on a full disk, and in a folder that cannot be written to."""
    own = ("unshare", "--map-root-user", "--mount")
    possible = [*own, "mount", "-t", "tmpfs", "none", str(root)]
    if OWN_DISK not in os.environ and shutil.which("unshare") and not subprocess.call(possible):
        again = [*own, sys.executable, __file__, "disk"]
        return subprocess.call(again, env=os.environ | {OWN_DISK: "1"})
    real, base, place = OWN_DISK in os.environ, root / "base", root / "disk"
    base.mkdir()
    run, log = trained_run(base), root / "log.txt"
    for number in range(120):
        _write(base / f"pictures/{number:03d}.png", _encoded(_pixels(number, defective=number % 3 == 0)[0]))
    rows: list[tuple[object, ...]] = [("what is written", "fault", "message", "intact", "same command again")]
    wrong, skipped, places = 0, 0, _places(place, base, run)
    for fault in ("full", "read-only"):
        for name, work, where, room in places:
            shutil.rmtree(base / "out", ignore_errors=True)  # a finished run would be taken for the answer
            place.mkdir()
            if real:
                _mounted("-t", "tmpfs", "-o", f"size={DISK}m", "none", place)
            _laid_out(place, run)
            where.mkdir(parents=True, exist_ok=True)
            asked = not (fault == "full" and room == READ_ONLY)
            before = _stored(place)
            if not asked:
                told = None
            elif fault == "full" and real:
                free = shutil.disk_usage(place).free - room
                with (place / "filler").open("wb") as filler:
                    os.posix_fallocate(filler.fileno(), 0, free // 4096 * 4096)
                told = ended(work, log)
                (place / "filler").unlink()
            elif fault == "full":
                told = ended(_limited(work, room), log)
            elif real:
                _mounted("--bind", where, where)
                _mounted("-o", "remount,bind,ro", where)
                told = ended(work, log)
                subprocess.run(["umount", where], check=True)
            elif os.geteuid() == 0:
                skipped, told = skipped + 1, None
            else:
                where.chmod(0o555)
                told = ended(work, log)
                where.chmod(0o755)
            if told is not None:
                after = _stored(place)
                lost = [Path(path).name for path, digest in before.items() if after.get(path) != digest]
                hidden = [path.name for path in place.rglob(".*") if path.name not in (".lock", ".v.csv.lock")]
                second = ended(work, log)
                good = told.sound and told.status == 1 and str(place) in told.refusal.replace("\n", "")
                wrong += not (good and not lost and not hidden and second.status == 0)
                message = told.refusal.replace(str(place), "…") if good else f"NO: {told.status}: {told.said[-900:]}"
                intact = "yes" if not lost else f"NO: {lost}"
                intact += f"; left behind: {hidden}" if hidden else ""
                rows.append(
                    (name, fault, message[:230], intact, "done" if second.status == 0 else f"NO: {second.said[-400:]}")
                )
            if real:
                subprocess.run(["umount", place], check=True)
                place.rmdir()
            else:
                shutil.rmtree(place)
    how = f"a disk of {DISK} MB in memory" if real else "a limit on the size of files, and folders of mode 0555"
    table(f"disk: {how}", rows)
    print(f"\ndisk: {len(rows) - 1 - wrong} of {len(rows) - 1} refused with a message, nothing lost, done afterwards")
    if skipped:
        print(f"disk: {skipped} left out: root may write to folders of mode 0555; run this as another user")
    return wrong


# --- fuzz

Change = Callable[[Path, random.Random], str]  # spoils a file, and says how

STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 2**70, 1e308, float("nan"), float("inf"), "", "x", "nan", "²", "한글", "\x00", "../../x",
    10**400, "9" * 5000, "\ud800", [], {}, [[]], [None], [1, 2], [float("nan"), 1], {"a": []}, [["x", {}]],
)  # fmt: skip


def _flipped(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [rng.randrange(len(content)) for _ in range(rng.choice((1, 3, 20)))]
    for place in places:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{len(places)} bits flipped"


def _head_flipped(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    for _ in range(4):
        content[rng.randrange(min(64, len(content)))] = rng.randrange(256)
    path.write_bytes(content)
    return "header overwritten"


def _cut(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    length = rng.randrange(len(content))
    path.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def _content(what: str, content: bytes) -> Change:
    def change(path: Path, rng: random.Random) -> str:
        path.write_bytes(content)
        return what

    return change


def _png_of_size(path: Path, rng: random.Random) -> str:
    """A header that promises another size, with a right checksum."""
    sides = rng.choice([(0, 0), (1, 2**31 - 1), (60_000, 60_000), (40, 64), (2**16, 3)])
    content = bytearray(_encoded(_pixels(1, defective=False)[0]))
    content[16:24] = b"".join(side.to_bytes(4, "big") for side in sides)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return f"PNG header of {sides[0]}x{sides[1]}"


def _saved(what: str, make: Callable[[Image.Image], tuple[Image.Image, dict[str, Any]]]) -> Change:
    def change(path: Path, rng: random.Random) -> str:
        with Image.open(path) as shown:
            picture, options = make(shown.convert("RGB"))
        picture.save(buffer := io.BytesIO(), **options)
        path.write_bytes(buffer.getvalue())
        return what

    return change


def _array(what: str, values: Callable[[tuple[int, int]], np.ndarray], suffix: str = ".png") -> Change:
    def change(path: Path, rng: random.Random) -> str:
        path.write_bytes(_encoded(values((48, 64)), suffix))
        return what

    return change


def _grown(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    path.write_bytes(content + rng.randbytes(500))
    return "garbage behind its end"


def _folder(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder of its name"


def _broken_link(path: Path, rng: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.with_name("gone.png"))
    return "a link to nothing"


def _exif(path: Path, rng: random.Random) -> str:
    with Image.open(path) as shown:
        shown.convert("RGB").save(buffer := io.BytesIO(), "JPEG", exif=b"Exif\x00\x00" + rng.randbytes(60))
    path.write_bytes(buffer.getvalue())
    return "EXIF garbage"


def _turned(path: Path, rng: random.Random) -> str:
    with Image.open(path) as shown:
        exif = shown.getexif()
        exif[0x0112] = number = rng.choice((0, 3, 6, 9, 60_000))
        shown.convert("RGB").save(buffer := io.BytesIO(), "JPEG", exif=exif)
    path.write_bytes(buffer.getvalue())
    return f"orientation {number}"


BYTES: list[Change] = [
    _flipped, _flipped, _head_flipped, _cut, _cut, _grown, _png_of_size, _folder, _broken_link,
    _content("zero bytes", b""), _content("a header alone", b"\x89PNG\r\n\x1a\n"),
    _content("1 MB of zeros", bytes(2**20)),
    _content("text in its place", "<html>없음</html>\n".encode()), _content("an archive", b"PK\x03\x04" + bytes(60)),
]  # fmt: skip
PICTURES: list[Change] = [
    *BYTES, _exif, _turned,
    _saved("one pixel", lambda p: (p.resize((1, 1)), {"format": "PNG"})),
    _saved("2000x1 pixels", lambda p: (p.resize((2000, 1)), {"format": "PNG"})),
    _saved("another size", lambda p: (p.resize((50, 33)), {"format": "PNG"})),
    _saved("another format", lambda p: (p, {"format": "WEBP"})),
    _saved("a palette", lambda p: (p.quantize(9), {"format": "PNG"})),
    _saved("CMYK", lambda p: (p.convert("CMYK"), {"format": "JPEG"})),
    _saved("CMYK in a TIFF", lambda p: (p.convert("CMYK"), {"format": "TIFF"})),
    _saved("LAB in a TIFF", lambda p: (p.convert("LAB"), {"format": "TIFF"})),
    _saved("one bit", lambda p: (p.convert("1"), {"format": "TIFF", "compression": "group4"})),
    _saved("alpha", lambda p: (p.convert("RGBA").rotate(20), {"format": "PNG"})),
    _saved("grey with alpha", lambda p: (p.convert("LA"), {"format": "PNG"})),
    _saved("animated GIF", lambda p: (p, {"format": "GIF", "save_all": True, "append_images": [p.rotate(9)]})),
    _saved("animated PNG", lambda p: (p, {"format": "PNG", "save_all": True, "append_images": [p.rotate(9)]})),
    _saved("animated WebP", lambda p: (p, {"format": "WEBP", "save_all": True, "append_images": [p.rotate(9)]})),
    _saved("TIFF of two pages", lambda p: (p, {"format": "TIFF", "save_all": True, "append_images": [p.rotate(9)]})),
    _array("16 bits", lambda s: np.random.default_rng(0).integers(0, 65536, (*s, 3)).astype(np.uint16)),
    _array("floats", lambda s: np.full(s, np.nan, np.float32), ".tiff"),
    _array("32 bits", lambda s: np.full(s, -7, np.int32), ".tiff"),
]  # fmt: skip
MASKS: list[Change] = [
    *BYTES,
    _array("wrong size", lambda s: np.full((40, 80), 255, np.uint8)),
    _array("half its size", lambda s: np.full((24, 32), 255, np.uint8)),
    _array("all marked", lambda s: np.full(s, 255, np.uint8)),
    _array("nothing marked", lambda s: np.zeros(s, np.uint8)),
    _array("one pixel", lambda s: np.full((1, 1), 255, np.uint8)),
    _array("a photograph", lambda s: _pixels(3, defective=True)[0]),
    _array("colours", lambda s: np.random.default_rng(0).integers(0, 2, (*s, 3)).astype(np.uint8) * 255),
    _array("faint", lambda s: np.eye(*s, dtype=np.uint8) * 90),
    _array("numbered", lambda s: np.kron(np.arange(12).reshape(3, 4), np.ones((16, 16))).astype(np.uint8)),
    _array("floats that are no numbers", lambda s: np.full(s, np.nan, np.float32), ".tiff"),
    _array("16 bits", lambda s: np.eye(*s).astype(np.uint16) * 65535),
    _saved("JPEG", lambda p: (p, {"format": "JPEG", "quality": 10})),
    _saved("alpha", lambda p: (p.convert("RGBA").rotate(20), {"format": "PNG"})),
    _saved("a palette", lambda p: (p.quantize(5), {"format": "PNG"})),
    _saved("TIFF of two pages", lambda p: (p, {"format": "TIFF", "save_all": True, "append_images": [p.rotate(9)]})),
]  # fmt: skip


def _text(what: str, change: Callable[[str, random.Random], str], encoding: str = "utf-8") -> Change:
    def changed(path: Path, rng: random.Random) -> str:
        path.write_bytes(change(path.read_text(encoding="utf-8"), rng).encode(encoding, "surrogatepass"))
        return what

    return changed


def _nodes(content: Any) -> list[tuple[Any, Any]]:
    """Every place in JSON, as a container and a key."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    return [pair for key in keys for pair in [(content, key), *_nodes(content[key])]]


def _json(path: Path, rng: random.Random) -> str:
    content = json.loads(path.read_text())
    inside, key = rng.choice(_nodes(content))
    how = rng.choice(("removed", "twice", *["strange"] * 6))
    if how == "removed":
        del inside[key]
    elif how == "twice":
        inside.update({f"{key} ": inside[key]}) if isinstance(inside, dict) else inside.append(inside[key])
    else:
        inside[key] = rng.choice(STRANGE)
        how = f"{inside[key]!r:.20}"
    path.write_text(json.dumps(content))
    return f"{key!r}: {how}"


def _word(path: Path, rng: random.Random) -> str:
    """Of a text one number or word."""
    text = path.read_text()
    match = rng.choice([*re.finditer(r"[\w.]+", text)])
    word = str(rng.choice([one for one in STRANGE if not isinstance(one, list | dict)]))
    path.write_text(text[: match.start()] + word + text[match.end() :])
    return f"{match[0]!r:.20}: {word!r:.20}"


def _line(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = rng.choice(
        (lines[number] * 2, lines[number][::-1], lines[number].replace(" ", ",", 2), " ", "\t\x00")
    )
    path.write_text("\n".join(lines))
    return f"line {number + 1}: {lines[number]!r:.30}"


DEEP = _content("nested 100,000 deep", b"[" * 100_000)
ENTITIES = b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
ANY_TEXT: list[Change] = [
    _flipped, _cut, _content("zero bytes", b""), _text("a byte order mark", lambda text, _: "\ufeff" + text),
    _text("UTF-16", lambda text, _: text, "utf-16"), _text("CR LF", lambda text, _: text.replace(",", ",\r\n")), DEEP,
    _content("a picture in its place", _encoded(_pixels(2, defective=True)[0])), _text("null", lambda _, __: "null"),
    _text("a list", lambda _, __: "[1, 2]"),
]  # fmt: skip
LABELS: dict[str, list[Change]] = {
    "coco": [*ANY_TEXT, *[_json] * 30],
    "labelme": [*ANY_TEXT, *[_json] * 20],
    "yolo": [*ANY_TEXT, *[_word] * 12, *[_line] * 6],
    "voc": [*ANY_TEXT, *[_word] * 20, _content("entities", ENTITIES), _content("another element", b"<a><b/></a>")],
    "csv": [*ANY_TEXT, *[_word] * 12, *[_line] * 6],
}


def _all_batches(file: Path, data: Path) -> Callable[[], Any]:
    """What a training reads, each picture once."""

    def read() -> None:
        settings = Settings.from_yaml(file)
        built = build_data(settings)
        built.setup("fit")
        for split in SPLITS:
            for _ in built.loader(split):
                pass

    return message_of(read)


def _case(root: Path, number: int, rng: random.Random) -> tuple[str, str, Path]:
    """One spoilt dataset: what of it, how, and the file of parameters."""
    what = ("picture", "mask", "label", "picture", "label")[number % 5]
    kind = rng.choice([*LABELS]) if what == "label" else "masks"
    suffix = rng.choice([*KIND_SUFFIXES.values()]) if what == "picture" else ".png"
    data = sound_data(root / "data", suffix=suffix, labels=kind)
    places = {"picture": "images", "mask": "masks"}.get(what)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    files = [
        path
        for path in files
        if (path.is_relative_to(data / places) if places else not path.is_relative_to(data / "images"))
    ]
    file = rng.choice(files)
    changes = {"picture": PICTURES, "mask": MASKS}.get(what) or LABELS[kind]
    told = rng.choice(changes)(file, rng)
    values = {"label_kind": "box"} if what == "label" else {}
    parameters = _parameters(root, data, root / "outputs", **values)
    return f"{what}{file.suffix} {kind if what == 'label' else ''}".strip(), told, parameters


def fuzz(root: Path, *, count: int, rng: random.Random) -> int:
    """Each case through three commands; every ninth is trained, of the others a training's data is read whole."""
    base, log, failures = root / "base", root / "log.txt", []
    base.mkdir()
    run = trained_run(base)
    counts: dict[tuple[str, str], Counter[str]] = {}
    for number in range(count):
        place = root / f"{number}"
        place.mkdir()
        what, how, file = _case(place, number, random.Random(rng.randbytes(8)))
        data = place / "data"
        boxes = ("-p", "label_kind", "box") if what.startswith("label") else ()
        # Nine shares no divisor with the five kinds of _case: each is trained.
        train = command("train", "-f", file) if number % 9 == 0 else _all_batches(file, data)
        works = {
            "check": command("data", "check", data, "--image-size", 64, 64, *boxes),
            "train": train,
            "predict": command("predict", run, data / "images", "--output", place / "v.csv"),
        }
        for name, work in works.items():
            told = ended(work, log)
            # The check and predict say what is wrong in their tables, with the exit status 1.
            refused = told.status == 1 and any(word in told.said for word in ("Error: ", "error: ", "not judged: "))
            outcome = "works" if told.status == 0 and told.sound else "refused" if refused and told.sound else "FAILED"
            counts.setdefault((what.split(" ")[0].split(".")[0], name), Counter())[outcome] += 1
            if outcome == "FAILED":
                failures.append((number, what, how, name, f"{told.status}: {told.said[-1500:]}"))
        shutil.rmtree(place)
        if sys.stderr.isatty() or number % 20 == 19:
            print(f"{number + 1} of {count}, {len(failures)} failed", file=sys.stderr, flush=True)
    outcomes = ("works", "refused", "FAILED")
    rows = [("what is spoilt", "command", "works", "refused with a message", "failed")]
    table(
        f"fuzz: {count} spoilt files",
        [*rows, *((*key, *(its[one] for one in outcomes)) for key, its in sorted(counts.items()))],
    )
    for failure in failures:
        print("\nFAILED: case {}: {}: {}; {}\n{}".format(*failure))
    print(f"\nfuzz: {3 * count - len(failures)} of {3 * count} work or are refused with a message")
    return len(failures)


# --- watch


def _in_pieces(path: Path, content: bytes, pieces: int, pause: float) -> None:
    with path.open("wb") as file:
        for number in range(pieces):
            file.write(content[len(content) * number // pieces : len(content) * (number + 1) // pieces])
            file.flush()
            time.sleep(pause)


def watch(root: Path, *, rng: random.Random) -> int:
    """What a camera, a copy over the network and a full card do to a folder, against the verdicts of whole pictures."""
    base, folder, log, out = root / "base", root / "camera", root / "log.txt", root / "watched.csv"
    base.mkdir()
    run = trained_run(base)
    folder.mkdir()
    whole: dict[str, bytes] = {}
    hands: list[tuple[str, str, Callable[[Path, bytes], Any]]] = []
    rows: list[tuple[object, ...]] = [("picture", "how it comes", "rows", "verdict of the whole picture", "told")]

    def renamed(path: Path, content: bytes) -> None:
        _in_pieces(path.with_name(f".{path.name}.part"), content, 3, 1.5)
        path.with_name(f".{path.name}.part").rename(path)

    def replaced(path: Path, content: bytes) -> None:
        path.write_bytes(_encoded(_pixels(900, defective=True)[0], path.suffix))
        time.sleep(0.3)
        _write(path.with_name(f".{path.name}.new"), content).replace(path)

    def cut(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])

    def removed(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        time.sleep(0.4)
        path.unlink()

    def away_and_back(path: Path, content: bytes) -> None:
        removed(path, content)
        time.sleep(2)
        path.write_bytes(content)

    for suffix in KIND_SUFFIXES.values():
        hands += [
            (f"at_once{suffix}", "written at once", lambda path, content: path.write_bytes(content)),
            (f"pieces{suffix}", "in 6 pieces, 0.5 s between", lambda path, content: _in_pieces(path, content, 6, 0.5)),
            (f"pauses{suffix}", "in 3 pieces, 3 s between", lambda path, content: _in_pieces(path, content, 3, 3.0)),
            (f"renamed{suffix}", "under another name, then renamed", renamed),
            (f"replaced{suffix}", "replaced by another after 0.3 s", replaced),
            (f"cut{suffix}", "cut short for ever", cut),
        ]
    hands += [
        ("removed.png", "removed before it is whole", removed),
        ("back.png", "removed, and back after 2 s", away_and_back),
    ]
    watching = begun(_interruptible(command("predict", run, folder, "--watch", "--output", out)), log)
    until = time.monotonic() + 60
    while "watching" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.2)
    threads = []
    for number, (name, _, write) in enumerate(hands):
        whole[name] = _encoded(_pixels(number, defective=number % 2 == 0)[0], Path(name).suffix)
        threads.append(threading.Thread(target=write, args=(folder / name, whole[name])))
        threads[-1].start()
    for thread in threads:
        thread.join()
    time.sleep(18)  # until what was cut short is given up
    os.kill(watching.pid, signal.SIGINT)
    watching.join(60)
    for name, content in whole.items():
        _write(root / "whole" / name, content)
    ended(command("predict", run, root / "whole", "--output", root / "whole.csv"), root / "log2.txt")
    found, expected, wrong = _verdicts(out), _verdicts(root / "whole.csv"), 0
    for name, how, _ in hands:
        here, (there,) = found.get(name, []), expected[name]
        # A decoder may read a part of a bitmap or photograph: a whole picture is then not known from the rest of it.
        same = len(here) == 1 and not here[0]["error"] and here[0]["score"] == there["score"]
        good = {"cut": len(here) == 1 and bool(here[0]["error"]), "removed": len(here) <= 1}.get(
            name.partition(".")[0], same
        )
        wrong += not good
        told = "; ".join((row["error"] or row["verdict"]).replace(str(root), "…")[:90] for row in here) or "nothing"
        rows.append((name, how, len(here), "yes" if same else "–" if good else "NO", told))
    table("watch: pictures that come in all ways", rows)
    ending = Ended(watching.exitcode, log.read_text())
    sound = ending.sound and ending.status is not None
    print(f"\nwatch: {len(hands) - wrong} of {len(hands)} as expected; ended by Ctrl-C with status {ending.status}")
    if not sound:
        print(ending.said)
    return wrong + (not sound)


def _interruptible(work: Callable[[], Any]) -> Callable[[], Any]:
    """In the background of a shell Ctrl-C is ignored, and so it is by what starts there."""

    def worked() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work()

    return worked


def _verdicts(path: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(Path(row["image"]).name, []).append(row)
    return found


# --- code


class Marks:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def code(root: Path, *, rng: random.Random) -> int:
    """Files that are given to a command, and act when they are executed."""
    base, log, marker = root / "base", root / "log.txt", root / "executed"
    base.mkdir()
    run = trained_run(base)
    yaml_code = f"x: !!python/object/apply:os.mkdir ['{marker}']\n"
    pickled = _write(root / "evil.ckpt", pickle.dumps(Marks(marker)))
    torch.save({"state_dict": {}, "gainmtl_settings": Marks(marker)}, root / "zipped.ckpt")
    torch.save({"weight": Marks(marker)}, root / "weights.pth")
    with zipfile.ZipFile(root / "evil.pt2", "w") as archive:
        archive.writestr("version", "8.0")
        for name in ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"):
            archive.writestr(name, pickle.dumps(Marks(marker)))
    _write(root / "evil.yaml", yaml_code.encode())
    _write(root / "evil.onnx", pickle.dumps(Marks(marker)))
    _write(root / "openvino/model.xml", f'<?xml version="1.0"?><!DOCTYPE a SYSTEM "file://{marker}"><net/>'.encode())
    np.save(root / "evil.npy", np.array([Marks(marker)], dtype=object), allow_pickle=True)
    copies = {
        name: shutil.copytree(run, root / "copies" / name) for name in ("map", "settings", "weights", "table", "last")
    }
    shutil.copy(root / "evil.npy", copies["map"] / "maps/cam.npy")
    (copies["settings"] / "settings.yaml").write_text(yaml_code)
    shutil.copy(root / "zipped.ckpt", copies["weights"] / "model.safetensors")
    text = (run / "predictions.csv").read_text().splitlines()
    cell = f"=cmd|'/c mkdir {marker}'!A1,"
    (copies["table"] / "predictions.csv").write_text(
        "\n".join([text[0], *(cell + one.partition(",")[2] for one in text[1:])])
    )
    boxes = sound_data(root / "boxes", labels="labelme")
    for label in (boxes / "labels").rglob("*.json"):
        label.write_text(f'{{"__reduce__": ["os.mkdir", "{marker}"], "py/object": "os.mkdir", "shapes": "!!python"}}')
    boxed = _parameters(root / "boxed", boxes, root / "outputs/boxed", label_kind="box")
    file = _parameters(root / "own", base / "data", root / "outputs/own")
    unfinished = root / "outputs/last/tiny/s8/seed42"
    shutil.copytree(run, unfinished)
    going = _parameters(root / "going", base / "data", root / "outputs/last", experiment="tiny")
    (unfinished / "settings.yaml").write_text(yaml.safe_dump(Settings.from_yaml(going).plain()))
    with (unfinished / "manifest.json").open() as stored:
        manifest = json.load(stored) | {"status": "running"}
    (unfinished / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(root / "zipped.ckpt", unfinished / "checkpoints/last.ckpt")
    picture = sorted((base / "data/images").rglob("*.png"))[0]
    judge = ("predict", "{}", picture, "--output", root / "v.csv", "--force")
    given: list[tuple[str, tuple[object, ...]]] = [
        ("pickle as checkpoint to resume", ("train", "-f", file, "--resume", pickled)),
        ("pickle in a PyTorch file to resume", ("train", "-f", file, "--resume", root / "zipped.ckpt")),
        ("the same as a run's own last.ckpt", ("train", "-f", going)),
        ("pickle as checkpoint to evaluate", ("evaluate", "--checkpoint", pickled)),
        ("pickle in a PyTorch file to evaluate", ("evaluate", "--checkpoint", root / "zipped.ckpt")),
        ("pretrained weights", ("train", "-f", file, "-p", "pretrained", root / "weights.pth")),
        ("model.safetensors that is a pickle", ("explain", copies["weights"], picture, "--output", root / "explained")),
        ("array of objects as a run's map", ("report", copies["map"], "--output", root / "report.html")),
        ("settings.yaml with a Python tag", ("evaluate", copies["settings"])),
        ("parameter file with a Python tag", ("train", "-f", root / "evil.yaml")),
        ("-p with a Python tag", ("train", "-f", file, "-p", "num_epochs", yaml_code.partition(" ")[2].strip())),
        ("a study's plan with a Python tag", ("ablation", root / "evil.yaml")),
        ("PyTorch export that is none", tuple(root / "evil.pt2" if one == "{}" else one for one in judge)),
        ("ONNX file that is none", tuple(root / "evil.onnx" if one == "{}" else one for one in judge)),
        ("OpenVINO folder that is none", tuple(root / "openvino" if one == "{}" else one for one in judge)),
        ("label files with code in them", ("data", "check", boxes, "-f", boxed)),
        ("formulas in predictions.csv", ("report", copies["table"], "--output", root / "table.html")),
    ]  # fmt: skip
    rows: list[tuple[object, ...]] = [("file", "executed", "refused", "message")]
    wrong = 0
    for what, words in given:
        told = ended(command(*words), log)
        ran = marker.exists()
        is_text = what == "formulas in predictions.csv"
        refused = told.sound and told.status == 1
        good = not ran and told.sound and (refused or is_text)
        message = (told.refusal or told.said[-160:].strip()).replace(str(root), "…")
        wrong += not good
        read = "read as text" if is_text and not refused else "yes" if refused else "NO"
        rows.append((what, "YES" if ran else "no", read, " ".join(message.split())[:150] if good else told.said[-900:]))
        if ran:
            marker.rmdir()
    table("code: files that make a marker when they are executed", rows)
    print(f"\ncode: {len(given) - wrong} of {len(given)} executed nothing, and are refused or read as text")
    return wrong


PARTS: dict[str, Callable[..., int]] = {"kills": kills, "disk": disk, "fuzz": fuzz, "watch": watch, "code": code}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if strange := [part for part in asked.parts if part not in PARTS]:
        parser.error(f"no part '{strange[0]}'; expected {', '.join(PARTS)}")
    torch.set_num_threads(1)
    options: dict[str, dict[str, Any]] = {"kills": {"count": asked.kills}, "fuzz": {"count": asked.cases}}
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in asked.parts or PARTS:
            place = Path(folder, part)
            place.mkdir()
            wrong += PARTS[part](place, rng=random.Random(f"{asked.seed} {part}"), **options.get(part, {}))
    sys.exit(min(wrong, 99))


if __name__ == "__main__":
    main()
