"""What is written beside a result comes back, and unlike results are not compared in silence."""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pusa.data.hashing import sha256
from pusa.evaluation import manifest as module
from pusa.evaluation.manifest import (
    LoraRecord,
    Manifest,
    compare_manifests,
    hardware,
    installed,
    read_manifest,
    write_manifest,
)
from pusa.evaluation.naming import BackboneRecord, common, title
from pusa.evaluation.scoring import SCALES
from pusa.evaluation.vbench_suite import PUBLIC_KEY

OWN = {name: BackboneRecord("own", "0" * 64, comparable=True) for name in SCALES}
OURS = Manifest(
    suite="VBench-I2V 16-9", prompts=PUBLIC_KEY, images="def", prompt_rewriting="none",
    seeds=(0, 1, 2, 3, 4),
    model="wan2.1 14B", weights="abc", loras=(LoraRecord("a.safetensors", "1" * 64, 1.4, ""),),
    task="i2v (0: 0.2)", sampler="euler", num_steps=10, guidance_scale=5.0, shift=5.0,
    dtype="bfloat16",
    height=720, width=1280, num_frames=81, fps=16.0, codec="h264", crf=10, resize="board",
    backbones=OWN, missing=0, versions={"torch": "2.13.0"}, hardware="CPU",
)  # fmt: skip
CHANGED = {
    "seeds": (0, 1), "loras": (), "num_steps": 20, "missing": 3, "height": 480, "width": 832,
    "num_frames": 49, "crf": 12, "guidance_scale": 1.0, "shift": 3.0, "fps": 24.0,
    "resize": "modern", "versions": {}, "backbones": {},
}  # fmt: skip


def with_other(field: str) -> Manifest:
    return replace(OURS, **{field: CHANGED.get(field, "another")})


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path):
    write_manifest(tmp_path / "manifest.json", OURS)
    assert read_manifest(tmp_path / "manifest.json") == OURS


def test_every_field_is_weighed_once():
    weighed = [*module.ALIKE, *module.SUBJECT, *module.SURROUNDINGS]
    assert sorted(weighed) == sorted(field.name for field in fields(Manifest))


@pytest.mark.parametrize("field", module.ALIKE)
def test_results_that_are_unlike_are_compared_only_if_told(field: str):
    other = with_other(field)
    with pytest.raises(ValueError, match=f"they differ in {field}: .* or allow: {field}\\."):
        compare_manifests(OURS, other)
    (change,) = compare_manifests(OURS, other, allow=[field])
    assert change.field == field
    assert change.unlike


@pytest.mark.parametrize("field", [*module.SUBJECT, *module.SURROUNDINGS])
def test_what_a_comparison_is_about_is_listed(field: str):
    (change,) = compare_manifests(OURS, with_other(field))
    assert (change.field, change.unlike) == (field, False)


def test_all_reasons_are_told_at_once_and_equal_runs_have_none():
    other = replace(OURS, height=480, crf=12, num_steps=4)
    with pytest.raises(ValueError, match="height: 720 and 480; crf: 10 and 12"):
        compare_manifests(OURS, other)
    with pytest.raises(ValueError, match=r"differ in crf: .* or allow: crf\."):
        compare_manifests(OURS, other, allow=["height"])
    assert compare_manifests(OURS, replace(OURS)) == ()
    with pytest.raises(ValueError, match=r"allow=\['hight'\]: expected some of prompts"):
        compare_manifests(OURS, other, allow=["hight"])


def test_the_name_of_a_result_follows_from_its_manifest():
    assert title(OURS.basis()) == "VBench-I2V"
    assert title(replace(OURS, missing=1).basis()) == "VBench-I2V, incomplete"
    assert title(replace(OURS, seeds=(0, 1)).basis()) == "VBench-I2V, incomplete"
    assert "another suite" in title(replace(OURS, prompts="mine", seeds=(0,)).basis())
    assert title(replace(OURS, backbones={}).basis()).startswith("stand-in, not VBench")


def test_a_table_of_several_runs_is_called_by_the_least_of_them():
    whole = OURS.basis()
    assert title(common([whole, whole])) == "VBench-I2V"
    assert title(common([whole, replace(OURS, missing=1).basis()])) == "VBench-I2V, incomplete"
    assert "another suite" in title(common([whole, replace(OURS, prompts="mine").basis()]))
    stand_in = {"dynamic_degree": BackboneRecord("small", "", comparable=False)}
    for other in (replace(OURS, backbones=OWN | stand_in), replace(OURS, backbones=stand_in)):
        for pair in ([OURS, other], [other, OURS]):
            basis = common([one.basis() for one in pair])
            assert basis.stand_ins == ("dynamic_degree",)
            assert title(basis).startswith("stand-in, not VBench (1 of 9")


def test_loras_are_told_in_words():
    (change,) = compare_manifests(OURS, replace(OURS, loras=()))
    assert str(change) == f"loras: a.safetensors ({'1' * 12}) at 1.4 and none"


def test_what_is_no_manifest_is_named(tmp_path: Path):
    path = tmp_path / "manifest.json"
    with pytest.raises(ValueError, match="no such manifest"):
        read_manifest(path)
    write_manifest(path, OURS)
    content = json.loads(path.read_text())
    for broken in (
        [],
        {k: v for k, v in content.items() if k != "crf"},
        content | {"camera": 1},
        content | {"backbones": []},
        content | {"loras": [{"file": "a"}]},
        content | {"seeds": 3},
        content | {"resize": "pil"},
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"manifest\.json: not a manifest of a run"):
            read_manifest(path)


def test_files_and_machines_are_described(tmp_path: Path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"weights")
    assert sha256(path) == hashlib.sha256(b"weights").hexdigest()
    found = installed(("torch", "no-such-package"))
    assert found.keys() == {"python", "torch"}
    assert hardware()
