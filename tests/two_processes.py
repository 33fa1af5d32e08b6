"""What two processes do together for test_processes.py: each imports this file anew, so that nothing is patched in it."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import yaml
from anomaly_runs import tiny_anomaly_settings
from rich.console import Console
from tiny import tiny_settings
from torch import Tensor, nn

from gainmtl_lib import processes
from gainmtl_lib import train as training
from gainmtl_lib.efficientad import train as anomalies
from gainmtl_lib.efficientad.figures import train_and_report
from gainmtl_lib.efficientad.model import EfficientADSettings, hard_feature_loss
from gainmtl_lib.processes import Part
from gainmtl_lib.runs import RunError
from gainmtl_lib.settings import Settings

# --- What is asked of one process and of two. Few masks: a process may have none while the other has some. Low rates:
# Adam takes rounding for a direction.

LOW = {"learning_rate": 1e-5, "mask_share": 0.3, "backbone_arch": "test_efficientnet"}


def s6(folder: Path, **values) -> Settings:
    """Every part, masks that are mixed by chance, dropout, and all terms from the first step on."""
    at_once = {"stage1_ratio": 0.0, "stage2_ratio": 0.0, "stage3_ratio": 0.0, "stage4_ratio": 1.0}
    return tiny_settings(folder, "S6", num_epochs=1, **LOW | at_once | values)


def s8(folder: Path, **values) -> Settings:
    """Edited pictures, and a last batch of each epoch that is smaller: 10, 10 and 4."""
    return tiny_settings(folder, "S8", num_epochs=2, batch_size=10, **LOW | values)


def anomaly(folder: Path, **values) -> EfficientADSettings:
    """Dropout and colours by chance."""
    asked = {"train_batch_size": 4, "max_steps": 3, "val_every_n_steps": 2, "learning_rate": 1e-4}
    return tiny_anomaly_settings(folder, **asked | values)


def every_step():
    """Logs each step, not every fifth."""
    own = training.fit_interruptibly

    def logging_all(*given, **options):
        own(*given, **options | {"log_every_n_steps": 1})

    return patch.object(training, "fit_interruptibly", logging_all)


class Layers(nn.Module):
    """A batch norm before and after a convolution, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.second = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        seen = F.dropout(self.second(self.conv(self.first(images))), 0.3, self.training)
        return seen.square().sum((1, 2, 3))


def layers_of(batch: Tensor, part: Part) -> dict[str, Tensor]:
    """Losses, gradients and statistics of a training step on a part of a batch."""
    torch.manual_seed(5)
    layers = Layers()
    with processes.whole_batch(part):
        losses = layers(batch[part.places])
    losses.sum().backward()
    gradients = {name: parameter.grad for name, parameter in layers.named_parameters()}
    return {"losses": losses.detach(), **gradients, **dict(layers.named_buffers())}


def a_batch(size: int) -> Tensor:
    return torch.randn(size, 3, 6, 6, generator=torch.Generator().manual_seed(1)) + 3


def features(size: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(2)
    return torch.randn(size, 8, 5, 5, generator=drawn), torch.randn(size, 8, 5, 5, generator=drawn)


# --- In each of two processes


def asked_alone(folder: Path, rank: int) -> None:
    """Layers, quantiles and sums, to the file of this process."""
    parts = {
        "shared": Part.of(7, rank, 2),
        "first_has_all": (Part(0, 7, 7), Part(7, 7, 7))[rank],
        "both": Part.whole(7),
    }
    told: dict[str, Any] = {name: layers_of(a_batch(7), part) for name, part in parts.items()}
    student, teacher = features(6)
    part = Part(0, 4, 6, 8 / 6) if rank == 0 else Part(4, 6, 6, 4 / 6)
    for quantile in (0.0, 0.9, 0.999):
        own = (each[part.places] for each in (student, teacher))
        told[f"hard_{quantile}"] = processes.means({"loss": hard_feature_loss(*own, quantile, weight=part.weight)})
    selected = torch.tensor([[True, True, True], [rank == 1, False, False]])
    told["weights"] = processes.mean_weights(selected[:, : 3 - 2 * rank])
    told["rows"] = processes.rows_of_all(torch.tensor([[5.0 - rank, rank], [9, 7]]))
    torch.save(told, folder / f"alone{rank}.pt")


def interrupted_and_resumed(settings: Settings) -> None:
    """Ctrl-C in the second epoch's second step, in both processes, and the same call again."""
    step = training.GainTraining.training_step

    def training_step(self, batch, batch_idx):
        if self.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with patch.object(training.GainTraining, "training_step", training_step), suppress(KeyboardInterrupt):
        training.fit(settings)
    assert json.loads((settings.run_dir / "manifest.json").read_text())["status"] == "running"
    training.fit(settings)


def stopped_early(settings: EfficientADSettings, rank: int) -> None:
    """One process's scores rise, the other's fall as much: together they do not improve."""
    own, left = anomalies.calibrate, [0.5, 0.6, 0.7, 0.8] if rank else [0.5, 0.4, 0.3, 0.2]

    def told(model, seen):
        return own(model, seen) | {"image_auroc": left.pop(0), "pixel_auroc": 0.5}

    with patch.object(anomalies, "calibrate", told):
        anomalies.fit_efficientad(settings)


def in_each(settings: Settings, *, folder: Path) -> None:
    """Everything, in one go: what takes long is to start the processes."""
    rank = training.Launch.of(settings).rank
    two = {"experiment": "two", "devices": 2}
    training.processes.connect(training.Launch.of(settings), settings, torch.device("cpu"))
    asked_alone(folder, rank)
    with every_step():
        training.fit(s6(folder, **two))
        interrupted_and_resumed(s8(folder, **two))
        file = folder / f"anomaly{rank}.yaml"
        file.write_text(yaml.safe_dump(anomaly(folder, **two).plain()))
        with (folder / f"printed{rank}.txt").open("w") as printed:
            train_and_report(Console(file=printed), [file], {}, category=None)
    stopped_early(anomaly(folder, **two | {"experiment": "early", "val_every_n_steps": 1, "patience": 1}), rank)
    told = {"returned": str(training.fit(s6(folder, **two)).folder)}  # it is finished
    try:
        training.fit(s6(folder, **two | {"learning_rate": 0.5}))
    except (RunError, SystemExit) as raised:
        told["refused"] = [type(raised).__name__, str(raised)]
    (folder / f"told{rank}.json").write_text(json.dumps(told))
    with processes.together():
        if rank == 1:
            raise RunError("what one process alone cannot do")
