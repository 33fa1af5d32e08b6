"""Golden figures for the redesign: the same small studies before and after, on one thread.

python tests/golden.py write FOLDER     train S1 to S7 and EfficientAD, keep metrics and predictions
python tests/golden.py check FOLDER     train them again, print the largest difference of each
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import pandas as pd
import torch

from gainmtl_lib import EfficientADSettings, Settings, evaluate, evaluate_efficientad, fit, fit_efficientad

ROOT = Path(__file__).parents[1]
SMALLER = {"num_samples": 160, "image_size": 96, "use_tensorboard": False}


def results(name: str, folder: Path) -> tuple[pd.DataFrame, dict]:
    shared = {"outputs_dir": folder / "outputs", "data_root": folder / "data", **SMALLER}
    params = ROOT / "params"
    if name == "efficientad":
        settings = EfficientADSettings.from_yaml(
            params / "efficientad_synthetic.yaml", max_steps=60, val_every_n_steps=30, **shared
        )
        return evaluate_efficientad(fit_efficientad(settings))
    settings = Settings.from_yaml(params / "quick.yaml", params / f"{name}.yaml", num_epochs=4, **shared)
    return evaluate(fit(settings))


def flat(value: object, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, part in enumerate(value) for k, v in flat(part, f"{name}/{key}").items()}
    return {name: value}


def difference(before: object, after: object) -> float:
    if isinstance(before, int | float) and isinstance(after, int | float):
        if math.isnan(before) and math.isnan(after):
            return 0.0
        return abs(before - after)
    return 0.0 if before == after or (before is None and after is None) else math.inf


def main() -> None:
    torch.set_num_threads(1)
    todo, stored = sys.argv[1], Path(sys.argv[2])
    names = sys.argv[3:] or [*(f"s{k}" for k in range(1, 8)), "efficientad"]
    stored.mkdir(parents=True, exist_ok=True)
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            predictions, summary = results(name, Path(temporary))
            predictions = predictions.drop(
                columns=[c for c in predictions if predictions[c].astype(str).str.contains("/tmp").any()]
            )
            now = flat(
                {
                    "metrics": summary,
                    "predictions": json.loads(
                        predictions.to_json(orient="list" if False else "columns", double_precision=12)
                    ),
                }
            )
            now = {k: v for k, v in json.loads(json.dumps(now, default=float)).items() if "digest" not in k}
            file = stored / f"{name}.json"
            if todo == "write":
                file.write_text(json.dumps(now))
                print(name, len(now), "figures", flush=True)
                continue
            before = json.loads(file.read_text())
            gone = sorted(set(before) - set(now))
            off = {k: difference(before[k], now[k]) for k in before if k in now}
            worst = max(off, key=off.__getitem__)
            bad += sum(v > 1e-6 for v in off.values())
            print(
                f"{name}: {len(off)} figures, largest difference {off[worst]:.2g} ({worst}), "
                f"{sum(v > 1e-6 for v in off.values())} above 1e-6, {len(gone)} gone: {gone[:4]}",
                flush=True,
            )
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
