"""What finished runs left behind, ready to be looked through: tables, maps, pictures, notes. No widgets, no model.

Everything comes from the runs' own files; maps are memory-mapped, so that ten thousand pictures open at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from gainmtl_lib.efficientad.runs import open_run
from gainmtl_lib.evaluation.novelty import stored_novelty
from gainmtl_lib.evaluation.stored import AnyRun, stored_maps, stored_tables
from gainmtl_lib.explain.notes import Notes
from gainmtl_lib.explain.notices import notices
from gainmtl_lib.explain.opened import FLAGS, OpenedRun
from gainmtl_lib.explain.picture_files import PictureFiles, Shown
from gainmtl_lib.explain.systems import MAPS, system_of
from gainmtl_lib.map_scale import MapScale
from gainmtl_lib.runs import Run, RunError

Runs = AnyRun | str | Path | Sequence[AnyRun | str | Path]


class PictureLibrary:
    """Several runs opened side by side, their pictures matched by path.

    Args:
        runs: one or several of either system, as `Run`, `EfficientADRun` or folders.
        data_root: where the pictures lie now, when they moved since the runs were trained; of a category's run its own
            folder, or the one that the categories are in.

    Attributes:
        runs: by name, in the order given.
        notices: what is missing or does not fit, one sentence each.

    Raises:
        RunError: no run was given, one of them is unfinished or not evaluated, or its files do not fit together.
    """

    def __init__(self, runs: Runs, *, data_root: str | Path | None = None) -> None:
        given = [runs] if isinstance(runs, AnyRun | str | Path) else list(runs)
        if not given:
            raise RunError("no run was given; give one or several, such as load_run('outputs/quick/s5/seed42')")
        loaded = [open_run(run) if isinstance(run, str | Path) else run for run in given]
        root = None if data_root is None else Path(data_root).expanduser().absolute()
        self.runs = {name: _open(run, name, root) for name, run in zip(_names(loaded), loaded, strict=True)}
        self.notices = list(notices(list(self.runs.values())))
        self.pictures = PictureFiles()

    def row_beside(self, name: str, image: str) -> int | None:
        """Row of the same picture in another run; None where that run does not have it."""
        return self.runs[name].row_of.get(image)

    def shown(self, name: str, row: int, side: int) -> Shown:
        """A picture with its mask, the longer side `side` pixels."""
        opened = self.runs[name]
        return self.pictures.load(*opened.files(row), side, opened.run.settings.image_size)

    def prefetch(self, name: str, row: int, side: int) -> None:
        """Decode a picture that is likely to be next."""
        opened = self.runs[name]
        self.pictures.prefetch(*opened.files(row), side, opened.run.settings.image_size)

    def thumbnails(self, name: str, rows: Iterable[int]) -> list[bytes]:
        """Small JPEGs of some rows."""
        return self.pictures.thumbnails(self._images(name, rows))

    def prefetch_thumbnails(self, name: str, rows: Iterable[int]) -> None:
        """Decode a page that is likely to be next."""
        self.pictures.prefetch_thumbnails(self._images(name, rows))

    def _images(self, name: str, rows: Iterable[int]) -> list[Path | None]:
        return [self.runs[name].files(row)[0] for row in rows]


def _open(run: AnyRun, name: str, data_root: Path | None) -> OpenedRun:
    table, metrics = stored_tables(run, need_test=False)
    maps = stored_maps(run, len(table))
    system, threshold = system_of(run), float(metrics["threshold"])
    novelty = stored_novelty(run) if isinstance(run, Run) else None
    if novelty is not None:
        table[FLAGS] = novelty.table[FLAGS]
    return OpenedRun(
        name=name,
        run=run,
        system=system,
        root=_root(run, data_root),
        table=table.assign(
            score=table[system.score],
            iou=table[MAPS[system.main].column],
            energy=table[system.energy],
            confidence=system.confidence(table, threshold),
            found=table["verdict"] == "TP",
        ),
        maps={kind: maps[kind] for kind in MAPS if kind in maps},
        scales={kind: MapScale(**scale) for kind, scale in metrics.get("map_scales", {}).items()},
        threshold=threshold,
        notes=Notes(run.folder / "notes.csv"),
        novelty=novelty,
    )


def _root(run: AnyRun, data_root: Path | None) -> Path:
    settings = run.settings
    if data_root is None:
        return settings.dataset_folder
    below = data_root / settings.dataset_folder.relative_to(settings.data_root)
    return below if below.is_dir() else data_root


def _names(runs: Sequence[AnyRun]) -> list[str]:
    """The strategy or system, and as much more as tells the runs apart."""
    names = [system_of(run).name(run) for run in runs]
    for more in (
        lambda run: f"seed {run.settings.seed}",
        lambda run: run.settings.experiment,
        lambda run: str(run.folder),
    ):
        if len(set(names)) == len(names):
            break
        twice = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} {more(run)}" if name in twice else name for name, run in zip(names, runs)]
    if len(set(names)) < len(names):
        raise RunError(f"{runs[0].folder}: the same run was given twice")
    return names
