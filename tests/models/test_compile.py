"""Compiled blocks: one graph for all of them, the same numbers."""

import pytest
import torch
from torch import Tensor, nn

from pusa.models.wan_dit import WanDiT
from pusa.types import Text
from pusa.weights.lora import LoRA, inject_lora

NUM_LAYERS = 4


def make_model(lora: bool, **options) -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(
        dim=48, ffn_dim=64, num_heads=2, num_layers=NUM_LAYERS, in_channels=4, out_channels=4,
        text_dim=16, text_len=64, attention="auto", **options,
    )  # fmt: skip
    if lora:
        inject_lora(model, LoRA(2, 2.0))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def inputs(frames: int = 3, length: int = 6) -> tuple[Tensor, Tensor, Text]:
    """Latents, sigma, text."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, frames, 4, 4, generator=generator)
    embedding = torch.randn(2, length, 16, generator=generator)
    text = Text(embedding, torch.ones(2, length, dtype=torch.bool))
    return latents, torch.linspace(0, 1, 2 * frames).view(2, frames), text


def results(model: WanDiT) -> list[Tensor]:
    """Output without gradients and, beside the output with them, all gradients."""
    with torch.no_grad():
        sampled = model(*inputs())
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(*inputs())
    return [sampled, out, *torch.autograd.grad(out.square().sum(), trained)]


class Graphs:
    """A backend of torch.compile that counts graphs, of which it computes each as it is."""

    def __init__(self):
        self.count = 0
        torch._dynamo.reset()

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.mark.parametrize("checkpointing", ["none", "every_2_half"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_compiled_blocks_give_the_same_output_and_gradients(lora, checkpointing):
    model, graphs = make_model(lora, checkpointing=checkpointing), Graphs()
    expected = results(model)
    model.compile_blocks(backend=graphs, fullgraph=True)
    names = list(model.state_dict())
    found = results(model)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # Without gradients, with them, and for a first block whose input needs none.
    assert graphs.count <= 3 < NUM_LAYERS
    assert list(model.state_dict()) == names


@torch.no_grad()
def test_other_sizes_are_compiled_once_more_and_captions_of_other_lengths_never():
    model, graphs = make_model(lora=True), Graphs()
    model.compile_blocks(backend=graphs, fullgraph=True)
    for length in (6, 20, 30):
        model(*inputs(3, length))
    assert graphs.count == 1
    for frames, length in ((2, 6), (4, 13), (5, 6)):
        model(*inputs(frames, length))
    assert graphs.count == 2


def test_compile_is_an_option_of_the_model():
    model = make_model(lora=False, compile=True)
    assert all(block._compiled_call_impl is not None for block in model.blocks)
    with pytest.raises(ValueError, match="compile=true hides"):
        make_model(lora=False, compile=True, checkpointing="selective")
