"""DINO ViT-B/16 out of its authors' repository. Their hubconf.py is not used: it needs torchvision
for a network that is not asked for."""

from collections.abc import Sequence
from pathlib import Path

from pusa.evaluation.backbones.normalised import IMAGENET, Normalised
from pusa.evaluation.backbones.outside import checkpoint, module_in
from pusa.evaluation.backbones.registry import BACKBONES


def load(files: Sequence[Path], root: Path, device: str) -> Normalised:
    """Features (N, 768): the class token."""
    vits = module_in(root / BACKBONES["dino-vitb16"].code, "vision_transformer")
    network = vits.vit_base(patch_size=16, num_classes=0)
    network.load_state_dict(checkpoint(files[0]))
    return Normalised(network.to(device).eval(), *IMAGENET)
