"""VAEs behind one interface: frames (B, 3, T, H, W) in [-1, 1] <-> normalized latents.

Thin wrappers of diffusers' autoencoders, and where their weights come from: diffusers folders and
the vendors' own files. How they run group by group is in vae_streams.py, tiles are in tiling.py,
the replica's codec in tiny_vae.py.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pusa.models import vae_streams
from pusa.models.base import VideoVAE, latents_of, needed_frames
from pusa.models.tiling import TURN, Scales, Tiling, in_tiles, joined, turns_of
from pusa.models.tiny_vae import TinyVAE
from pusa.models.vae_streams import Streams
from pusa.types import LatentSpec
from pusa.weights import vae_keys
from pusa.weights.lazy import (
    InMemory,
    Piece,
    SafetensorsFiles,
    Tensors,
    View,
    WeightsError,
    in_turn,
    open_tensors,
)

LATENT_SPACES = ("normalized", "raw")
MOCHI_FILES = ("encoder.safetensors", "decoder.safetensors")
WAN, MOCHI = "AutoencoderKLWan", "AutoencoderKLMochi"


class DiffusersVAE(nn.Module):
    """One of diffusers' causal autoencoders with its latent statistics, which stay in float32.

    streams: how it encodes and decodes group by group; spec: how it folds pixels; mean, std: per
    channel, of the raw latents; raw: encode leaves out the normalization (decode never does);
    pixel_dtype: what the encoder is fed, by default the dtype of its weights.
    """

    def __init__(
        self,
        autoencoder: Any,
        streams: Streams,
        spec: LatentSpec,
        mean: Sequence[float],
        std: Sequence[float],
        tiling: Tiling | None = None,
        raw: bool = False,
        pixel_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not len(mean) == len(std) == spec.channels or min(std) <= 0:
            raise ValueError(
                f"latents_mean and latents_std have {len(mean)} and {len(std)} values (std > 0 "
                f"wanted), the VAE has {spec.channels} channels; mend its config.json."
            )
        self.autoencoder, self.streams, self.spec = autoencoder, streams, spec
        self.tiling, self.raw, self.pixel_dtype = tiling, raw, pixel_dtype
        # Not buffers: a cast of the module must not round them.
        self.mean, self.std = tuple(mean), tuple(std)

    def encode(self, frames: Tensor, start: int = 0, num_latents: int | None = None) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1] -> the posterior's mean, float32 (B, C, F, h, w).

        start, num_latents and ValueErrors: see `needed_frames`.
        """
        frames = needed_frames(frames, self.spec, start, num_latents)
        num_latents = self.spec.num_latent_frames(frames.shape[2])
        scales = Scales(given=self.spec.spatial_stride, made=1)
        pieces = in_tiles(self._encode_tile, frames, self.tiling, scales, [num_latents])
        raw = joined(pieces, num_latents)
        return raw if self.raw else (raw - self._channels(self.mean)) / self._channels(self.std)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalized latents (B, C, F, h, w) -> float32 frames (B, 3, T, H, W) in [-1, 1].

        A tile is decoded to the end before the next one: what it remembers is held for one at a
        time, the frames for all. ValueError for another number of channels.
        """
        num_latents = latents_of(self.spec, latents)
        pieces = self._decode_pieces(latents, turn=num_latents)
        return joined(pieces, self.spec.num_pixel_frames(num_latents))

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """`decode` bit by bit: frames (B, 3, t, H, W) in order, of one latent, with tiles of TURN.

        Memory does not grow with the length. With tiles, features of all of them wait in main
        memory. ValueError as of decode, before the first frames.
        """
        turn = TURN if self.tiling else latents_of(self.spec, latents)
        return self._decode_pieces(latents, turn)

    def _decode_pieces(self, latents: Tensor, turn: int) -> Iterator[Tensor]:
        turns = turns_of(self.spec, latents_of(self.spec, latents), turn)
        raw = latents.float() * self._channels(self.std) + self._channels(self.mean)
        scales = Scales(given=1, made=self.spec.spatial_stride)
        stream = partial(self._decode_tile, turn=turn)
        return (x.clamp_(-1, 1) for x in in_tiles(stream, raw, self.tiling, scales, turns))

    def _channels(self, values: Sequence[float]) -> Tensor:
        device = next(self.autoencoder.parameters()).device
        return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)

    def _encode_tile(self, frames: Tensor) -> Iterator[Tensor]:
        dtype = self.pixel_dtype or self.autoencoder.dtype
        return (raw.float() for raw in self.streams.encode(self.autoencoder, frames, dtype))

    def _decode_tile(self, raw: Tensor, turn: int) -> Iterator[Tensor]:
        raw = raw.to(self.autoencoder.dtype)
        return (frames.float() for frames in self.streams.decode(self.autoencoder, raw, turn))


def wrap_wan(autoencoder: Any, tiling: Tiling | None = None) -> DiffusersVAE:
    """diffusers' AutoencoderKLWan, of Wan2.1 (4x8x8) or Wan2.2 (4x16x16, it patchifies by itself).

    ValueError if it does not fold 4 frames, which its code takes for granted.
    """
    config = autoencoder.config
    temporal = 2 ** sum(config.temperal_downsample)
    if temporal != 4:
        raise ValueError(f"the Wan VAE folds {temporal} frames; only 4 are supported.")
    spatial = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    spec = LatentSpec(config.z_dim, temporal, spatial)
    return DiffusersVAE(
        autoencoder, vae_streams.WAN, spec, config.latents_mean, config.latents_std, tiling
    )


def wrap_mochi(autoencoder: Any, tiling: Tiling | None = None, raw: bool = False) -> DiffusersVAE:
    """diffusers' AutoencoderKLMochi (6x8x8).

    Its first layer takes sines of 2^7 cycles per unit of brightness, which pixels rounded to
    bfloat16 would turn into noise: they stay in float32 up to there.
    """
    config = autoencoder.config
    spec = LatentSpec(
        config.latent_channels, prod(config.temporal_expansions), prod(config.spatial_expansions)
    )
    autoencoder.encoder.fourier_features.register_forward_hook(
        lambda module, inputs, features: features.to(autoencoder.dtype)
    )
    vae_streams.remember_past(autoencoder.decoder)
    return DiffusersVAE(
        autoencoder, vae_streams.MOCHI, spec, config.latents_mean, config.latents_std, tiling, raw,
        torch.float32,
    )  # fmt: skip


def load_vae(
    path: str | Path,
    tiling: Tiling | None = None,
    dtype: torch.dtype = torch.float32,
    latent_space: str = "normalized",
) -> VideoVAE:
    """A frozen VAE in eval mode.

    path: a diffusers VAE folder, a pipeline's folder that holds one as `vae/`, a vendor's file
    (Wan2.1_VAE.pth, Wan2.2_VAE.pth, as .safetensors too), a folder with one Wan*_VAE file, or a
    folder with Mochi's encoder.safetensors and decoder.safetensors. Which VAE a file holds is told
    from tensor names and shapes.
    dtype: of the weights (the replica's VAE is always float32); the latents are float32.
    latent_space: "raw" is for Mochi weights that were trained on latents that upstream forgot to
    normalize: encode does not normalize either, decode expects normalized latents as ever.
    ValueError for a folder or class that is not known, WeightsError (a ValueError) naming the keys
    that are missing, unknown or of a wrong shape.
    """
    if latent_space not in LATENT_SPACES:
        raise ValueError(f"latent_space={latent_space!r} is unknown; use normalized or raw.")
    found = _find(Path(path))
    config = _read_config(found)
    raw = latent_space == "raw"
    name = config.get("_class_name")
    autoencoder = None if name == "TinyVAE" else _load_autoencoder(found, config, dtype)
    if raw and type(autoencoder).__name__ != MOCHI:
        raise ValueError(f"{found}: latent_space='raw' is a quirk of Mochi's; use 'normalized'.")
    if autoencoder is None:
        vae = _load_tiny(found, config, tiling)
    elif type(autoencoder).__name__ == MOCHI:
        vae = wrap_mochi(autoencoder, tiling, raw)
    else:
        vae = wrap_wan(autoencoder, tiling)
    return vae.eval().requires_grad_(False)


def _read_config(path: Path) -> dict:
    file = path / "config.json"
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again.") from error


def _find(path: Path) -> Path:
    """The diffusers folder, the vendor's file or the folder of Mochi's two files at `path`."""
    known = ("TinyVAE", WAN, MOCHI)
    name = _read_config(path).get("_class_name")
    if path.is_file() or name in known or all((path / file).is_file() for file in MOCHI_FILES):
        return path
    if (path / "vae" / "config.json").is_file():
        return _find(path / "vae")
    files = sorted(
        file for file in path.glob("Wan*_VAE.*") if file.suffix in (".pth", ".safetensors")
    )
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path}: holds {names}; name the one that is meant (model.vae).")
    if name is not None:
        raise ValueError(
            f"{path / 'config.json'}: VAE class {name!r} is not known; use {' or '.join(known)}."
        )
    raise ValueError(
        f"{path}: no config.json in it, no vae/ folder, no Wan*_VAE.pth, no "
        f"{' + '.join(MOCHI_FILES)}; expected a diffusers folder or a vendor's file (model.vae)."
    )


def _load_tiny(folder: Path, config: dict, tiling: Tiling | None) -> TinyVAE:
    vae = TinyVAE(
        **{key: value for key, value in config.items() if key != "_class_name"}, tiling=tiling
    )
    _assign(vae, _same_names(_open_folder(folder)), torch.float32)
    return vae


def _load_autoencoder(path: Path, config: dict, dtype: torch.dtype) -> Any:
    """The autoencoder of a diffusers folder (config not empty) or of a vendor's file or files."""
    import diffusers

    if config.get("_class_name") in (WAN, MOCHI):
        tensors = _same_names(_open_folder(path))
        with torch.device("meta"):
            autoencoder = getattr(diffusers, config["_class_name"]).from_config(config)
    else:
        tensors = _open_vendor(path)
        tensors = View(tensors, vae_keys.to_diffusers(tensors))
        try:
            arguments = vae_keys.constructor_arguments(tensors.specs())
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        name = MOCHI if vae_keys.family(tensors) == "mochi" else WAN
        with torch.device("meta"):
            autoencoder = getattr(diffusers, name)(**arguments)
    _assign(autoencoder, tensors, dtype)
    return autoencoder


def _same_names(tensors: Tensors) -> View:
    return View(tensors, {key: Piece((key,)) for key in tensors})


def _open_folder(folder: Path) -> Tensors:
    """The weights of a diffusers VAE folder; a VAE is too small to come in shards."""
    stem = "diffusion_pytorch_model"
    files = [folder / f"{stem}.safetensors", folder / f"{stem}.bin", *folder.glob("*.safetensors")]
    for file in files:
        if file.is_file():
            return open_tensors(file)
    raise WeightsError(f"{folder}: no {stem}.safetensors in it; download the folder again.")


def _open_vendor(path: Path) -> Tensors:
    """Official names; Mochi's two files as one, below `encoder.` and `decoder.`."""
    if not path.is_dir():
        tensors = open_tensors(path)
        if any(key.startswith(("layers.", "blocks.0.0.")) for key in tensors):
            raise WeightsError(
                f"{path}: one half of Mochi's VAE; give the folder that holds "
                f"{' and '.join(MOCHI_FILES)}."
            )
        return tensors
    halves = {file.split(".")[0]: SafetensorsFiles([path / file]) for file in MOCHI_FILES}
    return InMemory(
        {f"{half}.{key}": tensors[key] for half, tensors in halves.items() for key in tensors},
        str(path),
    )


def _assign(module: nn.Module, tensors: View, dtype: torch.dtype) -> None:
    """Fill a module that may be on meta. WeightsError that names the first keys which do not fit,
    as the file spells them; then nothing is assigned."""
    expected, found = module.state_dict(), tensors.specs()
    spelled = {key: piece.sources[0] for key, piece in tensors.pieces.items()}
    if any(key != name for key, name in spelled.items()):
        for name, piece in vae_keys.to_official(expected).items():
            spelled |= {key: spelled.get(key, name) for key in piece.sources}
    faults = {
        "misses": [key for key in expected if key not in found],
        "has no place for": [key for key in found if key not in expected],
        "has another shape than the rest for": [
            key for key in expected if key in found and expected[key].shape != found[key].shape
        ],
    }
    for fault, keys in faults.items():
        if keys:
            names = ", ".join(dict.fromkeys(spelled.get(key, key) for key in keys[:3]))
            raise WeightsError(
                f"{tensors.source}: {fault} {names} ({len(keys)} in all); it is not a whole "
                f"{type(module).__name__}, download it again."
            )
    state = {key: tensor.to(dtype, copy=True) for key, tensor in in_turn(tensors, tensors)}
    module.load_state_dict(state, strict=True, assign=True)
