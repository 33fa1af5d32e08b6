"""Speed of EfficientAD beside anomalib 2.7's EfficientAd on the CPU: one process each, ratios within one run.

    python benchmarks/efficientad.py --anomalib PYTHON           # everything, about ten minutes on two cores
    python benchmarks/efficientad.py --anomalib PYTHON --only inference   # or: step, aupro

PYTHON is an interpreter of an environment of its own that has anomalib 2.7.0 (``pip install anomalib==2.7.0``); this
project does not depend on it. Both sides get the same weights and the same pictures, 256 x 256 px, S and M.

inference  seconds a picture; target at most 0.6 of anomalib's eager model. The maps of both are compared.
step       seconds of a training step with batch 1; target at most 0.8. The four losses of both are compared.
aupro      seconds of AUPRO of 100 maps of 256 x 256 px; target at most 1. The values of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 256
ROUNDS = 3
"""Each side is measured this often, in turn, so that a busy moment of the machine does not hit one of them alone."""

HERE = Path(__file__).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anomalib", default=sys.executable, help="an interpreter that can import anomalib 2.7.0")
    parser.add_argument("--only", choices=["inference", "step", "aupro"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--worker", nargs=3, metavar=("WHAT", "WHOSE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        what, whose, folder = arguments.worker
        print(json.dumps(WORKERS[what, whose](Path(folder)) | {"torch": torch.__version__}))
        return
    pythons = {"ours": sys.executable, "anomalib": arguments.anomalib}
    parts = {"inference": compare_models, "step": compare_models, "aupro": compare_aupro}
    results = {
        name: part(name, pythons, arguments.threads) for name, part in parts.items() if arguments.only in (None, name)
    }
    if arguments.export:
        arguments.export.write_text(json.dumps({"threads": arguments.threads, **results}, indent=2) + "\n")


def run_worker(python: str, what: str, whose: str, folder: Path, threads: int) -> dict[str, Any]:
    """One measurement in a process of its own; its last line of output is its result."""
    command = [python, str(HERE), "--threads", str(threads), "--worker", what, whose, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent.parent), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{whose} could not be measured by {python}:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turn(pythons: dict[str, str], what: str, whose: list[str], folder: Path, threads: int) -> dict[str, dict]:
    """Every side `ROUNDS` times in turn; the fastest time of each, because other work only ever adds."""
    rounds = [
        {side: run_worker(pythons[side.split()[0]], what, side, folder, threads) for side in whose}
        for _ in range(ROUNDS)
    ]
    return {side: min((each[side] for each in rounds), key=lambda result: result["seconds"]) for side in whose}


def compare_models(what: str, pythons: dict[str, str], threads: int) -> dict[str, Any]:
    results = {}
    for size in ("S", "M"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_inputs(folder, size)
            measured = in_turn(pythons, what, ["anomalib", "ours 32", "ours bf16"], folder, threads)
        theirs = measured["anomalib"]
        for side in ("ours 32", "ours bf16"):
            row = measured[side]
            row["ratio"] = row["seconds"] / theirs["seconds"]
            row["difference"] = largest_difference(row.pop("values"), theirs["values"])
            print(
                f"{what:9} {size} {side:9} {row['seconds']:6.3f} s, anomalib {theirs['seconds']:6.3f} s, "
                f"ratio {row['ratio']:.2f}; values differ by {row['difference']:.1e}",
                flush=True,
            )
        theirs.pop("values")
        results[size] = measured
    return results


def largest_difference(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """Largest difference of any value, as a share of the largest value of its kind."""
    shares = []
    for name, reference in theirs.items():
        mine, other = torch.tensor(ours[name]), torch.tensor(reference)
        shares.append(float((mine - other).abs().max() / other.abs().max()))
    return max(shares)


def write_inputs(folder: Path, size: str) -> None:
    """Weights under anomalib's names, statistics of the teacher included, and pictures; both sides read them."""
    from gainmtl_lib.efficientad.model import EfficientADModel

    torch.manual_seed(0)
    model = EfficientADModel(size)  # type: ignore[arg-type]
    pictures = torch.rand(3, 3, SIDE, SIDE)  # a normal one, one for the penalty, one recoloured
    model.measure_teacher([pictures])
    torch.save({"size": size, "weights": model.state_dict(), "pictures": pictures}, folder / "inputs.pt")


def our_model(folder: Path) -> tuple[Any, torch.Tensor]:
    from gainmtl_lib.efficientad.model import EfficientADModel

    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    model = EfficientADModel(inputs["size"])
    model.load_state_dict(inputs["weights"])
    return model.to(memory_format=torch.channels_last), inputs["pictures"].contiguous(memory_format=torch.channels_last)


def their_model(folder: Path) -> tuple[Any, torch.Tensor]:
    from anomalib.models.image.efficient_ad.torch_model import (  # type: ignore[import-not-found]
        EfficientAdModel,
        EfficientAdModelSize,
    )

    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    model = EfficientAdModel(384, EfficientAdModelSize[inputs["size"]])
    model.load_state_dict(dict(their_names(inputs["weights"])), strict=False)
    return model, inputs["pictures"]


def their_names(weights: dict[str, torch.Tensor]) -> Any:
    """Our names to anomalib's."""
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        number = "".join(filter(str.isdigit, rest))
        kind = rest.rpartition(".")[2]
        if part in ("teacher", "student"):
            yield f"{part}.conv{int(number) + 1}.{kind}", tensor
        elif part == "autoencoder":
            coder, short = ("encoder", "enconv") if rest.startswith("encoder") else ("decoder", "deconv")
            yield f"ae.{coder}.{short}{int(number) + 1}.{kind}", tensor
        elif name in ("teacher_mean", "teacher_std"):
            yield f"mean_std.{name.removeprefix('teacher_')}", tensor


def our_inference(precision: str) -> Callable[[Path], dict[str, Any]]:
    def measure(folder: Path) -> dict[str, Any]:
        model, pictures = our_model(folder)
        model.eval()
        image = pictures[:1].contiguous(memory_format=torch.channels_last)

        def once() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return model(image)

        with torch.inference_mode():
            seconds = fastest(once, 5)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                maps = model.local_maps(image)
        return {"seconds": seconds, "values": {"st": flat(maps[0]), "stae": flat(maps[1])}}

    return measure


def their_inference(folder: Path) -> dict[str, Any]:
    model, pictures = their_model(folder)
    model.eval()
    image = pictures[:1]
    with torch.inference_mode():
        seconds = fastest(lambda: model(image), 5)
        student, distance = model.compute_student_teacher_distance(image)
        predicted = model.ae(image, image.shape[-2:])
        whole = (predicted - student[:, 384:]).square().mean(dim=1)
    return {"seconds": seconds, "values": {"st": flat(distance.mean(dim=1)), "stae": flat(whole)}}


def flat(values: torch.Tensor) -> list[float]:
    return values.float().flatten().tolist()


def fastest(work: Callable[[], Any], times: int) -> float:
    work()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def our_step(precision: str) -> Callable[[Path], dict[str, Any]]:
    def measure(folder: Path) -> dict[str, Any]:
        from gainmtl_lib.efficientad.model import EfficientADSettings, total_loss
        from gainmtl_lib.efficientad.train import EfficientADTraining

        model, pictures = our_model(folder)
        model.autoencoder.dropout = 0.0
        training = EfficientADTraining(model, EfficientADSettings(teacher="random"), total_steps=1).train()
        normal, penalty, recoloured = pictures.split(1)
        optimiser = torch.optim.Adam(trained(model.student, model.autoencoder), lr=1e-4, weight_decay=1e-5, fused=True)
        first: dict[str, list[float]] = {}

        def once() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                terms = training.losses(normal, recoloured, penalty)
            if not first:
                first.update({name: [float(value)] for name, value in terms.items()})
            optimiser.zero_grad()
            total_loss(terms, training.settings).backward()
            optimiser.step()

        return {"seconds": fastest(once, 3), "values": first}

    return measure


def their_step(folder: Path) -> dict[str, Any]:
    model, pictures = their_model(folder)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    normal, penalty, recoloured = pictures.split(1)
    model.choose_random_aug_image = lambda image: recoloured
    optimiser = torch.optim.Adam(trained(model.student, model.ae), lr=1e-4, weight_decay=1e-5)
    with torch.no_grad():  # its model adds this term to the first
        penalised = float(model.student(penalty)[:, : model.teacher_out_channels].square().mean())
    first: dict[str, list[float]] = {}

    def once() -> None:
        st, ae, stae = model(normal, penalty)
        if not first:
            terms = {"st": float(st) - penalised, "penalty": penalised, "ae": float(ae), "stae": float(stae)}
            first.update({name: [value] for name, value in terms.items()})
        optimiser.zero_grad()
        (st + ae + stae).backward()
        optimiser.step()

    return {"seconds": fastest(once, 3), "values": first}


def trained(*parts: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for part in parts for parameter in part.parameters()]


def compare_aupro(what: str, pythons: dict[str, str], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        maps = torch.rand(100, 1, SIDE, SIDE)
        masks = torch.zeros_like(maps)
        for row, mask in enumerate(masks[::2]):  # every second picture has one or two defects of many sizes
            side = 4 + row
            mask[0, 10 : 10 + side, 20 : 20 + side // 2 + 1] = 1
            mask[0, 200 : 200 + row // 3, 150:170] = 1
        torch.save({"maps": maps + 0.3 * masks, "masks": masks}, folder / "inputs.pt")
        measured = in_turn(pythons, what, ["anomalib", "ours"], folder, threads)
    ours, theirs = measured["ours"], measured["anomalib"]
    ours["ratio"] = ours["seconds"] / theirs["seconds"]
    print(
        f"aupro       ours {ours['seconds']:6.2f} s, anomalib {theirs['seconds']:6.2f} s, ratio {ours['ratio']:.2f}; "
        f"{ours['value']:.5f} and {theirs['value']:.5f}"
    )
    return measured


def our_aupro(folder: Path) -> dict[str, Any]:
    from gainmtl_lib.metrics import PixelScores

    inputs = torch.load(folder / "inputs.pt", weights_only=True)

    def once() -> float:
        pixels = PixelScores()
        for maps, masks in zip(inputs["maps"].split(10), inputs["masks"].split(10)):
            pixels.update(maps, masks)
        return pixels.aupro()

    return timed(once)


def their_aupro(folder: Path) -> dict[str, Any]:
    from anomalib.metrics.aupro import _AUPRO  # type: ignore[import-not-found]

    inputs = torch.load(folder / "inputs.pt", weights_only=True)

    def once() -> float:
        metric = _AUPRO()
        for maps, masks in zip(inputs["maps"].split(10), inputs["masks"].split(10)):
            metric.update(maps[:, 0], masks[:, 0].long())
        return float(metric.compute())

    return timed(once)


def timed(work: Callable[[], float]) -> dict[str, Any]:
    seconds, value = [], 0.0
    for _ in range(2):
        started = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "value": value}


WORKERS: dict[tuple[str, str], Callable[[Path], dict[str, Any]]] = {
    ("inference", "anomalib"): their_inference,
    ("inference", "ours 32"): our_inference("32"),
    ("inference", "ours bf16"): our_inference("bf16"),
    ("step", "anomalib"): their_step,
    ("step", "ours 32"): our_step("32"),
    ("step", "ours bf16"): our_step("bf16"),
    ("aupro", "anomalib"): their_aupro,
    ("aupro", "ours"): our_aupro,
}


if __name__ == "__main__":
    main()
