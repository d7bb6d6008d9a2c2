"""A model of two networks from its files, and the files of the tiny twins."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pusa.cli import compose_config
from pusa.entry import build
from pusa.pipelines import build as build_module
from pusa.pipelines.build import Model
from pusa.pipelines.tiny import write_tiny_model


@pytest.fixture(scope="module")
def twin(tmp_path_factory) -> Path:
    return write_tiny_model("wan22_t2v_a14b", tmp_path_factory.mktemp("twin") / "wan22")


def model(name: str = "wan22_tiny", *overrides: str) -> Model:
    return build(compose_config("generate", [f"model={name}", *overrides]).model)


def at(folder: Path, *overrides: str) -> Model:
    return model("wan22_tiny", f"model.folder={folder}", *overrides)


def test_one_config_is_both_networks(twin):
    both = at(twin)
    assert both.experts() == ("high", "low")
    assert [both.noise_range(expert) for expert in both.experts()] == [(0.875, 1.0), (0.0, 0.875)]
    assert [both.weights_path(e) for e in both.experts()] == [
        str(twin / "high_noise_model"), str(twin / "low_noise_model"),
    ]  # fmt: skip
    assert set(both.input_marks()) == {"weights.high", "weights.low", "vae", "text"}
    high, low = (both.for_expert(expert) for expert in both.experts())
    assert high.experts() == ("high",)
    assert high.for_expert("high") == high
    assert set(high.input_marks()) == {"weights", "vae", "text"}
    assert high.input_marks()["weights"] == both.input_marks()["weights.high"]
    networks = [m.build_backbone() for m in (high, low)]
    built = both.build_experts()
    assert [floor for floor, _ in built.networks] == [0.875, 0.0]
    for one, (_, other) in zip(networks, built.networks, strict=True):
        assert torch.equal(one.head.head.weight, other.head.head.weight)
    assert not torch.equal(networks[0].head.head.weight, networks[1].head.head.weight)


def test_the_places_of_two_networks(twin, tmp_path):
    """diffusers' folders, two files named one by one, and a network's own folder."""
    (tmp_path / "pipe").mkdir()
    for old, new in (("high_noise_model", "transformer"), ("low_noise_model", "transformer_2")):
        (tmp_path / "pipe" / new).symlink_to(twin / old)
    for weights in (
        f"model.weights={tmp_path}/pipe",
        f"model.weights={{high:{twin}/high_noise_model,low:{tmp_path}/pipe/transformer_2}}",
    ):
        found = at(twin, weights).input_marks()
        assert found == at(twin).input_marks()
    alone = at(twin, "model.expert=low", f"model.weights={twin}/low_noise_model")
    assert alone.weights_path("low") == str(twin / "low_noise_model")
    assert [floor for floor, _ in alone.build_experts().networks] == [0.0]


def test_a_model_of_one_network_is_one_expert(root):
    plain = model("wan_tiny")
    assert plain.experts() == (None,)
    assert plain.noise_range(None) == (0.0, 1.0)
    assert plain.for_expert(None) == plain
    assert [floor for floor, _ in plain.build_experts().networks] == [0.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.expert=hihg"], "use high, low or both"),
        (["model.expert=null"], "a model of two experts has both"),
        (["model.boundary=null"], "a model of two experts has both"),
        (["model.boundary=1.5"], "between 0 and 1, got 1.5"),
    ],
)
def test_bad_settings_of_experts_are_named(overrides, message):
    with pytest.raises(Exception, match=message):
        model("wan22_tiny", *overrides)


def test_weights_that_are_not_both_are_named(twin, tmp_path):
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "high_noise_model").symlink_to(twin / "high_noise_model")
    half = at(twin, f"model.weights={tmp_path}/half")
    assert half.weights_path("high") == f"{tmp_path}/half/high_noise_model"
    with pytest.raises(ValueError, match="holds no low_noise_model or transformer_2; download it"):
        half.input_marks()
    with pytest.raises(
        ValueError, match=r"is one network, not the high-noise .* name both: model\.weights="
    ):
        at(twin, f"model.weights={twin}/high_noise_model").for_expert("high")
    other = at(twin, "model.expert=high", f"model.weights={twin}/low_noise_model")
    with pytest.raises(ValueError, match="not the high-noise one of two"):
        other.build_backbone()
    with pytest.raises(ValueError, match="names no low network"):
        at(twin, f"model.weights={{high:{twin}/high_noise_model}}").input_marks()
    with pytest.raises(ValueError, match="two networks; name one"):
        at(twin).build_backbone()
    with pytest.raises(ValueError, match=r"has no expert high: model\.expert is None"):
        model("wan_tiny").for_expert("high")


def test_a_twin_writes_its_files_once_and_the_same_ones_again(root, caplog):
    caplog.set_level(logging.INFO)
    twin = model()
    twin.ensure_files()
    assert "writing the tiny twin of wan22_t2v_a14b" in caplog.text
    marks = twin.input_marks()
    assert all(marks.values())
    caplog.clear()
    twin.ensure_files()
    assert not caplog.text
    elsewhere = write_tiny_model("wan22_t2v_a14b", root / "again")
    assert at(elsewhere).input_marks() == marks


def test_a_twin_that_is_not_whole_is_named_and_a_real_model_is_not_made_up(root):
    twin = model("mochi_tiny")
    twin.ensure_files()
    Path(twin.vae, "dit.safetensors").unlink()
    with pytest.raises(ValueError, match="is there already; remove it"):
        twin.ensure_files()
    real = model("wan21_t2v_14b")
    real.ensure_files()
    assert not (root / "models" / "Wan2.1-T2V-14B").exists()
    mine = replace(model("ti2v_tiny"), weights="w", vae="v", text_encoder="t")
    mine.ensure_files()  # nothing of it is in the twin's folder
    assert not (root / "models" / "tiny" / "wan22_ti2v_5b").exists()


@pytest.mark.parametrize("moment", ["before the start", "before the end"])
def test_another_process_that_writes_the_same_twin_first_does_no_harm(root, monkeypatch, moment):
    twin, write, replace_folder = model("mochi_tiny"), build_module.write_tiny_model, os.replace

    def started_late(name, folder):
        write(name, folder)
        return write(name, folder)

    def ended_late(partial, path):
        if Path(path) == root / "models" / "tiny" / "mochi_1":
            shutil.copytree(partial, path)
        replace_folder(partial, path)

    if moment == "before the start":
        monkeypatch.setattr(build_module, "write_tiny_model", started_late)
    else:
        monkeypatch.setattr(os, "replace", ended_late)
    twin.ensure_files()
    assert all(twin.input_marks().values())
    assert [path.name for path in (root / "models" / "tiny").iterdir()] == ["mochi_1"]


def test_a_disk_that_takes_no_twin_is_an_error(root):
    (root / "models").write_text("no folder")
    with pytest.raises(OSError, match="models"):
        model("mochi_tiny").ensure_files()
