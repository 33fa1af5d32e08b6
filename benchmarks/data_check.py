"""Time and memory of the data check, against decoding the same pictures alone.

    python benchmarks/data_check.py [--pictures 10000] [--side 256] [--export FILE]

Pictures are drawn on the spot, half of them defective, with a mask each. Each size is checked in a process of its own,
so that its peak of memory is its own. A check that keeps its promise takes at most a minute for ten thousand pictures
on two cores, and its memory does not grow with their number.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gainmtl_lib.annotations import read_mask
from gainmtl_lib.data_check import check_data_of
from gainmtl_lib.pictures import image_files, read_image
from gainmtl_lib.progress import show_progress
from gainmtl_lib.runs import write_json
from gainmtl_lib.settings import Settings

FEW = 10
"""How many times fewer pictures the check is compared with."""


def draw(root: Path, pictures: int, side: int) -> None:
    """Grainy surfaces, every other one with a dark square, in the generic layout."""

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        pixels = cv2.GaussianBlur(rng.normal(120, 40, (side, side, 3)), (0, 0), 2)
        kind = ("normal", "defective")[number % 2]
        split = ("train", "train", "train", "test")[number % 4 if number % 8 < 4 else 3 - number % 4]
        if kind == "defective":
            top, left = rng.integers(0, side - side // 8, 2)
            mask = np.zeros((side, side), np.uint8)
            mask[top : top + side // 8, left : left + side // 8] = 255
            pixels[mask > 0] -= 40
            cv2.imwrite(str(root / f"masks/defective/{number:06d}.png"), mask)
        place = root / f"images/{split}/{kind}/{number:06d}.jpg"
        cv2.imwrite(str(place), pixels.clip(0, 255).astype(np.uint8))

    for folder in ("masks/defective", *(f"images/{s}/{k}" for s in ("train", "test") for k in ("normal", "defective"))):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(pictures)))


def _checked(root: Path, told: Any) -> None:
    show_progress()
    began = time.perf_counter()
    report = check_data_of(Settings(data_root=root, image_size=256), val_ratio=0.2)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 2**-10)
    told.send({"pictures": len(report.samples), "seconds": round(seconds, 1), "peak_mb": round(peak / 2**20)})


def checked(root: Path) -> dict[str, Any]:
    """A check in a process of its own: pictures, seconds and the peak of memory."""
    context = multiprocessing.get_context("spawn")
    answer, told = context.Pipe(duplex=False)
    process = context.Process(target=_checked, args=(root, told))
    process.start()
    found = answer.recv()
    process.join()
    return found


def decoded(root: Path) -> float:
    """Seconds to decode every picture and mask, side by side as the check does."""
    began = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        list(pool.map(read_image, image_files(root / "images")))
        list(pool.map(read_mask, image_files(root / "masks")))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--export", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few, many = Path(folder) / "few", Path(folder) / "many"
        draw(few, asked.pictures // FEW, asked.side)
        draw(many, asked.pictures, asked.side)
        found: dict[str, Any] = {"side": asked.side, "few": checked(few), "many": checked(many)}
        found["decoding_s"] = round(decoded(many), 1)
    found["check_to_decoding"] = round(found["many"]["seconds"] / found["decoding_s"], 2)
    found["memory_many_to_few"] = round(found["many"]["peak_mb"] / found["few"]["peak_mb"], 2)
    print(json.dumps(found, indent=1))
    if asked.export is not None:
        write_json(asked.export, found)


if __name__ == "__main__":
    main()
