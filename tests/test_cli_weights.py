"""The commands for files of weights, as they are typed."""

import json

import pytest
import torch

import train
from pusa.entry import build
from pusa.pipelines.loras import split_strength
from pusa.pipelines.tiny import write_tiny_model
from pusa.weights.files import read_checkpoint
from pusa.weights.lora import read_lora, write_lora
from tests.conftest import compose_config
from tests.conftest import run_pusa as run
from tests.weights.conftest import make_adapter, make_twin, save

T2V = "wan21_t2v_14b_tiny"


@pytest.fixture
def files(tmp_path, monkeypatch, caplog):
    """A base and two LoRAs in the working folder."""
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    model = make_twin(T2V)
    save(model, T2V, tmp_path / "base")
    write_lora(make_adapter(model, 8, 8.0), tmp_path / "a.safetensors", "kohya")
    write_lora(make_adapter(model, 4, 4.0, seed=5), tmp_path / "b.safetensors", "diffusers")
    return tmp_path


def test_convert_inspect_and_convert_back(files, caplog):
    assert run("convert", "base", "pipe/transformer", "--to", "diffusers", "--shard-gb", 3e-4) == 0
    assert run("convert", "pipe", "one.safetensors", "--to", "comfy", "--dtype", "bfloat16") == 0
    assert run("inspect", "one.safetensors") == 0
    assert "comfy layout, 123 tensors, 289,600 parameters, bfloat16" in caplog.text
    assert run("inspect", "a.safetensors") == 0
    assert "LoRA, kohya format, 40 modules" in caplog.text
    assert read_checkpoint("pipe").layout == "diffusers"


def test_merge_with_strengths(files):
    command = ("merge", "base", "merged", "--lora", "a.safetensors:1.4", "--lora", "b.safetensors")
    assert run(*command) == 0
    key = "blocks.1.ffn.2.weight"
    base, merged = (read_checkpoint(path).tensors[key] for path in ("base", "merged"))
    deltas = [read_lora(f"{n}.safetensors")["blocks.1.ffn.2"].delta() for n in "ab"]
    torch.testing.assert_close(merged, base + 1.4 * deltas[0] + deltas[1], atol=1e-6, rtol=1e-6)


def test_lora_convert_and_resize(files, caplog):
    assert run("lora", "convert", "a.safetensors", "c.safetensors", "--to", "peft") == 0
    assert run("lora", "resize", "a.safetensors", "small.safetensors", "--rank", 2) == 0
    assert "rank 2 instead of 8, lost" in caplog.text
    assert {t.rank for t in read_lora("small.safetensors").values()} == {2}
    assert run("lora", "resize", "a.safetensors", "x.safetensors", "--rank", 0) == 1


def test_doctors_exit_code_and_json(files, capsys):
    assert run("doctor", "a.safetensors", "--base", "base", "--json", "found.json") == 0
    found = json.loads((files / "found.json").read_text())
    assert found["ok"]
    assert found["forward"]["at_1"] > 0
    capsys.readouterr()
    (files / "bad.safetensors").write_bytes(b"nothing")
    assert run("doctor", "bad.safetensors", "--base", "base", "--json", "-") == 1
    printed = capsys.readouterr().out
    assert "not a whole safetensors file" in json.loads(printed)["errors"][0]
    assert run("doctor", "a.safetensors", "--base", "nowhere") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "base", "base", "--to", "diffusers"), "is there already"),
        (("convert", "none", "x", "--to", "diffusers"), "is not a weight format"),
        (("convert", "base", "x", "--to", "official", "--shard-gb", "-1"), "must be positive"),
        (("merge", "base", "x", "--lora", "a.safetensors:much"), "'much' is no strength"),
        (("merge", "base", "x", "--lora", "a.safetensors:inf"), "must be a finite number"),
        (("merge", "base", "x", "--lora", "none.safetensors"), "no such weight file"),
        (("inspect", "base/config.json"), "is not a weight format"),
        (("convert", "base", "x", "--to", "official", "--shard-gb", "inf"), "must be positive"),
        (("lora", "convert", "a.safetensors", "x.pt", "--to", "peft"), "a PEFT LoRA is a folder"),
        (("tiny", "wan3", "x"), "'wan3' has no tiny twin; use one of wan21_t2v_1_3b"),
        (("tiny", "mochi_1", "base"), "is there already"),
    ],
)
def test_bad_input_is_one_message(files, capsys, arguments, message):
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.pt", ("a.pt", 1.0)), ("a.pt:0.5", ("a.pt", 0.5)), ("C:/a:-2", ("C:/a", -2.0))],
)
def test_strengths_are_split_off(text, expected):
    assert split_strength(text) == expected


def test_a_tiny_model_is_a_whole_official_folder(tmp_path):
    write_tiny_model("wan22_t2v_a14b", tmp_path / "m")
    names = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert {
        "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json",
        "high_noise_model/config.json", "low_noise_model/config.json",
        "low_noise_model/diffusion_pytorch_model.safetensors.index.json",
    } <= names  # fmt: skip
    high, low = (read_checkpoint(tmp_path / "m" / f"{e}_noise_model") for e in ("high", "low"))
    assert not torch.equal(high.tensors["head.head.weight"], low.tensors["head.head.weight"])
    assert high.tensors["head.head.weight"].any()


EXPERIMENTS = {
    "wan21_t2v_1_3b_tiny": "wan21_1_3b_vta", "wan21_t2v_14b_tiny": "wan21_vta",
    "wan22_tiny": "wan22_vta", "ti2v_tiny": "wan22_ti2v_5b_vta", "mochi_tiny": "mochi_vta",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_twin_trains_and_samples_in_an_empty_checkout(tmp_path, monkeypatch, name):
    """The real commands on the real files' layout, to LoRAs that the doctor accepts."""
    monkeypatch.setenv("PUSA_ROOT", str(tmp_path))
    cfg = compose_config(
        "train", f"experiment={EXPERIMENTS[name]}", "name=run", f"model={name}",
        "logger.wandb=off", "data.num_clips=2", "batch_size=2", "lora.rank=4", "lora.alpha=4",
        "trainer.max_steps=2", "data.heldout.toy.num_clips=2", "callbacks.grid=null",
        "module.optimizer.lr=1e-3", "data.batches.num_workers=0",
    )  # fmt: skip
    train.train(cfg)
    folder, model = tmp_path / "outputs" / "run", build(cfg.model)
    for expert in model.experts():
        lora = folder / (expert or "") / "lora.safetensors"
        assert run("doctor", lora, "--base", model.weights_path(expert)) == 0
        assert read_lora(lora).expert == expert
    videos = []
    for strength in (0, 1000):
        videos.append(tmp_path / f"{strength}.mp4")
        command = ("generate", "--model", name, "--prompt", "a red three", "--steps", 2)
        assert run(*command, "--lora", folder, "--strength", strength, "-o", videos[-1]) == 0
    assert videos[0].read_bytes() != videos[1].read_bytes()


def test_a_stopped_command_says_so_and_leaves_nothing(files, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pusa.weights.writing.stream_tensors", stop)
    assert run("convert", "base", "out", "--to", "diffusers") == 130
    assert "stopped." in capsys.readouterr().err
    assert not [path for path in files.iterdir() if "out" in path.name]


def test_inspect_tells_what_is_wrong_with_a_lora(files, capsys):
    from safetensors.torch import load_file, save_file

    bad = load_file("a.safetensors") | {"lora_unet_x.dora_scale": torch.ones(1)}
    save_file(bad, "bad.safetensors")
    assert run("inspect", "bad.safetensors") == 1
    assert "belongs to DoRA" in capsys.readouterr().err


def test_two_experts_do_not_go_into_one_file(tmp_path, capsys):
    write_tiny_model("wan22_t2v_a14b", tmp_path / "m")
    assert run("convert", tmp_path / "m", tmp_path / "x.safetensors", "--to", "comfy") == 1
    assert "two experts do not fit into one file" in capsys.readouterr().err
    write_tiny_model("mochi_1", tmp_path / "mochi")
    assert run("inspect", tmp_path / "mochi") == 0
