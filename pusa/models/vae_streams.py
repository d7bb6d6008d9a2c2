"""diffusers' causal autoencoders group by group: what is remembered of the frames before is held
here, per stream, so that memory does not grow with length and an abandoned stream leaves no trace.

The loops are those of AutoencoderKLWan._encode and _decode without their growing concatenation,
and one for Mochi's decoder, whose own has no working memory of the frames before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Streams:
    """encode(autoencoder, frames, dtype): frames (B, 3, T, H, W) -> raw latents, the posterior's
    mean, of a few groups at a time; dtype: what the encoder is fed.
    decode(autoencoder, raw, turn): raw latents (B, C, F, h, w) -> the frames of one latent at a
    time; after every `turn` latents features wait in main memory.
    """

    encode: Callable[[Any, Tensor, torch.dtype], Iterator[Tensor]]
    decode: Callable[[Any, Tensor, int], Iterator[Tensor]]


def encode_wan(autoencoder: Any, frames: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

    patch = autoencoder.config.patch_size
    features = defaultdict(lambda: None)
    for start in (0, *range(1, frames.shape[2], 4)):
        group = frames[:, :, start : start + 4 if start else 1].to(dtype)
        if patch is not None:
            group = patchify(group, patch)
        hidden = autoencoder.encoder(group, feat_cache=features, feat_idx=[0])
        yield autoencoder.quant_conv(hidden).chunk(2, dim=1)[0]


def decode_wan(autoencoder: Any, raw: Tensor, turn: int) -> Iterator[Tensor]:
    hidden, num_latents = autoencoder.post_quant_conv(raw), raw.shape[2]
    features: Any = defaultdict(lambda: None)
    for index in range(num_latents):
        frames = _wan_frames(autoencoder, hidden[:, :, index : index + 1], features, index == 0)
        features = _rested(features, index + 1, turn, num_latents)
        yield frames


def _wan_frames(autoencoder: Any, hidden: Tensor, features: Any, first: bool) -> Tensor:
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    frames = autoencoder.decoder(hidden, feat_cache=features, feat_idx=[0], first_chunk=first)
    if autoencoder.config.patch_size is not None:
        frames = unpatchify(frames, autoencoder.config.patch_size)
    return frames.clamp(-1, 1)


def encode_mochi(autoencoder: Any, frames: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """All at once: its attention looks at every frame."""
    yield autoencoder.encode(frames.to(dtype)).latent_dist.mode()


def decode_mochi(autoencoder: Any, raw: Tensor, turn: int) -> Iterator[Tensor]:
    """Its causal convolutions must have been changed by `remember_past`."""
    num_latents, features = raw.shape[2], None
    for index in range(num_latents):
        frames, features = autoencoder.decoder(raw[:, :, index : index + 1], conv_cache=features)
        features = _rested(features, index + 1, turn, num_latents)
        yield frames if index else frames[:, :, autoencoder.temporal_compression_ratio - 1 :]


def _rested(features: Any, done: int, turn: int, num_latents: int) -> Any:
    """What to remember after `done` latents: nothing at the end, from main memory after a turn."""
    if done == num_latents:
        return None
    return in_main_memory(features) if done % turn == 0 else features


def in_main_memory(features: Any) -> Any:
    """The convolutions fetch them from there by themselves."""
    return tree_map_only(Tensor, Tensor.cpu, features)


class RememberingConv3d(nn.Module):
    """CogVideoXCausalConv3d with replicated borders, which can go on where it stopped.

    diffusers' own forgets the frames before when it pads by replication, and its mode for groups
    of frames pads Mochi's pictures nowhere. Same parameters under the same names.
    """

    def __init__(self, causal: Any):
        super().__init__()
        self.conv = causal.conv
        self.num_past = causal.time_pad
        self.border = (causal.width_pad,) * 2 + (causal.height_pad,) * 2 + (0, 0)

    def forward(self, x: Tensor, conv_cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x, the next frames (B, C, T, H, W), and what the last call gave to remember."""
        past = x[:, :, :1].expand(-1, -1, self.num_past, -1, -1)
        x = torch.cat([past if conv_cache is None else conv_cache.to(x.device), x], dim=2)
        features = x[:, :, x.shape[2] - self.num_past :].clone()
        return self.conv(functional.pad(x, self.border, mode="replicate")), features


def remember_past(decoder: nn.Module) -> None:
    """Change Mochi's decoder in place so that its convolutions remember the frames before."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d

    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, CogVideoXCausalConv3d):
                module.register_module(name, RememberingConv3d(child))


WAN = Streams(encode_wan, decode_wan)
MOCHI = Streams(encode_mochi, decode_mochi)
