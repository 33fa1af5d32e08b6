"""Speed of the CAM browser on ten thousand rows, in the kernel: what the page itself adds is not measured.

    python benchmarks/browser.py [--rows 10000] [--export FILE]

Each time stands beside the same with a hundred rows (a browser that keeps its promise does not care how many there
are), and the next picture beside the bare decoding of one. A run's folder is made up for it: predictions, maps, and a
few hundred pictures that go by as many names as there are rows.

open      reading the run's files up to the first picture, with all widgets
filter    another verdict; sort: another order; both with the picture and the page of thumbnails they lead to
next      a step to a picture that was never looked at; "ahead" when it had been read ahead; "3 runs" side by side
page      the next page of thumbnails
slider    the map's threshold at another level; "per image" on that scale
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import yaml

from gainmtl_lib.data.images import read_image
from gainmtl_lib.evaluation.summary import add_verdicts
from gainmtl_lib.explain.browser import CamBrowser
from gainmtl_lib.explain.browser.thumbnails import PAGE
from gainmtl_lib.runs import Run, write_json
from gainmtl_lib.settings import Settings

FILES = 300
PICTURE = (768, 1024)
SIZE = 256
FEW = 100
TURNS = 3
"""Measured in turns, each with a browser that has read nothing yet; the median counts."""
LIMIT_MS = 200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--export", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pictures = make_pictures(Path(name) / "pictures")
        small, large = (make_runs(Path(name) / str(rows), pictures, rows) for rows in (FEW, arguments.rows))
        measure(small)  # fonts, colour tables, the first widgets of a process
        turns = [(measure(small), measure(large)) for _ in range(TURNS)]
        decoding = decoding_ms(pictures)
    few, many = ({part: statistics.median(turn[k][part] for turn in turns) for part in turns[0][k]} for k in (0, 1))
    print(f"{'':18}{FEW:>10} rows {arguments.rows:>10} rows    ratio")
    for part in few:
        print(f"{part:18}{few[part]:12.1f} ms {many[part]:12.1f} ms {many[part] / few[part]:8.2f}")
    worst = max(many[part] for part in many if part.startswith("next"))
    print(f"decoding one picture of {PICTURE[1]} x {PICTURE[0]}: {decoding:.1f} ms")
    print(f"next / decoding: {many['next'] / decoding:.2f}")
    print(f"slowest kind of next picture: {worst:.0f} ms   (target: at most {LIMIT_MS:.0f})")
    if arguments.export:
        figures = {"decoding_ms": decoding, f"rows_{FEW}_ms": few, f"rows_{arguments.rows}_ms": many}
        arguments.export.write_text(json.dumps(figures, indent=2) + "\n")


def make_pictures(folder: Path) -> list[Path]:
    """Photographs as cameras leave them: noise, shading, an odd spot."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shading = np.linspace(90, 160, PICTURE[1], dtype=np.float32)[None, :, None]
    paths = []
    for number in range(FILES):
        pixels = shading + rng.normal(0, 8, (*PICTURE, 1)).astype(np.float32) + rng.normal(0, 6, 3).astype(np.float32)
        centre = int(rng.integers(50, PICTURE[1] - 50)), int(rng.integers(50, PICTURE[0] - 50))
        drawn = cv2.circle(np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8)), centre, 25, (40, 40, 40), -1)
        mask = cv2.circle(np.zeros(PICTURE, np.uint8), centre, 25, 255, -1)
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(cv2.imencode(".jpg", drawn)[1].tobytes())
        paths[-1].with_suffix(".png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    return paths


def make_runs(folder: Path, pictures: list[Path], rows: int) -> list[Run]:
    """Three runs of the same pictures; a name of its own for every row, links to the files behind it."""
    for kind in ("images", "masks"):
        (folder / "data" / kind).mkdir(parents=True)
    for row in range(rows):
        os.link(pictures[row % FILES], folder / "data" / "images" / f"{row:05d}.jpg")
        os.link(pictures[row % FILES].with_suffix(".png"), folder / "data" / "masks" / f"{row:05d}.png")
    return [make_run(folder, strategy, rows) for strategy in ("S5", "S3", "S1")]


def make_run(folder: Path, strategy: str, rows: int) -> Run:
    settings = Settings(
        strategy=strategy, outputs_dir=folder / "outputs", data_root=folder / "data", image_size=SIZE, map_stride=16
    )
    settings.run_dir.mkdir(parents=True)
    (settings.run_dir / "settings.yaml").write_text(yaml.safe_dump(settings.plain()))
    write_json(settings.run_dir / "manifest.json", {"status": "complete", "data_digest": "one"})
    scale = {"floor": 1.5, "ceiling": 3.0}
    write_json(settings.run_dir / "metrics.json", {"threshold": 0.5, "map_scales": {"cam": scale}})
    predictions(rows).to_csv(settings.run_dir / "predictions.csv", index=False, float_format="%.6g")
    (settings.run_dir / "maps").mkdir()
    sides = {"cam": SIZE // 16} | ({"attention": SIZE // 16, "localization": SIZE // 4} if strategy == "S5" else {})
    for kind, side in sides.items():
        values = np.random.default_rng(1).normal(0, 1, (rows, side, side)).astype(np.float16)
        np.save(settings.run_dir / "maps" / f"{kind}.npy", values)
    return Run(settings.run_dir)


def predictions(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    label = np.arange(rows) % 2
    defect = label == 1
    table = pd.DataFrame(
        {
            "image": [f"images/{row:05d}.jpg" for row in range(rows)],
            "mask": [f"masks/{row:05d}.png" if one else None for row, one in enumerate(defect)],
            "split": np.where(np.arange(rows) % 10 == 0, "val", "test"),
            "label": label,
            "defect_type": np.where(defect, rng.choice(["scratch", "stain", "dent"], rows), "normal"),
            "group": "",
            "probability": (0.6 * label + rng.random(rows) * 0.7).clip(0, 1),
        }
    )
    for column in ("defect_area", "cam_iou", "grid_iou", "point_game", "energy_inside", "cf_probability"):
        table[column] = np.where(defect, rng.random(rows), np.nan)
    table["cf_control_probability"] = table["cf_probability"]
    return add_verdicts(table, 0.5)


def decoding_ms(pictures: list[Path]) -> float:
    return statistics.median(milliseconds(lambda path=path: read_image(path)) for path in pictures[:50])


def measure(runs: list[Run]) -> dict[str, float]:
    """Milliseconds of each part, medians; nothing that was looked at before is looked at again."""
    made: list[CamBrowser] = []
    figures = {"open": milliseconds(lambda: made.append(CamBrowser(runs)))}
    [browser] = made
    verdict, order = browser.filters.verdict, browser.filters.order
    figures["filter"] = statistics.median(milliseconds(lambda v=v: set_value(verdict, v)) for v in ("FN", "FP", ""))
    figures["sort"] = statistics.median(
        milliseconds(lambda v=v: set_value(order, v)) for v in ("sure", "low_iou", "large")
    )
    set_value(order, "stored")
    cold = unread_places(browser)
    figures["next"] = statistics.median(milliseconds(lambda: browser.go_to(next(cold))) for _ in range(10))
    browser.go_to(0)
    figures["next, ahead"] = statistics.median(step_after_reading_ahead(browser) for _ in range(8))
    browser.filters.beside["S3"].value = browser.filters.beside["S1"].value = True
    figures["next, 3 runs"] = statistics.median(milliseconds(lambda: browser.go_to(next(cold))) for _ in range(10))
    figures["page"] = statistics.median(milliseconds(browser.strip.on.click) for _ in range(3))
    figures["slider"] = statistics.median(
        milliseconds(lambda v=v: set_value(browser.controls.level, v)) for v in (0.2, 0.4, 0.6, 0.8)
    )
    browser.controls.scale.value = False
    figures["slider, per image"] = statistics.median(
        milliseconds(lambda v=v: set_value(browser.controls.level, v)) for v in (0.2, 0.4, 0.6, 0.8)
    )
    browser.close()
    return figures


def unread_places(browser: CamBrowser) -> Iterator[int]:
    """Every second picture, for the one after the current is read ahead; the thumbnails' page turns now and then."""
    return iter(range(2 * PAGE, len(browser.rows), 2))


def step_after_reading_ahead(browser: CamBrowser) -> float:
    time.sleep(0.3)
    return milliseconds(lambda: browser.step(1))


def set_value(widget, value) -> None:
    widget.value = value


def milliseconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
