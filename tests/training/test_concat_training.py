"""The classical image-to-video network learns to use its frame, and its file is that network."""

import re
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor

import train
from pusa.data.latents import collate
from pusa.diffusion.conditioning import Conditioning
from pusa.entry import build
from pusa.pipelines.concat import generate_concat, is_concat, load_concat, under
from pusa.pipelines.generate import Request, Sampler
from pusa.pipelines.media import Shown
from pusa.training.module import VTAModule
from pusa.types import LatentBatch, Text
from pusa.weights.files import WeightsError, load_weights

CONCAT = ("module=i2v_concat", "lora=none", "timesteps=synchronized", "module.schedule.warmup=1")
STEPS = 100


@pytest.fixture
def concat_run(small_run):
    """Compose a tiny run of this module."""

    def make(name: str, *overrides: str):
        return small_run("tiny_vta", *CONCAT, f"name={name}", "callbacks.grid=null", *overrides)

    return make


def held_out_batch(cfg) -> LatentBatch:
    data = build(cfg.data.batches)
    clips = data.dataset(data.heldout)
    return collate([clips[i] for i in range(4)])


def still_clips(step: int, number: int = 32) -> LatentBatch:
    """Every frame is the first, another for each sample: all that there is to know is given."""
    generator = torch.Generator().manual_seed(step)
    first = torch.randn(number, 2, 1, 2, 2, generator=generator)
    text = Text(torch.zeros(number, 1, 64), torch.ones(number, 1, dtype=torch.bool))
    return LatentBatch(first.expand(-1, -1, 3, -1, -1), text, torch.arange(number))


def later_errors(module: VTAModule, whose: str) -> float:
    """Of frames after the first, at sigma 0.9, with their own first frame, another's, or none."""
    batch, sigma = still_clips(10**6), torch.full((32, 3), 0.9)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    given = {
        "own": given_first(batch.latents),
        "another's": given_first(batch.latents.roll(1, 0)),
        "none": Conditioning.free(batch.latents.shape),
    }[whose]
    noisy = module.flow.add_noise(batch.latents, noise, sigma)
    with torch.no_grad():
        velocity = under(module.backbone, given)(noisy, sigma, batch.text)
    return float(module.flow.frame_errors(velocity, batch.latents, noise)[:, 1:].mean())


def test_training_makes_use_of_the_frame(concat_run):
    """Beside the same steps with nothing given, on clips whose frames are all the first one."""
    errors = {}
    for dropout in (0.0, 1.0):
        tiny = ("model.weights=null", "model.backbone.num_layers=2", "model.backbone.dim=64",
                "model.backbone.num_heads=2", "model.backbone.ffn_dim=128",
                "model.backbone.in_channels=2", "model.backbone.out_channels=2")  # fmt: skip
        module = build(concat_run("still", f"module.condition_dropout={dropout}", *tiny).module)
        optimizer = torch.optim.Adam(module.trainable().values(), lr=3e-3)
        for step in range(STEPS):
            batch = still_clips(step)
            sigma, noise, text = module.draw(batch, step)
            velocity = module.velocity(batch.latents, noise, sigma, text)
            loss = module.flow.loss(velocity, batch.latents, noise, module.levels(sigma))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for whose in ("own", "another's", "none"):
            errors[whose, dropout] = later_errors(module, whose)
    assert errors["own", 0.0] < 0.5 * errors["own", 1.0]
    assert errors["own", 0.0] < 0.5 * errors["another's", 0.0]
    assert errors["own", 1.0] == errors["another's", 1.0] == errors["none", 1.0]


def given_first(latents: Tensor) -> Conditioning:
    return Conditioning.free(latents.shape).given({0: (latents[:, :, 0], 0.0)})


def test_the_file_is_the_trained_network(concat_run):
    cfg = concat_run("written")
    train.train(cfg)
    path, model = Path(cfg.paths.run) / "model.safetensors", build(cfg.model)
    assert is_concat(path)
    network, batch = load_concat(model, path), held_out_batch(cfg)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    module = build(cfg.module)
    checkpoint = torch.load(
        next((Path(cfg.paths.run) / "checkpoints").glob("*/state")), weights_only=True
    )
    module.load_state_dict(checkpoint["state_dict"])
    assert network.state_dict().keys() == module.backbone.state_dict().keys()
    assert module.backbone.patch_embedding.weight[:, 16:].any()
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.full((4, batch.latents.shape[2]), 0.7)
    noisy = model.flow.add_noise(batch.latents, noise, sigma)
    loaded = under(network, given_first(batch.latents))(noisy, sigma, batch.text)
    sigma[:, 0] = 0
    with torch.no_grad():
        ours = module.velocity(batch.latents, noise, sigma, batch.text)
    assert (loaded - ours).abs().max() < 0.02 * ours.abs().max()  # it is written as bfloat16
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(model.backbone(), path)
    with pytest.raises(WeightsError, match="is no i2v_concat model"):
        load_concat(model, model.weights)


def test_its_grids_and_videos_are_made(small_run):
    cfg = small_run("tiny_vta", *CONCAT, "callbacks.grid.every=4")
    train.train(cfg)
    assert (Path(cfg.paths.run) / "samples" / "step_000004.png").is_file()
    model = build(cfg.model)
    network = load_concat(model, f"{cfg.paths.run}/model.safetensors")
    torch.nn.init.normal_(network.patch_embedding.weight[:, 16:], std=0.2)  # as longer training
    text = model.build_text_encoder().encode(["a digit moves left"])
    picture = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    given = (Shown(picture, 0, range(1), (0.0,)),)
    requests = [Request(text, given, seed=0), Request(text, seed=0)]
    videos = generate_concat(
        network, model.build_vae(), model.flow, Sampler(num_steps=2), requests,
        model.latent_shape(),
    )  # fmt: skip
    assert videos.shape == (2, 17, 3, 32, 32)
    assert not torch.equal(videos[0], videos[1])


def test_a_frame_is_given_to_its_share_of_samples(concat_run):
    """Counted: another batch, or another process, decides alike; a given frame is noisy, too."""
    module = build(concat_run("share", "module.condition_dropout=0.25").module)
    sigma = torch.cat([module.draw(clips(range(64 * i, 64 * i + 64)), 3)[0] for i in range(8)])
    given = sigma == 0
    assert given[:, 0].float().mean() == pytest.approx(0.75, abs=0.06)
    assert not given[:, 1:].any()
    assert torch.equal(module.draw(clips([70, 5]), 3)[0], sigma[[70, 5]])
    levels = module.levels(sigma)
    assert (levels > 0).all()
    assert torch.equal(levels[:, 0], sigma[:, 1])
    plain = VTAModule.draw(module, clips(range(64)), 3)  # the levels and noises are VTA's own
    assert torch.equal(plain[0], levels[:64])
    assert torch.equal(plain[1], module.draw(clips(range(64)), 3)[1])
    assert (module.draw(clips(range(64), frames=1), 3)[0] > 0).all()


def clips(indices, frames: int = 5) -> LatentBatch:
    number = len(indices)
    text = Text(torch.zeros(number, 1, 64), torch.ones(number, 1, dtype=torch.bool))
    return LatentBatch(torch.zeros(number, 16, frames, 2, 2), text, torch.tensor(list(indices)))


def test_the_loss_of_a_step_counts_the_given_frame(concat_run, whole):
    """What the formulas say, with the network of the start, whose condition does nothing."""
    cfg = concat_run("loss", "module.condition_dropout=0.0")
    module, batch = build(cfg.module), held_out_batch(cfg)
    sigma, noise, text = module.draw(batch, 0)
    levels = sigma[:, 1:2].expand_as(sigma)
    base = build(cfg.model).build_backbone()
    noisy = module.flow.add_noise(batch.latents, noise, levels)
    with torch.no_grad():
        expected = module.flow.frame_errors(base(noisy, levels, text), batch.latents, noise)
        velocity = module.velocity(batch.latents, noise, sigma, text)
        found = {(name, level): loss for name, level, loss in module.heldout_losses(batch)}
    errors = module.flow.frame_errors(velocity, batch.latents, noise)
    assert torch.allclose(errors, expected, atol=1e-4)
    loss = module.flow.mean_loss(errors, module.levels(sigma))
    assert loss == pytest.approx(float(expected.mean()), abs=1e-4)
    own = VTAModule.heldout_losses
    module.velocity = lambda clean, noise, sigma, text: base(
        module.flow.add_noise(clean, noise, levels_of(sigma)), levels_of(sigma), text
    )
    for name, level, value in own(module, batch):  # after frame 0 alone where that is given
        assert found[name, level] == pytest.approx(float(value), abs=1e-4)


def levels_of(sigma: Tensor) -> Tensor:
    return sigma[:, 1:2].expand_as(sigma)


REFUSED = [
    (("lora=vta_64",), "has new weights and trains all; set lora=none"),
    (("timesteps=independent",), "one noise level for all frames; set timesteps=synchronized"),
    (("timesteps=first_frame_clean",), "one noise level for all frames"),
    (("module.condition_dropout=1.5",), r"module.condition_dropout must be in \[0, 1\], got 1.5"),
    (("model=mochi_tiny", "model.weights=null"), "only a Wan DiT can be widened"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_it_cannot_train_is_told_before_the_run(concat_run, overrides, message):
    cfg = concat_run("refused", *overrides)
    with pytest.raises(InstantiationException) as error:
        build(cfg.module)
    assert isinstance(error.value.__cause__, ValueError)
    assert re.search(message, str(error.value.__cause__))
