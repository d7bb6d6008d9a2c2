"""Activations of a 14B training step, of either network, on fake tensors: nothing is computed."""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from benchmarks.harness import Row
from benchmarks.networks import CHANNELS, PerToken, inject_peft, lower, recompute_blocks
from pusa.diffusion.flow import FlowMatching
from pusa.models.variants import BACKBONES, VARIANTS
from pusa.pipelines.build import Model
from pusa.training.footprint import Footprint, Work, outline, run_step
from pusa.types import LatentSpec
from pusa.weights.lora import LoRA

SHAPE = (CHANNELS, 21, 60, 104)  # latents of 81 frames of 480 x 832
TEXT_LEN, RANK = 512, 512
QUICK_SHAPE, QUICK_LAYERS = (CHANNELS, 5, 8, 8), 2


def our_outline(arguments: dict[str, Any], lora: LoRA) -> nn.Module:
    model = Model(
        "trace", lambda **changes: BACKBONES["wan"](**arguments, **changes), FlowMatching(),
        LatentSpec(CHANNELS), None, "", "", TEXT_LEN, 81, 480, 832, 16, dtype="bfloat16",
    )  # fmt: skip
    return outline(model, lora)


def their_outline(arguments: dict[str, Any], lora: LoRA) -> nn.Module:
    """As it trains: frozen in bfloat16 but for what diffusers keeps, peft's LoRA in float32."""
    with torch.device("meta"):
        network = WanTransformer3DModel(
            num_attention_heads=arguments["num_heads"],
            attention_head_dim=arguments["dim"] // arguments["num_heads"], in_channels=CHANNELS,
            out_channels=CHANNELS, text_dim=arguments["text_dim"], ffn_dim=arguments["ffn_dim"],
            num_layers=arguments["num_layers"], cross_attn_norm=True, eps=1e-6,
        )  # fmt: skip
        inject_peft(network, lora.rank)
    lower(network, torch.bfloat16)
    network.enable_gradient_checkpointing()
    return PerToken(network).train()


def trace(quick: bool) -> Iterator[Row]:
    """Both under one ledger, under bfloat16 autocast: all blocks kept, recomputed, and recomputed
    from inputs that wait as bfloat16, as diffusers' do in any case."""
    arguments = {"text_dim": 4096, **VARIANTS["wan21_t2v_14b"].arguments}
    shape = QUICK_SHAPE if quick else SHAPE
    if quick:
        arguments["num_layers"] = QUICK_LAYERS
    work = Work(1, shape, TEXT_LEN, arguments["text_dim"])
    for policy in ("none", "blocks", "blocks_half"):
        found: dict[str, Footprint] = {}
        for who, make in (("ours", our_outline), ("diffusers", their_outline)):
            network = make(arguments, LoRA(RANK, RANK))
            recompute_blocks(network, policy if who == "ours" else policy.removesuffix("_half"))
            found[who] = run_step(network, FlowMatching(), work)
        yield {
            "case": "trace", "detail": policy, "mode": "fake tensors", "width": "14B",
            "dtype": "bfloat16", "frames": shape[1], "shape": list(shape), "rank": RANK,
            "layers": arguments["num_layers"],
            "bytes": {who: _most(one) for who, one in found.items()},
            "flop": {who: one.flops for who, one in found.items()},
        }  # fmt: skip


def _most(footprint: Footprint) -> int:
    """The most bytes at once of all that is no weight and no gradient of one."""
    return max(part.activations for part in (footprint.forward, *footprint.backward))
