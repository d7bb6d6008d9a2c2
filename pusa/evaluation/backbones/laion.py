"""LAION's aesthetic predictor: a line through CLIP ViT-L/14's embeddings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from pusa.evaluation.backbones import openai_clip
from pusa.evaluation.backbones.outside import checkpoint


def load(files: Sequence[Path], root: Path, device: str) -> Callable[[Tensor], Tensor]:
    """Ratings (N,), about 0 to 10."""
    embed = openai_clip.load(files[:1], root, device)
    state = checkpoint(files[1])
    head = nn.Linear(state["weight"].shape[1], 1)
    head.load_state_dict(state)
    head = head.to(device).eval()
    return lambda pixels: head(F.normalize(embed(pixels).float(), dim=-1))[:, 0]
