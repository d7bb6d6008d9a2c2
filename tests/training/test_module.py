"""The training step, counted randomness, exact resume, and what a run leaves behind."""

import json
import shutil
import signal
import weakref
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException

import train
from pusa.data.latents import collate
from pusa.entry import build
from pusa.models.vae import load_vae
from pusa.training.checkpoints import newest_sound
from pusa.training.loggers import read_metrics
from pusa.training.module import VTAModule
from pusa.training.run import RunFolder
from pusa.weights.files import read_metadata, read_tensors, write_tensors
from tests.conftest import REPLICA


def losses(cfg) -> list[float]:
    return losses_of(Path(cfg.paths.run))


def losses_of(run: Path) -> list[float]:
    """train/loss of every logged step of a run, over all its resumptions."""
    rows = read_metrics(run / "metrics" / "metrics.csv")
    return [float(row["train/loss"]) for row in rows if "train/loss" in row]


def marks(cfg) -> tuple[list[str], list[str]]:
    """After which steps a run computed held-out curves, and left checkpoints."""
    folder = Path(cfg.paths.run)
    rows = read_metrics(folder / "metrics" / "metrics.csv")
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return [row["step"] for row in rows if "heldout/shared" in row], saved


def run(cfg) -> None:
    cfg.trainer.log_every_n_steps = 1
    cfg.callbacks.grid = None
    train.train(cfg)


def test_a_run_leaves_lora_recipe_metrics_and_grid(small_run):
    cfg = small_run("tiny_vta", "lora.rank=4", "callbacks.grid.every=4")
    train.train(cfg)
    folder = Path(cfg.paths.run)
    tensors = read_tensors(folder / "lora.safetensors")
    assert any(tensor.any() for key, tensor in tensors.items() if "lora_B" in key)
    recipe = json.loads(read_metadata(folder / "lora.safetensors")["recipe"])
    assert recipe["steps"] == 4
    assert recipe["config"]["lora"]["rank"] == 4
    assert recipe["config"]["timesteps"]["p_async"] == 1.0
    assert (folder / "samples" / "step_000004.png").is_file()
    assert (folder / "samples" / "step_000004.mp4").is_file()
    header = (folder / "metrics" / "metrics.csv").read_text().splitlines()[0]
    assert "heldout/shared@0.5" in header
    assert "heldout/first_clean@0.9" in header
    assert not list(folder.rglob("*.partial"))


def test_a_finished_run_is_not_repeated_and_another_recipe_is_refused(small_run, caplog):
    run(small_run("tiny_vta", "lora.rank=4"))
    caplog.set_level("INFO")
    run(small_run("tiny_vta", "lora.rank=4"))
    assert "is finished" in caplog.text
    with pytest.raises(ValueError, match=r"lora.rank: 4 -> 8"):
        run(small_run("tiny_vta", "lora.rank=8"))
    run(small_run("tiny_vta", "lora.rank=8", "overwrite=true"))


@pytest.mark.parametrize("stops", [(0,), (2,), (0, 1)], ids=str)
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(small_run, whole, monkeypatch, stops):
    """Early, late, and twice: Ctrl-C arrives in the step after so many."""
    stopped = small_run("tiny_vta", "lora.rank=4", "name=stopped")
    step, handler = VTAModule.training_step, signal.getsignal(signal.SIGINT)
    for stop in stops:

        def interrupt(self, batch, batch_idx, stop=stop):
            if self.global_step == stop:
                signal.raise_signal(signal.SIGINT)
            return step(self, batch, batch_idx)

        with monkeypatch.context() as patched:
            patched.setattr(VTAModule, "training_step", interrupt)
            with pytest.raises(SystemExit) as exit_info:
                run(stopped)
        assert exit_info.value.code == 130
        assert signal.getsignal(signal.SIGINT) is handler  # given back
    run(stopped)
    assert losses(stopped) == losses_of(whole)
    assert len(losses_of(whole)) == 4
    ours, theirs = (read_tensors(f"{r}/lora.safetensors") for r in (whole, stopped.paths.run))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_draws_of_a_sample_do_not_depend_on_its_batch(small_run, whole):
    cfg = small_run("tiny_vta", "lora.rank=4")
    module, data = build(cfg.module), build(cfg.data.batches)
    alone = module.draw(collate([data.train_set[3]]), 7)
    together = module.draw(collate([data.train_set[i] for i in (5, 3, 1)]), 7)
    assert torch.equal(alone[0][0], together[0][1])
    assert torch.equal(alone[1][0], together[1][1])


def test_only_trainable_tensors_are_checkpointed(whole):
    saved = newest_sound(whole)
    checkpoint = torch.load(saved.state, weights_only=False)
    assert checkpoint["state_dict"]
    assert all(".lora_" in key for key in checkpoint["state_dict"])


def test_full_training_exports_official_keys(small_run):
    cfg = small_run("tiny_base")
    cfg.module.schedule.warmup = 1
    run(cfg)
    keys = set(read_tensors(f"{cfg.paths.run}/model.safetensors"))
    assert "blocks.5.cross_attn.norm_k.weight" in keys
    assert len(keys) == 15 + 27 * 6


def test_caption_dropout_empties_the_text(small_run, whole):
    cfg = small_run("tiny_vta", "lora.rank=4", "module.caption_dropout=1.0")
    module, data = build(cfg.module), build(cfg.data.batches)
    text = module.draw(collate([data.train_set[i] for i in range(4)]), 0)[2]
    assert not text.mask.any()


def test_a_missing_checkpoint_is_named(small_run):
    with pytest.raises(ValueError, match="no such checkpoint"):
        train.train(small_run("tiny_vta", "resume=absent.ckpt"))


def test_the_codec_is_trained_and_exported_in_diffusers_layout(small_run):
    cfg = small_run("tiny_vae")
    cfg.trainer.max_steps = 2
    train.train(cfg)
    vae = load_vae(f"{cfg.paths.run}/vae")
    frames = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        assert vae.decode(vae.encode(frames)).shape == frames.shape
    assert len(set(vae.config["latents_std"])) == 16  # measured, not the default of ones


def test_a_changed_base_is_another_run(small_run, tmp_path):
    weights = tmp_path / "base.safetensors"
    cfg = small_run("tiny_vta", "lora.rank=4", f"model.weights={weights}")
    shutil.copy(REPLICA / "wan_tiny" / "model.safetensors", weights)
    run(cfg)
    changed = {key: value + 0.01 for key, value in read_tensors(weights).items()}
    write_tensors(weights, changed)
    with pytest.raises(ValueError, match=r"inputs\.weights"):
        run(small_run("tiny_vta", "lora.rank=4", f"model.weights={weights}"))


def test_passes_of_a_step_give_the_losses_of_one_pass(small_run):
    with pytest.raises(ValueError, match="set micro_batch"):
        run(small_run("tiny_vta", "lora.rank=4", "+trainer.accumulate_grad_batches=2"))
    whole = small_run("tiny_vta", "lora.rank=4", "timesteps=first_frame_clean")
    run(whole)
    parts = small_run("tiny_vta", "lora.rank=4", "timesteps=first_frame_clean", "name=parts",
                      "micro_batch=1")  # fmt: skip
    run(parts)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert len(losses(parts)) == 4
    assert marks(parts) == marks(whole)
    with pytest.raises(ValueError, match="micro_batch=3 does not divide the 4 clips"):
        run(small_run("tiny_vta", "lora.rank=4", "name=odd", "micro_batch=3"))


def test_a_run_goes_on_with_another_number_of_passes(small_run, whole):
    """As one does on fewer GPUs; one pass, then two, then four for one step each, then one."""
    for stop, size in ((1, 4), (2, 2), (3, 1), (4, 4)):
        parts = small_run("tiny_vta", "lora.rank=4", "name=parts", f"micro_batch={size}",
                          "allow=[micro_batch,trainer,data]", "callbacks.checkpoints.every=1",
                          "module.schedule.total=4")  # fmt: skip
        parts.trainer.max_steps = stop
        run(parts)
    assert losses(parts) == pytest.approx(losses_of(whole), abs=1e-5)
    assert len(losses(parts)) == 4


def test_going_back_sets_later_checkpoints_aside(small_run):
    """They would be taken for the newest ones, and the run's own be dropped for them."""
    cfg = small_run("tiny_vta", "lora.rank=4", "callbacks.checkpoints.every=1",
                    "callbacks.checkpoints.keep_last=3")  # fmt: skip
    run(cfg)
    folder = Path(cfg.paths.run) / "checkpoints"
    cfg.resume = str(folder / "step_00000002")
    saved = RunFolder(cfg.paths.run).open({}, cfg.resume, False, lambda old, new: [])
    assert saved is not None
    assert sorted(path.name for path in folder.iterdir()) == [
        "step_00000002", "step_00000003.left", "step_00000004.left",
    ]  # fmt: skip


def test_a_job_that_slurm_starts_again_neither_overwrites_nor_goes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    folder = RunFolder(tmp_path)
    folder.open({}, "auto", True, lambda old, new: [])
    assert not folder.came_back()  # the same allocation, another command of the user's
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert folder.came_back()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert not folder.came_back()  # stopped before it had begun


def test_nothing_of_a_run_that_has_ended_is_kept(small_run, monkeypatch):
    """The first expert's weights must go before the second's come; so must signal handlers."""
    built, create = [], VTAModule.__init__

    def remembered(self, *arguments, **named):
        create(self, *arguments, **named)
        built.append(weakref.ref(self.backbone))

    monkeypatch.setattr(VTAModule, "__init__", remembered)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    run(small_run("tiny_vta", "lora.rank=4"))
    assert [reference() for reference in built] == [None]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_clips_need_manifests(small_run):
    with pytest.raises(InstantiationException) as error:
        run(small_run("tiny_vta", "data=clips", "name=clips"))
    assert "has no manifest" in str(error.value.__cause__)
