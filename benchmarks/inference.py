"""Speed of judging pictures on the CPU: the network of PyTorch, ONNX Runtime and OpenVINO, as ratios within one run.

    python benchmarks/inference.py                       # everything, about half an hour on two cores
    python benchmarks/inference.py --only S8 --size 256  # one network at one size

Networks of random weights, one picture at a time, on one thread and on two: median time, and the share of it that an
export takes of PyTorch's, by turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gainmtl_lib.efficientad.model import EfficientADModel
from gainmtl_lib.export import Card, Evidence, Judge, LineModel, open_judge, write_export
from gainmtl_lib.model import build_model
from gainmtl_lib.settings import Settings

NETWORKS = {
    "b0, S5": {"strategy": "S5", "backbone_arch": "b0"},
    "lite0, S5": {"strategy": "S5", "backbone_arch": "lite0"},
    "s, S5": {"strategy": "S5", "backbone_arch": "s"},
    "lite0, S8": {"strategy": "S8", "backbone_arch": "lite0", "map_stride": 8},
    "EfficientAD-S": {"model_size": "S"},
    "EfficientAD-M": {"model_size": "M"},
}
SIZES, THREADS, PICTURES = (256, 512), (1, 2), 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="networks whose name holds this")
    parser.add_argument("--size", type=int, choices=SIZES)
    parser.add_argument("--export", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    results = []
    for name, values in NETWORKS.items():
        for size in SIZES:
            if (arguments.only or "") in name and arguments.size in (None, size):
                results += measured(name, line_model(values, size), size)
    if arguments.export:
        arguments.export.write_text(json.dumps(results, indent=2) + "\n")


def line_model(values: dict[str, Any], size: int) -> LineModel:
    """A network of random weights as it runs on the line."""
    torch.manual_seed(0)
    if "model_size" in values:
        model, evidence = EfficientADModel(values["model_size"]), None
    else:
        model = build_model(Settings(image_size=(size, size), pretrained=False, **values))
        head = model.evidence
        evidence = head and Evidence(cells=head.cells, scale=(1.0,) * len(head.cells), offset=(0.0,) * len(head.cells))
    card = Card(
        system="EfficientAD" if "model_size" in values else "GAIN-MTL", strategy=values.get("strategy", "EfficientAD"),
        run="none", weights="", version="", origin="random", image_size=(size, size), input_size=(size, size),
        resize="squash", tile_overlap=0.25, threshold=0.5, threshold_from="", calibration=(1.0, 0.0),
        map_scale=(0.0, 1.0), localization_floor=None, novelty_threshold=None, evidence=evidence, validation={},
    )  # fmt: skip
    return LineModel(model, card).eval()


class Eager(Judge):
    """The network in PyTorch."""

    def __init__(self, module: LineModel) -> None:
        self.module, self.card = module.to(memory_format=torch.channels_last), module.card  # type: ignore[call-overload]

    def outputs(self, pictures: np.ndarray) -> Any:
        with torch.inference_mode():
            return self.module(torch.from_numpy(pictures))


def measured(name: str, module: LineModel, size: int) -> list[dict[str, Any]]:
    """Times of one network at one size, by number of threads."""
    rng, rows = np.random.default_rng(0), []
    pictures = rng.integers(0, 256, (PICTURES + 2, 1, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        places = {"ONNX Runtime": ("onnx", Path(folder) / "m.onnx"), "OpenVINO": ("openvino", Path(folder) / "m")}
        for kind, place in places.values():
            write_export(module, pictures[0], place, kind)
        for threads in THREADS:
            torch.set_num_threads(threads)
            judges: dict[str, Judge] = {"PyTorch": Eager(module)}
            judges |= {runtime: open_judge(place, threads=threads) for runtime, (_, place) in places.items()}
            times: dict[str, list[float]] = {runtime: [] for runtime in judges}
            for turn, picture in enumerate(pictures):
                for runtime, judge in judges.items():
                    began = time.perf_counter()
                    judge.outputs(picture)
                    if turn > 1:  # the first ones warm up
                        times[runtime].append(time.perf_counter() - began)
            median = {runtime: statistics.median(each) for runtime, each in times.items()}
            rows.append({"network": name, "size": size, "threads": threads, "seconds": median})
            shares = ", ".join(
                f"{runtime} {median[runtime] / median['PyTorch']:.2f} of it" for runtime in list(judges)[1:]
            )
            print(f"{name:14} {size} px, {threads} thread(s): PyTorch {median['PyTorch'] * 1000:.0f} ms; {shares}")
    return rows


if __name__ == "__main__":
    main()
