"""Over how many processes a run is spread, and what of it each of them holds.

Names are those of configs/strategy. One process and DDP are Lightning's own; here is DeepSpeed's
ZeRO with two departures: it also runs on CPUs (tests, laptops), and the engine casts nothing, so
that the frozen base keeps its dtype, the time path and the LoRA stay float32, and autocast does the
rest.
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

PRECISIONS = ("32-true", "bf16-mixed")
BUCKET = 200_000_000  # elements of one communication; small enough for 16-bit and 80 GB alike
WAIT = timedelta(hours=6)  # for the slowest process, which may be sampling a grid or writing


class Untouched(DeepSpeedPrecision):
    """Leaves modules and batches as they are: the model says what runs in which precision."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def tensor_init_context(self):
        return nullcontext()

    def module_init_context(self):
        return nullcontext()


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed's ZeRO, stage 1 (optimizer state is divided over processes), 2 (gradients, too) or
    3 (the weights as well, the frozen ones included).

    offload_optimizer: its state and step live in host memory; offload_params (stage 3): the weights
    wait there. Checkpoints hold trainable tensors only. A step whose gradients are not finite is
    skipped by every process alike. trainer.precision is 32-true or bf16-mixed, else ValueError.
    """

    def __init__(
        self, stage: int, offload_optimizer: bool = False, offload_params: bool = False, **more: Any
    ):
        if stage not in (1, 2, 3):
            raise ValueError(f"strategy: ZeRO has stages 1, 2 and 3, not {stage}.")
        if offload_params and stage != 3:
            raise ValueError("strategy: only ZeRO stage 3 can offload parameters.")
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_params,
            pin_memory=torch.cuda.is_available() and (offload_optimizer or offload_params),
            allgather_bucket_size=BUCKET,
            reduce_bucket_size=BUCKET,
            exclude_frozen_parameters=True,
            timeout=WAIT,
            process_group_backend=None if torch.cuda.is_available() else "gloo",
            **more,
        )
        self.stage, self.offload_optimizer = stage, offload_optimizer
        assert isinstance(self.config, dict)
        # torch's fused AdamW steps on the host; DeepSpeed's own would be compiled there first.
        self.config["zero_force_ds_cpu_optimizer"] = False

    @property
    def precision_plugin(self) -> DeepSpeedPrecision:
        chosen = super().precision_plugin
        if type(chosen) is DeepSpeedPrecision:  # the trainer's choice, by trainer.precision
            if chosen.precision not in PRECISIONS:
                raise ValueError(
                    f"trainer.precision={chosen.precision} is not for ZeRO; use one of "
                    f"{', '.join(PRECISIONS)} (model.dtype is the dtype of the frozen weights)."
                )
            self._precision_plugin = chosen = Untouched(chosen.precision)
        return chosen  # pyright: ignore[reportReturnType]

    @precision_plugin.setter
    def precision_plugin(self, plugin) -> None:
        self._precision_plugin = plugin

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)  # Lightning's own refuses CPUs here

    def setup_distributed(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            return super().setup_distributed()
        reset_seed()
        self.set_world_ranks()
        return self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        self._format_batch_size_and_grad_accum_config()  # and no section for precision

    def teardown(self) -> None:
        """Leave nothing behind for the next expert (but under stage 3, where DeepSpeed itself keeps
        the shards), and copy no weights to the host on the way."""
        engine: Any = self.model
        module, self._lightning_module = self._lightning_module, None
        super().teardown()
        self._lightning_module = module
        self.model, self.optimizers, self.lr_scheduler_configs = None, [], []
        if engine is not None and hasattr(engine, "destroy"):
            engine.destroy()

    def _setup_model_and_optimizer(self, model, optimizer, lr_scheduler: Any = None):
        import deepspeed

        if self.offload_optimizer and isinstance(optimizer, torch.optim.AdamW):
            for group in optimizer.param_groups:
                group["fused"] = True
        place = self.local_rank if self.root_device.index is None else self.root_device.index
        trained: Any = [p for p in model.parameters() if p.requires_grad]
        made: Any = deepspeed.initialize(
            args=argparse.Namespace(device_rank=place),
            config=self.config,
            model=model,
            model_parameters=trained,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        engine, wrapped = made[:2]
        wrapped.check_grad_overflow = True  # which DeepSpeed offers for 16 bits only
        return engine, wrapped


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block, parameters that ZeRO-3 keeps in shards are whole on every process."""
    divided = [p for p in parameters if hasattr(p, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(divided):
        yield


@contextmanager
def shards_only(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """ZeRO-3 keeps small parameters whole beside their shards; inside the block it does not, so
    that what is written into `own_part` is what counts."""
    divided: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    kept = [p for p in divided if p.ds_status.name == "AVAILABLE"]
    for parameter in kept:
        parameter.partition()
    try:
        yield
    finally:
        for parameter in kept:
            parameter.all_gather()


def own_part(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter: its shard under ZeRO-3, else all of it."""
    return getattr(parameter, "ds_tensor", parameter)


class DDP(DDPStrategy):
    """Data parallelism with the waiting time of this project; gloo on CPUs."""

    def __init__(self, **more: Any):
        super().__init__(
            timeout=WAIT,
            process_group_backend=None if torch.cuda.is_available() else "gloo",
            gradient_as_bucket_view=True,
            **more,
        )


def ends_step(trainer: Any, batch_idx: int) -> bool:
    """Whether a pass is the last one of its step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_divided(module: nn.Module) -> bool:
    """Whether ZeRO-3 keeps the module's weights in shards."""
    return any(hasattr(p, "ds_id") for p in module.parameters())


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of every process's values; the values themselves where there is one process."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of every process's values, elementwise."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: Tensor, how) -> Tensor:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    if torch.cuda.is_available():
        values = values.cuda()
    values = values.clone()
    dist.all_reduce(values, how)
    return values


def held_bytes(trainer: Any, module: nn.Module) -> dict[str, int]:
    """Bytes of this process's part of the weights and of the optimizer's state."""
    weights = sum(_bytes(own_part(p)) for p in module.parameters())
    optimizer = trainer.optimizers[0]
    state = getattr(optimizer, "optimizer", optimizer).state  # DeepSpeed wraps the optimizer
    tensors = [v for slots in state.values() for v in slots.values() if isinstance(v, Tensor)]
    return {"weights": weights, "optimizer": sum(_bytes(t) for t in tensors if t.ndim)}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def gather(value: Any) -> list[Any]:
    """Every process's value, by rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
