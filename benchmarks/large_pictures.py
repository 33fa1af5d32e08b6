"""Whether a defect of 0.05 % of a picture of 5,000 x 4,000 pixels is found, and what memory that takes.

    python benchmarks/large_pictures.py      # about a quarter of an hour on two cores

Surfaces of fine grain with a crack of 6 pixels' width, made by this file. S8 learns from parts of 256 px, then judges
large pictures with and without a crack, resized to 256 px and in tiles of 256 px; and one of a quarter of the area, to
compare the peak of memory, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.evaluation import evaluate
from gainmtl_lib.figures import encode
from gainmtl_lib.predict import Predictor, drawn
from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import Settings, repository_root
from gainmtl_lib.synthetic.drawing import grainy
from gainmtl_lib.train import fit

PART, LARGE, HALF = (256, 256), (4000, 4992), (2016, 2496)  # (height, width)
SHARE, WIDTH = 0.0005, 6  # of the picture's pixels; of the crack, in pixels
PARTS, LARGE_ONES = {"train": 120, "val": 40, "test": 40}, 6  # pictures of each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where data and run are kept; a temporary one by default")
    parser.add_argument("--export", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--peak", nargs=3, metavar=("RUN", "PICTURE", "TILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        return print_peak(*arguments.peak)
    show_progress()
    with tempfile.TemporaryDirectory() as temporary:
        results = measured(arguments.folder or Path(temporary))
    print(json.dumps(results, indent=2))
    if arguments.export:
        arguments.export.write_text(json.dumps(results, indent=2) + "\n")


def surface(seed: int, size: tuple[int, int], pixels: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A surface, RGB, and the mask of its crack, which has so many pixels; none where that is 0."""
    rng, mask = np.random.default_rng(seed), np.zeros(size, np.uint8)
    plane = 0.5 + grainy(rng, size)
    length, at = pixels / WIDTH, rng.uniform(0.25, 0.75, 2) * size[::-1]
    angle, points = rng.uniform(0, 2 * np.pi), [at]
    while pixels and len(points) * 20 < length:
        angle += rng.normal(0, 0.25)
        step = points[-1] + 20 * np.array([np.cos(angle), np.sin(angle)])
        outside = (step < 10) | (step > np.array(size[::-1]) - 10)
        angle = angle + np.pi / 2 if outside.any() else angle
        points.append(np.clip(step, 10, np.array(size[::-1]) - 10))
    if pixels:
        cv2.polylines(mask, [np.rint(points).astype(np.int32)], False, 255, WIDTH)
    plane = plane - 0.12 * cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 1)
    return np.rint(plane.clip(0, 1) * 255).astype(np.uint8)[..., None].repeat(3, 2), mask


def write_parts(root: Path) -> None:
    """The data to learn from, in the generic layout."""
    for number, (split, label) in enumerate((split, label) for split in PARTS for label in (0, 1)):
        for one in range(PARTS[split]):
            pixels, mask = surface(1000 * number + one, PART, 1200 * label)
            name = ("normal", "defective")[label]
            for folder, values in (("images", pixels), *([("masks", mask)] if label else [])):
                path = root / folder / split / name / f"{number}_{one}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), values)


def measured(folder: Path) -> dict[str, Any]:
    """Train, judge the large pictures both ways, and measure the peaks."""
    files = [repository_root() / "params" / name for name in ("quick.yaml", "s8.yaml")]
    own = {"experiment": "large", "data_root": folder / "data", "outputs_dir": folder / "outputs", "val_ratio": 0.0}
    settings = Settings.from_yaml(*files, **own, dataset_type="generic", image_size=PART, num_epochs=8)
    if not settings.data_root.is_dir():
        write_parts(settings.data_root)
    run = fit(settings)
    _, summary = evaluate(run)
    results: dict[str, Any] = {"parts": {name: summary["test"][name] for name in ("accuracy", "auroc")}}
    large = {}
    for number in range(LARGE_ONES):
        for label in (0, 1):
            pixels, _ = surface(9000 + number, LARGE, label * SHARE * LARGE[0] * LARGE[1])
            path = folder / f"large_{label}_{number}.png"
            cv2.imwrite(str(path), pixels)
            large[path] = label
    for how, tile in (("resized", None), ("in tiles", PART)):
        began, found = time.monotonic(), []
        for said in Predictor(run, tile_size=tile, keep_pictures=True)(large):
            found.append((large[Path(said.image)], said.verdict == "defective", said.probability))
            if said is not None and tile and large[Path(said.image)]:
                (folder / "drawn.jpg").write_bytes(encode(drawn(said, absolute=True)))
        labels, called, probability = (np.array(part) for part in zip(*found, strict=True))
        results[how] = {
            "found": f"{called[labels == 1].sum()} of {LARGE_ONES}",
            "false alarms": f"{called[labels == 0].sum()} of {LARGE_ONES}",
            "lowest probability of a defect": float(probability[labels == 1].min()),
            "highest probability of a normal one": float(probability[labels == 0].max()),
            "seconds a picture": (time.monotonic() - began) / len(large),
        }
    small = folder / "quarter.png"
    cv2.imwrite(str(small), surface(1, HALF, 0)[0])
    peaks = {name: peak(run.folder, path) for name, path in (("quarter", small), ("whole", next(iter(large))))}
    results["peak memory, MB"] = peaks
    results["of it the decoded picture, MB"] = {
        "quarter": np.prod(HALF) * 3 / 2**20,
        "whole": np.prod(LARGE) * 3 / 2**20,
    }
    return results


def peak(run: Path, picture: Path) -> float:
    """Peak memory in MB of a process that judges one picture in tiles."""
    words = [sys.executable, __file__, "--peak", str(run), str(picture), str(PART[0])]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(run: str, picture: str, tile: str) -> None:
    """What `peak` reads."""
    next(iter(Predictor(run, tile_size=(int(tile), int(tile)))([picture])))
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss would begin with what the parent process had
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        print(float(kilobytes) / 2**10)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main()
