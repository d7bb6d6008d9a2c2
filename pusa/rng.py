"""Counted randomness: every draw is a function of (seed, purpose, index), never of global state."""

import hashlib

import torch


def generator_for(seed: int, purpose: str, *index: int) -> torch.Generator:
    """A fresh CPU generator for one draw.

    The same (seed, purpose, index) gives the same numbers on any rank, worker, batch order or
    resumed run; any other triple gives numbers that are independent of them.
    """
    text = f"{seed}/{purpose}/{'/'.join(str(int(i)) for i in index)}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
