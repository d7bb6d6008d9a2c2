"""Strict reading and whole-or-nothing writing."""

import pytest
import torch
from torch import nn

from pusa.atomic import write_json
from pusa.weights.files import WeightsError, load_weights, read_tensors, write_tensors


class Small(nn.Module):
    keep_float32 = ("norm",)

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(value) for key, value in Small().state_dict().items()}


def test_weights_fill_a_model_built_on_meta_in_the_target_dtype(tmp_path, tensors):
    path = write_tensors(tmp_path / "model.safetensors", tensors)
    with torch.device("meta"):
        model = Small()
    load_weights(model, path, torch.bfloat16)
    assert model.first.weight.dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.norm.weight, tensors["norm.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("first.bias"), "misses first.bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "unknown extra"),
        (lambda t: t.update({"first.bias": torch.zeros(4)}), r"first.bias is \(4,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused_and_nothing_is_assigned(
    tmp_path, tensors, change, message
):
    change(tensors)
    path = write_tensors(tmp_path / "model.safetensors", tensors)
    model = Small()
    before = model.first.weight.clone()
    with pytest.raises(WeightsError, match=message):
        load_weights(model, path)
    assert torch.equal(model.first.weight, before)


def test_truncated_and_missing_files_are_named(tmp_path, tensors):
    path = write_tensors(tmp_path / "model.safetensors", tensors)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_tensors(path)
    with pytest.raises(WeightsError, match="no such weight file"):
        read_tensors(tmp_path / "absent.safetensors")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, tensors, monkeypatch):
    path = write_tensors(tmp_path / "model.safetensors", tensors)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", _fail)
    with pytest.raises(OSError, match="disk"):
        write_tensors(path, {"other": torch.zeros(1)})
    with pytest.raises(OSError, match="disk"):
        write_json(tmp_path / "value.json", {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def _fail(*_):
    raise OSError("disk")
