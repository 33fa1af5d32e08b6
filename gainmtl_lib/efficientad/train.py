"""How EfficientAD is trained: from settings to a finished run, which goes on from its last validation if need be."""

import logging
import math
import time
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from gainmtl_lib import processes, runs
from gainmtl_lib import train as training
from gainmtl_lib.backbone import ModelError
from gainmtl_lib.dataset import Batch, make_data
from gainmtl_lib.devices import checked_device, inference_autocast, lightning_precision
from gainmtl_lib.efficientad import data as pictures
from gainmtl_lib.efficientad import model as networks
from gainmtl_lib.efficientad.model import EfficientADModel, EfficientADSettings, LocalMaps
from gainmtl_lib.launch import Launch, start_for_each_device
from gainmtl_lib.metrics import MapScale, PixelScores, auroc
from gainmtl_lib.processes import together
from gainmtl_lib.progress import counted, every
from gainmtl_lib.runs import EFFICIENTAD, Run, RunError

logger = logging.getLogger(__name__)

ARCHITECTURE = ("model_size", "out_channels", "padding", "teacher")
PLAN = (
    "max_steps", "max_epochs", "train_batch_size", "val_every_n_steps", "learning_rate", "weight_decay",
    "st_weight", "penalty_weight", "ae_weight", "hard_quantile",
)  # fmt: skip
"""Settings that a training shares with the checkpoint that it goes on from."""

MAP = "anomaly"  # the name of the map's file and of its scale


# --- Finished runs


@dataclass(frozen=True)
class EfficientADRun(runs.StoredRun[EfficientADSettings]):
    """A finished run of EfficientAD."""

    settings_type = EfficientADSettings
    main_map = MAP

    @cached_property
    def model(self) -> EfficientADModel:
        """The best model, in evaluation mode, on the CPU."""
        weights = self.weights
        with runs.told_by_version(self.folder):
            model = networks.build_model(self.settings)
            model.load_state_dict(weights)
            return model.eval()

    @property
    def teacher(self) -> str:
        """Where the teacher came from, to be shown with every result."""
        return self.manifest["teacher"]["text"]

    @property
    def penalty(self) -> str:
        """Which images kept the student from imitating the teacher beyond good parts."""
        return self.manifest["penalty"]

    @property
    def scale(self) -> MapScale | None:
        """The absolute scale of the anomaly map, once the run is evaluated; None where validation gave none."""
        values = self.metrics["map_scales"].get(MAP)
        return None if values is None else MapScale(**values)


def load_efficientad(folder: str | Path) -> EfficientADRun:
    """Read a finished run of EfficientAD."""
    run = open_run(folder)
    if isinstance(run, EfficientADRun):
        return run
    strategy = run.manifest["strategy"]
    raise RunError(f"{run.folder}: a run of strategy {strategy}, not of EfficientAD; see gainmtl evaluate --help")


def open_run(folder: str | Path) -> Run | EfficientADRun:
    """Read a finished run of either system."""
    folder = runs.finished_folder(folder)
    return EfficientADRun(folder) if runs.system_of(folder) == EFFICIENTAD else runs.load_run(folder)


def load_checkpoint(path: str | Path) -> tuple[EfficientADModel, EfficientADSettings, str]:
    """Of a checkpoint file the model in evaluation mode, its settings, and where its teacher came from."""
    checkpoint = runs.read_checkpoint(path)
    if "teacher" not in checkpoint:
        raise RunError(f"{path}: a checkpoint of a GAIN-MTL strategy, not of EfficientAD; see gainmtl evaluate --help")
    settings = EfficientADSettings(**checkpoint["gainmtl_settings"])
    model = networks.build_model(settings)
    model.load_state_dict({name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()})
    return model.eval(), settings, checkpoint["teacher"]["text"]


# --- Training


def fit_efficientad(
    settings: EfficientADSettings,
    *,
    provider: pictures.DatasetProvider | None = None,
    resume: str | Path | None = None,
    force: bool = False,
) -> EfficientADRun:
    """Train EfficientAD. A finished run with equal settings on equal data is returned, an unfinished one goes on.

    Args:
        settings: of the run; they decide its folder.
        provider: of the pictures, in place of the settings'. For several devices that nobody has started its class must
            lie in a module.
        resume: checkpoint to go on from, in place of the folder's own last one.
        force: start anew, dropping what the folder holds.

    `RunError`: the folder is in use, or holds a run with other settings or data; the checkpoint cannot be gone on from,
    or `force` was asked for too. `DataError`: the data cannot be used. `ModelError`: the teacher cannot be used, or the
    validation maps give no scale. `DeviceError`: the machine lacks what the settings ask for.
    `TrainingDivergedError`: a loss became NaN or infinite. `LaunchError`: a launcher has started other processes than
    the settings ask for. How several devices are used: see `fit`.
    """
    launch = Launch.of(settings)
    if training.to_be_started(settings, launch, force=force):
        start_for_each_device(fit_efficientad, settings, provider=provider, resume=resume, force=force)
        return EfficientADRun(settings.run_dir)
    with training.claimed(settings, launch, settings.accelerator, resume=resume, force=force) as folder:
        with together():
            if provider is None and launch.is_main:
                make_data(settings)
        with together():
            provider = provider or pictures.SplitProvider(settings)
            before = training.previous_manifest(folder, digest=provider.digest)
        if before.get("status") == "complete":
            logger.info("reusing the finished run in %s", folder)
        else:
            _train(settings, launch, provider, folder, resume)
    return EfficientADRun(folder)


def _train(
    settings: EfficientADSettings,
    launch: Launch,
    provider: pictures.DatasetProvider,
    folder: Path,
    resume: str | Path | None,
) -> None:
    with together():
        L.seed_everything(settings.seed, verbose=False)
        # What settings alone can get wrong comes before pictures are decoded.
        device = checked_device(settings.accelerator, settings.devices)
        precision = lightning_precision(settings.precision, device)
        state, teacher = networks.teacher_of(settings)
        penalty = pictures.PenaltyImages(settings)
        pictures.check_validation(provider)
        data = pictures.TrainingData(settings, provider, penalty)
        total = data.total_steps

        def complete(checkpoint: Any) -> bool:
            validated = checkpoint["callbacks"][StepCheckpoints.__qualname__]["validated"]
            return checkpoint["global_step"] >= total or exhausted(validated, settings)

        checkpoint = training.checkpoint_to_resume(
            folder, settings, resume, architecture=ARCHITECTURE, plan=PLAN, complete=complete
        )
        model = networks.build_model(settings)
        if checkpoint is None:
            networks.fill_teacher(model.teacher, state)
            model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            loader = provider.get_train_dataloader()
            batches = counted(loader, len(loader), "statistics of the teacher, batch", log=logger)
            with inference_autocast(settings.precision, device):
                model.measure_teacher(pictures.as_batch(item, split="train").images for item in batches)
            model.cpu()
        else:
            teacher = runs.read_checkpoint(checkpoint)["teacher"]  # which the student has learned to imitate
    manifest = {"strategy": EFFICIENTAD, "seed": settings.seed, "teacher": teacher}
    manifest |= {"penalty": penalty.text, "parameters": sum(parameter.numel() for parameter in model.parameters())}
    manifest |= {"split_sizes": provider.split_sizes, "total_steps": total, "data_digest": provider.digest}
    with training.recorded(folder, manifest, settings, launch, device=device, precision=precision):
        if checkpoint is None or not complete(runs.read_checkpoint(checkpoint)):
            logger.info("teacher: %s; penalty images: %s", teacher["text"], penalty.text)
            module = EfficientADTraining(model, settings, total_steps=total, teacher=teacher)
            training.fit_interruptibly(
                settings, launch, device, module, data, precision=precision, checkpoint=checkpoint,
                max_epochs=math.ceil(total / settings.val_every_n_steps),
                reload_dataloaders_every_n_epochs=1,  # the next interval of steps
                benchmark=device.type == "cuda", callbacks=[StepCheckpoints(folder / "checkpoints", settings)],
                log_every_n_steps=min(10, settings.val_every_n_steps, total),
            )  # fmt: skip
        best, last = (runs.read_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
        with together():
            if launch.is_main:
                model, *_ = load_checkpoint(folder / "checkpoints" / "best.ckpt")
                runs.save_weights(model, folder / "model.safetensors")
        manifest |= {"steps": last["global_step"], "best_step": best["global_step"]}
        manifest |= {f"best_val_{name.removeprefix('image_')}": score for name, score in best["scores"].items()}


class EfficientADTraining(L.LightningModule):
    """One optimisation of an `EfficientADModel` (algorithm 1 of the paper), and its validations.

    Everything random in a step (dropout, colours) follows from (seed, step) and a picture's place in the whole batch,
    so that a resumed run repeats what an uninterrupted one does, and several processes what a single one does.
    """

    def __init__(
        self, model: EfficientADModel, settings: EfficientADSettings, *, total_steps: int, teacher: Any = None
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings, self.total_steps, self.teacher = settings, total_steps, teacher
        self.scores: dict[str, float] = {}
        self._losses: list[Tensor] = []  # since the last validation, the terms and their sum of each whole batch
        self._seen: list[tuple[LocalMaps, Batch]] = []

    def losses(self, images: Tensor, augmented: Tensor, penalty: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """The four `TERMS`, with one pass of the student and one of the teacher; `weight`: see `Part`."""
        model, (p, b), c = self.model, (len(penalty), len(images)), self.model.out_channels
        pixels = model.normalized(torch.cat([penalty, images, augmented]))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        described = model.describe(pixels[p:])
        hidden = model.student.hidden(pixels)
        # Each picture needs one half of the student's description only.
        penalised, local = model.student.part(hidden[: p + b], slice(0, c)).split([p, b])
        whole = model.student.part(hidden[p + b :], slice(c, 2 * c))
        predicted = model.autoencoder(pixels[p + b :], (described.shape[-2], described.shape[-1]))
        return {
            "st": networks.hard_feature_loss(local, described[:b], self.settings.hard_quantile, weight=weight),
            "penalty": networks.pretraining_penalty(penalised),
            "ae": networks.distance_loss(predicted, described[b:]) * weight,
            "stae": networks.distance_loss(whole, predicted) * weight,
        }

    def on_train_start(self) -> None:
        self._due, self._started, self._first = every(15), time.monotonic(), self.global_step

    def training_step(self, batch: pictures.TrainBatch, batch_idx: int) -> Tensor:
        settings, (number, part, images, penalty) = self.settings, batch
        torch.manual_seed(settings.seed * 1_000_003 + number)
        recoloured = pictures.recoloured(images, seed=settings.seed, number=number, part=part)
        with processes.whole_batch(part):
            terms = self.losses(images, recoloured, penalty, part.weight)
        total = networks.total_loss(terms, settings)
        whole = processes.means({name: value.detach() for name, value in (terms | {"total": total}).items()})
        tags = {f"train/{name}_loss": whole[name] for name in terms} | {"train/loss_total": whole["total"]}
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict(tags | {"train/learning_rate": rate}, batch_size=1)
        self._losses.append(torch.stack([*whole.values()]))
        if len(self._losses) % 10 == 0 or self.trainer.is_last_batch:  # each look waits for the device
            self._stop_unless_finite()
        if self._due():
            self._say_progress()
        return total

    def _stop_unless_finite(self) -> None:
        values = torch.stack(self._losses[-10:]).cpu()  # (steps, terms and their sum)
        broken = ~torch.isfinite(values)
        for row in broken.any(dim=1).nonzero()[:1].flatten().tolist():
            names = [name for name, wrong in zip(networks.TERMS, broken[row].tolist()) if wrong]
            step = self.global_step + 1 - (len(values) - 1 - row)  # the last row is of the step that is under way
            raise training.TrainingDivergedError(
                f"the loss became {values[row, -1].item()} in {', '.join(names) or 'the sum'} at step {step}; the last "
                "checkpoint holds the validation before. Try a lower learning_rate, or precision '32'"
            )

    def _say_progress(self, validation: str = "") -> None:
        step, loss = self.global_step, torch.stack(self._losses)[:, -1].mean().item()
        speed = max(step - self._first, 1) / (time.monotonic() - self._started)
        left = (self.total_steps - step) / speed / 60
        text = "step %d of %d: loss %.3f; %s%.2f steps/s, about %.0f min left"
        logger.info(text, step, self.total_steps, loss, validation, speed, left)

    def validation_step(self, item: Any, batch_idx: int) -> None:
        """Maps are held until the last is seen, because the scale of all of them comes from the normal ones."""
        batch = pictures.as_batch(item, split="val")
        # In the training's precision, in which the finished model is evaluated too.
        maps = self.model.local_maps(batch.images.contiguous(memory_format=torch.channels_last))
        held = Batch(batch.images[:, :0], *(part.cpu() for part in batch[1:]))
        self._seen.append((LocalMaps(*(one.float().cpu() for one in maps)), held))

    def on_validation_epoch_end(self) -> None:
        """Every process validates on all images: nothing has to be gathered, and all decide alike."""
        self.scores, self._seen = calibrate(self.model, self._seen), []
        self.log_dict({f"val/{name}": score for name, score in self.scores.items()}, sync_dist=True)
        told = "validation image AUROC {image_auroc:.3f}, pixel AUROC {pixel_auroc:.3f}; "
        self._say_progress(told.format(**self.scores))
        self._losses.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"gainmtl_settings": self.settings.plain(), "gainmtl_version": version("gainmtl")}
        checkpoint |= {"teacher": self.teacher, "scores": self.scores}

    def configure_optimizers(self) -> Any:
        settings, decay_from = self.settings, int(0.95 * self.total_steps)
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = self.device.type in {"cpu", "cuda"}  # one pass over the weights instead of a dozen
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizer = torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=fused)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 if step >= decay_from > 0 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def calibrate(model: EfficientADModel, seen: list[tuple[LocalMaps, Batch]]) -> dict[str, float]:
    """Set the scale of the model's maps by the normal images, and say how well the scaled maps tell anomalies."""
    maps, whole = ([torch.cat(part) for part in zip(*each, strict=True)] for each in zip(*seen, strict=True))
    batch, pixels = Batch(*whole), PixelScores()
    normal = batch.labels == 0
    quantiles = np.stack([np.quantile(one[normal].numpy(), networks.QUANTILES) for one in maps])
    model.set_quantiles(torch.tensor(quantiles), images=int(normal.sum()))
    placed = LocalMaps(*(one.to(model.quantiles.device) for one in maps))
    output = model.finish(placed, (batch.masks.shape[-2], batch.masks.shape[-1]))
    if not output.score.isfinite().all():
        raise ModelError("an anomalous validation image has a map that is not finite; try precision '32'")
    answered = normal | batch.has_mask
    pixels.update(output.anomaly_map.cpu()[answered], batch.masks[answered])
    image_auroc = auroc(batch.labels.numpy(), output.score.cpu().double().numpy())
    return {"image_auroc": image_auroc, "pixel_auroc": pixels.auroc()}


class StepCheckpoints(Checkpoint):
    """``last.ckpt`` at every validation, ``best.ckpt``, and ``step_<n>.ckpt`` of the three best validations.

    The best has the highest image AUROC, then pixel AUROC, then came first; Lightning's own callbacks know one number.
    Stops the training once `patience` validations brought no better one.
    """

    def __init__(self, folder: Path, settings: EfficientADSettings) -> None:
        self.folder, self.settings = folder, settings
        self.validated: list[list[float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        scores = [float(trainer.callback_metrics[f"val/{name}_auroc"]) for name in ("image", "pixel")]
        self.validated.append([*(-math.inf if math.isnan(score) else round(score, 6) for score in scores), -step])
        kept = [f"step_{-one[2]:.0f}.ckpt" for one in sorted(self.validated, reverse=True)[:3]]
        own = f"step_{step}.ckpt"
        if own == kept[0]:
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        if own in kept:
            trainer.save_checkpoint(self.folder / own, weights_only=False)
        # The last one written: killed before it, the training repeats the interval and with it the others.
        trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)
        for path in self.folder.glob("step_*.ckpt"):
            if trainer.is_global_zero and path.name not in kept:
                path.unlink()
        if exhausted(self.validated, self.settings):
            trainer.should_stop = True
            logger.info("stops at step %d: no better validation since that of %s", step, kept[0])

    def state_dict(self) -> dict[str, Any]:
        return {"validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Scores whose files stayed elsewhere are left there: they would let no later one be the best."""
        if (self.folder / "best.ckpt").is_file():
            self.validated = state_dict["validated"]


def exhausted(validated: list[list[float]], settings: EfficientADSettings) -> bool:
    """Whether `patience` validations brought no better one."""
    after_best = len(validated) - 1 - validated.index(max(validated)) if validated else 0
    return settings.early_stopping and after_best >= settings.patience
