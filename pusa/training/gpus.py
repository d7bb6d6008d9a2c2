"""The GPUs that `pusa plan` knows, and every number that it takes for granted.

Nothing here was measured by us: no GPU was at hand. Speeds are of the vendors' data sheets, prices
are our assumption of what an hour costs on demand. As of November 2025; --price and --mfu replace
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """memory: GiB that torch reports as its total; teraflops: dense bf16 with float32 sums, of the
    data sheet; price: dollars an hour; link, host_link: GB/s that one GPU gets to its neighbours
    and to host memory, both well below the data sheet's."""

    name: str
    memory: float
    teraflops: float
    price: float
    link: float
    host_link: float


def _table(*gpus: GPU) -> Mapping[str, GPU]:
    return MappingProxyType({gpu.name: gpu for gpu in gpus})


# NVLink 3, 4 and 5 have 300, 450 and 900 GB/s per direction, PCIe 4 and 5 x16 32 and 64: about two
# thirds are counted on. Cards without NVLink talk through the host.
GPUS = _table(
    GPU("h100-80g", 79.1, 989, 2.5, 300, 40),  # SXM5
    GPU("h200-141g", 139.8, 989, 3.2, 300, 40),
    GPU("b200-180g", 178.3, 2250, 5.0, 600, 40),
    GPU("a100-80g", 79.1, 312, 1.6, 200, 20),  # SXM4
    GPU("a100-40g", 39.4, 312, 1.2, 200, 20),
    GPU("l40s-48g", 44.4, 362, 0.9, 15, 20),
    GPU("rtx5090-32g", 31.4, 209, 0.6, 30, 40),
    GPU("rtx4090-24g", 23.6, 165, 0.4, 15, 20),
)

UTILISATION = 0.4  # share of the data sheet's speed that arithmetic reaches, recomputation counted
BETWEEN_NODES = 40.0  # GB/s per GPU, of a 400 Gbit/s network
CONTEXT = 0.75 * GIB  # CUDA context, cuBLAS workspaces, loaded kernels
COLLECTIVES = 0.5 * GIB  # NCCL's buffers, with more than one GPU
FRAGMENTATION = 0.05  # of what torch's allocator holds, lost between its blocks
PROCESS, WORKER = (
    3.0 * GIB,
    1.0 * GIB,
)  # host memory of a rank (CUDA libraries) and of a data worker
CPU_ADAM = 1e9  # parameters a second that the host of one rank steps, when the optimizer is there

ASSUMPTIONS = (
    "memory, speed and price of GPUs: data sheets and list prices of 2025, none measured by us",
    f"arithmetic runs at the share of peak given (--mfu, default {UTILISATION:g}), recomputation "
    "counted",
    "communication and copies to the host hide behind nothing: times add up (slower than real)",
    f"CUDA context {CONTEXT / GIB:g} GiB, NCCL {COLLECTIVES / GIB:g} GiB, "
    f"{FRAGMENTATION:.0%} of the rest lost to fragmentation",
    f"host: {PROCESS / GIB:g} GiB a process, {WORKER / GIB:g} a data worker",
    "activations counted on the CPU's kernels; of a GPU's, attention's float32 sums are added",
)


def gpu_named(name: str) -> GPU:
    """ValueError listing the table if there is none of that name."""
    if name not in GPUS:
        raise ValueError(f"--gpu {name} is unknown; use one of {', '.join(GPUS)}.")
    return GPUS[name]


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind, `per_node` to a machine; price: dollars per GPU and hour."""

    gpu: GPU
    count: int = 1
    per_node: int = 8
    price: float | None = None
    utilisation: float = UTILISATION

    def __post_init__(self):
        for name, value in (("--gpus", self.count), ("--gpus-per-node", self.per_node)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.count > self.per_node and self.count % self.per_node:
            raise ValueError(
                f"--gpus {self.count} are not whole nodes of {self.per_node}; see --gpus-per-node."
            )
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"--price must be 0 or more dollars an hour, got {self.price}.")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"--mfu must be in (0, 1], got {self.utilisation}.")

    @property
    def nodes(self) -> int:
        return -(-self.count // self.per_node)

    @property
    def ranks_per_node(self) -> int:
        return min(self.count, self.per_node)

    @property
    def hourly(self) -> float:
        """Dollars per hour of all GPUs."""
        return self.count * (self.gpu.price if self.price is None else self.price)

    @property
    def link(self) -> float:
        """Bytes per second between ranks: of the slowest way."""
        return 1e9 * (self.gpu.link if self.nodes == 1 else min(self.gpu.link, BETWEEN_NODES))
