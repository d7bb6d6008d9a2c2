"""A model ready to make videos: its parts loaded once, each where it should be while it works."""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from pusa.diffusion.conditioning import Conditioning
from pusa.models.base import VideoVAE
from pusa.models.text import T5TextEncoder
from pusa.models.tiling import Tiling
from pusa.pipelines.build import Model
from pusa.pipelines.generate import Request, Sampler, condition, decode_pieces, sample_latents
from pusa.pipelines.loras import PlacedLoRA
from pusa.pipelines.sidecar import weights_digests
from pusa.types import Text


@dataclass(frozen=True)
class Memory:
    """How much may be on the device at once; configs/memory/*.yaml.

    offload: every part is in main memory but while it works, of two experts the other one, too.
    stream: of the network at work no more than two blocks are on the device at once; see Experts.
    drop_text_encoder: it is not even kept there once the prompts are encoded. tiling: of the VAE,
    in latents; frames are decoded and written group by group in any case, so that memory does not
    grow with the length of a video.
    """

    offload: bool = False
    stream: bool = False
    drop_text_encoder: bool = False
    tiling: Tiling | None = None


class Studio:
    """One model with its LoRAs. Nothing is read before it is needed; prompts are encoded once.

    ValueError and WeightsError as of `Model`, when a part is first used.
    """

    def __init__(self, model: Model, loras: Iterable[PlacedLoRA] = (), memory: Memory = Memory()):
        self.model, self.loras, self.memory = model, tuple(loras), memory
        self.device = model.run_device()
        self._text_encoder: T5TextEncoder | None = None
        self._vae: VideoVAE | None = None
        self._experts, self._merged = None, False
        self._texts: dict[str, Text] = {}
        self._digests: dict[str, str] | None = None

    def weights_digests(self) -> dict[str, str]:
        """Content hashes of what it works with, by path; read once."""
        if self._digests is None:
            sources = [lora.adapter.source for lora in self.loras]
            self._digests = weights_digests(self.model, sources)
        return self._digests

    def texts(self, prompts: Sequence[str]) -> list[Text]:
        """Prompts, each as (1, L, text_dim) on the CPU."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if missing:
            encoder = self._text_encoder or self.model.build_text_encoder()
            self._text_encoder = None if self.memory.drop_text_encoder else encoder
            with self._at_work(encoder):
                self._texts |= {p: encoder.encode([p]).to("cpu") for p in missing}
            if self.memory.drop_text_encoder:
                del encoder
                gc.collect()
        return [self._texts[prompt] for prompt in prompts]

    def negative(self) -> Text | None:
        """The model's negative prompt; None: no text."""
        prompt = self.model.negative_prompt
        return None if prompt is None else self.texts([prompt])[0]

    def condition(self, requests: Sequence[Request], shape: Sequence[int]) -> Conditioning:
        """What requests give, encoded, for latents of `shape` (C, F, h, w)."""
        if not any(request.given for request in requests):
            return Conditioning.free((len(requests), *shape))
        with self._at_work(self._built_vae()) as vae:
            return condition(vae, requests, shape)

    @property
    def weights_wait(self) -> bool:
        """Whether networks are in main memory while others, or other parts, are at work."""
        return self.memory.offload or self.memory.stream or self.model.one_at_a_time

    def merge_loras(self, merged: bool) -> None:
        """Whether its LoRAs go into the weights or stay beside them; networks that were built the
        other way are let go of."""
        if merged != self._merged:
            self._experts, self._merged = None, merged

    def sample(
        self, sampler: Sampler, conditioning: Conditioning, requests: Sequence[Request],
        progress: Callable[[Iterable], Iterable] = iter,
    ) -> Tensor:  # fmt: skip
        """Latents (B, C, F, h, w), on the CPU."""
        negative = self.negative() if sampler.guidance_scale != 1 else None
        if self._experts is None:
            loaded_to = None if self.weights_wait or self.device.type == "cpu" else self.device
            self._experts = self.model.build_experts(
                self.loras, merged=self._merged, device=loaded_to
            )
            self._experts.one_at_a_time |= self.memory.offload
            self._experts.streamed |= self.memory.stream
            self._experts.to(self.device)
        latents = sample_latents(
            self._experts, self.model.flow, sampler, conditioning, requests, negative, progress
        )
        if self.memory.offload:
            self._experts.rest()
        return latents.cpu()

    def frames(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents (B, C, F, h, w) -> uint8 frames (B, t, 3, H, W) on the CPU, a few at a time."""
        with self._at_work(self._built_vae()) as vae:
            for piece in decode_pieces(vae, latents):
                yield piece.cpu()

    def _built_vae(self) -> VideoVAE:
        if self._vae is None:
            self._vae = self.model.build_vae(self.memory.tiling)
        return self._vae

    @contextlib.contextmanager
    def _at_work(self, part):
        """A part on the device, and back in main memory afterwards if it is to be."""
        part.to(self.device)
        try:
            yield part
        finally:
            if self.memory.offload:
                part.to("cpu")
