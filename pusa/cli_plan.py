"""`pusa plan`: what a training needs and costs, before it is started."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from omegaconf import DictConfig

from pusa import entry

log = logging.getLogger(__name__)


def add_commands(commands) -> None:
    plan = commands.add_parser(
        "plan",
        help="does a training fit its GPUs, and what does it cost? exit code 1: it does not fit",
        description="Memory per GPU and phase, host memory, disk, time and price of a training, "
        "found by running its network on tensors without contents. Nothing is loaded or "
        "downloaded, no GPU is needed. Exit code 0: it fits, 1: it does not, and the cheapest "
        "change that does is named.",
    )
    plan.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE",
        help="experiment=NAME and further overrides of train.py, before the options",
    )  # fmt: skip
    plan.add_argument("--gpus", type=int, help="default: trainer.devices * trainer.num_nodes")
    add_gpu_options(plan)
    plan.add_argument("--strategy", help="default: the config's; zero2 on several GPUs")
    plan.add_argument("--no-search", action="store_true", help="not the largest that would fit")
    plan.add_argument("--json", metavar="FILE", help="write all figures; - prints them instead")
    plan.set_defaults(run=_plan)


def add_gpu_options(parser: argparse.ArgumentParser) -> None:
    from pusa.training.gpus import UTILISATION

    parser.add_argument("--gpu", default="h100-80g", help="its name (%(default)s); see docs")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="per GPU and hour")
    parser.add_argument("--mfu", type=float, default=UTILISATION, metavar="SHARE",
                        help="of the GPU's bf16 peak that is reached (%(default)s)")  # fmt: skip


def cluster_of(options: argparse.Namespace, count: int):
    """So many GPUs, as the options of `add_gpu_options` have them."""
    from pusa.training.gpus import Cluster, gpu_named

    gpu = gpu_named(options.gpu)
    return Cluster(gpu, count, options.gpus_per_node, options.price, options.mfu)


def _plan(options: argparse.Namespace) -> None:
    from pusa.cli import compose_config
    from pusa.training import fitting
    from pusa.training.plan_report import PlanReport

    overrides = [*options.overrides, "name=plan"]
    cfg = compose_config("train", overrides)
    entry.check_additions(cfg, options.overrides)
    count = options.gpus or _devices(cfg)
    cluster = cluster_of(options, count)
    model = entry.build(cfg.model)
    job = read_job(cfg, options.strategy, count)
    planner, notes = planner_of(model, job.size)
    by_policy = fitting.policies(planner, job, cluster)
    estimate = by_policy[job.checkpointing]
    need_search = not options.no_search or not estimate.fits
    found = fitting.largest(planner, job, cluster) if need_search else None
    changes = []
    if not estimate.fits and found is not None:
        changes = fitting.changes(planner, job, cluster, found)
    name = next((w.partition("=")[2] for w in options.overrides if w.startswith("experiment=")), "")
    report = PlanReport(name or model.name, estimate, by_policy, found, changes, notes)
    entry.show(report, options.json)


def planner_of(model, size: tuple[int, int, int]):
    """A planner of a model's trainings on clips of frames, height and width, and notes on it."""
    from pusa.training.plan import Planner

    vae, vae_note = vae_part(model, size)
    text, text_note = text_part(model)
    return Planner(model, vae, text, _is_cast(model)), (vae_note, text_note)


def _is_cast(model) -> bool:
    """Whether the base has another dtype than it trains in; yes, if its files are not here."""
    from pusa.pipelines.build import PRECISIONS
    from pusa.weights.files import open_checkpoint_files

    path = model.weights_path(model.expert)
    if path is None or not Path(path).exists():
        return True
    tensors = open_checkpoint_files(path)
    largest = max((tensors.spec(key) for key in tensors), key=lambda spec: spec.numel())
    return largest.dtype != PRECISIONS[model.dtype]


def _devices(cfg: DictConfig) -> int:
    devices, nodes = cfg.trainer.devices, cfg.trainer.get("num_nodes", 1)
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices={devices} is no number of GPUs; give --gpus.")
    return devices * nodes


def read_job(cfg: DictConfig, strategy: str | None, ranks: int):
    """The training that a composed config describes, on so many processes. ValueError for one that
    cannot be planned."""
    from pusa.training.footprint import TRAINER_PRECISIONS
    from pusa.training.plan import Job
    from pusa.training.sharding import strategy_named

    if cfg.data.encode is None:
        raise ValueError("this experiment trains on pixels, not on latents; `plan` knows no such.")
    precision = cfg.trainer.precision
    if precision not in TRAINER_PRECISIONS:
        known = " or ".join(TRAINER_PRECISIONS)
        raise ValueError(f"trainer.precision={precision} cannot be planned; use {known}.")
    own = (cfg.get("strategy") or {}).get("name", "single")
    if ranks > 1 and own == "single":
        own = "zero2"
    grid, average = cfg.callbacks.get("grid"), cfg.callbacks.get("ema")
    checkpoints: Any = cfg.callbacks.get("checkpoints") or {}
    encode = cfg.data.encode
    return Job(
        lora=entry.build(cfg.lora),
        strategy=strategy_named(strategy or own, ranks),
        checkpointing=cfg.model.backbone.checkpointing,
        samples=cfg.batch_size,
        size=(encode.num_frames, encode.height, encode.width),
        max_steps=cfg.trainer.max_steps,
        micro_batch=cfg.get("micro_batch"),
        autocast=TRAINER_PRECISIONS[precision],
        average=bool(average and average.get("decay")),
        grid_clips=0 if grid is None else min(grid.num_clips, 64),
        keep_last=checkpoints.get("keep_last", 1),
        num_workers=cfg.data.batches.num_workers,
        encode_on_gpu=cfg.model.device != "cpu",
        clips=cfg.data.get("num_clips") if cfg.data.train.toy is not None else None,
    )


# The vendors' networks of the preparing phase, by how they fold pixels: diffusers' constructor
# arguments. Their sizes are pinned by the counts in tests/test_cli_plan.py.
WAN21_VAE: Mapping[str, Any] = MappingProxyType({})
WAN22_VAE: Mapping[str, Any] = MappingProxyType({
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,  # not needed here
})  # fmt: skip
MOCHI_CHANNELS = 12
XXL: Mapping[str, Any] = MappingProxyType({  # T5 and UMT5 differ in their vocabulary
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu",
})  # fmt: skip


def vae_part(model, size: tuple[int, int, int]):
    """The VAE that folds pixels as the model's does, and a note on it; traced on one clip."""
    import diffusers

    from pusa.models.vae import wrap_mochi, wrap_wan
    from pusa.training.footprint import DEVICE, Moment, run_module
    from pusa.training.plan import Part

    with torch.device("meta"):
        spec = (model.spec.channels, model.spec.spatial_stride)
        if spec in ((16, 8), (48, 16)):
            arguments = WAN21_VAE if spec == (16, 8) else WAN22_VAE
            vae = wrap_wan(diffusers.AutoencoderKLWan(**arguments))
        elif spec == (MOCHI_CHANNELS, 8):
            vae = wrap_mochi(diffusers.AutoencoderKLMochi())
        else:
            return _nothing(), "the VAE is a small one of the replica, left out"
    vae.raw = True  # the normalization of the latents is nothing beside the rest
    weights = sum(p.numel() * p.element_size() for p in vae.parameters())
    frames, height, width = size
    if spec != (
        12,
        8,
    ):  # Wan's goes through a clip in pieces of 4 frames: the third is as any other
        frames = min(frames, 9)
    footprint = run_module(
        vae.eval(),
        lambda v: cast(Any, v).encode(torch.empty(1, 3, frames, height, width, device=DEVICE)),
    )
    rest = 3 * 4 * (size[0] - frames) * height * width  # pixels in float32
    busy = footprint.forward.activations + rest
    footprint = replace(footprint, forward=Moment(busy))
    return Part(weights, footprint), "encoding is counted for one clip at a time, in float32"


def text_part(model):
    """The text encoder of the model's family, and a note on it; traced on one caption."""
    import transformers

    from pusa.training.footprint import DEVICE, run_module
    from pusa.training.plan import Part

    if model.backbone.keywords.get("text_dim", XXL["d_model"]) != XXL["d_model"]:
        return _nothing(), "the text encoder is a small one of the replica, left out"
    with torch.device("meta"):
        if model.spec.channels == MOCHI_CHANNELS:  # whose vendor has it in float32
            name, dtype = "T5-XXL in float32", torch.float32
            encoder = transformers.T5EncoderModel(transformers.T5Config(vocab_size=32128, **XXL))
        else:
            name, dtype = "UMT5-XXL in bfloat16", torch.bfloat16
            config = transformers.UMT5Config(vocab_size=256384, **XXL)
            encoder = transformers.UMT5EncoderModel(config)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(dtype)
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    shape = (1, model.text_len)
    footprint = run_module(
        encoder.eval(),
        lambda e: e(input_ids=torch.empty(shape, dtype=torch.long, device=DEVICE)),
    )
    return Part(weights, footprint), f"the text encoder is {name}"


def _nothing():
    from pusa.training.footprint import Footprint, Moment
    from pusa.training.plan import Part

    return Part(0, Footprint(0, Moment(0), (), 0, 0, 0.0, 0.0))
