"""The training step: per-frame timesteps, flow-matching loss, and its held-out curves."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from pusa.atomic import write_json
from pusa.diffusion.conditioning import Conditioning
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.pipelines.build import Model
from pusa.rng import generator_for
from pusa.training.loggers import log_mean
from pusa.training.sharding import check_storage
from pusa.training.strategy import ends_step, is_divided, sum_over_ranks, whole
from pusa.types import LatentBatch, Text
from pusa.weights.doctor import diagnose, diagnose_saved
from pusa.weights.files import WeightsError, write_tensors
from pusa.weights.lora import LoRA, adapter_of, format_matches, inject_lora, write_lora

log = logging.getLogger(__name__)
HELDOUT_SIGMAS = (0.1, 0.3, 0.5, 0.7, 0.9)


class VTAModule(L.LightningModule):
    """Vectorized timestep adaptation of a backbone, with a LoRA or (lora=None) all its weights.

    Randomness is counted: a sample's noise, sigmas and caption dropout are functions of (seed,
    step, sample index), so 1 or 8 ranks, or a resumed run, see the same numbers.
    """

    weights_format = "model"  # of model.safetensors, in its metadata

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
        check_storage(model.storage, lora, stage=0)
        if lora is None:  # all weights train: float32, which autocast lowers for the arithmetic
            model = replace(model, dtype="float32")
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
        self.precision = "32-true"
        self.last_step: tuple[Tensor, Tensor] | None = None  # sigma, errors (B, F) of the last pass
        self._loss_of_step = torch.zeros(())
        self._heldout: dict[str, Tensor] = {}  # name -> (sum of losses, number of clips)

    def on_fit_start(self) -> None:
        self.backbone.train()
        self.precision = str(self.trainer.precision)

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        clean = batch.latents  # (B, C, F, h, w)
        sigma, noise, text = self.draw(batch, self.global_step)
        velocity = self.velocity(clean, noise, sigma, text)
        errors = self.flow.frame_errors(velocity, clean, noise)
        loss = self.flow.mean_loss(errors, self.levels(sigma))
        self.last_step = self.levels(sigma), errors.detach()
        self._log_loss(loss.detach(), batch_idx)
        return loss

    def velocity(self, clean: Tensor, noise: Tensor, sigma: Tensor, text: Text) -> Tensor:
        """What the network makes of clips (B, C, F, h, w) at noise levels (B, F); 0 is given."""
        noisy = self.flow.add_noise(clean, noise, sigma)
        with self.autocast():
            return self.backbone(noisy, sigma, text)

    def levels(self, sigma: Tensor) -> Tensor:
        """The noise levels (B, F) at which a training step of these sigmas has its frames."""
        return sigma

    def sampling(self, conditioning: Conditioning) -> tuple[nn.Module, Conditioning]:
        """The network that samples under a conditioning, and what it leaves to the sampler."""
        return self.backbone, conditioning

    def autocast(self):
        """Here and not in the trainer, because DeepSpeed switches the trainer's off."""
        lowered = self.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=lowered)

    def _log_loss(self, loss: Tensor, batch_idx: int) -> None:
        """The mean over the passes of a step, once it is complete, and over processes."""
        passes = self.trainer.accumulate_grad_batches
        self._loss_of_step = self._loss_of_step + loss / passes
        if ends_step(self.trainer, batch_idx):
            log_mean(self, "train/loss", self._loss_of_step)
            self._loss_of_step = torch.zeros(())

    def draw(self, batch: LatentBatch, step: int) -> tuple[Tensor, Tensor, Text]:
        """Per-sample counted draws: sigma (B, F), noise like the latents, text with dropout."""
        clean = batch.latents
        sigmas, noises, dropped = [], [], []
        for index in batch.index.tolist():
            generator = generator_for(self.seed, "train/draw", step, index)
            sigmas.append(self.timesteps.sample(1, clean.shape[2], generator))
            noises.append(torch.randn(clean.shape[1:], generator=generator))
            dropped.append(float(torch.rand((), generator=generator)) < self.caption_dropout)
        keep = ~torch.tensor(dropped, device=clean.device)[:, None]
        text = Text(batch.text.embedding, batch.text.mask & keep)
        return torch.cat(sigmas).to(clean.device), torch.stack(noises).to(clean.device), text

    def on_validation_epoch_start(self) -> None:
        self._heldout = {}

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """Held-out loss per noise level, for shared timesteps and with frame 0 given clean."""
        loader = self.trainer.val_dataloaders
        repeat = loader.batch_sampler.is_repeat(batch_idx) if loader is not None else False
        clips = 0 if repeat else len(batch.latents)  # a repeat is computed, not counted
        for name, sigma, loss in self.heldout_losses(batch):
            for key in (f"heldout/{name}@{sigma}", f"heldout/{name}"):
                pair = torch.stack([loss.double() * clips, loss.new_tensor(clips).double()])
                self._heldout[key] = self._heldout.get(key, 0) + pair

    def on_validation_epoch_end(self) -> None:
        for key, pair in self._heldout.items():
            total, count = sum_over_ranks(pair).tolist()
            short = "@" not in key
            self.log(key, total / count, prog_bar=short, batch_size=1)

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
                velocity = self.velocity(clean, noise, sigma, batch.text)
                yield name, level, self.flow.loss(velocity, clean, noise, sigma)

    def export(self, folder: Path, recipe: Mapping) -> Path:
        """Write `lora.safetensors`, or `model.safetensors` when all weights train: bfloat16,
        but for what the model keeps in float32. Every process calls it, the first one writes.

        WeightsError (the file stays) if the LoRA that was written is no good.
        """
        path = folder / ("model.safetensors" if self.lora is None else "lora.safetensors")
        with whole(self.trainable().values()):
            if self.global_rank == 0 and self.lora is None:
                self._write_model(path, recipe)
            elif self.global_rank == 0:
                adapter = adapter_of(self.backbone, recipe=recipe, expert=self.model.expert)
                trained = tuple(self.timesteps.sigma_range)
                write_lora(replace(adapter, noise_range=trained), path)
        if self.global_rank == 0 and self.lora is not None:
            self._examine(path)
        return path

    def _write_model(self, path: Path, recipe: Mapping) -> None:
        keep = getattr(self.backbone, "keep_float32", ())
        weights = {
            key: value.float() if any(part in key for part in keep) else value.bfloat16()
            for key, value in self.backbone.state_dict().items()
        }
        written = json.dumps(dict(recipe), default=str)
        metadata = {"pusa.format": self.weights_format, "recipe": written}
        write_tensors(path, weights, metadata)

    def _examine(self, path: Path) -> None:
        """Weights that are divided over processes are not run once more, but read from the file."""
        if is_divided(self.backbone):
            found = diagnose(
                path, self.model.weights_path(self.model.expert), self.model.expert, forward=False
            )
        else:
            found = diagnose_saved(path, self.backbone)
        write_json(path.with_suffix(".doctor.json"), found.to_json())
        log.info("%s", found.text())
        if not found.ok:
            raise WeightsError(f"{path}: {found.errors[0]} (see {path.stem}.doctor.json).")

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name: the adapter, or all of the backbone."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["state_dict"] = {name: p.detach() for name, p in self.trainable().items()}

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        if "state_dict" not in checkpoint:  # DeepSpeed's engine has loaded it, and compared names
            return
        missing = self.trainable().keys() ^ checkpoint["state_dict"].keys()
        if missing:
            raise ValueError(
                f"the checkpoint and this run train different tensors (such as {min(missing)}); "
                "resume with the same lora and model, or start anew with another name=."
            )

    def configure_optimizers(self):
        optimizer = self.make_optimizer(list(self.trainable().values()))
        if self.make_schedule is None:
            return optimizer
        schedule = self.make_schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
