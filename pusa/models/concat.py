"""What is given as further input channels, the classical way to make a text-to-video DiT
image-to-video: [noisy latents, mask, clean latents], with one sigma for all frames.

The layout is Wan2.1 I2V's; its mask has four channels, one for each pixel frame of a latent, ours
has one, for here latents are given whole; latents that are not given are zeros, as CogVideoX has
it. Knows no checkpoint, no training.
"""

from typing import cast

import torch
from torch import Tensor, nn

from pusa.models.base import PreparedText, VideoBackbone
from pusa.models.wan_dit import PATCH, WanDiT
from pusa.types import Text


def widen(backbone: nn.Module) -> WanDiT:
    """Let a Wan DiT take a mask and clean latents, too: C input channels become 2C + 1, in place.

    The weights of the further channels are zeros, so that the network's output stays what it was,
    whatever is given. A backbone on meta stays there. ValueError for another network, or one whose
    input is not its output's channels.
    """
    if not isinstance(backbone, WanDiT):
        raise ValueError(f"only a Wan DiT can be widened (WanDiT), this is {type(backbone)}.")
    channels, old = backbone.out_channels, backbone.patch_embedding
    if backbone.in_channels != channels:
        raise ValueError(
            f"this network takes {backbone.in_channels} channels and gives {channels}: it has a "
            "condition already; widen a text-to-video network."
        )
    weight = old.weight.new_zeros(backbone.dim, 2 * channels + 1, *PATCH)
    weight[:, :channels] = old.weight.detach()
    with torch.device("meta"):  # no draws for weights that are not kept
        wide = nn.Conv3d(weight.shape[1], backbone.dim, PATCH, PATCH)
    wide.weight = nn.Parameter(weight, requires_grad=old.weight.requires_grad)
    wide.bias = old.bias
    backbone.patch_embedding, backbone.in_channels = wide, weight.shape[1]
    return backbone


class Conditioned(nn.Module):
    """A widened network under what is given: as a backbone, noisy latents -> velocity.

    latents: (B, C, F, h, w), looked at where given: (B, F) bool. ValueError if the two do not fit
    one another or the network.
    """

    condition: Tensor

    def __init__(self, backbone: nn.Module, latents: Tensor, given: Tensor):
        super().__init__()
        need = 2 * latents.shape[1] + 1
        if (found := getattr(backbone, "in_channels", None)) != need:
            raise ValueError(
                f"latents of {latents.shape[1]} channels need a network of {need} input channels, "
                f"this one has {found}; is it widened?"
            )
        if given.shape != (latents.shape[0], latents.shape[2]):
            raise ValueError(
                f"given {tuple(given.shape)} is not (B, F) of latents {tuple(latents.shape)}."
            )
        self.backbone = backbone
        self.text_dim: int = cast(VideoBackbone, backbone).text_dim
        mask = given[:, None, :, None, None].expand_as(latents)
        condition = torch.cat([mask[:, :1].to(latents), latents.masked_fill(~mask, 0.0)], dim=1)
        self.register_buffer("condition", condition, persistent=False)

    def prepare_text(self, text: Text) -> PreparedText:
        """The backbone's own: what is given has no part in it."""
        return cast(VideoBackbone, self.backbone).prepare_text(text)

    def forward(self, latents: Tensor, sigma: Tensor, text: Text | PreparedText) -> Tensor:
        """Velocity, noise - clean, in the latents' dtype.

        latents: noisy (B, C, F, h, w), or (2B, ...), the batch twice, as batched guidance has it;
        sigma, text: as of the backbone. ValueError for any other shape.
        """
        times, rest = divmod(len(latents), len(self.condition))
        if rest or latents.shape[2:] != self.condition.shape[2:]:
            raise ValueError(
                f"latents {tuple(latents.shape)} do not fit what is given for "
                f"{len(self.condition)} clips of {tuple(self.condition.shape[2:])} (F, h, w)."
            )
        condition = self.condition.repeat(times, 1, 1, 1, 1).to(latents)
        return self.backbone(torch.cat([latents, condition], dim=1), sigma, text)
