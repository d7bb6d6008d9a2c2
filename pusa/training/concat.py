"""Training of the classical image-to-video network, to which VTA is compared: the clean first frame
as further input channels, one shared timestep, all weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.pipelines.build import Model
from pusa.pipelines.concat import FORMAT, under, widen
from pusa.rng import generator_for
from pusa.training.module import VTAModule
from pusa.types import LatentBatch, Text
from pusa.weights.lora import LoRA


class ConcatModule(VTAModule):
    """A widened Wan DiT that is given the clip's own clean latent frame 0.

    In sigmas (B, F) of this module 0 says that a frame is given, through the channels; it is noisy
    like the others all the same, for sampling starts it from noise, and counts in training.
    Held-out, first_clean counts the other frames alone, as VTA's does, and shared gives nothing.

    condition_dropout: share of samples trained with nothing given, which keeps text-to-video.
    ValueError for a LoRA, timesteps that differ within a clip or are clean, or another network.
    """

    weights_format = FORMAT

    def __init__(
        self,
        model: Model,
        timesteps: VectorTimesteps,
        optimizer: Callable,
        schedule: Callable | None = None,
        lora: LoRA | None = None,
        caption_dropout: float = 0.0,
        condition_dropout: float = 0.1,
        seed: int = 0,
    ):
        if lora is not None:
            raise ValueError(f"module={FORMAT} has new weights and trains all; set lora=none.")
        if not 0 <= condition_dropout <= 1:
            raise ValueError(
                f"module.condition_dropout must be in [0, 1], got {condition_dropout}."
            )
        drawn = timesteps.sample(256, 2, generator_for(seed, "concat/check"))
        if (drawn != drawn[:, :1]).any() or not drawn.all():
            raise ValueError(
                f"module={FORMAT} has one noise level for all frames; set timesteps=synchronized."
            )
        super().__init__(model, timesteps, optimizer, schedule, None, caption_dropout, seed)
        self.backbone = widen(self.backbone)
        self.condition_dropout = condition_dropout

    def draw(self, batch: LatentBatch, step: int) -> tuple[Tensor, Tensor, Text]:
        """As VTA's, with sigma 0 where a frame is given; a clip of one frame gives none."""
        sigma, noise, text = super().draw(batch, step)
        if sigma.shape[1] > 1:
            draws = [
                float(torch.rand((), generator=generator_for(self.seed, "train/given", step, i)))
                for i in batch.index.tolist()
            ]
            kept = torch.tensor(draws, device=sigma.device) >= self.condition_dropout
            sigma[:, 0] = sigma[:, 0].masked_fill(kept, 0.0)
        return sigma, noise, text

    def levels(self, sigma: Tensor) -> Tensor:
        return sigma.amax(dim=1, keepdim=True).expand_as(sigma)

    def velocity(self, clean: Tensor, noise: Tensor, sigma: Tensor, text: Text) -> Tensor:
        network = under(self.backbone, Conditioning(clean, sigma.sign()))
        levels = self.levels(sigma)
        noisy = self.flow.add_noise(clean, noise, levels)
        with self.autocast():
            return network(noisy, levels, text)

    def sampling(self, conditioning: Conditioning) -> tuple[nn.Module, Conditioning]:
        latents = conditioning.latents
        free = Conditioning.free(latents.shape, latents.device)
        return under(self.backbone, conditioning), free
