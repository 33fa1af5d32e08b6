from __future__ import annotations

import enum
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from efficientad_reference import autoencoder, description_network, sequential_names
from safetensors.torch import save_file

from gainmtl_lib.backbone import ModelError
from gainmtl_lib.efficientad.model import (
    EfficientADModel,
    EfficientADSettings,
    PatchDescriptionNetwork,
    load_model,
    load_state,
    load_teacher,
    random_teacher,
    read_weights,
    teacher_of,
)

C = 8


def built(model_size: str = "S", channels: int = C, *, seed: int = 1) -> EfficientADModel:
    """A model whose statistics are its own."""
    torch.manual_seed(seed)
    model = EfficientADModel(model_size, channels).eval()  # type: ignore[arg-type]
    model.set_teacher_statistics(torch.rand(channels), torch.rand(channels) + 0.5)
    model.set_quantiles(torch.tensor([[0.1, 0.3], [0.02, 0.05]]), images=5)
    return model


def anomalib_names(model: EfficientADModel) -> dict[str, torch.Tensor]:
    """The tensors under anomalib's names."""
    state = {}
    for part in ("teacher", "student"):
        for number, layer in enumerate(getattr(model, part).convolutions, start=1):
            state |= {f"{part}.conv{number}.{kind}": tensor for kind, tensor in layer.state_dict().items()}
    for half, layers in (("encoder.enconv", model.autoencoder.encoder), ("decoder.deconv", model.autoencoder.decoder)):
        for number, layer in enumerate(layers, start=1):
            state |= {f"ae.{half}{number}.{kind}": tensor for kind, tensor in layer.state_dict().items()}
    state |= {"mean_std.mean": model.teacher_mean, "mean_std.std": model.teacher_std}
    ends = ("qa_st", "qb_st", "qa_ae", "qb_ae")
    return state | {f"quantiles.{end}": q for end, q in zip(ends, model.quantiles.flatten(), strict=True)}


def nelson_names(model: EfficientADModel) -> dict[str, torch.Tensor]:
    """The tensors under the places in the Sequentials of the original reimplementation; statistics under ours."""
    size, state = model.model_size, {}
    for part, channels in (("teacher", C), ("student", 2 * C)):
        names = sequential_names(getattr(model, part), description_network(size, channels, padding=False))
        state |= {f"{part}.{name}": tensor for name, tensor in names.items()}
    names = sequential_names(model.autoencoder, autoencoder(C))
    state |= {f"autoencoder.{name}": tensor for name, tensor in names.items()}
    return state | {name: getattr(model, name) for name in ("teacher_mean", "teacher_std", "quantiles")}


NAMINGS = {"ours": lambda model: model.state_dict(), "anomalib": anomalib_names, "nelson": nelson_names}


def teacher_alone(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("teacher."): t for name, t in state.items() if name.startswith("teacher.")}


def same(first: EfficientADModel, second: EfficientADModel) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def settings(teacher: str | Path, **values) -> EfficientADSettings:
    return EfficientADSettings(**{"teacher": teacher, "out_channels": C} | values)


def test_the_published_names_are_these():
    model = built("M")
    teacher = teacher_alone(nelson_names(model))
    assert sorted({int(name.split(".")[0]) for name in teacher}) == [0, 3, 6, 8, 10, 12]
    assert sorted({name.split(".")[0] for name in teacher_alone(nelson_names(built()))}) == ["0", "3", "6", "8"]
    places = {int(name.split(".")[1]) for name in nelson_names(model) if name.startswith("autoencoder.")}
    assert sorted(places) == [0, 2, 4, 6, 8, 10, 12, 15, 18, 21, 24, 27, 30, 32]
    assert {"teacher.conv6.weight", "ae.encoder.enconv6.bias", "ae.decoder.deconv8.bias"} <= anomalib_names(
        model
    ).keys()


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("model_size", ["S", "M"])
def test_a_teacher_loads_from_every_naming_alone_or_out_of_a_whole_model(model_size, naming):
    source = built(model_size)
    state = NAMINGS[naming](source)
    for given in (teacher_alone(state), state, {f"model.{name}": tensor for name, tensor in state.items()}):
        model = built(model_size, seed=2)
        untouched = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith("teacher.")}
        load_teacher(model, dict(reversed(given.items())))
        assert all(torch.equal(t, source.teacher.state_dict()[n]) for n, t in model.teacher.state_dict().items())
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in untouched.items())
        assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("model_size", ["S", "M"])
def test_a_whole_model_loads_from_every_naming(tmp_path, model_size, naming, suffix):
    source, path = built(model_size), tmp_path / f"model{suffix}"
    state = {name: tensor.contiguous() for name, tensor in NAMINGS[naming](source).items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = load_model(path)
    assert same(model, source) and not model.training and model.model_size == model_size
    assert load_model(path, padding=True).padding


def test_half_precision_becomes_single():
    model = built(seed=2)
    load_state(model, {name: tensor.half() for name, tensor in anomalib_names(built()).items()})
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())


def test_what_anomalib_has_not_set_changes_nothing():
    source = built()
    state = anomalib_names(source)
    unset = {name: torch.zeros_like(t) for name, t in state.items() if name.startswith(("mean_std.", "quantiles."))}
    load_state(source, state | unset)
    fresh = EfficientADModel("S", C)
    for name in ("teacher_mean", "teacher_std", "quantiles"):
        assert torch.equal(getattr(source, name), getattr(fresh, name))


def test_a_checkpoint_of_anomalib_is_read_though_it_names_a_class(tmp_path, monkeypatch):
    class Size(enum.Enum):
        S = "small"

    Size.__module__, Size.__qualname__ = "another_package.models", "Size"
    module = types.ModuleType("another_package.models")
    module.Size = Size  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "another_package", types.ModuleType("another_package"))
    monkeypatch.setitem(sys.modules, "another_package.models", module)
    source, path = built(), tmp_path / "model.ckpt"
    state = {f"model.{name}": tensor for name, tensor in anomalib_names(source).items()}
    state["post_processor.image_threshold"] = torch.tensor(0.5)
    torch.save({"state_dict": state, "hyper_parameters": {"model_size": Size.S}, "epoch": 3}, path)
    monkeypatch.delitem(sys.modules, "another_package.models")
    allowed = torch.serialization.get_safe_globals()
    assert same(load_model(path), source)
    assert torch.serialization.get_safe_globals() == allowed


class Trap:
    """Copies a file onto another when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (shutil.copyfile, (__file__, self.path))


def test_nothing_in_a_file_is_run(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "teacher.pth"
    state = random_teacher("S", C, seed=0)
    torch.save({"state_dict": state, "extra": Trap(sprung)}, path)
    assert read_weights(path).keys() == state.keys()
    torch.save(Trap(sprung), path)
    with pytest.raises(ModelError, match="holds no tensors by name"):
        read_weights(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap works


def test_a_pickled_network_is_refused_with_advice(tmp_path):
    path = tmp_path / "teacher_final.pth"
    torch.save(description_network("S", C, padding=False), path)
    with pytest.raises(ModelError, match=r"pickled as a whole.*torch\.save\(network\.state_dict\(\)"):
        read_weights(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("M", C), "a.pth: a patch description network of size M with 8 channels, expected .* size S with 8 channels; set model_size"),
        (("S", 12), "a.pth: .* of size S with 12 channels, expected .* of size S with 8 channels"),
        (("S", 2 * C), "of size S with 16 channels, expected"),
    ],
)  # fmt: skip
def test_a_teacher_of_another_shape_says_found_and_expected(tmp_path, given, message):
    path = tmp_path / "a.pth"
    torch.save(random_teacher(*given, seed=0), path)
    with pytest.raises(ModelError, match=message):
        teacher_of(settings(path))


def test_other_networks_are_no_teacher(tmp_path):
    model = built()
    with pytest.raises(ModelError, match="an autoencoder with 8 channels, expected a patch description network"):
        load_teacher(model, model.autoencoder.state_dict())
    with pytest.raises(
        ModelError, match=r"x: no network of EfficientAD, 'layer1\.0\.conv1\.weight' is none of its layers"
    ):
        load_teacher(model, {"layer1.0.conv1.weight": torch.zeros(1)}, source="x")
    with pytest.raises(ModelError, match="no such weights file"):
        teacher_of(settings(tmp_path / "nowhere.pth"))
    narrow = model.teacher.state_dict() | {"convolutions.0.weight": torch.zeros(128, 1, 4, 4)}
    with pytest.raises(ModelError, match=r"expected its tensors to be .*\(128, 3, 4, 4\).* got .*\(128, 1, 4, 4\)"):
        load_teacher(model, narrow)


def test_an_incomplete_model_names_what_is_missing(tmp_path):
    state, path = anomalib_names(built()), tmp_path / "m.pth"
    for part, message in (
        ("ae.", "autoencoder: no weights of it"),
        ("student.", "student: no weights of it"),
        ("mean_std.", "no fitting teacher_mean, teacher_std"),
        ("quantiles.qa", "no fitting quantiles"),
    ):
        torch.save({name: tensor for name, tensor in state.items() if not name.startswith(part)}, path)
        with pytest.raises(ModelError, match=rf"m\.pth: {message}"):
            load_model(path)
    torch.save(built().student.convolutions[0].state_dict(prefix="0."), path)
    with pytest.raises(ModelError, match="a network of 1 convolutions with 128 channels, expected size S or M"):
        load_model(path)
    torch.save(state | {"student.conv4.bias": torch.zeros(C)}, path)
    with pytest.raises(ModelError, match=r"m\.pth: student: .* with 8 channels, expected .* with 16 channels"):
        load_model(path)


def test_a_random_teacher_follows_from_the_seed_alone():
    torch.manual_seed(5)
    first, description = teacher_of(settings("random", seed=3))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    again, _ = teacher_of(settings("random", seed=3))
    other, _ = teacher_of(settings("random", seed=4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert first.keys() == PatchDescriptionNetwork(model_size="S", out_channels=C).state_dict().keys()
    assert description == {"kind": "random", "text": "random (untrained teacher: not the paper's method)", "seed": 3}


def test_a_file_is_described_by_its_name_and_digest(tmp_path):
    path = tmp_path / "teacher_small.pth"
    torch.save(teacher_alone(nelson_names(built())), path)
    state, description = teacher_of(settings(path))
    assert all(torch.equal(state[name], tensor) for name, tensor in built().teacher.state_dict().items())
    assert description["kind"] == "file" and description["text"] == "weights file teacher_small.pth"
    assert description["file"] == path.as_posix() and len(description["digest"]) == 64
    torch.save(teacher_alone(nelson_names(built(seed=2))), path)
    assert teacher_of(settings(path))[1]["digest"] != description["digest"]
