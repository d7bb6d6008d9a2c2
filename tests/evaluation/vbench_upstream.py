"""Runs in a process of its own: the `vbench` package's dimensions with our stand-ins put into them.

Its dependencies are replaced by the few names that it imports. torchvision's transforms are written
here from their documentation, so the arithmetic of resizing is torch's and Pillow's on both sides:
what is compared is everything else. Prints one JSON object: dimension -> scores in order of clips.

    python vbench_upstream.py FOLDER_WITH_VBENCH CLIP.mp4:IMAGE.png ...
"""

import contextlib
import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pusa.evaluation.backbones.normalised import CLIP, IMAGENET
from pusa.evaluation.backbones.registry import load
from pusa.evaluation.metrics.frames import TensorFrames


def aesthetic_head() -> nn.Linear:
    """Any line does: both sides get the same."""
    head = nn.Linear(1280, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 1280, generator=generator))
        head.bias.fill_(5.0)
    return head


class Resize:
    smooths = False  # tensors, where nothing is said: True since torchvision 0.17

    def __init__(self, size, interpolation="bilinear", antialias=None):
        self.size, self.how, self.antialias = size, interpolation, antialias

    def __call__(self, picture):
        pil = isinstance(picture, Image.Image)
        height, width = (picture.height, picture.width) if pil else picture.shape[-2:]
        if isinstance(self.size, int):
            longer = int(self.size * max(height, width) / min(height, width))
            target = (self.size, longer) if height <= width else (longer, self.size)
        else:
            target = tuple(self.size)
        if pil:
            return picture.resize(target[::-1], getattr(Image.Resampling, self.how.upper()))
        antialias = self.smooths if self.antialias is None else self.antialias
        return F.interpolate(picture, target, mode=self.how, antialias=antialias)


class CenterCrop:
    def __init__(self, size):
        self.size = size

    def __call__(self, picture):
        pil = isinstance(picture, Image.Image)
        height, width = (picture.height, picture.width) if pil else picture.shape[-2:]
        top = int(round((height - self.size) / 2.0))  # noqa: RUF046 - as documented
        left = int(round((width - self.size) / 2.0))  # noqa: RUF046
        if pil:
            return picture.crop((left, top, left + self.size, top + self.size))
        return picture[..., top : top + self.size, left : left + self.size]


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))

    def __call__(self, pixels):
        return (pixels - self.mean) / self.std


def compose(steps):
    def apply(picture):
        for step in steps:
            picture = step(picture)
        return picture

    return apply


def replace_dependencies() -> None:
    transforms = SimpleNamespace(
        Compose=compose, Resize=Resize, CenterCrop=CenterCrop, Normalize=Normalize,
        Lambda=lambda function: function, ToPILImage=lambda: None,
        ToTensor=lambda: lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0) / 255.0,
        InterpolationMode=SimpleNamespace(BICUBIC="bicubic", BILINEAR="bilinear"),
    )  # fmt: skip
    names = {
        "torchvision": {"transforms": transforms}, "torchvision.transforms": vars(transforms),
        "clip": {}, "dreamsim": {"dreamsim": None}, "imageio": {"imread": None, "imwrite": None},
        "pyiqa": {}, "pyiqa.archs": {}, "pyiqa.archs.musiq_arch": {"MUSIQ": None},
        "easydict": {"EasyDict": dict},
        "vbench2_beta_i2v.third_party": {}, "vbench2_beta_i2v.third_party.cotracker": {},
        "vbench2_beta_i2v.third_party.cotracker.utils": {},
        "vbench2_beta_i2v.third_party.cotracker.utils.visualizer": {"Visualizer": None},
    }  # fmt: skip
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def denormalised(network, colours):
    mean, deviation = (torch.tensor(values)[:, None, None] for values in colours)
    return lambda pixels: network(pixels * deviation + mean)


def tracks(network):
    def track(clip: Tensor, grid_size: int):
        frames = TensorFrames(clip[0].to(torch.uint8))
        return torch.stack(network(frames, grid_size))[None], None

    return track


def made(cls, **attributes):
    """An object of a class whose constructor would load weights."""
    made = cls.__new__(cls)
    vars(made).update(attributes)
    return made


def scores(clips: list[str], images: list[str]) -> dict[str, list]:
    from vbench.aesthetic_quality import laion_aesthetic
    from vbench.background_consistency import background_consistency
    from vbench.dynamic_degree import DynamicDegree
    from vbench.imaging_quality import technical_quality
    from vbench.motion_smoothness import MotionSmoothness
    from vbench.subject_consistency import subject_consistency
    from vbench.temporal_flickering import temporal_flickering
    from vbench2_beta_i2v.camera_motion import CameraPredict, camera_motion
    from vbench2_beta_i2v.i2v_background import i2v_background
    from vbench2_beta_i2v.i2v_subject import i2v_subject

    features = load("efficientnet-lite0").network
    subject = denormalised(features, IMAGENET)
    clip = SimpleNamespace(encode_image=denormalised(features, CLIP), eval=lambda: None)
    between, flow = load("rife-4").network, load("dis-medium").network
    smoothness = made(MotionSmoothness, device="cpu", niters=1)
    smoothness.initialization()
    smoothness.model = lambda a, b, time, **_: {"imgt_pred": between(a, b)}
    degree = made(DynamicDegree, device="cpu", model=lambda a, b, **_: (None, flow(a, b)))
    camera = made(CameraPredict, device="cpu", grid_size=10, number_points=1)
    camera.model = tracks(load("dis-medium-chained").network)
    perceptual = SimpleNamespace(embed=features)
    pairs = list(zip(images, clips, strict=True))
    total, videos = subject_consistency(subject, clips, "cpu", False)
    quality = technical_quality(load("brisque").network, clips, "cpu")[1]
    results = {
        "i2v_subject": i2v_subject(subject, pairs, "cpu")[1],
        "i2v_background": i2v_background(perceptual, pairs, "cpu")[1],
        "camera_motion": camera_motion(camera, clips)[2],
        "subject_consistency": videos,
        "background_consistency": background_consistency(clip, None, clips, "cpu", False)[1],
        "aesthetic_quality": laion_aesthetic(aesthetic_head(), clip, clips, "cpu")[1],
        "imaging_quality": [{"video_results": row["video_results"] / 100} for row in quality],
        "temporal_flickering": temporal_flickering(clips)[1],
    }
    Resize.smooths = True
    results["i2v_subject, modern"] = i2v_subject(subject, pairs, "cpu")[1]
    results["i2v_background, modern"] = i2v_background(perceptual, pairs, "cpu")[1]
    found = {name: [row["video_results"] for row in rows] for name, rows in results.items()}
    found["motion_smoothness"] = [smoothness.motion_score(clip) for clip in clips]
    found["dynamic_degree"] = [float(degree.infer(clip)) for clip in clips]
    found["camera_moves"] = [sorted(row["predict_type"]) for row in results["camera_motion"]]
    found["subject_consistency_of_all"] = [total]
    return found


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    replace_dependencies()
    given = [argument.split(":") for argument in sys.argv[2:]]
    with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
        found = scores([clip for clip, _ in given], [image for _, image in given])
    print(json.dumps(found))
