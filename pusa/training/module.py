"""The training step: per-frame timesteps, flow-matching loss, and its held-out curves."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from pusa.atomic import write_json
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.pipelines.build import Model
from pusa.rng import generator_for
from pusa.types import LatentBatch, Text
from pusa.weights.doctor import diagnose_saved
from pusa.weights.files import WeightsError, write_tensors
from pusa.weights.lora import LoRA, adapter_of, format_matches, inject_lora, write_lora

log = logging.getLogger(__name__)
HELDOUT_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class VTAModule(L.LightningModule):
    """Vectorized timestep adaptation of a backbone, with a LoRA or (lora=None) all its weights.

    Randomness is counted: a sample's noise, sigmas and caption dropout are functions of (seed,
    step, sample index), so 1 or 8 ranks, or a resumed run, see the same numbers.
    """

    def __init__(
        self,
        model: Model,
        timesteps: VectorTimesteps,
        optimizer: Callable,
        schedule: Callable | None = None,
        lora: LoRA | None = None,
        caption_dropout: float = 0.0,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"module.caption_dropout must be in [0, 1], got {caption_dropout}.")
        self.model, self.timesteps, self.flow = model, timesteps, model.flow
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.lora, self.caption_dropout, self.seed = lora, caption_dropout, seed
        self.strict_loading = False  # checkpoints hold trainable tensors only
        self.backbone = model.build_backbone(seed)
        if lora is None:
            self.backbone.requires_grad_(True)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator_for(seed, "lora/init").initial_seed())
                matches = inject_lora(self.backbone, lora)
            log.info("LoRA rank %d, alpha %g:\n%s", lora.rank, lora.alpha, format_matches(matches))

    def on_fit_start(self) -> None:
        self.backbone.train()

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        clean = batch.latents  # (B, C, F, h, w)
        sigma, noise, text = self._draw(batch)
        noisy = self.flow.add_noise(clean, noise, sigma)
        velocity = self.backbone(noisy, sigma, text)
        loss = self.flow.loss(velocity, clean, noise, sigma)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(clean))
        return loss

    def _draw(self, batch: LatentBatch) -> tuple[Tensor, Tensor, Text]:
        """Per-sample counted draws: sigma (B, F), noise like the latents, text with dropout."""
        clean, step = batch.latents, self.global_step
        sigmas, noises, dropped = [], [], []
        for index in batch.index.tolist():
            generator = generator_for(self.seed, "train/draw", step, index)
            sigmas.append(self.timesteps.sample(1, clean.shape[2], generator))
            noises.append(torch.randn(clean.shape[1:], generator=generator))
            dropped.append(float(torch.rand((), generator=generator)) < self.caption_dropout)
        keep = ~torch.tensor(dropped, device=clean.device)[:, None]
        text = Text(batch.text.embedding, batch.text.mask & keep)
        return torch.cat(sigmas).to(clean.device), torch.stack(noises).to(clean.device), text

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """Held-out loss per noise level, for shared timesteps and with frame 0 given clean."""
        for name, sigma, loss in self.heldout_losses(batch):
            self.log(f"heldout/{name}@{sigma}", loss, batch_size=len(batch.latents))
            self.log(f"heldout/{name}", loss, batch_size=len(batch.latents), prog_bar=True)

    @torch.no_grad()
    def heldout_losses(self, batch: LatentBatch) -> Iterator[tuple[str, float, Tensor]]:
        """(rule, sigma, mean loss over the batch); the noise of a sample never changes."""
        clean = batch.latents
        noise = torch.stack(
            [
                torch.randn(
                    clean.shape[1:], generator=generator_for(self.seed, "heldout/noise", index)
                )
                for index in batch.index.tolist()
            ]
        ).to(clean.device)
        for level in HELDOUT_SIGMAS:
            shared = torch.full((clean.shape[0], clean.shape[2]), level, device=clean.device)
            given = shared.clone()
            given[:, 0] = 0.0
            for name, sigma in (("shared", shared), ("first_clean", given)):
                noisy = self.flow.add_noise(clean, noise, sigma)
                velocity = self.backbone(noisy, sigma, batch.text)
                yield name, level, self.flow.loss(velocity, clean, noise, sigma)

    def export(self, folder: Path, recipe: Mapping) -> Path:
        """Write `lora.safetensors`, or `model.safetensors` when all weights train: bfloat16,
        but for what the model keeps in float32."""
        if self.lora is not None:
            return self._export_lora(folder / "lora.safetensors", recipe)
        keep = getattr(self.backbone, "keep_float32", ())
        weights = {
            key: value.float() if any(part in key for part in keep) else value.bfloat16()
            for key, value in self.backbone.state_dict().items()
        }
        metadata = {"pusa.format": "model", "recipe": json.dumps(dict(recipe), default=str)}
        return write_tensors(folder / "model.safetensors", weights, metadata)

    def _export_lora(self, path: Path, recipe: Mapping) -> Path:
        """Write the LoRA, then examine the file: WeightsError (the file stays) if it is no good."""
        adapter = adapter_of(self.backbone, recipe=recipe, expert=self.model.expert)
        write_lora(adapter, path)
        found = diagnose_saved(path, self.backbone)
        write_json(path.with_suffix(".doctor.json"), found.to_json())
        log.info("%s", found.text())
        if not found.ok:
            raise WeightsError(f"{path}: {found.errors[0]} (see {path.stem}.doctor.json).")
        return path

    def trainable_state(self) -> dict[str, Tensor]:
        """Trainable tensors by name: the adapter, or all of the backbone."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = self.trainable_state()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        missing = self.trainable_state().keys() ^ checkpoint["state_dict"].keys()
        if missing:
            raise ValueError(
                f"the checkpoint and this run train different tensors (such as {min(missing)}); "
                "resume with the same lora and model, or start anew with another name=."
            )

    def configure_optimizers(self):
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
