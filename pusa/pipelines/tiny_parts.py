"""Writes VAEs and text encoders of random weights and a few channels, in the layouts of the real
ones: the same tensor names, files and folders. For tests, and to try a setup on a laptop."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.atomic import replacing
from pusa.pipelines.replica import make_text_encoder
from pusa.weights import text_keys, vae_keys
from pusa.weights.lazy import InMemory, View

OFFICIAL_VAE = {"wan21": "Wan2.1_VAE.pth", "wan22": "Wan2.2_VAE.pth"}
OFFICIAL_TEXT_ENCODER, OFFICIAL_TOKENIZER = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"

_WAN = {"base_dim": 4, "dim_mult": [1, 2, 4, 4]}
VAE_ARGUMENTS: Mapping[str, Mapping] = MappingProxyType({
    "wan21": {**_WAN, "z_dim": 16},
    "wan22": {
        **_WAN, "z_dim": 48, "decoder_base_dim": 8, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    },
    "mochi": {
        "encoder_block_out_channels": (32, 32, 32, 64), "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": (32, 32, 32, 64),
    },
})  # fmt: skip


def write_tiny_vae(
    folder_or_file: str | Path, kind: str, layout: str = "diffusers", seed: int = 0
) -> Path:
    """Write a VAE and return what `load_vae` takes. Every file appears whole or not at all.

    kind: "wan21", "wan22" or "mochi"; layout "official": the vendor's .pth (a folder gets one
    under its usual name) or, for Mochi, a folder with its two files; "diffusers": a folder. All
    parameters are float32, as in the real files, and none is left constant. ValueError for another
    kind or layout.
    """
    if kind not in VAE_ARGUMENTS:
        raise ValueError(f"kind={kind!r} is unknown; use one of {', '.join(VAE_ARGUMENTS)}.")
    _check_layout(layout, ("official", "diffusers"))
    path = Path(folder_or_file)
    vae = make_vae(kind, seed)
    if layout == "diffusers":
        with tempfile.TemporaryDirectory() as made:
            vae.save_pretrained(made)  # pyright: ignore[reportCallIssue]
            return _publish(Path(made), path)
    state = vae.state_dict()
    official = dict(View(InMemory(state), vae_keys.to_official(state)))
    if kind == "mochi":
        for half in ("encoder", "decoder"):
            start = f"{half}."
            part = {k.removeprefix(start): v for k, v in official.items() if k.startswith(start)}
            with replacing(path / f"{half}.safetensors") as partial:
                save_file({key: value.contiguous() for key, value in part.items()}, partial)
        return path
    return _save_pickle(official, path if path.suffix == ".pth" else path / OFFICIAL_VAE[kind])


def make_vae(kind: str, seed: int = 0) -> nn.Module:
    """diffusers' autoencoder of a kind of VAE_ARGUMENTS, its norms and biases random as well."""
    import diffusers

    arguments = dict(VAE_ARGUMENTS[kind])
    if kind != "mochi":
        mean, std = vae_keys.STATISTICS[kind, arguments["z_dim"]]
        arguments |= {"latents_mean": list(mean), "latents_std": list(std)}
    build = diffusers.AutoencoderKLMochi if kind == "mochi" else diffusers.AutoencoderKLWan
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build(**arguments).eval()
        _roughen(vae, seed)
    return vae


def write_tiny_text_encoder(
    folder_or_file: str | Path,
    kind: str,
    layout: str = "transformers",
    dim: int = 64,
    seed: int = 0,
) -> Path:
    """Write a text encoder with its tokenizer and return what `load_text_encoder` takes. Every file
    appears whole or not at all.

    kind: "umt5" or "t5"; layout "official": Wan's .pth (bfloat16, as the real one; a folder gets it
    under its usual name) with `google/umt5-xxl/` beside it; "transformers": a folder. dim: width of
    the embeddings. ValueError for another kind or layout; T5 has no layout but transformers'.
    """
    if kind not in ("umt5", "t5"):
        raise ValueError(f"kind={kind!r} is unknown; use umt5 or t5.")
    _check_layout(layout, ("official", "transformers") if kind == "umt5" else ("transformers",))
    path = Path(folder_or_file)
    with tempfile.TemporaryDirectory() as made:
        make_text_encoder(made, seed, dim)
        if kind == "t5":
            _make_t5(Path(made), seed)
        if layout == "transformers":
            return _publish(Path(made), path)
        from transformers import UMT5EncoderModel

        encoder = UMT5EncoderModel.from_pretrained(made, local_files_only=True)
        _roughen(encoder, seed)
        state = {key: value.bfloat16() for key, value in encoder.state_dict().items()}
        official = dict(View(InMemory(state), text_keys.to_official(state)))
        file = path if path.suffix == ".pth" else path / OFFICIAL_TEXT_ENCODER
        _publish(Path(made), file.parent / OFFICIAL_TOKENIZER, "tokenizer*.json")
    return _save_pickle(official, file)


def _make_t5(folder: Path, seed: int) -> None:
    """Replace the UMT5 of a folder by a T5 of the same sizes."""
    from transformers import AutoConfig, T5Config, T5EncoderModel

    umt5 = AutoConfig.from_pretrained(folder)
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    config = T5Config(
        **{name: getattr(umt5, name) for name in names},
        feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = T5EncoderModel(config)
    _roughen(encoder, seed)
    encoder.save_pretrained(folder)


def _check_layout(layout: str, known: tuple[str, ...]) -> None:
    if layout not in known:
        raise ValueError(f"layout={layout!r} is unknown for this kind; use {' or '.join(known)}.")


@torch.no_grad()
def _roughen(module: nn.Module, seed: int) -> None:
    """Vary parameters that start out constant, so that none can be dropped without a trace."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.numel() > 1 and parameter.std() == 0:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def _save_pickle(tensors: Mapping[str, Tensor], file: Path) -> Path:
    # By name, torch would write the temporary name into the file: no two would have the same bytes.
    with replacing(file) as partial, partial.open("wb") as opened:
        torch.save(dict(tensors), opened)
    return file


def _publish(made: Path, folder: Path, pattern: str = "*") -> Path:
    """Copy the files of a folder, the config, by which a folder is recognised, last."""
    files = sorted(made.glob(pattern), key=lambda file: (file.name == "config.json", file.name))
    for file in files:
        with replacing(folder / file.name) as partial:
            shutil.copyfile(file, partial)
    return folder
