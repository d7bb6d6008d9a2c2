"""Image-to-video networks whose condition is further input channels (models/concat.py): from a
text-to-video model, from a trained file, and videos of them. Their training is training/concat.py.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.flow import FlowMatching
from pusa.models.base import VideoVAE
from pusa.models.concat import Conditioned, widen
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.build import PRECISIONS, Model
from pusa.pipelines.generate import Request, Sampler, condition, decode_latents, sample_latents
from pusa.types import Text
from pusa.weights.files import WeightsError, load_weights, read_metadata

__all__ = ["FORMAT", "generate_concat", "is_concat", "load_concat", "under", "widen"]
FORMAT = "i2v_concat"  # of the file's metadata, "pusa.format"


def is_concat(path: str | Path) -> bool:
    """Whether a file holds a network of this kind, by its metadata; WeightsError if unreadable."""
    return read_metadata(path).get("pusa.format") == FORMAT


def load_concat(model: Model, path: str | Path) -> WanDiT:
    """The trained, widened network of a run's model.safetensors, frozen, in eval mode, in main
    memory; `under` makes a backbone of it. WeightsError if the file is of another kind or model."""
    if not is_concat(path):
        raise WeightsError(
            f"{path}: is no {FORMAT} model; name the model.safetensors of a run with "
            f"module={FORMAT}."
        )
    with torch.device("meta"):
        backbone = widen(model.backbone())
    load_weights(backbone, path, PRECISIONS[model.dtype])
    return backbone.eval().requires_grad_(False)


def under(backbone: nn.Module, conditioning: Conditioning) -> Conditioned:
    """A widened network under what a conditioning gives (multiplier < 1), on its device.

    What is given is shown clean: these networks know no noise multiplier. Sample it with a free
    conditioning, for its frames all run from noise.
    """
    conditioning = conditioning.to(next(backbone.parameters()).device)
    return Conditioned(backbone, conditioning.latents, conditioning.multiplier < 1)


def generate_concat(
    backbone: nn.Module,
    vae: VideoVAE,
    flow: FlowMatching,
    sampler: Sampler,
    requests: Sequence[Request],
    shape: Sequence[int],
    negative: Text | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Tensor:
    """As `generate`, with a widened network: videos (B, T, 3, H, W) uint8."""
    conditioning = condition(vae, requests, shape)
    network = under(backbone, conditioning)
    free = Conditioning.free(conditioning.latents.shape)
    latents = sample_latents(network, flow, sampler, free, requests, negative, progress)
    return decode_latents(vae, latents)
