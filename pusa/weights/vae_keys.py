"""Names of the VAEs' tensors, official <-> diffusers, and what names and shapes say about a VAE.

Wan2.1, Wan2.2 and Mochi, with the latent statistics that the vendors keep in their code. One table
of module names serves both directions; names that are in no table come back as they are, so that a
strict check names them. Knows no tensor's values.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from torch import Tensor

from pusa.weights.lazy import Piece, WeightsError

QKV = ("to_q", "to_k", "to_v")  # one tensor of three equal groups of rows in Mochi's own files
MAX_STAGES, MAX_BLOCKS = 8, 32  # bounds of the tables; the released models have 4 and 10

# Mean and standard deviation of the raw latents, of (family, latent channels), as the vendors'
# code holds them; their files do not.
STATISTICS: Mapping[tuple[str, int], tuple[Sequence[float], Sequence[float]]] = {
    ("wan21", 16): (
        (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
    ("wan22", 48): (
        (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
         -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
         -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
         -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
         -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
         0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
        (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
         0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
         0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
         0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
         0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
         0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
    ("mochi", 12): (
        (-0.06730895953510081, -0.038011381506090416, -0.07477820912866141,
         -0.05565264470995561, 0.012767231469026969, -0.04703542746246419,
         0.043896967884726704, -0.09346305707025976, -0.09918314763016893,
         -0.008729793427399178, -0.011931556316503654, -0.0321993391887285),
        (0.9263795028493863, 0.9248894543193766, 0.9393059390890617,
         0.959253732819592, 0.8244560132752793, 0.917259975397747,
         0.9294154431013696, 1.3720942357788521, 0.881393668867029,
         0.9168315692124348, 0.9185249279345552, 0.9274757570805041),
    ),
}  # fmt: skip

_WAN_WHOLE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{half}.{official}": f"{half}.{diffusers}"
        for half in ("encoder", "decoder")
        for official, diffusers in (
            ("conv1", "conv_in"), ("head.0", "norm_out"), ("head.2", "conv_out"),
        )
    },
}  # fmt: skip
_WAN_RESIDUAL = {
    "residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
_WAN_ATTENTION = ("norm", "to_qkv", "proj")
_WAN_RESAMPLE = ("resample.1", "time_conv")
_MOCHI_RESIDUAL = {
    "stack.0": "norm1.norm_layer", "stack.2": "conv1.conv",
    "stack.3": "norm2.norm_layer", "stack.5": "conv2.conv",
}  # fmt: skip

Modules = dict[str, str | tuple[str, ...]]  # official module -> diffusers' module, or three of them


def family(keys: Iterable[str]) -> str | None:
    """Whose tensor names these are, in either layout: "wan21", "wan22", "mochi" or None."""
    for key in keys:
        if re.match(r"encoder\.(layers\.|proj_in)|decoder\.(blocks\.|proj_out)", key):
            return "mochi"
        if re.match(
            r"encoder\.(downsamples\.\d+\.downsamples|down_blocks\.\d+\.downsampler)\.", key
        ):
            return "wan22"
        if re.match(r"encoder\.(downsamples\.\d+\.residual|down_blocks\.\d+\.norm1)\.", key):
            return "wan21"
    return None


def to_diffusers(keys: Iterable[str]) -> dict[str, Piece]:
    """diffusers' key -> Piece of official ones. A `model.` before every key is taken off."""
    keys = list(keys)
    prefix = "model." if keys and all(key.startswith("model.") for key in keys) else ""
    modules = _modules([key.removeprefix(prefix) for key in keys])
    pieces = {}
    for key in keys:
        module, _, parameter = key.removeprefix(prefix).rpartition(".")
        new = modules.get(module)
        if new is None:
            pieces[key.removeprefix(prefix)] = Piece((key,))
        elif isinstance(new, str):
            pieces[f"{new}.{parameter}"] = Piece((key,))
        else:
            for i, name in enumerate(new):
                pieces[f"{name}.{parameter}"] = Piece((key,), part=(i, len(new)))
    return pieces


def to_official(keys: Iterable[str]) -> dict[str, Piece]:
    """Official key -> Piece of diffusers' ones; q, k and v become one tensor if all are there."""
    keys = list(keys)
    present = set(keys)
    official = {}
    for old, new in _modules(keys).items():
        official |= {name: (old, (new,) if isinstance(new, str) else new) for name in _names(new)}
    pieces = {}
    for key in keys:
        module, _, parameter = key.rpartition(".")
        old, parts = official.get(module, (None, ()))
        sources = tuple(f"{part}.{parameter}" for part in parts)
        if old is None or not present.issuperset(sources):
            pieces[key] = Piece((key,))
        else:
            pieces[f"{old}.{parameter}"] = Piece(sources)
    return pieces


def _names(new: str | tuple[str, ...]) -> tuple[str, ...]:
    return (new,) if isinstance(new, str) else new


def _modules(keys: list[str]) -> Modules:
    kind = family(keys)
    if kind == "mochi":
        return _mochi_modules(*_mochi_counts(keys))
    if kind is None:
        return {}
    return _wan_modules(_blocks_per_stage(keys), nested=kind == "wan22")


def _wan_modules(blocks: int, nested: bool) -> Modules:
    """The modules of a Wan VAE with `blocks` residual blocks in a stage of its encoder.

    Wan2.1 counts the blocks and resamplings of a half through (diffusers does so in the encoder
    only), Wan2.2 has them nested in stages.
    """
    modules: Modules = dict(_WAN_WHOLE)
    for half in ("encoder", "decoder"):
        for i in (0, 2):
            modules |= _residual(f"{half}.middle.{i}", f"{half}.mid_block.resnets.{i // 2}")
        modules |= {
            f"{half}.middle.1.{name}": f"{half}.mid_block.attentions.0.{name}"
            for name in _WAN_ATTENTION
        }
    for stage in range(MAX_STAGES):
        for half, way, count in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
            places = [f"{half}.{way}samples.{stage * (count + 1) + j}" for j in range(count + 1)]
            names = [f"{half}.{way}_blocks.{stage}.resnets.{j}" for j in range(count)]
            names += [f"{half}.{way}_blocks.{stage}.{way}sampler{'' if nested else 's.0'}"]
            if nested:
                outer = f"{half}.{way}samples.{stage}.{way}samples"
                places = [f"{outer}.{j}" for j in range(count + 1)]
            elif half == "encoder":
                names = [place.replace("downsamples", "down_blocks") for place in places]
            for place, name in zip(places[:-1], names[:-1], strict=True):
                modules |= _residual(place, name)
            modules |= {f"{places[-1]}.{part}": f"{names[-1]}.{part}" for part in _WAN_RESAMPLE}
    return modules


def _residual(official: str, diffusers: str) -> Modules:
    return {f"{official}.{old}": f"{diffusers}.{new}" for old, new in _WAN_RESIDUAL.items()}


def _blocks_per_stage(keys: Iterable[str]) -> int:
    """Residual blocks in a stage of a Wan encoder; 2, as all released ones have, if none shows."""
    first = re.compile(
        r"encoder\.(?:downsamples\.0\.downsamples|downsamples|down_blocks)\.(\d+)\.(?:resample|time)"
    )
    inside = re.compile(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    found = [int(match[1]) for key in keys if (match := first.match(key))]
    nested = [int(match[1]) + 1 for key in keys if (match := inside.match(key))]
    return min(found) if found else max(nested, default=2)


def _mochi_modules(first: int, stages: int) -> Modules:
    """The modules of a Mochi VAE: `first` residual blocks before `stages` stages.

    The encoder's own layers are counted through: projection, blocks, stages, blocks.
    """
    modules: Modules = {
        "encoder.layers.0": "encoder.proj_in",
        "encoder.output_norm": "encoder.norm_out.norm_layer",
        "encoder.output_proj": "encoder.proj_out",
        "decoder.blocks.0.0": "decoder.conv_in",
        "decoder.output_proj": "decoder.proj_out",
    }
    places = []  # official container, index of its first block, diffusers' container, blocks
    for i in range(stages):
        down, up = f"encoder.layers.{first + 1 + i}", f"decoder.blocks.{i + 1}"
        modules[f"{down}.layers.0"] = f"encoder.down_blocks.{i}.conv_in.conv"
        modules[f"{up}.proj"] = f"decoder.up_blocks.{i}.proj"
        places.append((f"{down}.layers", 1, f"encoder.down_blocks.{i}", MAX_BLOCKS))
        places.append((f"{up}.blocks", 0, f"decoder.up_blocks.{i}", MAX_BLOCKS))
    places += [
        ("encoder.layers", 1, "encoder.block_in", first),
        ("encoder.layers", 1 + first + stages, "encoder.block_out", MAX_BLOCKS),
        ("decoder.blocks.0", 1, "decoder.block_in", MAX_BLOCKS),
        (f"decoder.blocks.{stages + 1}", 0, "decoder.block_out", MAX_BLOCKS),
    ]
    for place, start, name, blocks in places:
        for i in range(blocks):
            modules |= _mochi_block(f"{place}.{start + i}", name, i)
    return modules


def _mochi_block(official: str, container: str, index: int) -> Modules:
    """A residual block and the attention after it, which diffusers keeps in lists beside it."""
    attention = f"{container}.attentions.{index}"
    residual = {
        f"{official}.{old}": f"{container}.resnets.{index}.{new}"
        for old, new in _MOCHI_RESIDUAL.items()
    }
    return {
        **residual,
        f"{official}.attn_block.norm": f"{container}.norms.{index}.norm_layer",
        f"{official}.attn_block.attn.qkv": tuple(f"{attention}.{name}" for name in QKV),
        f"{official}.attn_block.attn.out": f"{attention}.to_out.0",
    }


def _mochi_counts(keys: list[str]) -> tuple[int, int]:
    """(residual blocks before the first stage, stages) of the encoder, from either layout."""
    stages = _indices(keys, r"encoder\.layers\.(\d+)\.layers\.")
    if stages:
        return min(stages) - 1, len(stages)
    blocks = _indices(keys, r"encoder\.block_in\.resnets\.(\d+)\.")
    return len(blocks), len(_indices(keys, r"encoder\.down_blocks\.(\d+)\."))


def _indices(keys: Iterable[str], pattern: str) -> set[int]:
    compiled = re.compile(pattern)
    return {int(match[1]) for key in keys if (match := compiled.match(key))}


def constructor_arguments(specs: Mapping[str, Tensor]) -> dict:
    """Arguments of diffusers' AutoencoderKLWan or AutoencoderKLMochi, statistics included.

    specs: diffusers' key -> tensor of which only the shape is looked at. WeightsError if the names
    are no VAE's, if a shape that decides something is not there (with its key), or if statistics
    are not known for so many channels.
    """
    kind = family(specs)
    if kind is None:
        raise WeightsError(
            f"{next(iter(specs), 'no tensor')}, ... are not the names of a VAE that is known; "
            "use a Wan2.1, Wan2.2 or Mochi VAE."
        )
    arguments = (
        _mochi_arguments(specs) if kind == "mochi" else _wan_arguments(specs, kind == "wan22")
    )
    channels = arguments["latent_channels" if kind == "mochi" else "z_dim"]
    if (kind, channels) not in STATISTICS:
        raise WeightsError(
            f"a {kind} VAE of {channels} channels, of which the latent statistics are not known; "
            "use a diffusers folder, whose config.json holds them."
        )
    mean, std = STATISTICS[kind, channels]
    return {**arguments, "latents_mean": mean, "latents_std": std}


def _size(specs: Mapping[str, Tensor], dim: int, *keys: str) -> int:
    """Size along `dim` of the first of `keys` that is there; they all have the same."""
    for key in keys:
        if key in specs and specs[key].ndim > dim:
            return specs[key].shape[dim]
    raise WeightsError(f"{keys[0]} is missing; the file is not whole, download it again.")


def _wan_arguments(specs: Mapping[str, Tensor], nested: bool) -> dict:
    blocks = _blocks_per_stage(specs)
    widths, temporal = [], []
    for stage in range(len(_indices(specs, r"decoder\.up_blocks\.(\d+)\."))):
        start = f"encoder.down_blocks.{stage if nested else stage * (blocks + 1)}"
        end = f"{start}.downsampler" if nested else _sibling(start, blocks)
        place = f"{start}.resnets.0" if nested else start
        widths.append(
            _size(
                specs, 0, f"{place}.conv1.weight", f"{place}.norm2.gamma", f"{place}.conv2.weight"
            )
        )
        temporal.append(any(key.startswith(f"{end}.time_conv") for key in specs))
    base = _size(specs, 0, "encoder.conv_in.weight", "encoder.conv_in.bias")
    last = _size(specs, 1, "decoder.conv_out.weight")
    channels = _size(specs, 0, "decoder.conv_out.weight", "decoder.conv_out.bias")
    if not widths or any(width % base for width in widths):
        raise WeightsError(
            f"encoder.conv_in.weight has {base} channels, the stages have {widths}; "
            "these are not the shapes of a Wan VAE."
        )
    patch = round((channels / 3) ** 0.5)
    return {
        "base_dim": base,
        "decoder_base_dim": last * base // widths[0],
        "z_dim": _size(specs, 0, "post_quant_conv.weight", "post_quant_conv.bias"),
        "dim_mult": [width // base for width in widths],
        "num_res_blocks": blocks,
        "temperal_downsample": temporal[:-1],
        "is_residual": nested,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": patch if patch > 1 else None,
        "scale_factor_temporal": 2 ** sum(temporal),
        "scale_factor_spatial": 2 ** (len(widths) - 1) * patch,
    }


def _sibling(place: str, offset: int) -> str:
    head, _, index = place.rpartition(".")
    return f"{head}.{int(index) + offset}"


def _mochi_arguments(specs: Mapping[str, Tensor]) -> dict:
    stages = range(_mochi_counts(list(specs))[1])
    containers = ["block_in", *(f"down_blocks.{i}" for i in stages), "block_out"]
    kernels = [
        tuple(_size(specs, dim, f"encoder.down_blocks.{i}.conv_in.conv.weight") for dim in (2, 3))
        for i in stages
    ]
    widths = [_size(specs, 0, "encoder.proj_in.weight", "encoder.proj_in.bias")]
    widths += [
        _size(
            specs,
            0,
            *(f"encoder.down_blocks.{i}.conv_in.conv.{name}" for name in ("weight", "bias")),
        )
        for i in stages
    ]
    decoder = [_size(specs, 0, "decoder.conv_in.weight", "decoder.conv_in.bias")]
    for i in stages:
        time, space = kernels[-1 - i]
        rows = _size(
            specs, 0, f"decoder.up_blocks.{i}.proj.weight", f"decoder.up_blocks.{i}.proj.bias"
        )
        decoder.append(rows // prod((time, space, space)))
    return {
        "in_channels": _size(specs, 1, "encoder.proj_in.weight"),
        "out_channels": _size(specs, 0, "decoder.proj_out.weight", "decoder.proj_out.bias"),
        "encoder_block_out_channels": tuple(widths),
        "decoder_block_out_channels": tuple(reversed(decoder)),
        "latent_channels": _size(specs, 1, "decoder.conv_in.weight"),
        "layers_per_block": tuple(
            len(_indices(specs, rf"encoder\.{re.escape(name)}\.resnets\.(\d+)\."))
            for name in containers
        ),
        "temporal_expansions": tuple(time for time, _ in kernels),
        "spatial_expansions": tuple(space for _, space in kernels),
        "add_attention_block": tuple(
            any(key.startswith(f"encoder.{name}.attentions.") for key in specs)
            for name in containers
        ),
    }
