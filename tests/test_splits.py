from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from gainmtl_lib.readers import COLUMNS, DataError, split_samples


def table(rows: list[tuple[str, str, str | None]]) -> pd.DataFrame:
    """Samples from (defect type, group, split)."""
    columns = {
        "image": [f"/data/{number:05d}.png" for number in range(len(rows))],
        "label": [int(kind != "normal") for kind, _, _ in rows],
        "mask": [None] * len(rows),
        "defect_type": [kind for kind, _, _ in rows],
        "group": [group for _, group, _ in rows],
        "split": [split for _, _, split in rows],
    }
    return pd.DataFrame(columns, columns=list(COLUMNS), dtype=object).astype({"label": "int64"})


def singles(**counts: int) -> pd.DataFrame:
    return table([(kind, f"{kind}{k}", None) for kind, count in counts.items() for k in range(count)])


def split(samples: pd.DataFrame, *, val_ratio: float = 0.2, test_ratio: float = 0.2, seed: int = 0) -> pd.DataFrame:
    return split_samples(samples, val_ratio=val_ratio, test_ratio=test_ratio, seed=seed)


def groups_are_whole(samples: pd.DataFrame) -> bool:
    return not samples.drop_duplicates(["group", "split"])["group"].duplicated().any()


def sizes(samples: pd.DataFrame, kind: str) -> dict[str, int]:
    return samples[samples.defect_type == kind]["split"].value_counts().to_dict()


def test_strata_keep_their_share_and_val_is_a_share_of_the_training_data():
    result = split(singles(normal=100, crack=50, hole=25))
    assert sizes(result, "normal") == {"train": 64, "val": 16, "test": 20}
    assert sizes(result, "crack") == {"train": 32, "val": 8, "test": 10}
    assert sizes(result, "hole") == {"train": 16, "val": 4, "test": 5}


def test_same_seed_same_split_another_seed_another():
    samples = singles(normal=60, crack=30)
    first, again, other = split(samples), split(samples), split(samples, seed=1)
    assert first["split"].tolist() == again["split"].tolist()
    assert first["split"].tolist() != other["split"].tolist()
    assert samples["split"].isna().all(), "the table given is not changed"


def test_many_rare_types_do_not_all_round_one_way():
    result = split(singles(normal=50, **{f"type{k}": 2 for k in range(10)}))
    defects = result[result.label == 1]["split"].value_counts().to_dict()
    assert defects == {"train": 13, "val": 3, "test": 4}


def test_groups_stay_whole_and_shares_stay_close():
    """The shape of the magnetic tiles: series of six, some of which span two classes."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str, str | None]] = []
    for tile in range(255):
        kind = rng.choice(["normal", "blowhole", "break", "crack", "uneven"], p=[0.7, 0.1, 0.07, 0.05, 0.08])
        shots = 6 if tile < 197 else int(rng.integers(1, 6))
        mixed = tile < 20
        rows += [("normal" if mixed and shot < 3 else str(kind), f"tile{tile}", None) for shot in range(shots)]
    for seed in range(3):
        result = split(table(rows), seed=seed)
        assert groups_are_whole(result)
        for kind, members in result.groupby("defect_type"):
            shares = members["split"].value_counts(normalize=True)
            tolerance = max(0.02, 2 / len(members))
            assert shares["test"] == pytest.approx(0.2, abs=tolerance), kind
            assert shares["val"] == pytest.approx(0.16, abs=tolerance), kind


def test_a_test_folder_stays_and_only_val_is_split():
    given = [("normal", f"n{k}", "train") for k in range(20)] + [("crack", f"c{k}", "train") for k in range(10)]
    given += [("normal", f"t{k}", "test") for k in range(3)] + [("crack", f"u{k}", "test") for k in range(3)]
    given += [("crack", "s", "test_shift")]
    result = split(table(given))
    assert result["split"].value_counts().to_dict() == {"train": 24, "val": 6, "test": 6, "test_shift": 1}
    assert result["split"].iloc[30:].tolist() == ["test"] * 6 + ["test_shift"]


def test_all_folders_given_are_left_alone():
    given = [(kind, f"{kind}{name}", name) for kind in ("normal", "crack") for name in ("train", "val", "test")]
    assert split(table(given), val_ratio=0)["split"].tolist() == ["train", "val", "test"] * 2


def test_without_a_test_folder_training_images_become_test():
    given = [("normal", f"n{k}", "train") for k in range(50)] + [("crack", f"c{k}", "train") for k in range(50)]
    assert split(table(given))["split"].value_counts().to_dict() == {"train": 64, "val": 16, "test": 20}


def test_open_defects_beside_given_normals_as_in_mvtec():
    given = [("normal", f"n{k}", "train") for k in range(40)] + [("normal", f"t{k}", "test") for k in range(10)]
    given += [("hole", f"h{k}", None) for k in range(25)]
    result = split(table(given))
    assert sizes(result, "normal") == {"train": 32, "val": 8, "test": 10}
    assert sizes(result, "hole") == {"train": 16, "val": 4, "test": 5}


def test_open_rows_follow_their_group():
    given = [("normal", f"n{k}", "train") for k in range(20)] + [("normal", f"t{k}", "test") for k in range(5)]
    given += [("hole", f"n{k}", None) for k in range(10)] + [("hole", f"t{k}", None) for k in range(5)]
    result = split(table(given))
    assert groups_are_whole(result)
    assert sizes(result, "hole")["test"] == 5


def test_no_validation_data():
    with pytest.raises(DataError, match=r"val_ratio is 0, but the data has no validation folder \(images/val\); set"):
        split(singles(normal=20, crack=20), val_ratio=0)


def test_two_sources_of_validation_data():
    given = [(kind, f"{kind}{name}", name) for kind in ("normal", "crack") for name in ("train", "val", "test")]
    with pytest.raises(
        DataError, match=r"val_ratio is 0.2, but the data has a validation folder of its own \(2 images"
    ):
        split(table(given))


def test_group_across_given_splits():
    given = [("normal", "a", "train"), ("crack", "a", "test")]
    with pytest.raises(DataError, match=r"a: group lies in 2 splits: /data/00000.png \(train\) and /data/00001.png"):
        split(table(given))


def test_too_few_images_of_a_class():
    with pytest.raises(DataError, match="split 'val' has no defective image among 16; expected both classes"):
        split(singles(normal=100, crack=1))
