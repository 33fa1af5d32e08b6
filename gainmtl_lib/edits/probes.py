"""Small networks that tell two sorts of pictures, or of places, apart; trained from scratch within seconds.

Sizes: N pictures, C channels, h x w pixels; h' x w' cells of `CELL` pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gainmtl_lib.dataset import GainDataModule
from gainmtl_lib.edits.counterfactuals import HEALING, ImageCounterfactuals
from gainmtl_lib.edits.heal import Edit, box_of, grown
from gainmtl_lib.readers import DataError
from gainmtl_lib.stats import FEWEST_GROUPS, Estimate, auroc, group_codes, resampled

BATCH = 32
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-3
CELL = 4
WIDTH = 16


class PlaceNetwork(nn.Module):
    """A logit for each cell, from the 17 pixels around it: what stands elsewhere in the picture has no say.

    Args:
        channels: of the input, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _body(channels)
        self.cells = nn.Conv2d(2 * WIDTH, 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape: (N, C, h, w) -> (N, 1, h', w')."""
        return self.cells(self.body(pictures))


class PictureNetwork(nn.Module):
    """A logit for the picture, from mean and maximum of the features over it.

    Args:
        channels: of the input, C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _body(channels)
        self.head = nn.Linear(4 * WIDTH, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Shape: (N, C, h, w) -> (N,)."""
        features = self.body(pictures)
        return self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1))[:, 0]


def _body(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    sizes = (channels, WIDTH, 5, 2), (WIDTH, 2 * WIDTH, 3, 2), (2 * WIDTH, 2 * WIDTH, 3, 1)
    for before, after, size, stride in sizes:
        convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from this seed on, and afterwards as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train_probe(network: nn.Module, count: int, loss_of: Callable[[Tensor, int], Tensor], *, epochs: int) -> nn.Module:
    """Fit a network; call it within `seeded`.

    Args:
        network: fresh.
        count: pictures to train on.
        loss_of: loss of a batch, given its places 0 … count - 1 and how it is turned (see `turned`).
        epochs: passes over the pictures.

    Returns:
        The network, in evaluation mode.
    """
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(count).split(BATCH):
            loss = loss_of(chosen, int(torch.randint(8, ())))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def answers(network: nn.Module, pictures: Tensor) -> Tensor:
    """What the network says of each picture."""
    return torch.cat([network(part) for part in pictures.split(2 * BATCH)])


def largest(cells: Tensor, where: Tensor) -> Tensor:
    """The largest logit of each picture among some of its cells, (N,).

    Args:
        cells: (N, 1, h', w').
        where: 0 or 1, same shape; at least one 1 in each.
    """
    return cells.masked_fill(where < 0.5, -torch.inf).amax((1, 2, 3))


def cells_of(regions: Tensor) -> Tensor:
    """The cells that a region (N, 1, h, w) touches, (N, 1, h', w')."""
    return F.max_pool2d(regions, CELL, ceil_mode=True)


def turned(pictures: Tensor, turn: int) -> Tensor:
    """Pictures (N, C, h, w) turned by `turn % 4` quarters, mirrored from 4 on; oblong ones by half turns only."""
    quarters = turn % 4 if pictures.shape[2] == pictures.shape[3] else 2 * (turn % 2)
    pictures = pictures.rot90(quarters, (2, 3))
    return (pictures.flip(3) if turn >= 4 else pictures).contiguous(memory_format=torch.channels_last)


# --- Pictures before and after their edits, in two halves that share no picture.


WINDOW = 128
PICTURES = 400
ROUNDS = 3
STREAM = 11
"""Sets the draw of the halves apart from the edits'."""


@dataclass(frozen=True)
class EditPair:
    """One place of one picture, before and after an edit.

    Attributes:
        before: RGB uint8 (h, w, 3).
        after: RGB uint8 (h, w, 3).
        region: pixels that the edit may have changed, (h, w).
        label_before: 0 normal, 1 defective.
        label: after the edit.
        kind: see `Edit`.
        method: see `Edit`.
        group: code of the part that the picture shows.
        held_out: whether the pair belongs to the half that a probe is judged on.
    """

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    region: NDArray[np.bool_]
    label_before: int
    label: int
    kind: str
    method: str
    group: int
    held_out: bool

    @property
    def clean_before(self) -> bool:
        """Whether the region showed no defect before the edit."""
        return self.kind not in ("heal", "repaste")

    @property
    def clean(self) -> bool:
        """Whether the region shows no defect after the edit."""
        return self.kind not in ("paste", "repaste")


def edit_pair(before: NDArray[np.uint8], edit: Edit, *, label_before: int, group: int, held_out: bool) -> EditPair:
    """The window around the edit's region, from the picture before (H, W, 3) and after."""
    window = _window(edit.region)
    return EditPair(
        before[window].copy(),
        edit.image[window].copy(),
        edit.region[window].copy(),
        label_before,
        edit.label,
        edit.kind,
        edit.method,
        group,
        held_out,
    )


def draw_pairs(
    data: GainDataModule, *, seed: int = 0, pictures: int = PICTURES, rounds: int = ROUNDS
) -> list[EditPair]:
    """Edits of training pictures as S7 draws them, every picture edited once a round; no test picture is touched.

    The pictures fall into two halves by part. Each half is edited by itself, so that donors and sources of patches come
    from the same half too.

    Args:
        data: set up; `image_counterfactual` of its own is not needed.
        seed: of the halves and of the edits.
        pictures: at most as many are taken, with the classes in proportion.
        rounds: edits of each picture.

    Raises:
        DataError: a half lacks a class or annotated defects: the training split is too small.
    """
    dataset = data.dataset
    labels, annotated = dataset.labels.numpy(), dataset.has_mask.numpy()
    groups = group_codes(data.samples)
    pairs = []
    for held_out, rows in enumerate(_halves(data.rows("train"), labels, groups, pictures=pictures, seed=seed)):
        try:
            edits = ImageCounterfactuals(
                labels=labels, annotated=annotated, rows=rows, picture=dataset.stored, share=1.0, seed=seed
            )
        except DataError as error:
            few = f"half of the training pictures ({len(rows)}) are too few to probe edits"
            raise DataError(f"{few}: {error}") from None
        for drawn in (edits.draw(round_, row) for round_ in range(rounds) for row in rows):
            if drawn is not None and drawn.edit is not None:
                before = dataset.stored(drawn.row).image
                told = {"label_before": int(labels[drawn.row]), "group": int(groups[drawn.row])}
                pairs.append(edit_pair(before, drawn.edit, held_out=bool(held_out), **told))
    return pairs


def halves(pairs: Sequence[EditPair], *, both_labels: bool = False) -> tuple[list[EditPair], list[EditPair]]:
    """Pairs to train on, and those held out.

    Args:
        pairs: of both halves.
        both_labels: whether either half must hold both labels after the edits.

    Raises:
        DataError: a half is empty, or lacks a label.
    """
    train, test = ([pair for pair in pairs if pair.held_out == held_out] for held_out in (False, True))
    if not train or not test:
        raise DataError(f"a probe needs edits in both halves, got {len(train)} to train on and {len(test)} held out")
    for name, half in (("to train on", train), ("held out", test)):
        if both_labels and len({pair.label for pair in half}) < 2:
            raise DataError(f"all {len(half)} edits {name} have label {half[0].label}; the probe needs both labels")
    return train, test


def _halves(
    rows: Sequence[int], labels: NDArray, groups: NDArray, *, pictures: int, seed: int
) -> tuple[list[int], list[int]]:
    """Rows of either half; parts are dealt out in turn, those with a defect and those without apart."""
    rng = np.random.default_rng([seed, STREAM])
    share = min(1.0, pictures / max(1, len(rows)))
    halves: tuple[list[int], list[int]] = ([], [])
    defective = {int(groups[row]) for row in rows if labels[row] == 1}
    for wanted in (True, False):
        parts = [part for part in dict.fromkeys(groups[list(rows)].tolist()) if (part in defective) == wanted]
        order = rng.permutation(len(parts))[: round(share * len(parts))]
        side = {parts[place]: number % 2 for number, place in enumerate(order)}
        for row in rows:
            if (half := side.get(int(groups[row]))) is not None:
                halves[half].append(row)
    return halves


def _window(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Up to `WINDOW` pixels a side around the middle of the region's box, as far as the picture allows.

    Around the region's pixel nearest to it where the box is larger: a region may be hollow or in pieces.
    """
    box = box_of(region)
    middle = np.array([(side.start + side.stop) // 2 for side in box])
    if max(side.stop - side.start for side in box) > WINDOW:
        places = np.argwhere(region)
        middle = places[((places - middle) ** 2).sum(1).argmin()]
    sizes = [min(length, WINDOW) for length in region.shape]
    starts = np.clip(middle - np.array(sizes) // 2, 0, np.array(region.shape) - sizes)
    rows, columns = (slice(int(start), int(start) + size) for start, size in zip(starts, sizes, strict=True))
    return rows, columns


# --- What a probe found


@dataclass(frozen=True)
class ProbeResult:
    """Answer of a probe.

    Attributes:
        auroc: on the held-out pictures, with its interval by part; 0.5 is guessing.
        table: the same by kind and by method of the edit: ``of`` (all, kind, method), ``name``, ``edits``, ``auroc``,
            ``low`` and ``high``, the latter two NaN where too few parts are there.
        trained_on: pictures that the probe learnt from.
        question: what it was asked, ``edited`` or ``class from the border``.
    """

    auroc: Estimate
    table: pd.DataFrame
    trained_on: int
    question: str

    @property
    def finds(self) -> bool:
        """Whether the interval lies above 0.5; an AUROC of 1, whose resamples are all 1, has no other."""
        low = self.auroc.low if self.auroc.has_interval else self.auroc.value if self.auroc.value == 1 else 0.0
        return low > 0.5 and not self.too_few

    @property
    def too_few(self) -> bool:
        """Whether the held-out pictures show too few parts to say anything."""
        return self.auroc.groups < FEWEST_GROUPS

    @property
    def sentence(self) -> str:
        """The number in words, whichever way it came out."""
        if self.too_few:
            return f"{TOO_FEW[self.question]}: {self.auroc.groups} held-out parts, AUROC {self.auroc.value:.2f}."
        return _SENTENCES[self.question, self.finds].format(number=told(self.auroc))


TOO_FEW = {
    "edited": "Too few pictures to say whether edits can be told from what was there before",
    "class from the border": "Too few pictures to say whether the border of an edit tells the class",
}
_SENTENCES = {
    ("edited", True): (
        "Shown the place, a small network tells edits from what was there before, AUROC {number}, where 0.5 is "
        "guessing: edits leave traces. They mislead only where they go along with the class, which the probe of the "
        "border asks."
    ),
    ("edited", False): (
        "Shown the place, a small network tells edits from what was there before no better than by guessing, AUROC "
        "{number}. A larger one, or one trained for longer, may."
    ),
    ("class from the border", True): (
        "A small network tells the class from the border of an edit, AUROC {number}, where 0.5 is guessing: to that "
        "extent the border can stand in for the defect in training."
    ),
    ("class from the border", False): (
        "A small network tells the class from the border of an edit no better than by guessing, AUROC {number}."
    ),
}


def told(estimate: Estimate) -> str:
    """``0.53 (95 % interval 0.47 to 0.59)``, or the number alone where it has none."""
    interval = f" (95 % interval {estimate.low:.2f} to {estimate.high:.2f})" if estimate.has_interval else ""
    return f"{estimate.value:.2f}{interval}"


def auroc_by_part(labels: NDArray, scores: NDArray, groups: NDArray, *, apart: NDArray | None = None) -> Estimate:
    """AUROC with its interval, the pictures of one part kept together.

    Args:
        labels: 0 or 1, (N,).
        scores: (N,).
        groups: codes, (N,).
        apart: pictures of different values are not compared with each other, (N,); the AUROCs are averaged by how many
            pictures of label 1 they rest on.
    """
    sorts = np.zeros(len(labels), int) if apart is None else apart

    def statistic(chosen: NDArray) -> float:
        return _auroc_apart(labels[chosen], scores[chosen], sorts[chosen])

    # Most parts show pictures of both labels: drawn apart, the few that do not could be too few for an interval.
    return resampled(statistic, groups)


def _auroc_apart(labels: NDArray, scores: NDArray, sorts: NDArray) -> float:
    """NaN where no sort has both labels."""
    selections = [sorts == sort for sort in np.unique(sorts)]
    parts = [(int(labels[chosen].sum()), auroc(labels[chosen], scores[chosen])) for chosen in selections]
    known = [(count, value) for count, value in parts if value == value]
    return sum(count * value for count, value in known) / sum(count for count, _ in known) if known else nan


def score_table(rows: Sequence[tuple[str, str, int, Estimate]]) -> pd.DataFrame:
    """See `ProbeResult.table`; rows are (of, name, edits, estimate)."""
    return pd.DataFrame(
        [(of, name, edits, one.value, one.low, one.high) for of, name, edits, one in rows],
        columns=["of", "name", "edits", "auroc", "low", "high"],
    ).astype({"auroc": np.float64, "low": np.float64, "high": np.float64})


# --- Does the border of an edit tell the class?


VIEW = 64
OUTSIDE = 3
"""Pixels of the ring outside the region."""
INSIDE = 0
"""Pixels of the ring inside the region. A pasted defect fills its region up to the rim: inside, it would be seen."""
EPOCHS = 14
CONTRAST = 0.1


def border_probe(
    pairs: Sequence[EditPair],
    *,
    kinds: Sequence[str] | None = None,
    inside: int = INSIDE,
    seed: int = 0,
    epochs: int = EPOCHS,
) -> ProbeResult:
    """Train a network to tell the label after an edit from a ring around it, and ask it about the other half.

    Everything but the ring is blank, brightness and colour are taken relative to the ring's mean, views are turned and
    mirrored at random, held-out ones every way. What is left is the shape of the region and what lies right beside it,
    such as the remainder of a healed defect. A background that goes along with the class (a planted cue of texture,
    say) shows here too. The table asks within healing and within pasting besides, whose regions differ in width.

    Args:
        pairs: of both halves.
        kinds: of edits; None takes all. ``("heal", "paste")`` is what S7 would be without its controls.
        inside: pixels of the ring that lie within the region.
        seed: of the network.
        epochs: passes over the training half.

    Raises:
        DataError: a half without such edits, or with one label only.
    """
    train, test = halves([pair for pair in pairs if kinds is None or pair.kind in kinds], both_labels=True)
    views, labels = ring_views(train, inside=inside, seed=seed), torch.tensor([float(pair.label) for pair in train])
    with seeded(seed):
        network = PictureNetwork(views.shape[1])

        def loss_of(chosen: Tensor, turn: int) -> Tensor:
            return F.binary_cross_entropy_with_logits(network(turned(views[chosen], turn)), labels[chosen])

        train_probe(network, len(views), loss_of, epochs=epochs)
    held_out = ring_views(test, inside=inside, seed=seed + 1)
    # Every way up, because a network is never quite blind to it, and which one a view has is chance.
    scores = torch.stack([answers(network, turned(held_out, turn)) for turn in range(8)]).mean(0)
    return _result(scores.numpy(), test, len(train))


def _result(scores: NDArray, pairs: Sequence[EditPair], trained_on: int) -> ProbeResult:
    labels, groups, kinds = (np.array([getattr(pair, name) for pair in pairs]) for name in ("label", "group", "kind"))
    healed = np.isin(kinds, HEALING)
    rows = []
    for of, name, chosen in (
        ("all", "all", np.ones(len(pairs), bool)),
        ("family", "healing", healed),
        ("family", "pasting", ~healed),
    ):
        if chosen.any():
            estimate = auroc_by_part(labels[chosen], scores[chosen], groups[chosen])
            rows.append((of, name, int(chosen.sum()), estimate))
    return ProbeResult(rows[0][-1], score_table(rows), trained_on, "class from the border")


def ring_views(pairs: Sequence[EditPair], *, inside: int = INSIDE, seed: int = 0) -> Tensor:
    """Rings and what they show: contrast to the ring's mean in RGB, and the ring itself, float32 (N, 4, 64, 64).

    Args:
        pairs: edits.
        inside: pixels of the ring that lie within the region.
        seed: of the places on the border of regions that are larger than a view.
    """
    rng = np.random.default_rng(seed)
    views = np.stack([_view(pair, inside, rng) for pair in pairs])
    return torch.from_numpy(views).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _view(pair: EditPair, inside: int, rng: np.random.Generator) -> NDArray[np.float32]:
    pad = VIEW // 2
    region = np.pad(pair.region, pad)
    present = np.pad(np.ones_like(pair.region), pad)
    ring = grown(region, OUTSIDE) & ~_shrunk(region, inside) & present  # a border of the picture is no ring
    row, column = _middle(pair.region, rng)
    window = slice(row, row + VIEW), slice(column, column + VIEW)
    ring = ring[window]
    pixels = np.pad(pair.after, ((pad, pad), (pad, pad), (0, 0)))[window].astype(np.float32) / 255
    shown = (pixels - pixels[ring].mean(0)) / CONTRAST if ring.any() else np.zeros_like(pixels)
    return np.dstack([shown, np.ones_like(shown[..., :1])]).astype(np.float32) * ring[..., None]


def _shrunk(region: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    if by < 1:
        return region
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.erode(region.astype(np.uint8), disc).astype(np.bool_)


def _middle(region: NDArray[np.bool_], rng: np.random.Generator) -> tuple[int, int]:
    """The middle of the region's box; where the box is larger than a view, some pixel of the region's border."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if max(np.ptp(rows), np.ptp(columns)) + 2 * OUTSIDE < VIEW:
        return (int(rows[0]) + int(rows[-1])) // 2, (int(columns[0]) + int(columns[-1])) // 2
    border = np.argwhere(region & ~_shrunk(region, 1))
    row, column = border[int(rng.integers(len(border)))]
    return int(row), int(column)


# --- Can edited pictures be told from unedited ones?


EPOCHS_EDITED = 6
GRAIN = 0.03
"""Deviation from the neighbourhood's mean that the network sees as 1; brightness is in [0, 1]."""


def edited_probe(pairs: Sequence[EditPair], *, seed: int = 0, epochs: int = EPOCHS_EDITED) -> ProbeResult:
    """Train a network to tell places after an edit from the same places before, and ask it about the other half.

    It is told where to look, before and after: an edit that it does not find so, it would not find in a whole picture
    either. A kind is compared with unedited places of the same sort, clean ones or defects; otherwise the defect would
    tell. The row `picture` of the table asks about whole pictures, of the edits that leave the label as it is: there
    the picture before and after shows the same defects and the same background.

    Args:
        pairs: of both halves.
        seed: of the network.
        epochs: passes over the training half.

    Raises:
        DataError: a half without pairs.
    """
    train, test = halves(pairs)
    images, regions = network_input(train), _regions(train)
    edited = (torch.arange(len(images)) >= len(train)).float()

    with seeded(seed):
        network = PlaceNetwork(images.shape[1])

        def loss_of(chosen: Tensor, turn: int) -> Tensor:
            cells = network(turned(images[chosen], turn))
            where = cells_of(turned(regions[chosen % len(train)], turn))
            target = edited[chosen]
            found = F.binary_cross_entropy_with_logits(largest(cells, where), target)
            return found + _cell_loss(cells, where * target[:, None, None, None])

        train_probe(network, len(images), loss_of, epochs=epochs)
    return _result_edited(network, test, trained_on=len(images))


def _cell_loss(cells: Tensor, targets: Tensor) -> Tensor:
    """BCE of the cells in which both kinds weigh the same: an edit takes a few of a thousand cells."""
    share = targets.mean().clamp(1e-4, 1 - 1e-4)
    weights = torch.where(targets > 0, 0.5 / share, 0.5 / (1 - share))
    return F.binary_cross_entropy_with_logits(cells, targets, weights)


def network_input(pairs: Sequence[EditPair]) -> Tensor:
    """Pictures before, then after: colours without the picture's own mean, and the grain, (2 N, 6, h, w).

    The grain is what differs from the mean of 3 x 3 pixels: traces of blending and copying lie there.
    """
    pictures = [pair.before for pair in pairs] + [pair.after for pair in pairs]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    grain = images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    colours = (images - images.mean((2, 3), keepdim=True)) / 0.2
    joined = torch.cat([colours, (grain / GRAIN).clamp(-4, 4)], dim=1)
    return joined.contiguous(memory_format=torch.channels_last)


def _regions(pairs: Sequence[EditPair]) -> Tensor:
    return torch.from_numpy(np.stack([pair.region for pair in pairs])).float()[:, None]


def _result_edited(network: nn.Module, pairs: Sequence[EditPair], *, trained_on: int) -> ProbeResult:
    cells, where = answers(network, network_input(pairs)), cells_of(_regions(pairs))
    places = largest(cells, torch.cat([where, where])).numpy()
    pictures = cells.amax((1, 2, 3)).numpy()
    kinds, methods = (np.array([getattr(pair, name) for pair in pairs]) for name in ("kind", "method"))
    same_label = np.array([pair.label == pair.label_before for pair in pairs])
    rows = [("all", "all", len(pairs), _estimate(places, pairs, np.ones(len(pairs), bool)))]
    if same_label.any():
        estimate = _estimate(pictures, pairs, same_label, unedited=same_label)
        rows.append(("picture", "same label", int(same_label.sum()), estimate))
    for of, names in (("kind", kinds), ("method", methods)):
        for name in np.unique(names):
            rows.append((of, str(name), int((names == name).sum()), _estimate(places, pairs, names == name)))
    return ProbeResult(rows[0][-1], score_table(rows), trained_on, "edited")


def _estimate(
    scores: NDArray, pairs: Sequence[EditPair], edited: NDArray[np.bool_], *, unedited: NDArray[np.bool_] | None = None
) -> Estimate:
    """AUROC of some pairs' scores after the edit against others' before, clean places and defects apart.

    Args:
        scores: before, then after, (2 N,).
        pairs: N of them.
        edited: which pairs' pictures after count, (N,).
        unedited: which pairs' pictures before; all when None.
    """
    chosen = np.concatenate([np.ones(len(pairs), bool) if unedited is None else unedited, edited])
    groups = np.tile([pair.group for pair in pairs], 2)[chosen]
    clean = np.array([pair.clean_before for pair in pairs] + [pair.clean for pair in pairs])[chosen]
    after = np.repeat([0, 1], len(pairs))[chosen]
    return auroc_by_part(after, scores[chosen], groups, apart=clean)
