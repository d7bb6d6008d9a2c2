"""The names and shapes that other parts and outside users rely on, as the README shows them."""

import re

import torch

from tests.conftest import REPOSITORY


def test_the_readmes_python_example_runs():
    readme = (REPOSITORY / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["velocity"].shape == names["latents"].shape
    assert names["sigmas"].shape == (11,)
    assert names["sigmas"][-1] == 0
    assert names["result"].shape == names["latents"].shape
    assert torch.isfinite(names["result"]).all()
