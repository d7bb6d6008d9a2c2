"""Our Wan DiT and diffusers' with the same random weights, bare or in the training module, and the
inputs that both are given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.harness import DTYPES
from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.models.checkpointing import Checkpointing
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.build import Model
from pusa.training.module import VTAModule
from pusa.types import LatentBatch, LatentSpec, Text
from pusa.weights.keymaps import rename_wan, rename_wan_module
from pusa.weights.lora import VTA_TARGETS, LoRA

CHANNELS, TEXT_DIM, TEXT_LEN, CAPTION_LEN, RANK = 16, 256, 512, 40, 32


@dataclass(frozen=True)
class Width:
    """The size of a network; side: tokens along a side of a frame."""

    name: str
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    side: int

    @property
    def words(self) -> str:
        return (
            f"{self.layers} blocks of width {self.dim}, {self.heads} heads, feed-forward "
            f"{self.ffn_dim}, {self.side} x {self.side} tokens a frame"
        )


WIDTHS = {
    width.name: width
    for width in (
        Width("tiny", 64, 128, 1, 2, 4),  # for trying the suite out
        Width("384x6", 384, 1024, 3, 6, 16),
        Width("192x30", 192, 512, 3, 30, 16),
        Width("1536x6", 1536, 8960, 12, 6, 8),  # the width of Wan2.1 1.3B
    )
}


class PerToken(nn.Module):
    """diffusers' DiT behind our interface: the sigma of a frame repeated for each of its tokens."""

    def __init__(self, model: WanTransformer3DModel):
        super().__init__()
        self.model = model

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.blocks

    def forward(self, latents: Tensor, sigma: Tensor, text: Text) -> Tensor:
        """sigma: (B,), which stays one number per clip, or (B, F)."""
        timestep = 1000 * sigma
        if sigma.ndim == 2:
            tokens = latents.shape[3] * latents.shape[4] // 4
            timestep = timestep.repeat_interleave(tokens, dim=1)
        embedding = text.embedding.masked_fill(~text.mask[..., None], 0.0)
        embedding = nn.functional.pad(embedding, (0, 0, 0, TEXT_LEN - embedding.shape[1]))
        dtype = self.model.patch_embedding.weight.dtype
        velocity = self.model(latents.to(dtype), timestep, embedding.to(dtype), return_dict=False)
        return velocity[0].to(latents.dtype)


def our_network(width: Width) -> Callable[..., WanDiT]:
    """Its constructor, with all that `width` settles."""
    return partial(
        WanDiT, dim=width.dim, ffn_dim=width.ffn_dim, num_heads=width.heads,
        num_layers=width.layers, text_dim=TEXT_DIM, text_len=TEXT_LEN,
    )  # fmt: skip


def their_network(width: Width) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=width.heads, attention_head_dim=width.dim // width.heads,
        in_channels=CHANNELS, out_channels=CHANNELS, text_dim=TEXT_DIM, ffn_dim=width.ffn_dim,
        num_layers=width.layers, cross_attn_norm=True, eps=1e-6,
    )  # fmt: skip


def inject_peft(network: nn.Module, rank: int) -> None:
    """peft's LoRA as it is, where training puts ours."""
    targets = [rename_wan_module(f"blocks.0.{target}", "diffusers") for target in VTA_TARGETS]
    names = [target.removeprefix("blocks.0.") for target in targets if target]
    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network
    )  # freezes all but the adapter


def their_name(key: str) -> str:
    """Our name of a tensor, adapted or not -> diffusers'."""
    for part in (".base_layer.", ".lora_"):
        if part in key:
            module, rest = key.split(part)
            return f"{rename_wan_module(module, 'diffusers')}{part}{rest}"
    (name,) = rename_wan([key], "diffusers")
    return name


def fill_zeros(network: nn.Module) -> None:
    """Biases, the head and the LoRA's B, whose zeros would hide differences."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.02, generator=generator)


def lower(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast all but what either library keeps in float32, and an adapter."""
    kept = getattr(network, "keep_float32", None) or cast(Any, network)._keep_in_fp32_modules
    for name, parameter in network.named_parameters():
        if not any(part in name for part in (*kept, ".lora_")):
            parameter.data = parameter.data.to(dtype)


def give_weights(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.load_state_dict({their_name(key): value for key, value in ours.state_dict().items()})


def pair(width: Width, dtype: str, device: torch.device) -> dict[str, nn.Module]:
    """Both networks, frozen, with equal weights."""
    torch.manual_seed(0)
    ours, theirs = our_network(width)(), their_network(width)
    fill_zeros(ours)
    give_weights(ours, theirs)
    for network in (ours, theirs):
        lower(network, DTYPES[dtype])
    both: dict[str, nn.Module] = {"ours": ours, "diffusers": PerToken(theirs)}
    return {who: one.to(device).eval().requires_grad_(False) for who, one in both.items()}


def training_pair(
    width: Width, dtype: str, device: torch.device, lora: LoRA | None
) -> dict[str, VTAModule]:
    """The same training module twice, with our backbone and with diffusers'; lora=None trains all
    weights, in float32 under autocast if `dtype` is lower."""
    model = Model(
        name="bench", backbone=our_network(width), flow=FlowMatching(shift=5.0),
        spec=LatentSpec(CHANNELS), weights=None, vae="", text_encoder="", text_len=TEXT_LEN,
        num_frames=81, height=480, width=832, fps=16, dtype=dtype,
    )  # fmt: skip
    make = partial(VTAModule, model, VectorTimesteps(), partial(torch.optim.AdamW, lr=1e-5))
    ours, theirs = make(lora=lora), make(lora=lora)
    fill_zeros(ours.backbone)
    reference = their_network(width)
    if lora is not None:
        inject_peft(reference, lora.rank)
    reference.enable_gradient_checkpointing()  # sets the function; the switch is thrown per run
    give_weights(ours.backbone, reference)
    if lora is not None:
        for network in (ours.backbone, reference):
            lower(network, DTYPES[dtype])
    theirs.backbone = PerToken(reference)
    for module in (ours, theirs):
        module.to(device)
        module.trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, barebones=True,
            precision="32-true" if dtype == "float32" else "bf16-mixed",
        )  # fmt: skip
        module.on_fit_start()  # takes the precision from the trainer
        recompute_blocks(module.backbone, "none")  # of diffusers the call above switched it on
    return {"ours": ours, "diffusers": theirs}


def recompute_blocks(backbone: Any, policy: str) -> None:
    """policy: "none" or "blocks"."""
    if isinstance(backbone, PerToken):
        backbone.model.gradient_checkpointing = policy == "blocks"
    else:
        backbone.checkpointing = Checkpointing.named(policy)


def compile_blocks(backbone: Any) -> None:
    """Regional compilation, one shape at a time, as either library has it."""
    if isinstance(backbone, PerToken):
        backbone.model.compile_repeated_blocks(dynamic=False)
    else:
        backbone.compile_blocks(dynamic=False)


def make_text(length: int = CAPTION_LEN, seed: int = 2) -> Text:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(1, length, TEXT_DIM, generator=generator)
    return Text(embedding, torch.ones(1, length, dtype=torch.bool))


def make_batch(width: Width, frames: int, device: torch.device) -> LatentBatch:
    """One clip and its caption."""
    generator = torch.Generator().manual_seed(frames)
    shape = (1, CHANNELS, frames, 2 * width.side, 2 * width.side)
    latents = torch.randn(shape, generator=generator)
    return LatentBatch(latents, make_text(), torch.zeros(1).long()).to(device)
