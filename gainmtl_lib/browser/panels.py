"""One picture with one run's map as a drawing and its words: what a browser shows, without the browser.

Sizes: H x W network input, h x w map cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gainmtl_lib.browser.library import GAIN_MTL, MAPS, OpenedRun
from gainmtl_lib.explain import Frame
from gainmtl_lib.figures import Shown, encode, enlarged_share, overlay, with_band
from gainmtl_lib.metrics import MapScale


@dataclass(frozen=True)
class Look:
    """How maps are shown.

    Attributes:
        kind: one of `MAPS`, of which a run shows its own main map in place of another system's; None for the picture
            alone.
        absolute: on the scale fixed on validation; otherwise stretched per image.
        strength: of the overlay, in [0, 1].
        level: draws the contour at this value of the shown scale; None for none.
        outline: draws the annotated defect.
    """

    kind: str | None = GAIN_MTL.main
    absolute: bool = True
    strength: float = 0.7
    level: float | None = 0.5
    outline: bool = True


@dataclass(frozen=True)
class Panel:
    """A drawing as JPEG, and what to say below it: short sentences."""

    jpeg: bytes
    words: tuple[str, ...]


def plain_panel(shown: Shown, *, outline: bool) -> Panel:
    """The picture in its own colours."""
    text = "picture not found" if shown.problem else "picture"
    if outline and shown.mask is not None:
        text += " · outline: annotated defect"
    drawn = overlay(shown.pixels, mask=shown.mask if outline else None)
    return Panel(encode(with_band(drawn, text, bar=False)), (shown.problem,) if shown.problem else ())


def map_panel(opened: OpenedRun, row: int, shown: Shown, look: Look) -> Panel:
    """The picture with a run's map over it; a map that the run lacks is said instead."""
    mask = shown.mask if look.outline else None
    kind = None if look.kind is None else opened.own_kind(look.kind)
    if kind is None or kind not in opened.maps:
        words = () if kind is None else (opened.why_no_map(kind),)
        text = f"{opened.name} · " + ("no map" if kind is None else f"no {MAPS[kind].name}")
        return Panel(encode(with_band(overlay(shown.pixels, mask=mask), text, bar=False)), words)
    values = np.asarray(opened.maps[kind][row], dtype=np.float32)
    scale = opened.scales.get(kind) if look.absolute else None
    size = opened.run.settings.image_size
    frame = Frame.of(shown.size, size, opened.run.settings.resize)
    heat = frame.crop(enlarged_share(values, scale, size))
    drawn = overlay(shown.pixels, heat, strength=look.strength, level=look.level, mask=mask)
    nothing = scale is not None and not bool(scale.finds(values))
    text = f"{MAPS[kind].short} · {'absolute' if scale else 'per-image'} scale" + (
        " · nothing found" if nothing else ""
    )
    words = tuple(_words(opened, row, look, scale, nothing, heat))
    return Panel(encode(with_band(drawn, text, bar=True)), words)


def _words(opened: OpenedRun, row: int, look: Look, scale: MapScale | None, nothing: bool, heat: NDArray) -> list[str]:
    words = []
    if nothing and scale is not None:
        words.append(f"Nothing found: the map stays below {scale.floor:z.2f}, where maps of normal parts end.")
    if look.absolute and scale is None:
        words.append("No absolute scale for this map (it needs a validation split); shown per image.")
    if scale is not None and not scale.separates:
        words.append("This map peaks no higher on defects than on normal parts: it shows only what exceeds the floor.")
    if look.level is not None and not nothing:
        share = (heat >= look.level).mean()
        covered = "Less than 0.1%" if share < 0.001 else f"{share:.1%}"
        above = f"at or above {look.level:.2f}"
        words.append(f"{covered} of the picture is {above} (white line)." if share else f"Nothing is {above}.")
    return words
