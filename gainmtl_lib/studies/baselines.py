"""What the literature would do in S1's place, on the same data, backbone, masks and budget.

A method is a row of a plan, ``{strategy: S1, method: outside_noise}``: trained by `fit` with the optimiser, the choice
of the best epoch and of the threshold of every strategy, stored, evaluated and compared like them.

B images, H x W network input; masks are (B, 1, H, W).
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from gainmtl_lib.backbone import TIMM_NAMES, ModelError, get_backbone
from gainmtl_lib.dataset import Batch, EpochSampler, GainDataModule, build_data, whole_batches
from gainmtl_lib.devices import checked_device
from gainmtl_lib.findings import DataError
from gainmtl_lib.launch import Launch
from gainmtl_lib.losses import localization_loss
from gainmtl_lib.model import GAINMTLModel, GainOutput, as_at_inference, build_model
from gainmtl_lib.runs import Run, claim, save_weights
from gainmtl_lib.settings import Settings, SettingsError, closest
from gainmtl_lib.train import GainTraining, fit, previous_manifest, recorded

# --- Which methods there are, and how one is trained

METHODS = (
    "counterfactual_fill", "counterfactual_fill_gradient", "outside_noise", "last_layer_retraining", "group_dro",
    "unet",
)  # fmt: skip


def check_method(method: Any, settings: Settings) -> None:
    """`SettingsError` where there is no such method, or the settings do not fit it."""
    if method not in METHODS:
        raise SettingsError(f"unknown method {method!r}{closest(str(method), METHODS)}; methods: {', '.join(METHODS)}")
    share = settings.image_counterfactual
    wants = {
        f"takes the place of S1, got strategy {settings.strategy!r}": settings.strategy == "S1",
        f"needs pictures of both kinds, edited and not: image_counterfactual between 0 and 1, got {share:g}": (
            method != "last_layer_retraining" or 0 < share < 1
        ),
        "knows which pictures show the cue, not which crops of them; leave crop_size out": (
            method != "group_dro" or settings.crop_size is None
        ),
        "trains on one device; leave devices and num_nodes out": settings.processes == 1,
        "reads pictures as a whole; leave tile_size out": method != "unet" or settings.tile_size is None,
    }
    for sentence, holds in wants.items():
        if not holds:
            raise SettingsError(f"method {method!r} {sentence}")


def fit_method(settings: Settings, method: str) -> Run:
    """Train a method of `METHODS`; what is there already is reused or goes on, as of `fit`, whose errors it raises.

    `SettingsError`, `ModelError` or `DataError` besides: settings that do not fit the method, a package that is
    missing, a cue that is unknown.
    """
    check_method(method, settings)
    if method == "last_layer_retraining":
        return retrain_last_layer(settings)
    data = CueBalancedData(settings) if method == "group_dro" else None
    return fit(settings, data=data, build=partial(build_baseline, method), method=method)


def build_baseline(method: str, settings: Settings, data: GainDataModule) -> "BaselineTraining":
    """A method's model, and how it is trained."""
    model = build_baseline_model(settings, method)
    training = BaselineTraining(settings, model, method=method, class_counts=data.class_counts)
    if method == "unet":
        training.loss = PixelLoss()
    elif isinstance(data, CueBalancedData):
        training.loss = GroupDROLoss(data.cues)
    return training


def build_baseline_model(settings: Settings, method: str, *, pretrained: Literal[False] | None = None) -> Any:
    """The model of a method's run: S1's, but for the U-Net; `pretrained` as of `build_model`."""
    if method == "unet":
        return UNet(settings, pretrained=settings.pretrained if pretrained is None else pretrained)
    return build_model(settings, pretrained=pretrained)


class BaselineTraining(GainTraining):
    """S1's training with other pictures or another loss; validation shows pictures as they are."""

    def __init__(self, settings: Settings, model: Any, *, method: str, class_counts: tuple[int, int]) -> None:
        super().__init__(settings, model, class_counts=class_counts)
        self.method = method
        self.loss: nn.Module

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The step of every strategy on the method's batch, with the penalty of the input gradient where it has one."""
        total = super().training_step(SHOWN.get(self.method, lambda same: same)(batch), batch_idx)
        if self.method != "counterfactual_fill_gradient":
            return total
        penalty = input_gradient_penalty(self.model, batch)
        self.log("train/loss_input_gradient", penalty.detach(), on_step=True, on_epoch=False, batch_size=1)
        return total + GRADIENT_WEIGHT * penalty

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """By the method's name its model is built again."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["gainmtl_method"] = self.method


def annotated_defects(batch: Batch) -> Tensor:
    """Which pictures show a defect with a mask, bool (B,)."""
    return (batch.labels == 1) & (batch.masks > 0.5).flatten(1).any(dim=1)


# --- Counterfactual fill, and an input gradient that stays in the mask


def counterfactual_fill(batch: Batch) -> Batch:
    """Every annotated defect twice more: filled, and then normal; before another background, and still defective.

    Chang, Adam and Goldenberg, CVPR 2021, arXiv 2106.01127: CF(Random), CF(Grey) and CF(Tile) in turn by chance, and
    F(Mixed-Rand). As in their code the pictures come beside the batch, and the fill is of the box around the mask, so
    that its shape does not tell the defect. Simplified: grey is the picture's own mean colour; the background is that
    of a normal picture of the batch, which needs no fill; their generative fill (CAGAN) is left out. There is no
    control: nothing keeps the traces of the fill from telling the class.
    """
    defects, normals = (chosen.nonzero()[:, 0] for chosen in (annotated_defects(batch), batch.labels == 0))
    if not len(defects):
        return batch
    own = Batch(*(values[defects] for values in batch))
    boxes = around(own.masks)
    images = [FILLS[int(torch.randint(len(FILLS), ()))](*pair) for pair in zip(own.images, boxes, strict=True)]
    filled = own._replace(
        images=torch.where(boxes, torch.stack(images), own.images),
        labels=torch.zeros_like(own.labels),
        masks=torch.zeros_like(own.masks),
        has_mask=torch.zeros_like(own.has_mask),
    )
    shown = [batch, filled]
    if len(normals):
        behind = batch.images[normals[torch.randint(len(normals), (len(defects),))]]
        shown.append(own._replace(images=torch.where(own.masks > 0.5, own.images, behind)))
    return Batch(*map(torch.cat, zip(*shown)))


def around(masks: Tensor) -> Tensor:
    """The box around each mask, bool of the same shape; none of an empty mask."""
    rows, columns = ((masks > 0.5).any(axis, keepdim=True).int() for axis in (3, 2))

    def spanned(line: Tensor, axis: int) -> Tensor:
        return (line.cummax(axis)[0] & line.flip(axis).cummax(axis)[0].flip(axis)).bool()

    return spanned(rows, 2) & spanned(columns, 3)


def noise(image: Tensor, box: Tensor) -> Tensor:
    """A random colour with Gaussian noise of 0.2, in place of a picture (3, H, W)."""
    return (torch.rand_like(image[:, :1, :1]) + 0.2 * torch.randn_like(image)).clamp(0, 1)


def mean_colour(image: Tensor, box: Tensor) -> Tensor:
    """The mean colour of what lies outside the box, (1, H, W)."""
    return ((image * ~box).sum((1, 2), keepdim=True) / (~box).sum().clamp_min(1)).expand_as(image)


def tiles(image: Tensor, box: Tensor) -> Tensor:
    """The largest strip beside the box, repeated over the picture; black where the box leaves none."""
    (top, bottom), (left, right) = ((int(found[0]), int(found[-1]) + 1) for found in map(_places, (box, box.mT)))
    strips = image[:, :top], image[:, bottom:], image[:, :, :left], image[:, :, right:]
    strip = max(strips, key=Tensor.numel)
    if not strip.numel():
        return torch.zeros_like(image)
    (height, width), (h, w) = image.shape[1:], strip.shape[1:]
    return strip.repeat(1, math.ceil(height / h), math.ceil(width / w))[:, :height, :width]


def _places(box: Tensor) -> Tensor:
    return box.any(2)[0].nonzero()[:, 0]


FILLS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (noise, mean_colour, tiles)

GRADIENT_WEIGHT = 10.0  # of the penalty: lambda in the example of the authors' code


def input_gradient_penalty(model: nn.Module, batch: Batch) -> Tensor:
    """Mean square of the margin's gradient at pixels outside the mask, over annotated defects; in single precision.

    Chang et al. 2021. Simplified: of the margin, since what is added to both logits decides nothing, and as at
    inference, because gradients of gradients through the statistics of a batch take five times as long.
    """
    kept = annotated_defects(batch)
    if not kept.any():
        return torch.zeros((), device=batch.images.device)
    images = batch.images[kept].float().requires_grad_()
    with as_at_inference(model), torch.autocast(images.device.type, enabled=False):
        logits = model(images).logits
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), images, create_graph=True)
    return (gradient * (batch.masks[kept] <= 0.5)).square().mean()


# --- Noise outside the mask

NOISE = 0.25  # standard deviation, of pixels in [0, 1]
NOISY = 0.5  # share of the pictures


def outside_noise(batch: Batch) -> Batch:
    """Gaussian noise on all that lies outside the mask, on half of the pictures.

    Core risk minimization, Singla, Moayeri and Feizi 2022, arXiv 2203.15566: a class is to be told by its core region
    though noise corrupts the rest. Simplified: a mask of 0 and 1, one strength, none of their other regularisers. They
    have a core region in every class; a normal picture has none, so that it keeps the shape of another's defect clean:
    with noise on defects alone the noise would tell the class. Defects without a mask stay as they are.
    """
    annotated = annotated_defects(batch)
    if not annotated.any():
        return batch
    defects = annotated.nonzero()[:, 0]
    lent = batch.masks[defects[torch.randint(len(defects), (len(batch.labels),))]]
    kept = torch.where(annotated[:, None, None, None], batch.masks, lent) > 0.5
    chosen = (torch.rand(len(batch.labels)).to(batch.images.device) < NOISY) & (annotated | (batch.labels == 0))
    noisy = (batch.images + NOISE * torch.randn_like(batch.images)).clamp(0, 1)
    return batch._replace(images=torch.where(chosen[:, None, None, None] & ~kept, noisy, batch.images))


SHOWN: dict[str, Callable[[Batch], Batch]] = {
    "counterfactual_fill": counterfactual_fill,
    "counterfactual_fill_gradient": counterfactual_fill,
    "outside_noise": outside_noise,
}
"""Of a method that changes the training's batches: what it makes of one, after edits and augmentation."""


# --- The last layer retrained

PASSES = 4  # epochs of edited and augmented pictures that the layer learns from
PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # scikit-learn's C, as in the authors' code
SUBSETS = 10  # balanced ones, whose layers are averaged


def retrain_last_layer(settings: Settings) -> Run:
    """The S1 of the same settings without edits, trained where it is missing, with the last layer of its head anew.

    Deep feature reweighting, Kirichenko, Izmailov and Wilson, ICLR 2023, arXiv 2204.02937: all else is frozen, a
    logistic regression on standardised features learns from groups of equal size. Simplified: they balance label and
    cue, which nobody knows here; balanced are label and edited, of the edits and controls of S7. The penalty is squared
    in place of absolute, its strength that of the best worst group among the pictures of another half.
    """
    base = fit(settings.changed(variant="", image_counterfactual=0.0))
    with claim(settings) as folder:
        data = build_data(settings)
        if previous_manifest(folder, digest=data.digest).get("status") == "complete":
            return Run(folder)
        data.setup("fit")
        device = checked_device(settings.device)
        manifest = base.manifest | {"method": "last_layer_retraining", "retrained": base.settings.run_name}
        manifest.pop("defect_types", None)
        with recorded(folder, manifest, settings, Launch(), device=device, precision="32-true"):
            model = base.model.to(device)
            model.types = None  # what it reads is where the old head looks
            weight, bias = balanced_regression(*edited_features(model, data), seed=settings.seed)
            set_last_layer(model, weight, bias)
            save_weights(model, folder / "model.safetensors")
    return Run(folder)


@torch.inference_mode()
def edited_features(model: GAINMTLModel, data: GainDataModule) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """What the last layer sees of N training pictures, (N, D); their labels, whether edited, and rows, (N,) each."""
    head, edits = model.cls_head, data.counterfactuals
    assert head is not None and edits is not None  # S1 has the one, `check_method` saw to the other
    keys = [(epoch, row) for epoch in range(PASSES) for row in data.shown_rows]
    features, labels, rows, size = [], [], [], data.settings.batch_size
    for start in range(0, len(keys), size):
        batch = data.dataset.__getitems__(keys[start : start + size])
        seen, _ = model.features(batch.images.to(head.out.weight.device))
        features.append(F.relu(head.hidden(seen.mean((2, 3)))).cpu())
        labels.append(batch.labels)
        rows.append(batch.index)
    drawn = (edits.draw(*key) for key in keys)
    edited = np.array([one is not None and one.edit is not None for one in drawn], dtype=np.int64)
    return torch.cat(features).numpy(), torch.cat(labels).numpy(), edited, torch.cat(rows).numpy()


def balanced_regression(
    features: NDArray, labels: NDArray, edited: NDArray, rows: NDArray, *, seed: int
) -> tuple[NDArray, float]:
    """Weights (D,) and bias of the margin on `features`, from equally many of each label, edited and not.

    `DataError` where one of these four groups is missing from a half of the pictures.
    """
    rng, groups = np.random.default_rng(seed), 2 * labels + edited
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = (features - mean) / spread

    def balanced(places: NDArray) -> NDArray:
        of_group = [places[groups[places] == group] for group in range(4)]
        if not (least := min(map(len, of_group))):
            lack = "half of the pictures lacks normal or defective ones, edited or as they are"
            raise DataError(f"last_layer_retraining: {lack}; change image_counterfactual, or add pictures")
        return np.concatenate([rng.choice(some, least, replace=False) for some in of_group])

    def fitted(places: NDArray, penalty: float) -> Any:
        return LogisticRegression(C=penalty, max_iter=1000).fit(scaled[places], labels[places])

    pictures = rng.permutation(np.unique(rows))
    first = np.isin(rows, pictures[::2])
    learnt, judged = balanced(np.flatnonzero(first)), balanced(np.flatnonzero(~first))

    def worst(penalty: float) -> float:
        right = fitted(learnt, penalty).predict(scaled[judged]) == labels[judged]
        return min(right[groups[judged] == group].mean() for group in range(4))

    penalty = max(PENALTIES, key=worst)
    models = [fitted(balanced(np.arange(len(labels))), penalty) for _ in range(SUBSETS)]
    weight = np.mean([one.coef_[0] for one in models], axis=0) / spread
    return weight, float(np.mean([one.intercept_[0] for one in models]) - weight @ mean)


def set_last_layer(model: GAINMTLModel, weight: NDArray, bias: float) -> None:
    """Give the head a margin, half of it to either class."""
    assert model.cls_head is not None
    sides, out = torch.tensor([-0.5, 0.5]), model.cls_head.out
    with torch.no_grad():
        out.weight.copy_(sides[:, None] * torch.from_numpy(weight).float())
        out.bias.copy_(sides * bias)


# --- Group DRO, an oracle that knows the cue

STEP = 0.01  # of the groups' weights, as in the authors' code


class GroupDROLoss(nn.Module):
    """Cross-entropy of the groups label x cue, weighted towards the worst.

    Sagawa, Koh, Hashimoto and Liang, ICLR 2020, arXiv 1911.08731, algorithm 1: each step multiplies a group's weight by
    exp(step * its mean loss) and scales the weights to 1; the loss is the weighted sum. As there, groups are drawn
    equally often (`CueBalancedData`). Simplified: no adjustment for the size of groups, and the weight decay of all.
    A group that a batch lacks has the loss 0 in it. In evaluation the mean over pictures.

    Args:
        cues: which picture of the table of samples shows the cue, 0 or 1, (N,).
    """

    def __init__(self, cues: Tensor) -> None:
        super().__init__()
        self.cues = nn.Buffer(cues, persistent=False)
        self.weights = nn.Buffer(torch.full((4,), 0.25))  # of 2 * label + cue

    def forward(self, output: GainOutput, batch: Batch, weights: Any) -> dict[str, Tensor]:
        """Terms ``cls``, the mean over pictures, and ``total``."""
        losses = F.cross_entropy(output.logits.float(), batch.labels, reduction="none")
        if not self.training:
            return {"cls": losses.mean(), "total": losses.mean()}
        member = F.one_hot(2 * batch.labels + self.cues[batch.index], 4).float()  # (B, 4)
        means = losses @ member / member.sum(0).clamp_min(1)
        raised = self.weights * (STEP * means.detach()).exp()
        self.weights = raised / raised.sum()
        return {"cls": losses.mean(), "total": self.weights @ means}


class CueBalancedData(GainDataModule):
    """The data module that shows every group label x cue equally often, in epochs of the same length."""

    @cached_property
    def cues(self) -> Tensor:
        """Which picture shows the planted cue, int64 (N,); `DataError` where the data does not record it."""
        root = self.settings.data_root
        table = pd.read_csv(path) if (path := root / "samples.csv").is_file() else pd.DataFrame()
        column = next((name for name in ("has_cue", "has_shortcut") if name in table), None)
        known = {} if column is None else dict(zip(table["image"], table[column]))
        cues = [known.get(Path(os.path.relpath(image, root)).as_posix()) for image in self.dataset.paths]
        if None in cues or not any(cues):
            missing = f"{path}: does not tell which pictures show a cue, and group_dro must know it"
            raise DataError(f"{missing}; plant one: gainmtl data plant SOURCE {root} --cue mark")
        return torch.tensor(cues, dtype=torch.int64)

    def train_dataloader(self) -> DataLoader[Batch]:
        """As of `GainDataModule`, by `GroupSampler`."""
        _ = self.counterfactuals  # in place before workers copy the dataset
        its, rows = self.settings, self.shown_rows
        groups = (2 * self.dataset.labels + self.cues)[rows].numpy()
        sampler = GroupSampler(rows, groups, seed=its.seed, epochs=its.num_epochs)
        last_alone = len(rows) % its.batch_size == 1 < its.batch_size
        return whole_batches(self.dataset, sampler, its.batch_size, its.num_workers, its.seed, drop_last=last_alone)


class GroupSampler(EpochSampler):
    """As many rows as there are, drawn with replacement, each group equally likely.

    A row that comes again in an epoch is augmented anew, as in an epoch after the last.
    """

    def __init__(self, rows: Sequence[int], groups: NDArray, *, seed: int, epochs: int) -> None:
        super().__init__(rows, seed=seed)
        odds = 1 / np.bincount(groups)[groups]
        self.odds, self.epochs = odds / odds.sum(), epochs

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng, shown = np.random.default_rng([self.seed, self.epoch]), Counter[int]()
        for row in rng.choice(self.rows, len(self.rows), p=self.odds).tolist():
            yield self.epoch + self.epochs * shown[row], row
            shown[row] += 1


# --- A U-Net


class UNet(nn.Module):
    """The U-Net of segmentation-models-pytorch on the same encoder; the maximum of its map is the margin.

    What a practitioner would take (Ronneberger et al. 2015; the library's decoder as it comes). The encoder has the
    weights, and the frozen levels, of `get_backbone`. `ModelError` where the package is missing.
    """

    calibration = GAINMTLModel.calibration
    types = None  # it names none

    def __init__(self, settings: Settings, *, pretrained: bool | str | Path) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch import Unet
        except ModuleNotFoundError:
            told = "method 'unet' needs the package segmentation-models-pytorch, which is missing"
            raise ModelError(f"{told}; pip install segmentation-models-pytorch") from None
        arch, frozen = settings.backbone_arch, settings.freeze_backbone_stages
        source = get_backbone(arch, pretrained, (1, 2, 3, 4), use_mmpretrain=False, frozen_stages=frozen)
        self.network = Unet(f"tu-{TIMM_NAMES.get(arch, arch).partition('.')[0]}", encoder_weights=None, classes=1)
        _fill_encoder(self.backbone, source, arch)
        self.mean, self.std = (nn.Buffer(torch.tensor(own).view(1, 3, 1, 1)) for own in (source.mean, source.std))
        self.strategy, self.mask_source = settings.strategy, settings.mask_source
        self.train()

    @property
    def backbone(self) -> Any:
        """The encoder, with the ``provider``, ``weights`` and ``depthwise`` of a `Backbone`."""
        return self.network.encoder

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, batch norms of frozen levels apart."""
        super().train(mode)
        for norm in self.backbone.modules():
            if isinstance(norm, _BatchNorm) and not norm.weight.requires_grad:
                norm.eval()
        return self

    def forward(self, images: Tensor, masks: Tensor | None = None, **_: Any) -> GainOutput:
        """The record of RGB images in [0, 1], (B, 3, H, W); ``cam`` is the map at full resolution, in logits."""
        map_logits = self.network((images - self.mean) / self.std).float()  # (B, 1, H, W)
        margin = map_logits.amax((1, 2, 3))
        logits = torch.stack([-margin, margin], dim=1) / 2
        said = {"cam": map_logits, "cls_cam": map_logits, "localization_logits": map_logits}
        return GainOutput(logits=logits, cls_logits=logits, localization_map=map_logits.sigmoid(), **said)


def _fill_encoder(encoder: Any, source: Any, arch: str) -> None:
    """Give smp's encoder, timm's network without its head, the tensors of our backbone and what is frozen there."""
    state, parameters = source.net.state_dict(), dict(source.net.named_parameters())
    if strange := set(encoder.model.state_dict()) - set(state):
        raise ModelError(f"method 'unet': the encoder for '{arch}' names its layers otherwise, first {min(strange)}")
    encoder.model.load_state_dict({name: state[name] for name in encoder.model.state_dict()})
    for name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)
    encoder.provider, encoder.weights, encoder.depthwise = source.provider, source.weights, source.depthwise


class PixelLoss(nn.Module):
    """Dice + BCE of the map, on annotated defects and on normal pictures, whose Dice is a constant."""

    def forward(self, output: GainOutput, batch: Batch, weights: Any) -> dict[str, Tensor]:
        """Terms ``loc`` and ``total``, which are the same."""
        known = annotated_defects(batch) | (batch.labels == 0)
        loss = localization_loss(output.cam, batch.masks, known)
        return {"loc": loss, "total": loss}
