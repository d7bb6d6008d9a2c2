"""The experiments as they stand, with the tiny twin of their model: only shorter."""

import json
from pathlib import Path

import pytest
import torch

import train
from pusa.models.variants import VARIANTS
from pusa.weights.files import read_checkpoint, read_metadata, read_tensors
from pusa.weights.lora import read_lora
from tests.conftest import compose_config, run_pusa


def shortened(outputs: Path, experiment: str, model: str, *more: str):
    return compose_config(
        "train", f"experiment={experiment}", f"name={experiment}", f"model={model}",
        f"paths.outputs={outputs}",
        "trainer.max_steps=2", "logger.wandb=off", "data.num_clips=4", "batch_size=2",
        "data.heldout.toy.num_clips=2", "callbacks.grid=null", "data.batches.num_workers=0", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory) -> Path:
    """In which the first training with a model makes the model, the clips and the cache."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def outputs(empty_root, tmp_path, monkeypatch) -> Path:
    """The test's own."""
    monkeypatch.setenv("PUSA_ROOT", str(empty_root))
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("experiment", "model", "variant"),
    [
        ("wan21_full", "wan21_t2v_14b_tiny", "wan21_t2v_14b_tiny"),
        ("mochi_full", "mochi_tiny", "mochi_1_tiny"),
    ],
)
def test_full_training_gives_a_checkpoint_of_the_variant(outputs, experiment, model, variant):
    cfg = shortened(outputs, experiment, model, "micro_batch=1")
    train.train(cfg)
    written = outputs / experiment / "model.safetensors"
    found = read_checkpoint(written)
    names = (found.variant.name, *found.variant.same_tensors)
    assert variant in names
    before = read_checkpoint(cfg.model.weights).tensors
    moved = [
        key for key in before if not torch.equal(before[key].float(), found.tensors[key].float())
    ]
    # bfloat16 hides the smallest steps, and some biases may have no gradient: not all, but most.
    assert len(moved) > 0.5 * len(before)
    assert VARIANTS[variant].family in ("wan", "mochi")
    command = ("generate", "--model", model, "--set", f"model.weights={written}", "--prompt", "a")
    assert run_pusa(*command, "--steps", 2, "-o", outputs / "x.mp4") == 0


@pytest.mark.parametrize(
    ("noise_range", "high", "low"),
    [("full", (0.0, 1.0), (0.0, 1.0)), ("expert", (0.875, 1.0), (0.0, 0.875))],
)
def test_both_experts_are_trained_one_after_the_other(outputs, noise_range, high, low):
    """With rank 512 as it stands, which is more than the twin's layers have."""
    train.train(shortened(outputs, "wan22_vta", "wan22_tiny", f"noise_range={noise_range}"))
    for expert, levels in (("high", high), ("low", low)):
        folder = outputs / "wan22_vta" / expert
        lora = read_lora(folder / "lora.safetensors")
        assert (lora.expert, lora.noise_range) == (expert, levels)
        assert {target.rank for target in lora.values()} == {512}
        config = json.loads((folder / "config.json").read_text())
        assert tuple(config["timesteps"]["sigma_range"]) == levels
        assert json.loads((folder / "lora.doctor.json").read_text())["ok"]
    one, two = (
        read_tensors(outputs / "wan22_vta" / e / "lora.safetensors") for e in ("high", "low")
    )
    assert not all(torch.equal(one[key], two[key]) for key in one)
    lora = outputs / "wan22_vta"
    command = ("generate", "--model", "wan22_tiny", "--lora", lora, "--prompt", "a red three")
    assert run_pusa(*command, "--steps", 4, "-o", outputs / "x.mp4") == 0


def test_one_expert_can_be_named(outputs):
    train.train(shortened(outputs, "wan22_vta", "wan22_tiny", "expert=low", "name=one"))
    assert read_lora(outputs / "one" / "lora.safetensors").expert == "low"
    with pytest.raises(ValueError, match="noise_range=half is unknown"):
        train.train(shortened(outputs, "wan22_vta", "wan22_tiny", "noise_range=half"))


def test_upstreams_numerics_train(outputs):
    train.train(shortened(outputs, "wan21_vta_upstream", "wan21_t2v_14b_tiny", "lora.rank=4"))
    metadata = read_metadata(outputs / "wan21_vta_upstream" / "lora.safetensors")
    config = json.loads(metadata["recipe"])["config"]
    assert config["model"]["flow"]["_target_"].endswith("UpstreamFlow")
    assert config["timesteps"]["_target_"].endswith("UpstreamTimesteps")


def test_bfloat16_keeps_the_time_path_and_the_loras_float32(outputs, monkeypatch):
    """As it stands the twin runs under bfloat16 autocast: what each part computes in."""
    from pusa.training.module import VTAModule

    seen = {}
    step = VTAModule.training_step

    def watched(self, batch, batch_idx):
        names = ("time_embedding.0", "time_projection.1", "blocks.0.self_attn.o", "blocks.0.ffn.0")
        hooks = [
            self.backbone.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output.dtype})
            )
            for name in names
        ]
        loss = step(self, batch, batch_idx)
        for hook in hooks:
            hook.remove()
        seen["loss"] = loss.dtype
        seen["trained"] = {p.dtype for p in self.trainable().values()}
        return loss

    monkeypatch.setattr(VTAModule, "training_step", watched)
    train.train(shortened(outputs, "wan21_vta", "wan21_t2v_14b_tiny", "lora.rank=4"))
    assert seen["time_embedding.0"] == seen["time_projection.1"] == torch.float32
    assert seen["blocks.0.self_attn.o"] == seen["blocks.0.ffn.0"] == torch.bfloat16
    assert seen["loss"] == torch.float32
    assert seen["trained"] == {torch.float32}
