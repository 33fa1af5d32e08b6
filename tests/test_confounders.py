"""What else than the defect tells the class: properties made to go with it, and masks of other pictures."""

from datetime import datetime, timedelta

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gainmtl_lib import confounders
from gainmtl_lib.confounders import BOTH, DATE, how_taken, loud, marked, mask_ranks, predictors

SIDE = 64


def surface(number: int, side: int = SIDE) -> np.ndarray:
    grain = np.random.default_rng(number).normal(120, 10, (side, side, 1))
    return cv2.GaussianBlur(grain, (0, 0), 1)[..., None].repeat(3, 2).clip(0, 255).astype(np.uint8)


def pictures(tmp_path, change=lambda pixels, label: pixels, save=lambda label: {}, count=60):
    """`count` pictures, every other one defective, after a change that may go with the label; saved as the label says."""
    rows, taken = [], []
    for number in range(count):
        label = number % 2
        pixels = change(surface(number), label)
        options = {"format": "PNG"} | save(label)
        path = tmp_path / f"{number:03d}.img"
        Image.fromarray(pixels).save(path, **options)
        rows.append({"image": str(path), "label": label, "group": str(number)})
        taken.append(how_taken(str(path), pixels, None))
    return pd.DataFrame(rows), taken


def darker(pixels, label):
    return pixels - np.uint8(20 * label)


def blurred(pixels, label):
    return cv2.GaussianBlur(pixels, (0, 0), 1 + 0.3 * label)


def redder(pixels, label):
    return pixels + np.uint8([6 * label, 0, 0])


def marked_at_a_corner(pixels, label):
    rows, columns = [((0, 4), (0, 4)), ((0, 4), (60, 64)), ((60, 64), (0, 4))][int(pixels[30, 30, 0]) % 3]
    pixels[slice(*rows), slice(*columns)] = np.uint8([90, 90, 90]) if label else pixels[slice(*rows), slice(*columns)]
    return pixels


def camera(label):
    exif = Image.Exif()
    exif[0x0110] = ("A100", "B7")[label]
    exif.get_ifd(0x8769)[0x9003] = f"2024:0{3 + label}:01 10:00:00"
    return {"format": "JPEG", "quality": 95, "exif": exif}


@pytest.mark.parametrize(("name", "options"), [
    ("brightness", {"change": darker}),
    ("sharpness", {"change": blurred}),
    ("colour balance", {"change": redder}),
    ("border", {"change": marked_at_a_corner}),
    ("image size", {"change": lambda pixels, label: pixels[: SIDE - 4 * label]}),
    ("file type", {"save": lambda label: {"format": ("PNG", "JPEG")[label], "quality": 95}}),
    ("file type", {"save": lambda label: {"format": "JPEG", "quality": 92 - 2 * label}}),
    (confounders.BYTES, {"save": lambda label: {"format": "JPEG", "quality": 95 - 20 * label}}),
    ("camera", {"save": camera}),
    ("time of the camera", {"save": camera}),
])  # fmt: skip
def test_a_property_that_goes_with_the_label_is_found_and_said(tmp_path, name, options):
    table = predictors(*pictures(tmp_path, **options))
    assert table.loc[name, "auroc"] > 0.9 > 0.85 > table.loc[name, "high"] and table["auroc"].is_monotonic_decreasing
    said = [sentence for sentence in loud(table) if sentence.startswith(f"{name}: ")]
    assert len(said) == 1 and "alone it predicts the class with AUROC" in said[0] and "(chance: 0." in said[0]


def test_where_nothing_goes_with_the_label_nothing_is_said(tmp_path):
    rows, taken = pictures(tmp_path, count=120)
    table = predictors(rows, taken)
    assert list(loud(table)) == [] and table.loc["file type", "auroc"] == 0.5
    assert (table["low"] <= 0.5).all() and (table["high"] >= 0.5).all()
    assert "camera" not in table.index and "date in the file name" not in table.index
    # Where either class is one group, no group can be held out.
    assert predictors(rows.assign(group=rows["label"].astype(str)), taken)["auroc"].isna().all()


def test_a_defect_does_not_speak_for_the_light_and_a_property_of_groups_is_no_surprise(tmp_path):
    defect = np.zeros((SIDE, SIDE), np.bool_)
    defect[20:30, 20:44] = True
    (rows, taken), dark = pictures(tmp_path), surface(1).copy()
    dark[defect] = 0
    Image.fromarray(dark).save(tmp_path / "dark.png")
    seen, hidden = (how_taken(str(tmp_path / "dark.png"), dark, mask)["brightness"] for mask in (None, defect))
    assert hidden == pytest.approx(how_taken(str(tmp_path / "dark.png"), surface(1), None)["brightness"], abs=0.5)
    assert hidden - seen > 5
    # Six parts, each in its own light: the light tells the part, and so its class, but of no other part.
    parts = np.arange(60) // 10
    rows = rows.assign(group=parts.astype(str), label=parts % 2)
    table = predictors(rows, [one | {"brightness": 100.0 + 7 * part} for one, part in zip(taken, parts)])
    assert table.loc["brightness", "auroc"] == 0.5


def test_the_date_in_the_file_names_may_tell_the_class_until_both_occur():
    def table(names, labels):
        rows = {"image": [f"/data/2020/{name}.jpg" for name in names], "label": labels}
        rows["group"] = [str(number % 10) for number in range(len(names))]
        return predictors(pd.DataFrame(rows), [{"image size": [32, 32, 1.0]}] * len(names))

    days = [f"200{month}{day:02d}" for month in (8, 9) for day in range(1, 31)]
    # Defects from the second month on, with normal pictures among them for ten days.
    labels = [int(day >= "200901" and not (day <= "200910" and number % 2)) for number, day in enumerate(days)]
    found = table([f"01_{day}101500_{number}_cam" for number, day in enumerate(days)], labels)
    assert found.loc["image size", "auroc"] == 0.5 and found.loc[DATE, "auroc"] > 0.9
    assert 0.1 < found.loc[BOTH, "auroc"] < 0.8 and found.loc[DATE, "defective"].startswith("202009")
    assert {*table([f"part{number:06d}" for number in range(60)], labels).index} == {"image size"}
    assert {*table([f"{day}x" for day in days[:50]] + ["undated"] * 10, labels).index} == {"image size"}
    # In any usual form, and with a name among them that holds none.
    for form in ("%Y-%m-%d", "%Y_%m_%d %H.%M", "%d.%m.%Y", "%d-%m-%Y", "IMG_%Y%m%d_%H%M%S", "%y%m%d", "%s", "%s123"):
        times = [datetime(2024, 1, 1, 12) + timedelta(days=number) for number in range(60)]
        seen = table([time.strftime(form) for time in times[:59]] + ["golden"], labels)
        assert seen.loc[DATE, "auroc"] > 0.9 and seen.loc[DATE, "normal"].startswith("20240"), form


def test_neither_a_detailed_defect_nor_a_large_one_counts_as_the_way_a_picture_was_taken(tmp_path):
    """JPEG files of one quality whose defects need more bytes, and masks that leave little of the defective ones."""
    grid = np.hypot(*np.mgrid[-32:32, -32:32])
    for radius, save in ((8, {"format": "JPEG", "quality": 95}), (26, {})):
        rows, taken = pictures(
            tmp_path, lambda pixels, label, r=radius: pixels - np.uint8(45 * label) * (grid < r)[..., None].astype(np.uint8),
            lambda label, save=save: save,
        )  # fmt: skip
        of = [how_taken(path, np.asarray(Image.open(path)), grid < radius) for path in rows["image"]]
        assert list(loud(predictors(rows, of))) == []
        said = list(loud(predictors(rows, taken), unmasked=30))
        assert said and all("30 pictures without a mask" in one for one in said if one.startswith("brightness"))


def test_the_bits_of_colour_pictures_are_told(tmp_path):
    pixels = surface(0).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "16.png"), pixels)
    cv2.imwrite(str(tmp_path / "8.png"), surface(0))
    told = [how_taken(str(tmp_path / name), surface(0), None)["bit depth"] for name in ("8.png", "16.png")]
    assert told == ["RGB", "RGB of 16 bit"]


def test_masks_of_other_pictures_are_told_from_their_own():
    rng, own = np.random.default_rng(0), {}
    for number in range(30):
        pixels, mask = surface(number, 128), np.zeros((128, 128), np.bool_)
        top, left = rng.integers(10, 100, 2)
        mask[top : top + 12, left : left + 12] = True
        pixels[mask] -= 30
        own[f"{number}.png"] = marked(pixels, mask)
    names = list(own)
    others = {name: own[name]._replace(mask=own[names[k - 1]].mask) for k, name in enumerate(names)}
    assert mask_ranks(own).mean() > 0.95
    assert 0.35 < mask_ranks(others).mean() < confounders.PARTICULAR
    assert (mask_ranks(own) > confounders.ODD_AMID_CLEAR).all() and mask_ranks(own).quantile(0.25) > confounders.CLEAR
    swapped = own | {names[3]: others[names[3]]}
    assert mask_ranks(swapped).idxmin() == names[3]
