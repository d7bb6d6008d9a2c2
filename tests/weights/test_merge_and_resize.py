"""Merging is the run-time adapter for good; resizing is the best lower rank."""

import pytest
import torch

from pusa.weights.convert import Output
from pusa.weights.doctor import fixed_velocity
from pusa.weights.files import WeightsError, load_weights, read_checkpoint, read_tensors
from pusa.weights.lora import load_lora
from pusa.weights.merge import merge
from pusa.weights.resize import resize
from tests.weights.conftest import VARIANTS, add_diffs, difference, make_adapter, make_twin, save

T2V = "wan21_t2v_14b_tiny"


def test_merged_weights_equal_the_runtime_adapters(tmp_path, twin):
    model = make_twin(twin)
    path = save(model, twin, tmp_path / "base", shard_bytes=300_000)
    first, second = (make_adapter(model, rank, seed=rank) for rank in (2, 4))
    if twin.startswith("wan"):
        second = add_diffs(second, model)
    merge(path, [(first, 1.4), (second, -0.5)], Output(tmp_path / "merged", shard_bytes=300_000))
    merged = VARIANTS[twin].build()
    load_weights(merged, tmp_path / "merged")
    load_lora(model, first, 1.4, "first")
    load_lora(model, second, -0.5, "second")
    torch.testing.assert_close(fixed_velocity(merged), fixed_velocity(model), atol=2e-5, rtol=1e-5)
    assert (tmp_path / "merged" / "diffusion_pytorch_model.safetensors.index.json").is_file()


def test_the_sum_is_float32_also_in_bfloat16_weights(tmp_path):
    """W + 1.4 * B @ A rounded once, where bfloat16 sums would round each (spec test vector 6)."""
    model = make_twin(T2V)
    path = save(model, T2V, tmp_path / "base", dtype=torch.bfloat16)
    adapter = make_adapter(model, rank=4, alpha=4.0)
    merge(path, [(adapter, 1.4)], Output(tmp_path / "m.safetensors", "comfy"))
    key = "blocks.0.ffn.0.weight"
    weight = read_checkpoint(path).tensors[key].double()
    target = adapter["blocks.0.ffn.0"]
    exact = weight + 1.4 * (target.B.double() @ target.A.double())
    found = read_tensors(tmp_path / "m.safetensors")[f"model.diffusion_model.{key}"]
    assert found.dtype == torch.bfloat16
    # Rounded once from float32: at most one in a thousand is on the other side of a tie.
    assert (found != exact.bfloat16()).float().mean() < 1e-3


def test_a_lora_that_does_not_fit_is_not_merged(tmp_path):
    model = make_twin(T2V)
    path = save(model, T2V, tmp_path / "base")
    other = make_adapter(make_twin("wan21_t2v_1_3b_tiny"))
    with pytest.raises(WeightsError, match="does not fit this model"):
        merge(path, [(other, 1.0)], Output(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_resize_is_the_truncated_svd_with_its_true_error():
    model = make_twin(T2V)
    adapter = make_adapter(model, rank=8, alpha=4.0)
    shrunk = resize(adapter, 3)
    lost = whole = 0.0
    for module, target in adapter.items():
        delta = target.delta().double()
        u, s, vh = torch.linalg.svd(delta)
        best = u[:, :3] * s[:3] @ vh[:3]
        found = shrunk.adapter[module]
        assert found.rank == 3
        assert found.scale == 1
        assert difference(found.delta().double(), best) < 1e-5
        error = float((delta - best).norm() / delta.norm())
        assert shrunk.errors[module] == pytest.approx(error, rel=1e-6)
        lost, whole = lost + float((delta - best).square().sum()), whole + float(s.square().sum())
    assert shrunk.error == pytest.approx((lost / whole) ** 0.5, rel=1e-6)


def test_resize_keeps_what_is_small_enough_and_what_has_no_rank():
    model = make_twin(T2V)
    adapter = add_diffs(make_adapter(model, rank=4), model)
    shrunk = resize(adapter, 4)
    assert shrunk.error == 0
    for module, target in adapter.items():
        assert shrunk.adapter[module].A is target.A
        assert shrunk.adapter[module].diffs.keys() == target.diffs.keys()
    with pytest.raises(ValueError, match="rank must be at least 1"):
        resize(adapter, 0)
