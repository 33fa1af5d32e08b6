import pytest
import torch
from tiny import tiny_settings

from gainmtl_lib.runs import RunError
from gainmtl_lib.train import checkpoint_to_resume, forget_foreign_best


def checkpoint(path, settings, *, epochs=2):
    """A checkpoint file after some epochs, as far as the decision to resume reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {"state_dict": {}, "optimizer_states": [], "gainmtl_settings": settings.plain(), "epoch": epochs - 1}
    torch.save(stored, path)
    return path


def test_a_run_goes_on_from_its_own_last_checkpoint(tmp_path):
    settings = tiny_settings(tmp_path)
    assert checkpoint_to_resume(tmp_path, settings, None) is None
    last = checkpoint(tmp_path / "checkpoints/last.ckpt", settings)
    assert checkpoint_to_resume(tmp_path, settings, None) == last


def test_a_checkpoint_of_another_plan_names_what_differs(tmp_path):
    path = checkpoint(tmp_path / "epoch_2.ckpt", tiny_settings(tmp_path))
    asked = tiny_settings(
        tmp_path, num_epochs=9, batch_size=4, learning_rate=0.5, stage1_ratio=0.2, stage2_ratio=0.3,
        loc_warmup_ratio=0.1, lambda_cf=0.7, save_every_n_epochs=3, num_workers=1,
    )  # fmt: skip
    with pytest.raises(RunError) as error:
        checkpoint_to_resume(tmp_path / "run", asked, path)
    first, *differing, last = str(error.value).splitlines()
    assert first == f"{path}: a checkpoint of a training with another plan (stored and asked for):"
    assert differing == [
        "  num_epochs: 4 and 9", "  batch_size: 8 and 4", "  learning_rate: 0.001 and 0.5",
        "  stage1_ratio: 0.25 and 0.2", "  stage2_ratio: 0.25 and 0.3", "  loc_warmup_ratio: 0.5 and 0.1",
        "  lambda_cf: 0.3 and 0.7",
    ]  # fmt: skip
    assert "keep these values, or start a new run without --resume" in last


def test_fewer_epochs_than_are_done_is_such_a_plan(tmp_path):
    path = checkpoint(tmp_path / "epoch_3.ckpt", tiny_settings(tmp_path), epochs=3)
    with pytest.raises(RunError, match="num_epochs: 4 and 2"):
        checkpoint_to_resume(tmp_path / "run", tiny_settings(tmp_path, num_epochs=2), path)


def test_a_best_checkpoint_of_another_training_does_not_stay(tmp_path):
    settings = tiny_settings(tmp_path)
    best = tmp_path / "run/checkpoints/best.ckpt"
    best.parent.mkdir(parents=True)
    best.write_text("x")
    own = checkpoint(tmp_path / "run/checkpoints/epoch_2.ckpt", settings)
    assert checkpoint_to_resume(tmp_path / "run", settings, own) == own
    forget_foreign_best(tmp_path / "run", own)
    forget_foreign_best(tmp_path / "run", None)
    assert best.is_file()
    elsewhere = checkpoint(tmp_path / "epoch_2.ckpt", settings)
    assert checkpoint_to_resume(tmp_path / "run", settings, elsewhere) == elsewhere
    assert best.is_file()  # until the training begins
    forget_foreign_best(tmp_path / "run", elsewhere)
    assert not best.exists()


def test_a_checkpoint_with_nothing_left_to_train_finishes_its_own_run_only(tmp_path):
    settings = tiny_settings(tmp_path)
    best = tmp_path / "run/checkpoints/best.ckpt"
    last = checkpoint(best.with_name("last.ckpt"), settings, epochs=4)
    with pytest.raises(RunError, match=r"last.ckpt: all 4 epochs are done, and .*best.ckpt is not theirs"):
        checkpoint_to_resume(tmp_path / "run", settings, None)
    best.write_text("x")
    assert checkpoint_to_resume(tmp_path / "run", settings, None) == last
    with pytest.raises(RunError, match="all 4 epochs are done"):
        checkpoint_to_resume(tmp_path / "run", settings, checkpoint(tmp_path / "last.ckpt", settings, epochs=4))
    assert best.is_file()
