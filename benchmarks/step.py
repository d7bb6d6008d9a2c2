"""VTA's training step on our Wan DiT, beside the same step on diffusers' with a timestep per token.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/step.py

Both are `VTAModule.training_step` and its backward pass on the same weights, LoRA and draws; the
backbones differ, and diffusers' has peft's LoRA as it is. Output, loss and gradients are compared
first. Then, in rounds: seconds of a step (median, best), with and without recomputed blocks; the
share of the machine's matrix multiplications that a step attains; peak memory of activations,
counted at every operation. Seconds are the processor's, so that a shared machine disturbs less: run
with one thread.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
import weakref
from functools import partial
from pathlib import Path

import lightning as L
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pusa.diffusion.flow import FlowMatching
from pusa.diffusion.timesteps import VectorTimesteps
from pusa.models.checkpointing import Checkpointing
from pusa.models.wan_dit import WanDiT
from pusa.pipelines.build import Model
from pusa.training.module import VTAModule
from pusa.types import LatentBatch, LatentSpec, Text
from pusa.weights.keymaps import rename_wan, rename_wan_module
from pusa.weights.lora import VTA_TARGETS, LoRA

RESULTS = Path(__file__).parent / "results"
CHANNELS, TEXT_DIM, TEXT_LEN, HEAD_DIM, RANK = 16, 256, 512, 128, 32
aten = torch.ops.aten
CPU_ATTENTION = {  # of shapes; torch has formulas for the kernels of GPUs alone
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: (
        sdpa_backward_flop_count(*shapes[:4])
    ),
}


class PerToken(nn.Module):
    """diffusers' DiT behind our interface: the sigma of a frame repeated for each of its tokens."""

    def __init__(self, model: WanTransformer3DModel):
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, sigma: Tensor, text: Text) -> Tensor:
        tokens = latents.shape[3] * latents.shape[4] // 4
        embedding = text.embedding.masked_fill(~text.mask[..., None], 0.0)
        embedding = nn.functional.pad(embedding, (0, 0, 0, TEXT_LEN - embedding.shape[1]))
        timestep = (1000 * sigma).repeat_interleave(tokens, dim=1)
        return self.model(latents, timestep, embedding, return_dict=False)[0]


class LiveMemory(TorchDispatchMode):
    """Bytes of the memory that operations allocate, while it lives: now and at the peak.

    What a kernel takes and gives back within itself is not seen, on either side.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def ignore(self, *tensors: Tensor) -> None:
        """Weights and inputs that were there before."""
        self.known.update(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes


def check_live_memory() -> None:
    """A case whose bytes are known: views and in-place sums are free, what is deleted counts no
    more, what autograd keeps goes on counting."""
    x, million = torch.ones(1_000_000, requires_grad=True), 4_000_000
    with LiveMemory() as memory:
        memory.ignore(x)
        y = x.exp().view(1000, 1000).add_(0)  # exp keeps its output
        assert (memory.now, memory.peak) == (million, million)
        z = y * 2
        del z
        assert (memory.now, memory.peak) == (million, 2 * million)
        y = y.sin()  # keeps its input
        assert memory.now == 2 * million
        del y
        assert memory.now == 0
    del memory


def modules(options: argparse.Namespace) -> dict[str, VTAModule]:
    """The same training module twice, with our backbone and with diffusers'."""
    shape = {"ffn_dim": options.ffn_dim, "num_layers": options.layers, "text_dim": TEXT_DIM}
    heads = options.dim // HEAD_DIM
    backbone = partial(WanDiT, dim=options.dim, num_heads=heads, text_len=TEXT_LEN, **shape)
    spec = LatentSpec(CHANNELS)
    model = Model(
        name="step", backbone=backbone, flow=FlowMatching(shift=5.0), spec=spec, weights=None,
        vae="", text_encoder="", text_len=TEXT_LEN, num_frames=81, height=480, width=832, fps=16,
    )  # fmt: skip
    make = partial(VTAModule, model, VectorTimesteps(), torch.optim.AdamW)
    ours, theirs = make(lora=LoRA(RANK, RANK)), make(lora=LoRA(RANK, RANK))
    reference = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=HEAD_DIM, in_channels=CHANNELS,
        out_channels=CHANNELS, cross_attn_norm=True, eps=1e-6, **shape,
    )  # fmt: skip
    targets = [rename_wan_module(f"blocks.0.{target}", "diffusers") for target in VTA_TARGETS]
    names = [target.removeprefix("blocks.0.") for target in targets if target]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names), reference)
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.backbone.parameters():
        if not parameter.any():  # biases, the head and the LoRA's B, which would hide differences
            parameter.data.normal_(0, 0.02, generator=generator)
    reference.enable_gradient_checkpointing()  # sets the function; the switch is thrown per run
    reference.load_state_dict(
        {theirs_of(key): value for key, value in ours.backbone.state_dict().items()}
    )
    theirs.backbone = PerToken(reference)
    for module in (ours, theirs):
        precision = "bf16-mixed" if options.bfloat16 else "32-true"
        module.trainer = L.Trainer(accelerator="cpu", precision=precision, barebones=True)
        module.on_fit_start()  # takes the precision from the trainer
    return {"ours": ours, "diffusers": theirs}


def theirs_of(key: str) -> str:
    """Our name of a tensor, adapted or not -> diffusers'."""
    for part in (".base_layer.", ".lora_"):
        if part in key:
            module, rest = key.split(part)
            return f"{rename_wan_module(module, 'diffusers')}{part}{rest}"
    (name,) = rename_wan([key], "diffusers")
    return name


def recompute_blocks(module: VTAModule, yes: bool) -> None:
    backbone = module.backbone
    if isinstance(backbone, WanDiT):
        backbone.checkpointing = Checkpointing.named("blocks" if yes else "none")
    elif isinstance(backbone, PerToken):
        backbone.model.gradient_checkpointing = yes


def make_batch(frames: int, side: int) -> LatentBatch:
    generator = torch.Generator().manual_seed(frames)
    latents = torch.randn(1, CHANNELS, frames, 2 * side, 2 * side, generator=generator)
    text = torch.randn(1, 40, TEXT_DIM, generator=generator)
    return LatentBatch(latents, Text(text, torch.ones(1, 40).bool()), torch.zeros(1).long())


def step(module: VTAModule, batch: LatentBatch) -> Tensor:
    module.zero_grad(set_to_none=True)
    with module.trainer.precision_plugin.forward_context():
        loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach()


def check_equal(pair: dict[str, VTAModule], batch: LatentBatch, bfloat16: bool) -> float:
    """Largest difference of output, loss and LoRA gradients, in parts of their own size."""
    ours, theirs = pair["ours"], pair["diffusers"]
    sigma = torch.linspace(0, 1, batch.latents.shape[2])[None]
    with torch.no_grad():
        values = [tuple(m.backbone(batch.latents, sigma, batch.text) for m in (ours, theirs))]
    values.append((step(ours, batch), step(theirs, batch)))
    others = {name.removeprefix("model."): p for name, p in theirs.backbone.named_parameters()}
    values += [
        (parameter.grad, others[theirs_of(name)].grad)
        for name, parameter in ours.backbone.named_parameters()
        if parameter.requires_grad
    ]
    worst = max(float((a - b).norm() / b.norm()) for a, b in values)
    if worst > (0.1 if bfloat16 else 1e-4):
        raise SystemExit(f"the two steps differ by {worst:.1e}; nothing was measured.")
    return worst


def matrix_peak(bfloat16: bool, size: int = 2048) -> float:
    """FLOP per second of a large matrix product, best of 8."""
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return max(2 * size**3 / seconds(lambda: a @ b) for _ in range(8))


def seconds(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def num_flops(call) -> int:
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(module: VTAModule, batch: LatentBatch) -> int:
    """Of activations and gradients of one step, weights and inputs not counted."""
    module.zero_grad(set_to_none=True)
    with LiveMemory() as memory:
        inputs = (batch.latents, batch.text.embedding, batch.text.mask)
        memory.ignore(*module.parameters(), *module.buffers(), *inputs)
        step(module, batch)
    return memory.peak


def measure(pair: dict[str, VTAModule], options: argparse.Namespace) -> list[dict]:
    rows = []
    for frames in options.frames:
        batch = make_batch(frames, options.side)
        worst = check_equal(pair, batch, options.bfloat16)
        for recomputed in (False, True):
            runs = {name: partial(step, module, batch)
                    for name, module in pair.items()}  # fmt: skip
            for module in pair.values():
                recompute_blocks(module, recomputed)
            row = {"frames": frames, "recomputed": recomputed, "difference": worst,
                   "matmul_flop_per_s": matrix_peak(options.bfloat16)}  # fmt: skip
            for name, module in pair.items():
                row[f"{name}_flop"] = num_flops(runs[name])
                row[f"{name}_bytes"] = peak_bytes(module, batch)
            taken = {name: [] for name in pair}
            for _ in range(options.rounds):
                for name, run in runs.items():
                    taken[name].append(seconds(run))
            row |= {f"{name}_seconds": some for name, some in taken.items()}
            row["matmul_flop_per_s"] = max(row["matmul_flop_per_s"], matrix_peak(options.bfloat16))
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Ratios are ours / diffusers'; below 1 is better."""
    lines = ["| latent frames | blocks recomputed | ours, s (best) | diffusers, s (best) | ratio | "
             "ours, MB | diffusers, MB | ratio | share of matmul peak, ours | diffusers |",
             "|" + "---|" * 10]  # fmt: skip
    for row in rows:
        cells = [str(row["frames"]), "yes" if row["recomputed"] else "no"]
        median = {n: statistics.median(row[f"{n}_seconds"]) for n in ("ours", "diffusers")}
        cells += [f"{median[n]:.2f} ({min(row[f'{n}_seconds']):.2f})" for n in median]
        cells.append(f"**{median['ours'] / median['diffusers']:.2f}**")
        cells += [f"{row[f'{n}_bytes'] / 1e6:.0f}" for n in median]
        cells.append(f"**{row['ours_bytes'] / row['diffusers_bytes']:.2f}**")
        peak = row["matmul_flop_per_s"]
        cells += [f"{row[f'{n}_flop'] / median[n] / peak:.0%}" for n in median]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="VTA's step, ours and diffusers'.")
    parser.add_argument("--frames", type=int, nargs="+", default=[5, 13, 21])
    parser.add_argument("--side", type=int, default=12, help="tokens along a side of a frame")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--ffn-dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--out", default="step", help="name of the results' files")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer to log to
    logging.getLogger("pusa").setLevel(logging.ERROR)
    check_live_memory()
    pair = modules(options)
    rows = measure(pair, options)
    facts = vars(options) | {"rank": RANK, "torch": torch.__version__,
                             "threads": torch.get_num_threads()}  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    report = {"options": facts, "rows": rows}
    (RESULTS / f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"{options.out}.md").write_text(page(report))


def page(report: dict) -> str:
    """The results in words and a table."""
    facts = report["options"]
    kind = "bfloat16 autocast" if facts["bfloat16"] else "float32"
    peak = max(row["matmul_flop_per_s"] for row in report["rows"]) / 1e9
    worst = max(row["difference"] for row in report["rows"])
    return f"""# A training step, ours and diffusers'

`python benchmarks/step.py`: {facts["layers"]} blocks of width {facts["dim"]} (feed-forward
{facts["ffn_dim"]}), {facts["side"]} x {facts["side"]} tokens a frame, {TEXT_LEN} text tokens, LoRA
of rank {facts["rank"]} on attention and feed-forward, batch 1, {kind}, torch {facts["torch"]},
{facts["threads"]} thread. Seconds of processor time, median (best) of {facts["rounds"]} rounds in
turn. Ratios are ours / diffusers'; below 1 is better. The two agree to {worst:.0e} (output, loss,
every gradient of the LoRA). Peak memory is of activations and gradients, weights not counted. The
machine multiplies matrices with up to {peak:.0f} GFLOP/s; each row's share is of the peak measured
beside it.

{table(report["rows"])}
"""


if __name__ == "__main__":
    main()
