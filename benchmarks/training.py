"""Speed of training on the CPU, as ratios within one run.

    python benchmarks/training.py              # everything, about ten minutes on two cores
    python benchmarks/training.py --only fit   # or: workers, steps, precision

fit      images/s of `fit` (S1) divided by images/s of a bare forward-backward loop over the same network with
         tensors already in memory; and what the loop costs besides.
workers  images/s of the loader alone by number of workers.
steps    time of an S5 step divided by an S1 step, for b0 and s at 256 and 512 px, with the default and the
         quick widths; the part that costs most, and the peak memory of each.
precision  images/s of an S1 step, 128 px, batch 16, in fp32 and in bf16 by turns; what `precision: auto` takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gainmtl_lib import train as fit_module
from gainmtl_lib.dataset import Batch, build_data
from gainmtl_lib.devices import inference_autocast, lightning_precision
from gainmtl_lib.losses import GainLoss
from gainmtl_lib.model import GAINMTLModel, build_model
from gainmtl_lib.progress import show_progress
from gainmtl_lib.settings import Settings, read_parameters, repository_root

CPU = torch.device("cpu")
QUICK_WIDTHS = ("out_indices", "fpn_channels", "attention_channels", "head_channels", "map_channels", "map_stride")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["fit", "workers", "steps", "precision"])
    parser.add_argument("--export", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    show_progress(level=30)
    parts = {"fit": fit_against_bare_loop, "workers": loader_workers, "steps": steps, "precision": precisions}
    results = {name: part() for name, part in parts.items() if arguments.only in (None, name)}
    if arguments.export:
        arguments.export.write_text(json.dumps(results, indent=2) + "\n")


def quick(folder: Path, strategy: str = "S1", **values: Any) -> Settings:
    """The quick study on the CPU, where the loops that it is compared with run too."""
    files = [repository_root() / "params" / name for name in ("quick.yaml", f"{strategy.lower()}.yaml")]
    return Settings.from_yaml(*files, outputs_dir=str(folder), data_root=str(folder / "data"), device="cpu", **values)


class TrainingClock(fit_module.EpochLog):
    """Seconds of the training batches of each epoch, validation and checkpoints left out."""

    seconds: list[float]

    def __init__(self) -> None:
        super().__init__()
        type(self).seconds = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def fit_against_bare_loop() -> dict[str, dict[str, float]]:
    """With the quick study's batch and the default one: Adam's step costs the same for a small batch as for a large."""
    return {f"batch_{size}": _fit_against_bare_loop(size) for size in (8, 16)}


def _fit_against_bare_loop(batch_size: int) -> dict[str, float]:
    """The bare loop runs before and after `fit`, in the same process; the fastest epoch of each counts."""
    with tempfile.TemporaryDirectory() as name:
        settings = quick(Path(name), num_epochs=3, batch_size=batch_size, use_tensorboard=True)
        data = build_data(settings)
        batches = list(data.train_dataloader())
        images = sum(len(batch.labels) for batch in batches)
        before = bare_loop(settings, batches, optimise=False)
        stepping = bare_loop(settings, batches, optimise=True)
        fit_module.EpochLog = TrainingClock  # type: ignore[misc]
        fit_module.fit(settings)
        after = bare_loop(settings, batches, optimise=False)
    fitted = min(TrainingClock.seconds[1:])  # the first epoch warms up
    bare = min(before, after)
    print(f"batch {batch_size}")
    print(f"  bare forward-backward {images / bare:6.1f} images/s")
    print(f"  bare with Adam's step {images / stepping:6.1f} images/s")
    print(f"  fit                   {images / fitted:6.1f} images/s")
    print(f"  fit / bare            {bare / fitted:6.2f}   (target: at least 0.9)")
    print(f"  fit / bare with Adam  {stepping / fitted:6.2f}", flush=True)
    return {
        "bare_images_per_s": images / bare,
        "bare_with_adam_images_per_s": images / stepping,
        "fit_images_per_s": images / fitted,
        "fit_over_bare": bare / fitted,
        "fit_over_bare_with_adam": stepping / fitted,
    }


def bare_loop(settings: Settings, batches: list[Batch], *, optimise: bool) -> float:
    """Seconds of the fastest of two epochs of forward and backward, precision and channels-last as in `fit`."""
    model = build_model(settings).to(memory_format=torch.channels_last).train()
    depthwise = model.backbone.depthwise
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    ready = [(batch.images.contiguous(memory_format=torch.channels_last), batch.labels) for batch in batches]
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        for images, labels in ready:
            with inference_autocast(settings.precision, CPU, depthwise=depthwise):
                loss = torch.nn.functional.cross_entropy(model(images).cls_logits, labels)
            optimiser.zero_grad()
            loss.backward()
            if optimise:
                optimiser.step()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def loader_workers() -> dict[str, float]:
    result = {}
    with tempfile.TemporaryDirectory() as name:
        for size in (128, 512):
            for workers in (0, 1, 2):
                settings = quick(Path(name) / str(size), image_size=size, num_samples=200, num_workers=workers)
                loader = build_data(settings).train_dataloader()
                list(loader)
                started = time.perf_counter()
                images = sum(len(batch.labels) for batch in loader)
                result[f"{size}px_{workers}_workers"] = images / (time.perf_counter() - started)
                print(f"loader, {size} px, {workers} workers: {result[f'{size}px_{workers}_workers']:7.0f} images/s")
    return result


def steps() -> list[dict[str, Any]]:
    """Each measurement in a process of its own, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    rows = []
    print("backbone  px widths    S1 step  S5 step  ratio    memory S1, S5   costliest part beyond S1")
    for arch in ("b0", "s"):
        for size in (256, 512):
            for widths in ("quick", "default"):
                with context.Pool(1) as pool:
                    s1 = pool.apply(measure_step, ("S1", arch, size, widths))
                with context.Pool(1) as pool:
                    s5 = pool.apply(measure_step, ("S5", arch, size, widths))
                extra = {part: s for part, s in s5["parts"].items() if part not in ("backbone", "cls")}
                costliest = max(extra, key=extra.__getitem__)
                row = {"backbone": arch, "size": size, "widths": widths, "ratio": s5["seconds"] / s1["seconds"],
                       "s1": s1, "s5": s5, "costliest": costliest}  # fmt: skip
                rows.append(row)
                share = 100 * extra[costliest] / s5["seconds"]
                print(
                    f"{arch:8} {size:3} {widths:8} {s1['seconds']:7.2f}s {s5['seconds']:7.2f}s {row['ratio']:6.2f}  "
                    f"{s1['peak_mb']:6.0f} {s5['peak_mb']:6.0f} MB  {costliest} ({share:.0f} % of the step)",
                    flush=True,
                )
    return rows


def measure_step(strategy: str, arch: str, size: int, widths: str) -> dict[str, Any]:
    """Seconds of a stage-4 step on 4 pictures, half of them defective, the time in each part, and peak memory."""
    warnings.filterwarnings("ignore", message=".*backward hook.*")
    values = {name: read_parameters(repository_root() / "params/quick.yaml")[name] for name in QUICK_WIDTHS}
    if widths == "default":
        values = {}
    settings = Settings(strategy=strategy, backbone_arch=arch, image_size=size, pretrained=False, **values)
    model, step = training_step(settings, pictures=4)
    step()
    seconds = statistics.median(step() for _ in range(3))
    return {"seconds": seconds, "peak_mb": peak_megabytes(), "parts": time_of_parts(model, step)}


def training_step(settings: Settings, *, pictures: int) -> tuple[GAINMTLModel, Callable[..., float]]:
    """A model, and a stage-4 step on pictures of which half are defective, in a precision, which gives its seconds."""
    model = build_model(settings).to(memory_format=torch.channels_last).train()
    loss = GainLoss(focal_gamma=2.0, focal_alpha=0.5)
    optimiser = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-4, fused=True)
    size, labels = settings.image_size[0], torch.arange(pictures) % 2
    masks = torch.zeros(pictures, 1, size, size)
    masks[labels == 1, :, size // 4 : size // 2, size // 4 : size // 2] = 1
    images = torch.rand(pictures, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, labels, masks, labels == 1, torch.arange(pictures))

    def step(precision: str = "auto") -> float:
        started = time.perf_counter()
        with inference_autocast(precision, CPU, depthwise=model.backbone.depthwise):
            total = loss(model(images, masks), batch, settings.weights)["total"]
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        return time.perf_counter() - started

    return model, step


def precisions() -> list[dict[str, Any]]:
    """Both precisions by turns, so that what else the machine does slows both; the fastest of eight steps counts."""
    values = {name: read_parameters(repository_root() / "params/quick.yaml")[name] for name in QUICK_WIDTHS}
    rows = []
    print("backbone  fp32 images/s  bf16 images/s  bf16 / fp32  auto takes")
    for arch in ("lite0", "b0", "s"):
        settings = Settings(strategy="S1", backbone_arch=arch, image_size=128, pretrained=False, **values)
        model, step = training_step(settings, pictures=16)
        seconds = [[step(precision) for precision in ("32", "bf16")] for _ in range(9)][1:]  # the first one warms up
        single, half = (16 / min(column) for column in zip(*seconds))
        auto = lightning_precision("auto", CPU, depthwise=model.backbone.depthwise)
        rows.append({"backbone": arch, "fp32": single, "bf16": half, "ratio": half / single, "auto": auto})
        print(f"{arch:8} {single:14.1f} {half:14.1f} {half / single:12.2f}  {auto}", flush=True)
    return rows


def peak_megabytes() -> float:
    """Peak resident memory of this process; on Linux `getrusage` would report the parent's if that was larger."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def time_of_parts(model: torch.nn.Module, step: Any) -> dict[str, float]:
    """Seconds of forward and backward in each part of the model during one step, by hooks around it."""
    spent: dict[str, float] = {}
    started: dict[str, float] = {}
    handles = []

    def begin(name: str) -> Any:
        return lambda *_: started.__setitem__(name, time.perf_counter())

    def end(name: str) -> Any:
        return lambda *_: spent.__setitem__(name, spent.get(name, 0.0) + time.perf_counter() - started[name])

    for name, part in leaves(model):
        handles += [
            part.register_forward_pre_hook(begin(name)),
            part.register_forward_hook(end(name)),
            part.register_full_backward_pre_hook(begin(name)),
            part.register_full_backward_hook(end(name)),
        ]
    step()
    for handle in handles:
        handle.remove()
    return spent


def leaves(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """The parts whose own forward is called: two of the children are called part by part."""
    found = []
    for name, part in model.named_children():
        calls = type(part).forward is not torch.nn.Module.forward and name not in ("attention", "localization")
        found += [(name, part)] if calls else [(f"{name}.{child}", module) for child, module in part.named_children()]
    return found


if __name__ == "__main__":
    main()
