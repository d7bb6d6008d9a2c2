"""A model as its config names it -> ready networks, VAE and text encoder."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from pusa.data.hashing import fingerprint
from pusa.diffusion.flow import FlowMatching
from pusa.models.base import VideoVAE
from pusa.models.experts import Experts
from pusa.models.stored import check_storage, store_layers
from pusa.models.text import T5TextEncoder, load_text_encoder
from pusa.models.tiling import Tiling
from pusa.models.vae import load_vae
from pusa.pipelines.loras import EXPERTS, PlacedLoRA
from pusa.pipelines.tiny import write_tiny_model
from pusa.rng import generator_for
from pusa.types import LatentSpec
from pusa.weights.adapters import check_usable
from pusa.weights.files import EXPERT_FOLDERS, WeightsError, expert_of, load_weights
from pusa.weights.lora import load_lora
from pusa.weights.merge import merge_into
from pusa.weights.ready import ready_copy

log = logging.getLogger(__name__)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """Everything that configs/model/*.yaml says about one model.

    backbone: builds the network; weights: its checkpoint in any layout that is read, or None for a
    random start; vae, text_encoder: local files or folders; dtype: precision of the frozen weights;
    storage: "int8" or "float8", in which the blocks' frozen linear layers are kept, None for dtype;
    spec: how the VAE folds pixels; num_frames, height, width, fps: what it was made for;
    negative_prompt: None means no text at all; device: of sampling ("auto": a GPU if there is one),
    training is placed by the trainer. latent_space: of the VAE, see `load_vae`.

    A model of two experts has a boundary, the sigma at and above which the high-noise one works
    (0.875 for Wan2.2 T2V A14B, 0.9 for I2V); `expert` says which this is: "high", "low" or "both".
    Its weights are the folder that holds both, or {"high": path, "low": path}; of one alone, its
    own checkpoint does as well. one_at_a_time: in sampling, the one at work alone is on the device.

    folder: where its files lie as the vendor ships them; twin_of: the variant whose tiny twin this
    is, see `ensure_files`.
    """

    name: str
    backbone: Callable[[], nn.Module]
    flow: FlowMatching
    spec: LatentSpec
    weights: str | Mapping[str, str] | None
    vae: str
    text_encoder: str
    text_len: int
    num_frames: int
    height: int
    width: int
    fps: float
    guidance_scale: float = 1.0
    negative_prompt: str | None = None
    dtype: str = "float32"
    storage: str | None = None
    device: str = "auto"
    expert: str | None = None
    boundary: float | None = None
    one_at_a_time: bool = False
    latent_space: str = "normalized"
    folder: str | None = None
    twin_of: str | None = None

    def run_device(self) -> torch.device:
        """Where sampling runs: "auto" is the first GPU if there is one."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)

    def __post_init__(self):
        if self.dtype not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; use one of {known}.")
        check_storage(self.storage)
        if self.expert not in (None, *EXPERTS, "both"):
            raise ValueError(f"model.expert={self.expert!r} is unknown; use high, low or both.")
        if (self.expert is None) != (self.boundary is None):
            raise ValueError(
                f"model.expert={self.expert} and model.boundary={self.boundary}: a model of two "
                "experts has both, any other has neither."
            )
        if self.boundary is not None and not 0 < self.boundary < 1:
            raise ValueError(f"model.boundary must be between 0 and 1, got {self.boundary}.")
        self.latent_shape()

    def latent_shape(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """(C, F, h, w) of a clip, by default of the model's own size; ValueError if not legal."""
        size = (num_frames, height, width), (self.num_frames, self.height, self.width)
        frames, height, width = (
            own if asked is None else asked for asked, own in zip(*size, strict=True)
        )
        return (
            self.spec.channels,
            self.spec.num_latent_frames(frames),
            *self.spec.latent_size(height, width),
        )

    def experts(self) -> tuple[str | None, ...]:
        """The networks that this model is: ("high", "low") for both, else its one, or (None,)."""
        return EXPERTS if self.expert == "both" else (self.expert,)

    def for_expert(self, expert: str | None) -> "Model":
        """This model as one of its `experts()`, with that one's own weights.

        ValueError if it has no such expert, or its weights are not there beside the other's.
        """
        if expert not in self.experts():
            known = " or ".join(str(e) for e in self.experts())
            raise ValueError(f"{self.name} has no expert {expert}: model.expert is {known}.")
        return replace(self, expert=expert, weights=self.weights_path(expert))

    def noise_range(self, expert: str | None) -> tuple[float, float]:
        """The sigmas (lowest, highest) at which one of its networks works."""
        if self.boundary is None or expert is None:
            return 0.0, 1.0
        return (self.boundary, 1.0) if expert == "high" else (0.0, self.boundary)

    def weights_path(self, expert: str | None) -> str | None:
        """The checkpoint of one of its `experts()`; None for a random start. ValueError if the
        weights are there, but not that expert's."""
        path = self.weights
        both = "name both: model.weights={high: FILE, low: FILE}"
        if isinstance(path, Mapping):
            if expert is None or expert not in path:
                raise ValueError(f"model.weights names no {expert or 'single'} network; {both}.")
            return path[expert]
        if expert is None or path is None or not Path(path).exists():
            return path
        halves = {
            half: Path(path) / name
            for half, names in EXPERT_FOLDERS.items()
            for name in names
            if (Path(path) / name).is_dir()
        }
        if expert in halves:
            return str(halves[expert])
        if halves:
            missing = " or ".join(EXPERT_FOLDERS[expert])
            raise ValueError(f"{path}: holds no {missing}; download it, or {both}.")
        if self.expert == "both" or expert_of(path) not in (None, expert):
            raise ValueError(f"{path}: is one network, not the {expert}-noise one of two; {both}.")
        return path

    def input_marks(self) -> dict[str, str]:
        """What the files behind the paths are; "" if absent. A run is the same run only if these
        are the same."""
        several = len(self.experts()) > 1
        paths = {
            f"weights.{expert}" if several else "weights": self.weights_path(expert)
            for expert in self.experts()
        }
        paths |= {"vae": self.vae, "text": self.text_encoder}
        return {
            name: fingerprint(path) if path and Path(path).exists() else ""
            for name, path in paths.items()
        }

    def ensure_files(self) -> None:
        """Write the files of a tiny twin to its folder if they are missing; a real model's are the
        user's to get. Any number of processes may do so at once."""
        if self.twin_of is None or self.folder is None or not self._missing():
            return
        log.info("writing the tiny twin of %s to %s", self.twin_of, self.folder)
        try:
            write_tiny_model(self.twin_of, self.folder)
        except (OSError, WeightsError):
            if self._missing():  # else another process was first, with the same files
                raise

    def _missing(self) -> list[str]:
        """What should be in the model's own folder, and is not there."""
        weights = self.weights.values() if isinstance(self.weights, Mapping) else [self.weights]
        return [
            path
            for path in (*weights, self.vae, self.text_encoder)
            if path and Path(path).is_relative_to(self.folder or "") and not Path(path).exists()
        ]

    def ready_weights(self, folder: str | Path, dtype: str | None = None) -> str | None:
        """A checkpoint of its one network that processes can map as it is, made in `folder` if the
        model's own must be cast; None for a random start. dtype: by default the model's. What is
        kept in 8 bits is not mapped: each process makes its own of the model's checkpoint."""
        path, dtype = self.weights_path(self.expert), dtype or self.dtype
        if path is None or self.storage is not None:
            return path
        with torch.device("meta"):
            keep = getattr(self.backbone(), "keep_float32", ())
        target = Path(folder) / f"{fingerprint(path)}-{dtype}"
        return str(ready_copy(path, target, PRECISIONS[dtype], keep))

    def build_backbone(
        self, seed: int = 0, merged: Sequence[PlacedLoRA] = (), device: torch.device | None = None
    ) -> nn.Module:
        """The network with its weights, frozen, in eval mode; a random start without weights.

        merged: LoRAs that go into the weights for good, before they are rounded or packed; device:
        where it is to be, see `load_weights`.
        WeightsError for one that does not fit. ValueError for a model of two: take one
        with `for_expert`, or `build_experts`.
        """
        if self.expert == "both":
            raise ValueError(f"{self.name} is two networks; name one: model.expert=high or low.")
        path = self.weights_path(self.expert)
        loras = [(lora.adapter, lora.strength) for lora in merged]
        if path is None:
            log.warning("model %s has no weights (model.weights is null): random start.", self.name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(generator_for(seed, "model/init").initial_seed())
                backbone = self.backbone().eval()
            merge_into(backbone, loras, self.expert)
            if self.storage is not None:
                store_layers(backbone, self.storage)
            return backbone if device is None else backbone.to(device)
        with torch.device("meta"):
            backbone = self.backbone()
        load_weights(
            backbone, path, PRECISIONS[self.dtype], self.storage, loras, self.expert, device
        )
        return backbone.eval().requires_grad_(False)

    def build_experts(
        self, loras: Iterable[PlacedLoRA] = (), seed: int = 0, merged: bool = False,
        device: torch.device | None = None,
    ) -> Experts:  # fmt: skip
        """Its network or networks for sampling, with LoRAs placed on `experts()`: beside the
        weights, where strengths can be changed later, or merged into them. device: where all of
        them are loaded to, None for main memory.

        WeightsError for a LoRA that does not fit.
        """
        networks = []
        for expert in self.experts():
            own = [lora for lora in loras if lora.expert == expert]
            network = self.for_expert(expert).build_backbone(seed, own if merged else (), device)
            for number, lora in enumerate(() if merged else own):
                load_lora(network, lora.adapter, lora.strength, f"lora{number}", expert)
            floor = self.noise_range(expert)[0] if self.expert == "both" else 0.0
            networks.append((floor, network))
        return Experts(networks, self.one_at_a_time)

    def check_loras(self, loras: Iterable[PlacedLoRA]) -> None:
        """WeightsError for one that does not fit its network, by shapes; no weights are read."""
        with torch.device("meta"):
            backbone = self.backbone()
            if self.storage is not None:
                store_layers(backbone, self.storage)
            specs = dict(backbone.named_parameters())
        for lora in loras:
            check_usable(lora.adapter, specs, lora.expert)

    def build_vae(self, tiling: Tiling | None = None) -> VideoVAE:
        vae = load_vae(self.vae, tiling, latent_space=self.latent_space)
        if vae.spec != self.spec:
            raise ValueError(
                f"{self.vae}: folds pixels as {vae.spec}, model.spec says {self.spec}."
            )
        return vae

    def build_text_encoder(self) -> T5TextEncoder:
        return load_text_encoder(self.text_encoder, text_len=self.text_len)
