"""The Mochi DiT against diffusers' on the same weights, and the laws of per-frame timesteps."""

import math

import pytest
import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor

from pusa.models.mochi_dit import MochiDiT, modulation
from pusa.types import Text
from pusa.weights.lazy import InMemory, View
from pusa.weights.mochi_keys import to_diffusers

LENGTHS = [(7, 7), (7, 4), (7, 0), (0, 0)]  # real tokens of the two captions of a batch
TINY = {
    "dim": 96, "text_stream_dim": 48, "num_heads": 3, "num_layers": 3, "text_dim": 64,
    "text_tokens": 16,
}  # fmt: skip


def make_model(**options) -> MochiDiT:
    torch.manual_seed(0)
    model = MochiDiT(**TINY | options)
    for name, parameter in model.named_parameters():  # nothing may hide behind a zero or a one
        if name.endswith("bias") or ".mod" in name or name == "final_layer.linear.weight":
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name == "pos_frequencies":
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_reference(model: MochiDiT) -> MochiTransformer3DModel:
    reference = MochiTransformer3DModel(
        num_attention_heads=3, attention_head_dim=32, num_layers=3, pooled_projection_dim=48,
        in_channels=12, text_embed_dim=64, max_sequence_length=16,
    )  # fmt: skip
    state = InMemory(model.state_dict())
    reference.load_state_dict(dict(View(state, to_diffusers(state))), strict=True)
    return reference


def make_text(*lengths: int, width: int = 16) -> Text:
    """Captions of so many tokens, padded with what must never be looked at."""
    embedding = torch.randn(len(lengths), width, 64, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Text(embedding.masked_fill(~mask[..., None], 50.0), mask)


@pytest.fixture(scope="module")
def model() -> MochiDiT:
    return make_model()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(2, 12, 3, 8, 6, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS)
def test_scalar_timesteps_agree_with_diffusers(model, latents, lengths):
    text, sigma = make_text(*lengths), torch.tensor([0.3, 0.9])
    expected = -make_reference(model)(
        latents, text.embedding, 1000 * (1 - sigma), text.mask, return_dict=False
    )[0]  # diffusers' output is clean - noise
    assert expected.std() > 0.1
    torch.testing.assert_close(model(latents, sigma, text), expected, atol=1e-5, rtol=0)


def reference_per_frame(
    reference: MochiTransformer3DModel, latents: Tensor, sigma: Tensor, text: Text
) -> Tensor:
    """Upstream's rule on diffusers' layers in float64, token by token: a visual token is modulated
    by its frame's conditioning, the text by the mean over frames. One sample, no padding."""
    frames, height, width = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
    per_token = height * width
    embed = reference.time_embed
    time = embed.timestep_embedder(embed.time_proj(1000 * (1 - sigma[0])).double())  # (F, D)
    c = time + embed.pooler(text.embedding, text.mask)
    tokens = torch.stack([c[n // per_token] for n in range(frames * per_token)])  # (N, D)
    mean = sum(c[f] for f in range(frames)) / frames
    x = reference.patch_embed(latents[0].transpose(0, 1)).flatten(0, 1)
    y = embed.caption_proj(text.embedding)[0]
    rope = reference.rope(reference.pos_frequencies, frames, height, width, dtype=torch.float64)

    def rms(value: Tensor) -> Tensor:
        return value / torch.sqrt(value.square().mean(-1, keepdim=True) + 1e-6)

    for block in reference.transformer_blocks:
        scale, gate, ff_scale, ff_gate = block.norm1.linear(tokens.sigmoid() * tokens).chunk(4, -1)
        norm = block.norm1_context
        linear = norm.linear_1 if block.context_pre_only else norm.linear
        text_mod = linear(mean.sigmoid() * mean).split(48)
        out, text_out = block.attn1(
            (rms(x) * (1 + scale))[None], (rms(y) * (1 + text_mod[0]))[None],
            image_rotary_emb=rope, attention_mask=text.mask,
        )  # fmt: skip
        x = x + rms(out[0]) * gate.tanh()
        x = x + rms(block.ff(rms(x) * (1 + ff_scale))) * ff_gate.tanh()
        if not block.context_pre_only:
            y = y + rms(text_out[0]) * text_mod[1].tanh()
            y = y + rms(block.ff_context(rms(y) * (1 + text_mod[2]))) * text_mod[3].tanh()
    scale, shift = reference.norm_out.linear(tokens.sigmoid() * tokens).chunk(2, -1)
    x = reference.proj_out(reference.norm_out.norm(x) * (1 + scale) + shift)
    x = x.view(frames, height, width, 2, 2, 12).permute(5, 0, 1, 3, 2, 4)
    return -x.reshape(1, 12, frames, 2 * height, 2 * width)


@torch.no_grad()
@pytest.mark.parametrize("length", [5, 0])
def test_per_frame_timesteps_agree_with_diffusers_layers_token_by_token(model, latents, length):
    sigma, text = torch.tensor([[0.0, 0.4, 1.0]]), make_text(length, width=length)
    latents = latents[:1]
    expected = reference_per_frame(
        make_reference(model).double(), latents.double(), sigma, text.to(torch.float64)
    )
    actual = model(latents, sigma, text).double()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    averaged = model(latents, sigma.mean(1), text).double()
    assert (averaged - expected).abs().max() > 0.05  # the frames' own sigmas matter


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equal_sigmas_are_the_scalar_bit_for_bit(model, latents, lengths):
    text, scalar = make_text(*lengths), torch.tensor([0.3, 0.9])
    vector = scalar[:, None].repeat(1, 3)
    assert torch.equal(model(latents, scalar, text), model(latents, vector, text))


@torch.no_grad()
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_batch_is_its_samples_one_at_a_time(model, latents, lengths):
    sigma, text = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]]), make_text(*lengths)
    together = model(latents, sigma, text)
    for i in range(2):
        own = Text(text.embedding[i : i + 1, : lengths[i]], text.mask[i : i + 1, : lengths[i]])
        alone = model(latents[i : i + 1], sigma[i : i + 1], own)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_no_bit(model, latents):
    sigma, padded = torch.tensor([0.3, 0.9]), make_text(5, 3)
    shorter = Text(padded.embedding[:, :5], padded.mask[:, :5])
    garbage = Text(padded.embedding.masked_fill(~padded.mask[..., None], math.nan), padded.mask)
    expected = model(latents, sigma, padded)
    assert torch.equal(model(latents, sigma, shorter), expected)
    assert torch.equal(model(latents, sigma, garbage), expected)


@torch.no_grad()
def test_tokens_outside_a_mask_with_holes_are_not_seen(model, latents):
    sigma, text = torch.tensor([0.3, 0.9]), make_text(5, 5)
    mask = text.mask.clone()
    mask[:, [0, 2]] = False
    picked = Text(text.embedding[:, [1, 3, 4]], text.mask[:, [1, 3, 4]])
    holed = model(latents, sigma, Text(text.embedding, mask))
    torch.testing.assert_close(holed, model(latents, sigma, picked), atol=1e-5, rtol=0)
    mask[1, 2] = True  # now the captions are of three tokens and of four
    holed = model(latents, sigma, Text(text.embedding, mask))
    alone = Text(text.embedding[1:, 1:5], text.mask[1:, 1:5])
    torch.testing.assert_close(holed[1:], model(latents[1:], sigma[1:], alone), atol=1e-5, rtol=0)


@torch.no_grad()
def test_conditioning_of_a_frame_depends_on_its_own_sigma_alone(model):
    sigma = torch.tensor([[0.1, 0.5, 0.9, 0.3]])
    changed = sigma.clone()
    changed[0, 1] = 0.6
    before, after = model.t_embedder(sigma), model.t_embedder(changed)
    others = [0, 2, 3]
    assert torch.equal(after[:, others], before[:, others])
    assert not torch.allclose(after[:, 1], before[:, 1])


@torch.no_grad()
def test_time_path_stays_float32_under_autocast(model, latents):
    text, sigma = make_text(7, 4), torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]])
    exact, time = model(latents, sigma, text), model.t_embedder(sigma)
    exact_modulation = modulation(model.blocks[0].mod_x, time)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.t_embedder(sigma), time)
        assert torch.equal(modulation(model.blocks[0].mod_x, time), exact_modulation)
        mixed = model(latents, sigma, text)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).abs().max() < 0.1 * exact.std()


@torch.no_grad()
@pytest.mark.parametrize("kept", [True, False])
def test_bfloat16_weights_work(latents, kept):
    text, sigma = make_text(7, 4), torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]])
    model = make_model()
    exact = model(latents, sigma, text)
    for name, parameter in model.named_parameters():
        if not (kept and any(part in name for part in model.keep_float32)):
            parameter.data = parameter.data.bfloat16()
    rounded = model(latents.bfloat16(), sigma, text)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).abs().max() / exact.std()
    # Rounded frequencies turn the outer tokens visibly too far, hence keep_float32.
    assert error < (0.1 if kept else 0.5)


@pytest.mark.parametrize("lengths", [(7, 4), (0, 0)])
def test_checkpointing_changes_no_gradient_and_every_weight_has_one(latents, lengths):
    gradients = []
    for policy in ("none", "blocks"):
        model = make_model(checkpointing=policy)
        sigma = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]])
        model(latents, sigma, make_text(*lengths)).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    plain, again = gradients
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert all(plain[name].isfinite().all() for name in plain)
    assert plain["pos_frequencies"].abs().max() > 0
    seen = plain["t5_yproj.weight"].abs().max() > 0
    assert seen == (sum(lengths) > 0)


def test_gradients_agree_with_finite_differences(model, latents):
    text, sigma = make_text(7, 4), torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]])
    weight = torch.randn_like(latents)

    def value(x: Tensor) -> Tensor:
        return (model(x, sigma, text) * weight).sum()

    x = latents.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step, direction = 1e-2, gradient / gradient.norm()
    with torch.no_grad():
        slope = (value(latents + step * direction) - value(latents - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum(), atol=0, rtol=1e-2)


def test_a_first_look_in_inference_mode_does_not_spoil_training(latents):
    latents = torch.nn.functional.pad(latents, (0, 4))  # a grid that no other test uses
    model = make_model()
    with torch.inference_mode():
        model(latents, torch.tensor([0.3, 0.9]), make_text(7, 4))
    model(latents, torch.tensor([0.3, 0.9]), make_text(7, 4)).sum().backward()
    assert model.pos_frequencies.grad is not None


def test_keys_and_parameters_are_the_official_checkpoints():
    with torch.device("meta"):
        model = MochiDiT(dim=3072, text_stream_dim=1536, num_heads=24, num_layers=48)
        reference = MochiTransformer3DModel()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in reference.parameters())
    assert (len(model.state_dict()), count) == (19 + 47 * 18 + 14, 10_027_677_744)


def test_blocks_have_the_official_names_and_the_last_writes_no_text():
    with torch.device("meta"):
        keys = set(MochiDiT(**TINY).state_dict())
    text_only = {"mlp_y.w1.weight", "mlp_y.w2.weight", "attn.proj_y.weight", "attn.proj_y.bias"}
    block = {
        "mod_x.weight", "mod_x.bias", "mod_y.weight", "mod_y.bias", "attn.qkv_x.weight",
        "attn.qkv_y.weight", "attn.q_norm_x.weight", "attn.k_norm_x.weight", "attn.q_norm_y.weight",
        "attn.k_norm_y.weight", "attn.proj_x.weight", "attn.proj_x.bias", "mlp_x.w1.weight",
        "mlp_x.w2.weight",
    }  # fmt: skip
    for index, names in enumerate((block | text_only, block | text_only, block)):
        prefix = f"blocks.{index}."
        assert {k.removeprefix(prefix) for k in keys if k.startswith(prefix)} == names


def test_a_fresh_model_is_random_and_says_nothing_yet(latents):
    torch.manual_seed(0)
    model = MochiDiT(**TINY)
    assert torch.equal(model(latents, torch.tensor([0.3, 0.9]), make_text(7, 4)), 0 * latents)
    used = (model.pos_frequencies != 0).sum(0)  # of the three axes, by head and pair
    assert torch.equal(used, torch.ones_like(used))
    assert model.pos_frequencies.max() == 1
    assert model.blocks[0].attn.qkv_x.weight.std() > 0.01


def test_unknown_attention_and_odd_heads_are_refused_at_construction():
    with pytest.raises(ValueError, match="use one of sdpa"):
        make_model(attention="flash")
    with pytest.raises(ValueError, match="even head"):
        make_model(num_heads=5)
    with pytest.raises(ValueError, match="multiple of 8"):
        make_model(text_dim=60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 4, 3, 8, 6)}, r"\(B, 12, F, h, w\)"),
        ({"latents": torch.zeros(2, 12, 3, 7, 6)}, "even sides"),
        ({"sigma": torch.zeros(2, 4)}, r"neither \(2,\) nor \(2, 3\)"),
        ({"text": Text(torch.zeros(2, 5, 9), torch.ones(2, 5, dtype=torch.bool))}, r"\(2, L, 64\)"),
        ({"text": Text(torch.zeros(2, 17, 64), torch.ones(2, 17, dtype=torch.bool))}, "takes 16"),
    ],
)
def test_wrong_shapes_are_named(model, latents, change, message):
    arguments = {"latents": latents, "sigma": torch.zeros(2), "text": make_text(7, 4)} | change
    with pytest.raises(ValueError, match=message):
        model(**arguments)
