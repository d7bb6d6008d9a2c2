"""A text prepared once gives the bits of the plain one, and is refused where it does not belong."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from pusa.models.mochi_dit import MochiDiT
from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.lora import LoRA, inject_lora

SIGMA = torch.tensor([[0.0, 0.5, 0.9], [0.2, 1.0, 0.4]])
LORA = {
    "wan": LoRA(2, 2.0, ("q", "k", "v", "o", "ffn.0")),
    "wan_image": LoRA(2, 2.0, ("k", "v", "k_img", "v_img")),
    "mochi": LoRA(2, 2.0, ("attn.qkv_x", "attn.qkv_y", "t5_yproj")),
}


def make_model(name: str, seed: int = 0, lora: bool = False) -> WanDiT | MochiDiT:
    torch.manual_seed(seed)
    if name == "mochi":
        model = MochiDiT(
            dim=48, text_stream_dim=24, num_heads=2, num_layers=3, in_channels=4, text_dim=16,
            text_tokens=8,
        )  # fmt: skip
    else:
        model = WanDiT(
            dim=48, ffn_dim=64, num_heads=2, num_layers=3, in_channels=4, out_channels=4,
            text_dim=16, text_len=8, image_branch=name == "wan_image",
        )  # fmt: skip
    if lora:
        inject_lora(model, LORA[name])
    for parameter in model.parameters():  # nothing may hide behind a zero
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def make_text(*lengths: int) -> Text:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(2)
    return Text(torch.randn(*mask.shape, 16, generator=generator), mask)


def latents(seed: int = 1) -> Tensor:
    return torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(seed))


def image_of(model: nn.Module) -> list[Tensor]:
    """The further argument of a model with an image branch."""
    if getattr(model, "img_emb", None) is None:
        return []
    return [torch.randn(2, 257, 1280, generator=torch.Generator().manual_seed(3))]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("lengths", [(5, 5), (5, 3), (4, 0)])
@pytest.mark.parametrize("name", LORA)
def test_a_prepared_text_gives_the_bits_of_the_plain_one(name, lengths, lora, precision):
    model, text = make_model(name, lora=lora), make_text(*lengths)
    image = image_of(model)
    if precision == "bfloat16":
        for part, parameter in model.named_parameters():
            if not any(kept in part for kept in model.keep_float32):
                parameter.data = parameter.data.bfloat16()
    lowered = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()
    with lowered:
        prepared = model.prepare_text(text, *image)
        for seed, sigma in ((1, SIGMA), (4, SIGMA[:, 0])):
            plain = model(latents(seed), sigma, text, *image)
            assert plain.std() > 0.01
            assert torch.equal(model(latents(seed), sigma, prepared), plain)


@torch.no_grad()
@pytest.mark.parametrize("name", LORA)
def test_a_prepared_text_carries_the_caption(name):
    model = make_model(name)
    image = image_of(model)
    text = make_text(5, 5)
    other = Text(text.embedding.flip(0), text.mask)
    first, second = (
        model(latents(), SIGMA, model.prepare_text(each, *image)) for each in (text, other)
    )
    assert not torch.allclose(first, second, atol=1e-4)


def test_a_text_prepared_in_training_passes_gradients_on():
    """To the text embedding and the keys, as the plain one does."""
    found = []
    for prepare in (False, True):
        model = make_model("wan").train()
        text = make_text(5, 3)
        model(latents(), SIGMA, model.prepare_text(text) if prepare else text).sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, prepared in zip(*found, strict=True):
        torch.testing.assert_close(prepared, plain, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_it_holds_the_keys_and_values_that_the_docstring_counts():
    model = make_model("wan")
    parts = model.prepare_text(make_text(5, 3)).parts
    numbers = sum(part.numel() for block, _ in parts for part in block.text)
    assert numbers == 3 * 2 * 8 * 48 * 2  # layers x B x K x dim x (k, v)


@torch.no_grad()
def test_a_few_keys_stand_for_the_padding_of_a_caption():
    model = make_model("wan")
    model.text_len = 64
    (block, bias), *_ = model.prepare_text(make_text(5, 3)).parts
    assert block.text[0].shape[1] == 8  # 5 tokens and 3 for 59 rows of zeros
    assert bias.shape == (1, 8)


@torch.no_grad()
@pytest.mark.parametrize("name", LORA)
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("model", "by another network; use this one's prepare_text"),
        ("batch", "batch of 1, the latents are 2; prepare one text for each"),
        ("precision", "in torch.bfloat16, the network runs in torch.float32"),
    ],
)
def test_a_prepared_text_that_does_not_belong_is_refused(name, case, message):
    model = make_model(name)
    owner = make_model(name, seed=1) if case == "model" else model
    text = make_text(5) if case == "batch" else make_text(5, 3)
    image = [tokens[: len(text.mask)] for tokens in image_of(model)]
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "precision"):
        prepared = owner.prepare_text(text, *image)
    with pytest.raises(ValueError, match=message):
        model(latents(), SIGMA, prepared)


@pytest.mark.parametrize("name", ["wan", "mochi"])
@pytest.mark.parametrize(
    ("shape", "message"), [((2, 5, 9), r"\(B, L, 16\)"), ((2, 9, 16), "takes 8")]
)
def test_a_text_of_another_width_or_length_is_not_prepared(name, shape, message):
    with pytest.raises(ValueError, match=message):
        make_model(name).prepare_text(Text(torch.zeros(shape), torch.ones(shape[:2]).bool()))


def test_image_tokens_belong_to_the_preparation():
    model, without, text = make_model("wan_image"), make_model("wan"), make_text(5, 3)
    assert isinstance(model, WanDiT)
    assert isinstance(without, WanDiT)
    with pytest.raises(ValueError, match="needs image tokens"):
        model.prepare_text(text)
    (image,) = image_of(model)
    with pytest.raises(ValueError, match="give them to prepare_text"):
        model(latents(), SIGMA, model.prepare_text(text, image), image)
    with pytest.raises(ValueError, match="takes no image tokens"):
        without.prepare_text(text, image)
