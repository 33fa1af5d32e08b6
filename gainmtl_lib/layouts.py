"""Folder layouts of data sets: which pictures there are, their labels, and which file is whose mask."""

import re
import unicodedata
from collections import ChainMap, Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gainmtl_lib.annotations import NO_RUNS, MaskFiles, read_csv, read_labelme, read_mask
from gainmtl_lib.findings import DataError, Finding, Level, reported
from gainmtl_lib.pictures import IMAGE_SUFFIXES, image_files, is_data

SPLITS = ("train", "val", "test", "test_shift")
TEST_SPLITS = SPLITS[2:]
CLASS_NAMES = NORMAL, DEFECTIVE = "normal", "defective"


class Row(NamedTuple):
    """One image; `split` is None where the layout does not say, `group` where the reader does not know."""

    image: Path
    label: int
    mask: MaskFiles | None = None  # several are joined by `with_labels`
    defect_type: str = NORMAL
    group: str | None = None
    split: str | None = None


# --- Names


def folders_in(folder: Path) -> list[Path]:
    """Folders right below one, sorted, less those that `files_below` leaves out."""
    return sorted(path for path in folder.glob("*/") if is_data(path.name))


def folded(name: str) -> str:
    """A name that is the same in any case and Unicode form: macOS stores Hangul and accents decomposed."""
    return unicodedata.normalize("NFC", name).casefold()


def below(folder: Path, *names: str) -> Path:
    """A place below a folder, its names in any case and Unicode form; as it is named here where there is none."""
    for name in names:
        place = folder / name
        if not place.exists() and folder.is_dir():
            place = next((one for one in sorted(folder.iterdir()) if folded(one.name) == folded(name)), place)
        folder = place
    return folder


def key_of(path: Path, folder: Path) -> str:
    """A file's path below a folder without suffix, composed."""
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


# --- What belongs to which picture

MASK_SUFFIXES = (
    "_mask", "_masks", "_gt", "_label", "_labels", "_seg", "_segmentation", "_annotation", "_groundtruth",
    "_ground_truth", "-mask", "-gt", "-label", ".mask", ".gt", ".label", " mask", "mask", "(mask)", " (mask)", "_bin",
    "_binary", "_segmap",
)  # fmt: skip
MASK_PREFIXES = ("mask_", "gt_", "label_", "seg_", "mask-", "gt-")
MASK_FOLDERS = {"mask", "masks", "gt", "ground_truth", "groundtruth", "annotations"}  # amid pictures
NUMBER = re.compile(r"(?P<between>[-_. ]?)\(?\d+\)?$")  # of one of a picture's masks: x_1, x_mask2, x (3)


Masks = dict[str, MaskFiles]  # by the key of their picture


@dataclass
class Scan:
    """A data set's folder as a layout's reader looks at it, and what it has to say of it.

    Args:
        root: the folder.
        mask_suffix: what a mask's name has behind its picture's; empty for `MASK_SUFFIXES`, none at all besides.
    """

    root: Path
    mask_suffix: str = ""
    findings: list[Finding] = field(default_factory=list)
    read: set[Path] = field(default_factory=set)  # what no row has although it is known, as masks of normal pictures

    def report(self, level: Level, path: Path, message: str) -> None:
        """Say something of a file or folder."""
        self.findings.append(Finding(level, str(path), message))

    def keyed(self, folder: Path, suffixes: set[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
        """Files by `key_of`; two files of one key are an error."""
        files: dict[str, Path] = {}
        for path in image_files(folder, suffixes):
            key = key_of(path, folder)
            if key in files:
                self.report(
                    "error", path, f"has the same stem as {files[key]}, so that a mask cannot be told; rename one"
                )
            files.setdefault(key, path)
        return files

    def pictures(self, folder: Path) -> tuple[dict[str, Path], Masks]:
        """Pictures by key, and by the same key the masks that lie beside them: ``x_mask.png`` beside ``x.png``.

        Or in a folder amid them, ``masks/x.png``.
        """
        files, beside = self.keyed(folder), dict[str, list[Path]]()
        keys = {folded(key): key for key in files}
        for key in files:
            *folders, name = key.split("/")
            apart = [folder for folder in folders if folder.lower() not in MASK_FOLDERS]
            names = [*self._stems(key), *self._numbered_stems(key, beside=True)]
            if apart != folders:
                amid = "/".join([*apart, name])
                names = [*self._stems(amid), *self._numbered_stems(amid), *names]
            names = [stem for stem in names if folded(stem) != folded(key)]
            if owner := _first(names, files, keys):
                beside.setdefault(owner, []).append(files[key])
        masks = [path for paths in beside.values() for path in paths]
        if masks:
            told = f"{len(masks)} files, such as {masks[0].name}, are masks of the pictures beside them"
            self.report("info", folder, told)
        self.read |= {*masks}
        pictures = {key: path for key, path in files.items() if path not in self.read}
        self._report_likely_masks(pictures)
        return pictures, {key: _one_or_several(paths) for key, paths in beside.items()}

    def _report_likely_masks(self, pictures: Mapping[str, Path]) -> None:
        """Pictures whose names are others' with one and the same ending: masks, or copies."""
        endings: Counter[str] = Counter()
        for key in pictures:
            starts = (key[:length] for length in range(len(key) - 1, 0, -1))
            if start := next((start for start in starts if start in pictures), None):
                endings[key[len(start) :]] += 1
        for ending, count in endings.most_common(1):
            if count >= max(3, (len(pictures) - count) / 2) and re.search(r"[^\W\d_]", ending):
                path = next(path for key, path in pictures.items() if key.endswith(ending))
                told = f"{count} of {len(pictures)} pictures have another's name with {ending!r} behind it"
                advice = f"if they are masks, set mask_suffix: '{ending}'; if they are copies, set group_pattern"
                self.report("warning", path, f"{told}; {advice}")

    def masks(self, images: Mapping[str, Path], folder: Path) -> Masks:
        """The mask of each image key in a folder: of the same key, or with a suffix behind it, in any case.

        Numbered ones, ``x_1`` and ``x_2`` or ``x_mask1`` of the picture ``x``, are several.
        """
        found, lost = self.matched(images, folder)
        several, keys = dict[str, list[Path]](), {folded(key): key for key in images}
        for name in tuple(lost):
            if key := _first(self._numbered_stems(name), images, keys):
                several.setdefault(key, [found[key]] if key in found else []).append(lost.pop(name))
        if several:
            example = next(iter(several.values()))[-1].name
            self.report(
                "info", folder, f"{len(several)} pictures have numbered masks, such as {example}; they are joined"
            )
        self.report_lost(lost, images)
        return {**found, **{key: _one_or_several(paths) for key, paths in several.items()}}

    def matched(
        self, images: Mapping[str, Path], folder: Path, suffixes: set[str] = IMAGE_SUFFIXES
    ) -> tuple[dict[str, Path], dict[str, Path]]:
        """The one file of each image key, as `masks` finds it, and by their own key those that are of no image."""
        found, lost, keys = dict[str, Path](), dict[str, Path](), {folded(key): key for key in images}
        alone = Counter(folded(key.rpartition("/")[2]) for key in images)  # names that say enough without a folder
        keys |= {name: key for key in images if alone[name := folded(key.rpartition("/")[2])] == 1}
        for name, path in self.keyed(folder, suffixes).items():
            if (key := _first(self._stems(name), images, keys)) is None:
                lost[name] = path
            elif key in found:
                self.report("error", path, f"is a second mask of {images[key]} besides {found[key]}")
            else:
                found[key] = path
        return found, lost

    def _numbered_stems(self, name: str, *, beside: bool = False) -> list[str]:
        """As `_stems`, of a mask that is one of several: its number stands behind its picture's name or the suffix, or
        it lies in a folder of its picture's name.

        Beside pictures, which are often numbered themselves, a suffix must be there.
        """
        stems = [name.rpartition("/")[0]] if "/" in name and not beside else []
        for place, one in enumerate(self._stems(name)):
            if number := NUMBER.search(one):
                bare = self._stems(one[: number.start()])
                stems += bare if number["between"] and not (beside and place == 0) else bare[1:]
        return stems

    def _stems(self, name: str) -> list[str]:
        """Names of the pictures that a mask of this name can belong to, likeliest first."""
        endings = (unicodedata.normalize("NFC", self.mask_suffix),) if self.mask_suffix else MASK_SUFFIXES
        folders, slash, own = name.rpartition("/")
        stems = [name, *(name[: -len(end)] for end in endings if own.casefold().endswith(end.casefold()))]
        if not self.mask_suffix:
            starts = (start for start in MASK_PREFIXES if own.casefold().startswith(start))
            stems += [folders + slash + own[len(start) :] for start in starts]
        for one in tuple(stems):
            if Path(one).suffix.lower() in IMAGE_SUFFIXES:  # x.png.png, x.jpg.png or x.jpg_mask.png
                stems += [stem for stem in self._stems(one[: -len(Path(one).suffix)]) if stem not in stems]
        return stems

    def report_lost(self, lost: dict[str, Path], images: Iterable[str]) -> None:
        """Masks without an image: a line for those that have something in common before or behind a picture's name."""
        patterns, keys = dict[tuple[str, str], list[Path]](), {folded(key) for key in images}
        for name, path in lost.items():
            folders, slash, stem = name.casefold().rpartition("/")
            for length, start in ((k, i) for k in range(len(stem) - 1, 0, -1) for i in range(len(stem) - k + 1)):
                if folders + slash + stem[start : start + length] in keys:
                    patterns.setdefault((stem[:start], stem[start + length :]), []).append(path)
                    break
        told: list[Path] = []
        for (before, behind), paths in sorted(patterns.items(), key=lambda one: -len(one[1])):
            if len(paths) > 1:
                how = f"'{behind}' behind it; set mask_suffix: '{behind}'"
                if before:
                    how = f"'{before}' before{f' and {behind!r} behind' * bool(behind)} it; rename them"
                what = f"{len(paths)} of {len(lost)} masks without an image, such as {paths[0].name}"
                self.report("warning", paths[0].parent, f"{what}, have a picture's name with {how}")
                told += paths
        rest = [path for path in lost.values() if path not in {*told}]
        if len(rest) > 3:
            example = next(iter(sorted(keys)), "")
            named = f"{len(rest)} masks without an image, such as {rest[0].name}; a picture is named {example}"
            self.report("warning", rest[0].parent, f"{named}; expected its name, with mask_suffix behind it")
        for path in rest if len(rest) <= 3 else ():
            self.report("warning", path, "mask without an image; it is not used")


def _first(stems: Sequence[str], images: Mapping[str, Path], keys: Mapping[str, str]) -> str | None:
    """The first of some names that is an image's key, else the first that is one of `keys`, which are `folded`."""
    exact = next((stem for stem in stems if stem in images), None)
    return exact or next((keys[folded(stem)] for stem in stems if folded(stem) in keys), None)


def _one_or_several(paths: Sequence[Path]) -> MaskFiles:
    return paths[0] if len(paths) == 1 else tuple(paths)


# --- The layouts


def scan_generic(scan: Scan) -> Iterator[Row]:
    """``images/<split>/{normal,defective}`` and ``masks/defective`` or ``masks/<split>/defective``.

    Subfolders of ``defective`` name defect types. A mask may lie beside its picture, too.
    """
    images, all_masks = below(scan.root, "images"), _masks_folder(scan.root)
    for folder, expected in ((images, SPLITS), *((below(images, split), CLASS_NAMES) for split in SPLITS)):
        for other in folders_in(folder):  # pictures there would be left out without a word
            if folded(other.name) not in expected and image_files(other):
                scan.report("warning", other, f"folder is not read; expected one of {', '.join(expected)}")
    masks = {split: _of_defective(below(all_masks, split)) for split in SPLITS}
    shared_folder = below(all_masks, DEFECTIVE) if any(map(Path.is_dir, masks.values())) else _of_defective(all_masks)
    found = {split: scan.pictures(below(images, split, DEFECTIVE)) for split in SPLITS}
    defective = {split: pictures for split, (pictures, _) in found.items()}
    shared = ChainMap(*(defective[split] for split in SPLITS if not masks[split].is_dir()))  # the first split wins
    shared_masks = scan.masks(shared, shared_folder)
    for split in SPLITS:
        normal, _ = scan.pictures(below(images, split, NORMAL))
        yield from (Row(path, 0, split=split) for path in normal.values())
        own = masks[split].is_dir()
        of_split = scan.masks(defective[split], masks[split]) if own else shared_masks
        for key, path in defective[split].items():
            mask = of_split.get(key)
            kind = key.split("/")[0] if "/" in key else DEFECTIVE
            yield Row(path, 1, mask or found[split][1].get(key), kind, split=split)
            if mask is not None and not own and path != shared[key]:
                clash = f"has the same stem as {shared[key]}, and {mask} can be the mask of only one"
                scan.report("error", path, f"{clash}; use masks/<split>/defective/")


def _masks_folder(root: Path) -> Path:
    places = (below(root, name) for name in ("masks", "mask", "ground_truth", "groundtruth", "gt"))
    return next(filter(Path.is_dir, places), root / "masks")


def _of_defective(masks: Path) -> Path:
    """The folder ``defective`` of masks, or itself where they lie there without it."""
    inner = below(masks, DEFECTIVE)
    return inner if inner.is_dir() else masks


def scan_synthetic(scan: Scan) -> Iterator[Row]:
    """The generic layout, with the defect types that ``samples.csv`` of `make_synthetic` records."""
    table, types = scan.root / "samples.csv", {}
    if table.is_file():
        types = pd.read_csv(table, dtype=str, keep_default_na=False).set_index("image")["defect_type"].to_dict()
    for row in scan_generic(scan):
        yield row._replace(defect_type=types.get(row.image.relative_to(scan.root).as_posix(), row.defect_type))


def scan_mvtec(scan: Scan) -> Iterator[Row]:
    """One category of MVTec AD: ``train/good``, ``test/<defect>``, ``ground_truth/<defect>/*_mask.png``.

    The defects, all in ``test``, get no split, so that `split_samples` can share them; good images keep their folder's.
    """
    for split in ("train", "test"):
        yield from (Row(path, 0, split=split) for path in image_files(below(scan.root, split, "good")))
    for folder in folders_in(below(scan.root, "test")):
        if folded(folder.name) != "good":
            defective = scan.keyed(folder)
            masks = scan.masks(defective, below(scan.root, "ground_truth", folder.name))
            yield from (Row(path, 1, masks.get(key), folder.name) for key, path in defective.items())


def scan_mvtec_loco(scan: Scan) -> Iterator[Row]:
    """One category of MVTec LOCO AD: as MVTec AD, with ``validation/good``, and a folder of masks for each picture.

    The good pictures of ``validation`` count as training ones: a validation needs defects besides.
    """
    for name in ("train", "validation", "test"):
        split = "test" if name == "test" else "train"
        yield from (Row(path, 0, split=split) for path in image_files(below(scan.root, name, "good")))
    for folder in folders_in(below(scan.root, "test")):
        for path in image_files(folder) if folded(folder.name) != "good" else ():
            of_picture = below(scan.root, "ground_truth", folder.name, path.stem)
            if not (masks := image_files(of_picture)):
                scan.report("warning", path, f"has no folder of masks; expected {of_picture}")
            yield Row(path, 1, _one_or_several(masks) if masks else None, folder.name)


def scan_mvtec_ad2(scan: Scan) -> Iterator[Row]:
    """One category of MVTec AD 2: ``train/good``, ``validation/good``, ``test_public/{good,bad,ground_truth/bad}``.

    Pictures of one number show one object under several lights: a group. The private tests have no labels.
    """
    private = [path for name in ("test_private", "test_private_mixed") for path in image_files(scan.root / name)]
    scan.read |= {*private}
    if private:
        scan.report(
            "info", scan.root, f"{len(private)} pictures of the private tests are left out: their labels are not public"
        )
    public = scan.root / "test_public"
    for folder, split in ((scan.root / "train", "train"), (scan.root / "validation", "train"), (public, "test")):
        for path in image_files(folder / "good"):
            yield Row(path, 0, group=f"{folder.name}/good/{path.stem.split('_')[0]}", split=split)
    defective = scan.keyed(public / "bad")
    masks = scan.masks(defective, public / "ground_truth" / "bad")
    for key, path in defective.items():
        yield Row(path, 1, masks.get(key), "bad", group=f"test_public/bad/{path.stem.split('_')[0]}")


def scan_visa(scan: Scan) -> Iterator[Row]:
    """One object of VisA: ``Data/Images/{Normal,Anomaly}``, ``Data/Masks/Anomaly``, and ``../split_csv/1cls.csv``.

    That table says which normal pictures are of the training; the anomalies, all in its test, get no split.
    ``image_anno.csv`` names their types.
    """
    root, images = scan.root, scan.root / "Data" / "Images"
    if not images.is_dir():
        return
    splits, kinds = _visa_table(root.parent / "split_csv" / "1cls.csv", "split"), {}
    if (root / "image_anno.csv").is_file():
        kinds = _visa_table(root / "image_anno.csv", "label")
    for path in image_files(images / "Normal"):
        split = splits.get(path.relative_to(root.parent).as_posix())
        if split not in ("train", "test"):
            scan.report("error", path, f"is not in {root.parent / 'split_csv' / '1cls.csv'}, which says its split")
        yield Row(path, 0, split=split)
    defective = scan.keyed(images / "Anomaly")
    masks = scan.masks(defective, root / "Data" / "Masks" / "Anomaly")
    for key, path in defective.items():
        kind = kinds.get(path.relative_to(root.parent).as_posix(), DEFECTIVE)
        yield Row(path, 1, masks.get(key), DEFECTIVE if kind == "anomaly" else kind)


def _visa_table(file: Path, column: str) -> dict[str, str]:
    table = read_csv(file)
    if not {"image", column} <= {*table.columns}:
        raise DataError(f"{file}: expected the columns image and {column}, found {', '.join(table.columns[:8])}")
    return dict(zip(table["image"], table[column], strict=True))


def scan_dagm(scan: Scan) -> Iterator[Row]:
    """DAGM 2007: ``Class<k>/{Train,Test}/<n>.PNG``, and ``Label/<n>_label.PNG`` of the defective ones.

    `root` holds the classes, which name the defect types, or is one of them. Labels are ellipses around the defect.
    """
    classes = [scan.root] if (scan.root / "Train").is_dir() else folders_in(scan.root)
    for folder in classes:
        for split in ("Train", "Test"):
            pictures = {key: path for key, path in scan.keyed(folder / split).items() if "/" not in key}
            masks = scan.masks(pictures, folder / split / "Label")
            _check_dagm(scan, folder / split / "Label" / "Labels.txt", masks)
            for key, path in pictures.items():
                of_class = (1, masks[key], folder.name.lower()) if key in masks else (0, None, NORMAL)
                yield Row(path, *of_class, split=split.lower())


def _check_dagm(scan: Scan, file: Path, masks: Masks) -> None:
    """That the labels are those that their list has: without one a defective picture would count as normal."""
    if not file.is_file():
        return
    listed = {*re.findall(r"(\w+)_label\.png", file.read_text(encoding="utf-8", errors="replace"), re.IGNORECASE)}
    if not listed:
        return
    for stem in sorted(listed - masks.keys()):
        scan.report("error", file.parent, f"has no label of {stem}, and {file.name} lists one")
    for stem in sorted(masks.keys() - listed):
        scan.report("error", file.parent, f"has a label of {stem}, and {file.name} does not")


def scan_kolektor2(scan: Scan) -> Iterator[Row]:
    """KolektorSDD2: ``{train,test}/<n>.png`` and beside each ``<n>_GT.png``, which is black for a normal one."""
    for split in ("train", "test"):
        files = {folded(path.stem): path for path in image_files(below(scan.root, split))}
        for path in (path for stem, path in files.items() if stem.isdigit()):
            if (mask := files.get(f"{path.stem}_gt")) is None:
                named = f"{path.stem}_GT.png"
                scan.report("error", path, f"has no {named} beside it, which says whether it is defective")
                continue
            scan.read.add(mask)
            with reported(scan.findings):
                is_defective = read_mask(mask).any()
                yield Row(path, 1, mask, DEFECTIVE, split=split) if is_defective else Row(path, 0, split=split)


def scan_severstal(scan: Scan) -> Iterator[Row]:
    """Severstal's steel: ``train_images/*.jpg``, ``train.csv`` of run lengths; a picture that it lists is defective.

    The defect type is ``class <k>``, of the first line where there are several.
    """
    file = scan.root / "train.csv"
    table = read_csv(file)
    if "ImageId_ClassId" in table:  # as it was at first: a line of each picture and class
        table[["ImageId", "ClassId"]] = table["ImageId_ClassId"].str.rsplit("_", n=1, expand=True)
    if not {"ImageId", "ClassId", "EncodedPixels"} <= {*table.columns}:
        there = ", ".join(table.columns[:8])
        raise DataError(f"{file}: expected the columns ImageId, ClassId and EncodedPixels, found {there}")
    defects = table[~table["EncodedPixels"].str.strip().isin(NO_RUNS)].drop_duplicates("ImageId")
    kinds = {folded(Path(image).stem): kind for image, kind in zip(defects["ImageId"], defects["ClassId"], strict=True)}
    for path in image_files(scan.root / "train_images"):
        defect = kinds.get(folded(path.stem))
        yield Row(path, 0) if defect is None else Row(path, 1, None, f"class {defect}")


def scan_magnetic_tile(scan: Scan) -> Iterator[Row]:
    """The published folders ``MT_<class>/Imgs/exp<k>_num_<n>.jpg`` with masks ``.png`` beside them; a group is a tile.

    One tile was photographed at up to six exposures, with k rising along the counter n: a new tile starts where n jumps
    by more than 400, or where k stops rising, unless n moved so little that it is mostly the same tile once more.
    """
    shots: list[tuple[int, int, str]] = []
    for folder in (folder for folder in folders_in(scan.root) if folder.name.startswith("MT_")):
        for path in (path for path in image_files(folder / "Imgs") if path.suffix.lower() != ".png"):
            if name := re.fullmatch(r"exp(\d+)_num_(\d+)", path.stem):
                shots.append((int(name[2]), int(name[1]), str(path)))
            else:
                scan.report("error", path, "the name tells no tile; expected exp<k>_num_<n>.jpg")
    tile, last_number, last_exposure = -1, 0, 0
    for number, exposure, path in sorted(shots):
        step = number - last_number
        # Of the 53 neighbouring series within 150 steps, 30 show the same tile; of the 201 further apart, 3 do.
        if tile < 0 or step > 400 or (exposure <= last_exposure and step > 150):
            tile += 1
        last_number, last_exposure = number, exposure
        image, mask = Path(path), Path(path).with_suffix(".png")
        defect = image.parent.parent.name.removeprefix("MT_").lower()
        scan.read.add(mask)  # that of a tile without defects is black
        of_class = (0, None, NORMAL) if defect == "free" else (1, mask if mask.is_file() else None, defect)
        yield Row(image, *of_class, group=f"tile{tile:04d}")


def scan_ball_screw(scan: Scan) -> Iterator[Row]:
    """BSData: ``images/01_<time>_<position>_crop_<k>.jpg`` and ``labels/<stem>.json`` of labelme, its masks.

    A picture whose label file holds shapes is defective, of the type that the first one names. A group is a position on
    the drive, photographed again and again while it wore.
    """
    images = scan.keyed(scan.root / "images")
    masks, lost = scan.matched(images, scan.root / "labels", {".json"})
    scan.report_lost(lost, images)
    of_drive = {key: path for key, path in images.items() if not path.name.startswith("KGT")}
    scan.read |= {*images.values()} - {*of_drive.values()}
    if others := len(images) - len(of_drive):
        why = "another drive, always with pitting and of other sizes: name and size would give the class away"
        scan.report("info", scan.root / "images", f"{others} pictures named KGT… are left out: {why}")
    if of_drive and not of_drive.keys() & masks.keys():  # without a label, each would count as normal
        expected = "expected labels/<stem>.json, of labelme, for the defective ones"
        told = f"holds no label file of any of the {len(of_drive)} pictures; {expected}"
        scan.report("error", scan.root / "labels", told)
    for key, path in of_drive.items():
        if not (name := re.fullmatch(r"01_\d{12}_(\d+_\d+)_crop_\d+", path.stem)):
            expected = "expected 01_<yymmddHHMMSS>_<position>_crop_<k>.jpg"
            scan.report("error", path, f"the name tells no position; {expected}")
            continue
        try:
            kinds = [shape.kind for shape in read_labelme(masks[key])[1]] if key in masks else []
        except DataError as error:
            scan.report("error", masks[key], str(error).removeprefix(f"{masks[key]}: "))
            continue
        yield Row(path, *((1, masks[key], kinds[0]) if kinds else (0, None, NORMAL)), group=name[1])


class Layout(NamedTuple):
    """A layout's reader, and what is particular to it."""

    read: Callable[[Scan], Iterator[Row]]
    expected: str
    labels: str | None = None  # the label file that takes the place of masks
    category: str | None = (
        None  # a folder that each category has, of data that holds several; defects are in test alone
    )


_GENERIC = "images/{train,val,test,test_shift}/{normal,defective}"
LAYOUTS: dict[str, Layout] = {
    "generic": Layout(scan_generic, _GENERIC),
    "mvtec": Layout(scan_mvtec, "train/good, test/<defect> and ground_truth/<defect>", category="train/good"),
    "mvtec_loco": Layout(
        scan_mvtec_loco,
        "train/good, validation/good, test/<type> and ground_truth/<type>/<stem>",
        category="train/good",
    ),
    "mvtec_ad2": Layout(
        scan_mvtec_ad2, "{train,validation}/good and test_public/{good,bad,ground_truth/bad}", category="train/good"
    ),
    "visa": Layout(
        scan_visa, "Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly and ../split_csv/1cls.csv", category="Data/Images"
    ),
    "dagm": Layout(scan_dagm, "Class<k>/{Train,Test} with Label"),
    "kolektor2": Layout(scan_kolektor2, "{train,test}/<n>.png with <n>_GT.png"),
    "severstal": Layout(scan_severstal, "train_images and train.csv", labels="train.csv"),
    "magnetic_tile": Layout(scan_magnetic_tile, "MT_<class>/Imgs/exp<k>_num_<n>.jpg"),
    "ball_screw": Layout(scan_ball_screw, "images/01_<yymmddHHMMSS>_<position>_crop_<k>.jpg and labels/<stem>.json"),
    "synthetic": Layout(scan_synthetic, _GENERIC),
}
"""By `dataset_type`."""


def masks_of(pictures: Sequence[Path]) -> Mapping[Path, MaskFiles]:
    """Pictures that a dataset around them has a mask for, and that mask, told by the folders that they lie in."""
    datasets = set()
    for root, name in {(folder.parent, folder.name) for one in pictures for folder in one.absolute().parents}:
        if name == "images" and (root / "masks").is_dir():
            datasets.add((scan_generic, root))
        if name == "images" and (root / "labels").is_dir():
            datasets.add((scan_ball_screw, root))
        if name == "test" and (root / "ground_truth").is_dir():
            datasets.add((scan_mvtec_loco if any((root / "ground_truth").glob("*/*/")) else scan_mvtec, root))
        if name == "Imgs" and root.name.startswith("MT_"):
            datasets.add((scan_magnetic_tile, root.parent))
    masks = {row.image: row.mask for read, root in datasets for row in read(Scan(root))}
    return {picture: mask for picture in pictures if (mask := masks.get(picture.absolute())) is not None}
