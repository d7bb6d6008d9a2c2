"""Which LoRA goes onto which expert, and how strongly: what is typed, and what the files say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pusa.pipelines.loras import (
    PlacedLoRA,
    Strength,
    choose_path,
    parse_lora,
    parse_strength,
    place_loras,
)
from pusa.weights.adapters import Adapter, Target
from pusa.weights.lora import write_lora
from tests.weights.conftest import make_adapter, make_twin

BOTH, ONE = ("high", "low"), (None,)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return make_adapter(make_twin("wan21_t2v_14b_tiny"), 2, 2.0, every=10)


@pytest.fixture
def files(tmp_path, monkeypatch, adapter):
    """h and l say which expert they are for, x does not; run is a folder of two, old of one."""
    monkeypatch.chdir(tmp_path)
    for name, expert in (("h", "high"), ("l", "low"), ("x", None)):
        write_lora(replace(adapter, expert=expert), Path(f"{name}.safetensors"))
    for expert in BOTH:
        write_lora(replace(adapter, expert=expert), Path(f"run/{expert}/lora.safetensors"))
    write_lora(adapter, Path("old/lora.safetensors"))
    write_lora(adapter, Path("peft"), "peft")
    return tmp_path


def placed(
    *texts: str, experts=BOTH, strength: Strength = 1.0
) -> list[tuple[str | None, str, float]]:
    found = place_loras(texts, experts, strength)
    return [(lora.expert, lora.adapter.source, lora.strength) for lora in found]


def test_a_file_goes_to_the_expert_that_it_says_it_is_for(files):
    assert placed("l.safetensors:0.5", "h.safetensors") == [
        ("low", "l.safetensors", 0.5), ("high", "h.safetensors", 1.0),
    ]  # fmt: skip


def test_a_file_that_does_not_say_goes_where_it_is_sent(files):
    assert placed("high=x.safetensors:1.5", "low=x.safetensors") == [
        ("high", "x.safetensors", 1.5), ("low", "x.safetensors", 1.0),
    ]  # fmt: skip
    assert [expert for expert, *_ in placed("both=x.safetensors")] == ["high", "low"]
    assert placed("x.safetensors:2", "peft", experts=ONE) == [
        (None, "x.safetensors", 2.0), (None, "peft", 1.0),
    ]  # fmt: skip
    assert placed("x.safetensors", experts=("low",)) == [("low", "x.safetensors", 1.0)]


def test_the_folder_of_a_run_is_its_loras(files):
    assert placed("run:1.4") == [
        ("high", "run/high/lora.safetensors", 1.4), ("low", "run/low/lora.safetensors", 1.4),
    ]  # fmt: skip
    assert placed("run", experts=("low",)) == [("low", "run/low/lora.safetensors", 1.0)]
    assert placed("low=run") == [("low", "run/low/lora.safetensors", 1.0)]
    assert placed("old", experts=ONE) == [(None, "old/lora.safetensors", 1.0)]


def test_one_file_of_both_experts_is_split(files, adapter):
    """diffusers keeps the LoRAs of both in one file, under transformer. and transformer_2."""
    from safetensors.torch import load_file, save_file

    write_lora(replace(adapter, expert="low"), Path("low.safetensors"), "diffusers")
    low = load_file("low.safetensors")
    keys = [key.removeprefix("transformer_2.") for key in low]
    assert all(f"transformer_2.{key}" in low for key in keys)
    high = {f"transformer.{key}": 3 * low[f"transformer_2.{key}"] for key in keys}
    save_file(low | high, "two.safetensors")
    first, second = place_loras(["two.safetensors"], BOTH)
    assert (first.expert, second.expert) == BOTH
    for module in adapter:
        assert (first.adapter[module].B == 3 * second.adapter[module].B).all()


def test_strengths_multiply(files):
    assert placed("run:2", strength={"high": 1.5, "low": 0.5}) == [
        ("high", "run/high/lora.safetensors", 3.0), ("low", "run/low/lora.safetensors", 1.0),
    ]  # fmt: skip
    assert [strength for *_, strength in placed("run:2", strength=0.25)] == [0.5, 0.5]
    assert [strength for *_, strength in placed("run", strength={"low": 0})] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("texts", "experts", "strength", "message"),
    [
        (["x.safetensors"], BOTH, 1.0, r"does not say which expert .* write high=x\.safetensors"),
        (["old"], BOTH, 1.0, "does not say which expert"),
        (["high=l.safetensors"], BOTH, 1.0, "LoRA for the low-noise expert, this is the high"),
        (["l.safetensors"], ("high",), 1.0, "LoRA for the low-noise expert, this is the high"),
        (["low=x.safetensors"], ("high",), 1.0, "this model is high-noise; leave the low= out"),
        (["high=x.safetensors"], ONE, 1.0, "is one network, without experts; leave the high="),
        (["run"], ONE, 1.0, "holds a LoRA of the high and the low-noise expert, this model is one"),
        (["run/low"], ("high",), 1.0, "for the low-noise expert"),
        (["."], BOTH, 1.0, r"holds no lora\.safetensors, nor one in high/ and low/"),
        (["none.safetensors"], BOTH, 1.0, r"none\.safetensors: no such"),
        (["high=none.safetensors:1.4"], BOTH, 1.0, r"none\.safetensors: no such"),
        (["x.safetensors:much"], ONE, 1.0, "'much' is no strength"),
        (["x.safetensors"], ONE, {"high": 1.0}, "give one number to a model of one network"),
        (["run"], BOTH, {"hihg": 1.0}, "is for the experts high and low"),
        (["x.safetensors"], ONE, float("nan"), "must be a finite number"),
        (["x.safetensors"], ONE, "high", "must be a finite number, got 'high'"),
    ],
)
def test_what_has_no_place_is_refused(files, texts, experts, strength, message):
    with pytest.raises(ValueError, match=message):
        place_loras(texts, experts, strength)


def test_half_a_run_is_named(files):
    Path("run/low/lora.safetensors").unlink()
    with pytest.raises(ValueError, match="LoRA of the high-noise expert, none of the low one"):
        place_loras(["run"], BOTH)
    assert placed("high=run") == [("high", "run/high/lora.safetensors", 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.pt", (None, "a.pt", 1.0)),
        ("a.pt:0.5", (None, "a.pt", 0.5)),
        ("C:/a:-2", (None, "C:/a", -2.0)),
        ("high=a.pt:1.5", ("high", "a.pt", 1.5)),
        ("both=a", ("both", "a", 1.0)),
        ("epoch=3.pt", (None, "epoch=3.pt", 1.0)),
    ],
)
def test_what_is_typed_is_taken_apart(text, expected):
    assert parse_lora(text) == expected


def test_strengths_are_a_number_or_one_for_each_expert():
    assert parse_strength("1.4") == 1.4
    assert parse_strength("high=1.5,low=1.4") == {"high": 1.5, "low": 1.4}
    for text in ("much", "high=", "high=1,low", ""):
        with pytest.raises(ValueError, match=r"write 1\.4, or high=1\.5"):
            parse_strength(text)


def test_the_path_is_chosen_by_what_takes_less_arithmetic():
    """Of a square layer of 64, merging is paid after 64 * 64 / 128 = 32 tokens, whatever the rank;
    a LoRA on each of two experts is called half as often."""
    square = Adapter({"blocks.0.q": Target(torch.ones(3, 64), torch.ones(64, 3))})
    one = [PlacedLoRA(square, None, 1.0)]
    assert choose_path("auto", one, tokens=8, calls=4) == "low_rank"
    assert choose_path("auto", one, tokens=11, calls=3) == "merged"
    both = [PlacedLoRA(square, expert, 1.0) for expert in BOTH]
    assert choose_path("auto", both, tokens=16, calls=4) == "low_rank"
    assert choose_path("auto", both, tokens=17, calls=4) == "merged"
    assert choose_path("auto", both, tokens=17, calls=4, mapped=True) == "low_rank"
    assert choose_path("merged", both, tokens=17, calls=4, mapped=True) == "merged"
    assert choose_path("auto", [], tokens=10**6, calls=9) == "low_rank"
    assert choose_path("low_rank", one, tokens=10**6, calls=9) == "low_rank"
    assert choose_path("merged", one, tokens=1, calls=1) == "merged"
    with pytest.raises(ValueError, match="lora_path='fused' is unknown"):
        choose_path("fused", one, 1, 1)
