"""A LoRA of lower rank, with the error that this costs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from pusa.weights.adapters import Adapter, Target


@dataclass(frozen=True)
class Shrunk:
    """A LoRA of lower rank: error is |what was lost| / |update| (Frobenius), per module and all."""

    adapter: Adapter
    errors: dict[str, float]
    error: float


def resize(adapter: Adapter, rank: int, progress: Callable[[Iterable], Iterable] = iter) -> Shrunk:
    """The best approximation of every update by `rank` (truncated SVD); smaller ones stay.

    The factors share the singular values evenly, scale is 1, dtypes stay. ValueError for rank < 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    targets, errors = {}, {}
    lost = whole = 0.0
    for module, target in progress(adapter.items()):
        targets[module], squares_lost, squares = _shrink(target, rank)
        errors[module] = (squares_lost / squares) ** 0.5 if squares else 0.0
        lost, whole = lost + squares_lost, whole + squares
    error = (lost / whole) ** 0.5 if whole else 0.0
    return Shrunk(replace(adapter, targets=targets), errors, error)


def _shrink(target: Target, rank: int) -> tuple[Target, float, float]:
    """(smaller target, squared Frobenius norm of what is lost, and of the whole update)."""
    if target.A is None or target.B is None:
        return target, 0.0, 0.0
    # B @ A = Qb (Rb Ra^T) Qa^T: the SVD of a rank x rank matrix instead of out x in.
    qb, rb = torch.linalg.qr(target.B.double() * target.scale)
    qa, ra = torch.linalg.qr(target.A.double().T)
    u, s, vh = torch.linalg.svd(rb @ ra.T)
    whole = float(s.square().sum())
    if target.rank <= rank:
        return target, 0.0, whole
    kept = min(rank, len(s))  # a layer's smaller side may be less than the rank
    root = s[:kept].sqrt()
    b = (qb @ u[:, :kept] * root).to(target.B.dtype)
    a = (root[:, None] * vh[:kept] @ qa.T).to(target.A.dtype)
    return Target(a, b, float(kept), target.diffs), float(s[kept:].square().sum()), whole
