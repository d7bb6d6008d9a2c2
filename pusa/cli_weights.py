"""`pusa` commands for files of weights: inspect, convert, merge, lora, doctor, tiny."""

import argparse
import logging
from pathlib import Path

import torch

from pusa import entry

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHECKPOINT = "a .safetensors (or .pth) file, an index.json, or a folder of shards"


def add_commands(commands) -> None:
    inspect = commands.add_parser("inspect", help="say what a checkpoint or LoRA is")
    inspect.add_argument("file", help=f"{_CHECKPOINT}, or a LoRA")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="write a checkpoint in another layout")
    convert.add_argument("checkpoint", help=_CHECKPOINT)
    _add_output(convert, required_layout=True)
    convert.set_defaults(run=_convert)
    merge = commands.add_parser("merge", help="write a checkpoint with LoRAs merged into it")
    merge.add_argument("checkpoint", help=_CHECKPOINT)
    merge.add_argument(
        "--lora", action="append", required=True, metavar="FILE[:STRENGTH]",
        help="a LoRA of any format, strength 1 by default; may be repeated",
    )  # fmt: skip
    merge.add_argument("--expert", choices=("high", "low"), help="which network this is (Wan2.2)")
    _add_output(merge, required_layout=False)
    merge.set_defaults(run=_merge)
    _add_lora(commands)
    tiny = commands.add_parser(
        "tiny", help="write a model's tiny twin: the vendor's files with random small weights"
    )
    tiny.add_argument("variant", help="as wan21_t2v_14b; a wrong name lists them")
    tiny.add_argument("folder", help="a new folder, as models/tiny/wan21_t2v_14b")
    tiny.add_argument("--seed", type=int, default=0)
    tiny.set_defaults(run=_tiny)
    doctor = commands.add_parser("doctor", help="does this LoRA do what it should? exit code 1: no")
    doctor.add_argument("lora", help="a LoRA of any format")
    doctor.add_argument("--base", help=f"the model it is for: {_CHECKPOINT}")
    doctor.add_argument("--expert", choices=("high", "low"), help="which network the base is")
    doctor.add_argument("--json", metavar="FILE", help="write the findings; - prints them instead")
    doctor.add_argument(
        "--no-forward", action="store_true", help="skip the forward pass (the base in memory)"
    )
    doctor.set_defaults(run=_doctor)


def _add_output(parser: argparse.ArgumentParser, required_layout: bool) -> None:
    parser.add_argument("output", help="a new folder, or a .safetensors file")
    parser.add_argument(
        "--to", choices=("official", "diffusers", "comfy"), required=required_layout,
        help="layout of the output" + ("" if required_layout else " (default: the input's)"),
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="default: as in the input")
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, help="size of a shard in GB (%(default)g)"
    )


def _add_lora(commands) -> None:
    lora = commands.add_parser("lora", help="convert a LoRA, or give it a lower rank")
    actions = lora.add_subparsers(required=True, metavar="action")
    resize = actions.add_parser("resize", help="lower the rank by SVD and report the error")
    convert = actions.add_parser("convert", help="write a LoRA in another format")
    for parser in (resize, convert):
        parser.add_argument("lora", help="a LoRA of any format")
        parser.add_argument("output", help="a .safetensors file (peft: or a folder)")
        parser.add_argument(
            "--to", choices=("comfy", "diffusers", "kohya", "peft", "pusa"),
            default="comfy", help="format of the output (%(default)s)",
        )  # fmt: skip
        parser.add_argument("--expert", choices=("high", "low"), help="which half of a file of two")
    resize.add_argument("--rank", type=int, required=True)
    resize.set_defaults(run=_resize)
    convert.set_defaults(run=_convert_lora)


def _tiny(options: argparse.Namespace) -> None:
    from pusa.pipelines.tiny import write_tiny_model

    log.info("wrote %s", write_tiny_model(options.variant, options.folder, options.seed))


def _output(options: argparse.Namespace):
    from pusa.weights.convert import Output

    if not 0 < options.shard_gb < 1e6:
        raise ValueError(f"--shard-gb must be positive, got {options.shard_gb}.")
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    return Output(Path(options.output), options.to, dtype, int(options.shard_gb * 1e9))


def _inspect(options: argparse.Namespace) -> None:
    from pusa.weights.files import WeightsError, find_experts, read_checkpoint
    from pusa.weights.lora_files import read_lora

    for path in find_experts(options.file).values() or [options.file]:
        try:
            variant, tensors = read_checkpoint(path)
        except WeightsError as error:
            try:
                adapter = read_lora(path)
            except WeightsError as lora_error:
                lora = any(".lora" in key or "lora_" in key for key in _keys(path))
                raise (lora_error if lora else error) from None
            log.info(
                "%s: LoRA, %s format, %d modules, %s parameters",
                path, adapter.format, len(adapter), f"{adapter.num_parameters:,}",
            )  # fmt: skip
            continue
        specs = [tensors.spec(key) for key in tensors]
        log.info(
            "%s: %s, %s layout, %d tensors, %s parameters, %s",
            path, variant, tensors.layout, len(specs), f"{sum(spec.numel() for spec in specs):,}",
            ", ".join(sorted({str(spec.dtype).removeprefix("torch.") for spec in specs})),
        )  # fmt: skip


def _keys(path) -> list[str]:
    """Names in a file, if it can be opened."""
    from pusa.weights.files import WeightsError, open_checkpoint_files

    try:
        return list(open_checkpoint_files(path))
    except WeightsError:
        return []


def _convert(options: argparse.Namespace) -> None:
    from pusa.weights.convert import convert

    for path in convert(options.checkpoint, _output(options), entry.progress_bars("convert")):
        log.info("wrote %s", path)


def _merge(options: argparse.Namespace) -> None:
    from pusa.pipelines.loras import split_strength
    from pusa.weights.lora_files import read_lora
    from pusa.weights.merge import merge

    loras = []
    for text in options.lora:
        file, strength = split_strength(text)
        loras.append((read_lora(file, options.expert), strength))
    bars = entry.progress_bars("merge")
    path = merge(options.checkpoint, loras, _output(options), bars, options.expert)
    log.info("wrote %s", path)


def _resize(options: argparse.Namespace) -> None:
    from pusa.weights.lora_files import read_lora
    from pusa.weights.lora_writing import write_lora
    from pusa.weights.resize import resize

    adapter = read_lora(options.lora, options.expert)
    shrunk = resize(adapter, options.rank, entry.progress_bars("resize"))
    path = write_lora(shrunk.adapter, options.output, options.to)
    worst = max(shrunk.errors, key=lambda module: shrunk.errors[module])
    log.info(
        "wrote %s: rank %d instead of %d, lost %.2f%% of the update (worst: %s, %.2f%%)",
        path, max(t.rank for t in shrunk.adapter.values()),
        max(t.rank for t in adapter.values()), 100 * shrunk.error,
        worst, 100 * shrunk.errors[worst],
    )  # fmt: skip


def _convert_lora(options: argparse.Namespace) -> None:
    from pusa.weights.lora_files import read_lora
    from pusa.weights.lora_writing import write_lora

    adapter = read_lora(options.lora, options.expert)
    path = write_lora(adapter, options.output, options.to)
    log.info("wrote %s (%s format, from %s)", path, options.to, adapter.format)


def _doctor(options: argparse.Namespace) -> None:
    from pusa.weights.doctor import diagnose

    found = diagnose(options.lora, options.base, options.expert, not options.no_forward)
    entry.show(found, options.json)
