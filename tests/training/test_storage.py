"""Training and sampling on a base that is kept in 8 bits, as people type it; what is refused."""

import json
from pathlib import Path

import pytest
import torch

import train
from pusa.data import video
from pusa.entry import build
from pusa.models.stored import StoredLinear
from pusa.training.checkpoints import newest_sound
from pusa.training.module import VTAModule
from pusa.weights.doctor import diagnose
from pusa.weights.files import read_tensors
from pusa.weights.lora import load_lora
from tests.conftest import REPLICA, run_pusa
from tests.training.test_module import losses, run

BASE = REPLICA / "wan_tiny" / "model.safetensors"
SMALL = ("lora.rank=4", "callbacks.checkpoints.every=2")


def test_a_lora_of_a_stored_base_is_one_of_the_base_and_its_run_goes_on(small_run, monkeypatch):
    cfg, plain = (small_run("tiny_vta", *SMALL, f"name={n}", *more) for n, more in
                  (("stored", ["+model.storage=int8"]), ("plain", [])))  # fmt: skip
    run(cfg)
    run(plain)
    folder = Path(cfg.paths.run)
    found = diagnose(folder / "lora.safetensors", BASE)
    assert found.ok
    assert json.loads((folder / "lora.doctor.json").read_text())["ok"]
    load_lora(build(plain.model).build_backbone(), folder / "lora.safetensors")
    assert losses(cfg) == pytest.approx(losses(plain), rel=0.01)
    assert losses(cfg) != losses(plain)
    state = torch.load(newest_sound(folder).state, weights_only=True)["state_dict"]
    assert all(".lora_" in key for key in state)
    held = [json.loads(Path(c.paths.run, "memory.json").read_text())[0] for c in (cfg, plain)]
    assert held[0]["weights"] < 0.5 * held[1]["weights"]

    again = small_run("tiny_vta", *SMALL, "name=again", "+model.storage=int8")
    step = VTAModule.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 2:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(VTAModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(again)
    run(again)
    ours, theirs = (read_tensors(f"{c.paths.run}/lora.safetensors") for c in (cfg, again))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.storage=int4"], r"model\.storage='int4' is unknown; use null or one of int8, fl"),
        (["+model.storage=int8", "lora=none"], r"set model\.storage=null, or train a LoRA"),
        (["+model.storage=float8", "strategy=zero3"], r"use strategy=zero2, or model\.storage=nul"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(small_run, root, overrides, message):
    cfg = small_run("tiny_vta", *overrides)
    with pytest.raises(Exception, match=message):
        train.train(cfg)
    assert not (root / "outputs").exists()


@pytest.mark.parametrize("storage", ["int8", "float8"])
@pytest.mark.parametrize("weights", [BASE, None], ids=["loaded", "random"])
def test_a_model_builds_its_backbone_stored_and_processes_map_nothing(
    small_run, tmp_path, storage, weights
):
    override = "null" if weights is None else weights
    cfg = small_run("tiny_vta", f"+model.storage={storage}", f"model.weights={override}")
    model = build(cfg.model)
    backbone = model.build_backbone()
    stored = [m for m in backbone.modules() if isinstance(m, StoredLinear)]
    assert len(stored) == 6 * 10
    assert {layer.storage for layer in stored} == {storage}
    path = model.ready_weights(tmp_path / "copies", "bfloat16")
    assert path == (None if weights is None else str(weights))
    assert not (tmp_path / "copies").exists()


def test_pusa_generate_samples_with_it(root):
    frames = []
    for number, more in enumerate(([], ["--set", "+model.storage=int8"])):
        output = root / f"{number}.mp4"
        words = ["generate", "--prompt", "a red one", "-o", output, "--steps", 2, *more]
        assert run_pusa(*words) == 0
        frames.append(video.read_frames(output)[0].float())
    assert 0 < (frames[0] - frames[1]).abs().mean() < 8  # of 255
