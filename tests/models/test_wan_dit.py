"""The Wan DiT against diffusers' on the same weights, and the laws of per-frame timesteps."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from pusa.models.layers import rope_table, sinusoid
from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.keymaps import rename_wan


def diffusers_key(key: str) -> str:
    (theirs,) = rename_wan([key], "diffusers")
    return theirs


def make_model(**options) -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(
        dim=96, ffn_dim=192, num_heads=3, num_layers=2, in_channels=16, out_channels=16,
        text_dim=64, **options,
    )  # fmt: skip
    for name, parameter in model.named_parameters():  # nothing may hide behind a zero or a one
        if name.endswith("bias") or name == "head.head.weight":
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def make_reference(model: WanDiT, **options) -> WanTransformer3DModel:
    reference = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=3, attention_head_dim=32, in_channels=16,
        out_channels=16, text_dim=64, freq_dim=256, ffn_dim=192, num_layers=2,
        cross_attn_norm=True, eps=1e-6, **options,
    )  # fmt: skip
    state = {diffusers_key(key): value for key, value in model.state_dict().items()}
    reference.load_state_dict(state, strict=True)
    return reference


@pytest.fixture(scope="module")
def model() -> WanDiT:
    return make_model()


@pytest.fixture
def batch() -> tuple[torch.Tensor, Text, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 8, 6, generator=generator)
    embedding = torch.randn(2, 7, 64, generator=generator)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    padded = torch.nn.functional.pad(embedding * mask[..., None], (0, 0, 0, 512 - 7))
    return latents, Text(embedding, mask), padded


@torch.no_grad()
def test_scalar_timesteps_agree_with_diffusers(model, batch):
    latents, text, padded = batch
    sigma = torch.tensor([0.3, 0.9])
    expected = make_reference(model)(latents, 1000 * sigma, padded, return_dict=False)[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(model(latents, sigma, text), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_per_frame_timesteps_agree_with_diffusers_per_token_ones(model, batch):
    latents, text, padded = batch
    sigma = torch.tensor([[0.0, 0.4, 1.0], [0.8, 0.1, 0.55]])
    tokens = (1000 * sigma).repeat_interleave(12, dim=1)
    expected = make_reference(model)(latents, tokens, padded, return_dict=False)[0]
    torch.testing.assert_close(model(latents, sigma, text), expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 498, 502, 505, 509, 512])
def test_captions_of_every_length_agree_with_diffusers(model, length):
    """A few keys stand for the padding, unless there is too little of it."""
    generator = torch.Generator().manual_seed(length)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    embedding = torch.randn(1, length, 64, generator=generator)
    padded = torch.nn.functional.pad(embedding, (0, 0, 0, 512 - length))
    sigma = torch.tensor([0.4])
    text = Text(embedding, torch.ones(1, length, dtype=torch.bool))
    expected = make_reference(model)(latents, 1000 * sigma, padded, return_dict=False)[0]
    torch.testing.assert_close(model(latents, sigma, text), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_image_branch_agrees_with_diffusers(batch):
    latents, text, padded = batch
    branch = make_model(image_branch=True)
    image = torch.randn(2, 257, 1280, generator=torch.Generator().manual_seed(2))
    reference = make_reference(branch, image_dim=1280, added_kv_proj_dim=96)
    sigma = torch.tensor([0.3, 0.9])
    expected = reference(latents, 1000 * sigma, padded, image, return_dict=False)[0]
    torch.testing.assert_close(branch(latents, sigma, text, image), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_equal_sigmas_are_the_scalar_bit_for_bit(model, batch):
    latents, text, _ = batch
    scalar = torch.tensor([0.3, 0.9])
    vector = scalar[:, None].repeat(1, 3)
    assert torch.equal(model(latents, scalar, text), model(latents, vector, text))


@torch.no_grad()
def test_modulation_of_a_frame_depends_on_its_own_sigma_alone(model):
    sigma = torch.tensor([[0.1, 0.5, 0.9, 0.3]])
    order = torch.tensor([2, 0, 3, 1])
    time, modulation = model._time(sigma)
    permuted_time, permuted = model._time(sigma[:, order])
    torch.testing.assert_close(permuted, modulation[:, order], atol=1e-6, rtol=0)
    torch.testing.assert_close(permuted_time, time[:, order], atol=1e-6, rtol=0)
    changed = sigma.clone()
    changed[0, 1] = 0.6
    others = [0, 2, 3]
    assert torch.equal(model._time(changed)[1][:, others], modulation[:, others])
    assert not torch.allclose(model._time(changed)[1][:, 1], modulation[:, 1])


@torch.no_grad()
def test_a_frames_sigma_reaches_the_output_through_every_block(model, batch):
    latents, text, _ = batch
    sigma = torch.full((2, 3), 0.5)
    other = sigma.clone()
    other[:, 0] = 0.0
    assert not torch.allclose(model(latents, sigma, text), model(latents, other, text), atol=1e-3)


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    model = WanDiT(
        dim=24, ffn_dim=24, num_heads=2, num_layers=1, in_channels=2, out_channels=2,
        text_dim=4, text_len=3,
    )  # fmt: skip
    torch.nn.init.normal_(model.head.head.weight)
    latents = torch.randn(1, 2, 2, 2, 2)
    text = Text(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    weight = torch.randn(1, 2, 2, 2, 2)

    def value(x: torch.Tensor) -> torch.Tensor:
        return (model(x, torch.tensor([[0.2, 0.7]]), text) * weight).sum()

    x = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step, direction = 1e-2, torch.randn_like(latents)
    with torch.no_grad():
        slope = (value(latents + step * direction) - value(latents - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_time_path_stays_float32_under_autocast(model, batch):
    latents, text, _ = batch
    sigma = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]])
    exact = model(latents, sigma, text)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model._time(sigma)[1], model._time(sigma)[1].float())
        mixed_time = model._time(sigma)[1]
        mixed = model(latents, sigma, text)
    assert torch.equal(mixed_time, model._time(sigma)[1])
    assert (mixed - exact).abs().max() < 0.05 * exact.std()


def test_sinusoid_is_the_closed_form_in_float64():
    timestep = torch.tensor([937.5])
    embedding = sinusoid(timestep, 256)
    assert embedding.dtype == torch.float32
    angle = 937.5 * 10000 ** (-3 / 128)
    assert embedding[0, 3].item() == pytest.approx(
        torch.tensor(angle).double().cos().item(), abs=1e-6
    )
    assert embedding[0, 131].item() == pytest.approx(
        torch.tensor(angle).double().sin().item(), abs=1e-6
    )


def test_rope_splits_a_wan_head_into_22_21_21_pairs():
    cos = rope_table((2, 3, 4), 128, torch.device("cpu"))[..., 0]
    assert cos.shape == (24, 64)
    table = cos.view(2, 3, 4, 64)
    assert torch.equal(table[1, 0, 0, 22:], torch.ones(42))  # frame 1 turns the first 22 pairs only
    assert torch.equal(table[0, 1, 0, :22], torch.ones(22))
    assert torch.equal(table[0, 1, 0, 43:], torch.ones(21))
    assert table[1, 0, 0, 0].item() == pytest.approx(torch.tensor(1.0).cos().item())


def test_a_first_look_in_inference_mode_does_not_spoil_training(batch):
    latents, text, _ = batch
    latents = torch.nn.functional.pad(latents, (0, 4))  # a grid that no other test uses
    model = make_model()
    with torch.inference_mode():
        model(latents, torch.tensor([0.3, 0.9]), text)
    model(latents, torch.tensor([0.3, 0.9]), text).sum().backward()
    assert model.blocks[0].self_attn.q.weight.grad is not None


def test_unknown_attention_and_odd_heads_are_refused_at_construction():
    with pytest.raises(ValueError, match="use one of sdpa"):
        make_model(attention="flash")
    with pytest.raises(ValueError, match="even head"):
        WanDiT(dim=96, ffn_dim=8, num_heads=5, num_layers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 4, 3, 8, 6)}, r"\(B, 16, F, h, w\)"),
        ({"latents": torch.zeros(2, 16, 3, 7, 6)}, "even sides"),
        ({"sigma": torch.zeros(2, 4)}, r"neither \(2,\) nor \(2, 3\)"),
        ({"text": Text(torch.zeros(2, 5, 9), torch.ones(2, 5, dtype=torch.bool))}, r"\(2, L, 64\)"),
        (
            {"text": Text(torch.zeros(2, 600, 64), torch.ones(2, 600, dtype=torch.bool))},
            "takes 512",
        ),
        ({"image": torch.zeros(2, 257, 1280)}, "takes no image tokens"),
    ],
)
def test_wrong_shapes_are_named(model, batch, change, message):
    latents, text, _ = batch
    arguments = {"latents": latents, "sigma": torch.zeros(2), "text": text} | change
    with pytest.raises(ValueError, match=message):
        model(**arguments)
