"""Steps that are not finite are skipped and recorded, losses are told apart by noise level,
averages are averages, and checkpoints that are damaged are noticed."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import train
from pusa.entry import build
from pusa.training.averaging import Averaged
from pusa.training.checkpoints import Checkpoints, check_room, list_saved, newest_sound
from pusa.training.health import LEVELS, OTHERS, Health, LossMap, tabulate
from pusa.training.loggers import read_metrics
from pusa.training.module import VTAModule
from pusa.weights.files import read_tensors
from tests.conftest import run_pusa

STEP = VTAModule.training_step


def broken_at(*steps: int):
    def training_step(self, batch, batch_idx):
        loss = STEP(self, batch, batch_idx)
        return loss * math.nan if self.global_step in steps else loss

    return training_step


def small(small_run, name: str, *more: str):
    return small_run(
        "tiny_vta", "lora.rank=4", f"name={name}", "callbacks.grid=null",
        "callbacks.checkpoints.every=1", "callbacks.checkpoints.keep_last=9",
        "trainer.log_every_n_steps=1", *more,
    )  # fmt: skip


def trained(run: Path, step: int) -> dict:
    saved = next(s for s in list_saved(run) if s.step == step)
    return torch.load(saved.state, weights_only=True)


def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded(small_run, monkeypatch, caplog):
    cfg = small(small_run, "broken")
    monkeypatch.setattr(VTAModule, "training_step", broken_at(2))
    train.train(cfg)
    run = Path(cfg.paths.run)
    before, after, later = (trained(run, step) for step in (2, 3, 4))
    weights = before["state_dict"]
    assert all(torch.equal(weights[key], after["state_dict"][key]) for key in weights)
    assert not all(torch.equal(weights[key], later["state_dict"][key]) for key in weights)
    steps = [int(c["optimizer_states"][0]["state"][0]["step"]) for c in (before, after, later)]
    assert steps == [2, 2, 3]  # Adam has not counted it, nor moved its moments
    assert "step 2: gradients are not finite; it is skipped (1 in a row)" in caplog.text
    recorded = read_tensors(run / "bad_steps" / "step_00000002_rank_0_pass_0.safetensors")
    module, data = build(cfg.module), build(cfg.data.batches)
    first = data.train_set[int(recorded["index"][0])]
    assert torch.equal(recorded["latents"][0], first[0])
    assert recorded["sigma"].shape == recorded["latents"].shape[:3:2]
    skipped = [row["train/skipped"] for row in read_metrics(run / "metrics" / "metrics.csv")
               if "train/skipped" in row]  # fmt: skip
    assert [float(value) for value in skipped] == [0, 0, 1, 1]
    caplog.set_level("INFO")
    assert run_pusa("replay", run) == 0
    assert "step 2, clips" in caplog.text
    assert "with this checkpoint the step is finite" in caplog.text
    assert module is not None


def test_replay_finds_the_module_and_the_data(small_run, monkeypatch, caplog):
    cfg = small(small_run, "nan_data")
    draw = VTAModule.draw

    def poisoned(self, batch, step):
        if step == 1:
            batch.latents[0, 0, 0, 0, 0] = math.nan
        return draw(self, batch, step)

    monkeypatch.setattr(VTAModule, "draw", poisoned)
    train.train(cfg)
    caplog.set_level("INFO")
    assert run_pusa("replay", cfg.paths.run, "--step", 1) == 0
    assert "latents is not finite" in caplog.text
    assert "the first module that is not finite: patch_embedding" in caplog.text
    assert "gradients are not finite, such as that of backbone.blocks.0" in caplog.text
    assert run_pusa("replay", cfg.paths.run, "--step", 3) == 1


def test_too_many_of_them_end_the_run(small_run, monkeypatch):
    monkeypatch.setattr(VTAModule, "training_step", broken_at(1, 2, 3))
    cfg = small(small_run, "diverged", "callbacks.health.stop_after=2")
    with pytest.raises(ValueError, match=r"2 steps in a row .* `pusa replay .*diverged` shows"):
        train.train(cfg)
    assert newest_sound(Path(cfg.paths.run)).step == 2  # which is as it was after 1


def test_a_damaged_checkpoint_falls_back_to_the_one_before_loudly(small_run, caplog):
    cfg = small(small_run, "damaged")
    train.train(cfg)
    run = Path(cfg.paths.run)
    whole = read_tensors(run / "lora.safetensors")
    (run / "lora.safetensors").unlink()
    newest, second = list_saved(run)[:2]
    data = bytearray(newest.state.read_bytes())
    data[len(data) // 2] ^= 1  # one bit
    newest.state.write_bytes(data)
    second.state.unlink()
    assert newest_sound(run).step == 2
    assert "step_00000004 is damaged: state is not what was written" in caplog.text
    assert "step_00000003 is damaged: state is missing" in caplog.text
    train.train(cfg)
    again = read_tensors(run / "lora.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    for saved in list_saved(run):
        (saved.folder / "whole.json").write_text("{")
    (run / "lora.safetensors").unlink()
    with pytest.raises(ValueError, match="every checkpoint is damaged"):
        train.train(cfg)
    with pytest.raises(ValueError, match="no such checkpoint"):
        train.train(small(small_run, "damaged", f"resume={run}/checkpoints/step_00000077"))


def test_changed_settings_are_refused_and_can_be_allowed_key_by_key(small_run, caplog):
    train.train(small(small_run, "drift"))
    longer = ("trainer.max_steps=6", "module.optimizer.lr=1e-4")
    with pytest.raises(ValueError, match=r"allow=\[.*trainer.max_steps") as error:
        train.train(small(small_run, "drift", *longer))
    assert "module.optimizer.lr: 0.001 -> 0.0001" in str(error.value)
    with pytest.raises(ValueError, match=r"optimizer\.lr") as error:
        train.train(small(small_run, "drift", *longer, "allow=[trainer,module.schedule,data]"))
    assert "trainer.max_steps: 4" not in str(error.value)
    allowed = "allow=[trainer.max_steps,module,data.batches.num_steps]"
    train.train(small(small_run, "drift", *longer, allowed))
    assert "goes on with a changed setting: trainer.max_steps: 4 -> 6" in caplog.text
    assert list_saved(Path(small(small_run, "drift").paths.run))[0].step == 6


def test_the_last_few_and_the_best_checkpoint_are_kept(small_run, monkeypatch):
    cfg = small_run(
        "tiny_vta", "lora.rank=4", "name=kept", "callbacks.grid=null", "trainer.max_steps=6",
        "callbacks.checkpoints.every=1", "callbacks.checkpoints.monitor=heldout/shared",
        "trainer.val_check_interval=2",
    )  # fmt: skip
    real, factor = VTAModule.heldout_losses, {0: 1.0, 2: 1.0, 4: 0.5, 6: 2.0}  # the middle is best

    def scaled(self, batch):
        for rule, level, loss in real(self, batch):
            yield rule, level, loss * factor[self.global_step]

    monkeypatch.setattr(VTAModule, "heldout_losses", scaled)
    train.train(cfg)
    run = Path(cfg.paths.run)
    values = [float(r["heldout/shared"]) for r in read_metrics(run / "metrics" / "metrics.csv")
              if "heldout/shared" in r]  # fmt: skip
    saved = list_saved(run)
    assert [s.step for s in saved] == [6, 5, 4]
    assert saved[-1].value == pytest.approx(min(values))
    assert run_pusa("export", run, run / "best", "--checkpoint", "best") == 0
    assert (run / "best" / "lora.safetensors").is_file()
    assert run_pusa("export", run, run / "x", "--checkpoint", "3") == 1


def test_snapshots_are_what_a_run_of_so_many_steps_would_export(small_run):
    more = ("module.schedule=null", "lora.rank=4", "callbacks.grid=null")
    cfg = small_run("tiny_vta", "name=whole", *more, "callbacks.snapshots.steps=[2]")
    train.train(cfg)
    short = small_run("tiny_vta", "name=short", *more, "trainer.max_steps=2")
    train.train(short)
    one = read_tensors(Path(cfg.paths.run) / "snapshots" / "step_00000002" / "lora.safetensors")
    other = read_tensors(Path(short.paths.run) / "lora.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(Exception, match="steps count from 1"):
        train.train(small_run("tiny_vta", "name=bad", "callbacks.snapshots.steps=[0]"))


def test_an_unknown_monitor_is_named(small_run):
    cfg = small(small_run, "monitor", "callbacks.checkpoints.monitor=heldout/typo")
    with pytest.raises(ValueError, match=r"heldout/typo.*heldout/shared"):
        train.train(cfg)


def test_room_for_checkpoints_is_checked_before_the_run(small_disk):
    with pytest.raises(OSError, match=r"needs .* for checkpoints"):
        check_room(small_disk, num_trainable=20_000, num_kept=2)
    check_room(small_disk, num_trainable=1_000, num_kept=2)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_size_that_is_said_is_the_size_of_a_checkpoint(small_run, caplog, decay):
    caplog.set_level("INFO")
    cfg = small(small_run, "size", f"callbacks.ema.decay={decay}", "lora.rank=64")
    train.train(cfg)
    said = re.search(r"([\d,]+) trainable parameters: checkpoints of (\S+) MB", caplog.text)
    assert said is not None
    folder = Path(cfg.paths.run) / "checkpoints"
    for path in folder.glob("*/state"):
        assert path.stat().st_size / 1e6 == pytest.approx(float(said[2]), rel=0.05)


def test_the_average_is_the_closed_form():
    class Module:
        def __init__(self):
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def trainable(self):
            return {"weight": self.weight}

    class Trainer:
        global_step = 0

    module, trainer, averaged = Module(), Trainer(), Averaged(0.9)
    averaged.on_train_start(trainer, module)
    expected = torch.zeros(3, dtype=torch.float64)
    for step in range(1, 30):
        module.weight.data.fill_(float(step))
        trainer.global_step = step
        for _ in range(2):  # passes of one step count once
            averaged.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with averaged.in_place(module):
        torch.testing.assert_close(module.weight.double(), expected, rtol=1e-5, atol=1e-5)
    assert module.weight.tolist() == [29.0] * 3
    none = Averaged(0.0)  # a run that had an average goes on without
    none.load_state_dict(averaged.state_dict())
    none.on_train_start(trainer, module)
    assert none.state_dict() == {"average": {}}
    with pytest.raises(ValueError, match="decay must be in"):
        Averaged(1.0)


def test_the_loss_map_sorts_frames_by_their_own_and_their_neighbours_sigma():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.rand(50, 7, generator=generator)
    sigma[0, 0] = 0.0
    errors = torch.rand(50, 7, generator=generator)
    table = tabulate(sigma, errors, sigma > 0)
    sums = torch.zeros(LEVELS, OTHERS, dtype=torch.float64)
    counts = torch.zeros(LEVELS, OTHERS)
    for clip in range(50):
        for frame in range(7):
            if sigma[clip, frame] == 0:
                continue
            beside = [float(sigma[clip, f]) for f in (frame - 1, frame + 1) if 0 <= f < 7]
            own = min(LEVELS - 1, int(sigma[clip, frame] * LEVELS))
            other = min(OTHERS - 1, int(sum(beside) / len(beside) * OTHERS))
            sums[own, other] += errors[clip, frame]
            counts[own, other] += 1
    torch.testing.assert_close(table[0], sums)
    assert table[1].tolist() == counts.tolist()
    assert tabulate(torch.tensor([[0.9]]), torch.ones(1, 1), torch.ones(1, 1) > 0)[1, -1, -1] == 1


def test_losses_are_logged_by_noise_level(small_run):
    cfg = small(small_run, "levels", "callbacks.loss_map.every=2")
    train.train(cfg)
    run = Path(cfg.paths.run)
    table = json.loads((run / "loss_map.json").read_text())
    frames = build(cfg.model).latent_shape()[1]
    assert sum(map(sum, table["frames"])) == 4 * 4 * frames
    row = read_metrics(run / "metrics" / "metrics.csv")
    named = [r for r in row if any(key.startswith("train/loss_by_sigma/") for key in r)]
    assert {r["step"] for r in named} == {"1", "3"}
    ratios = [float(r["train/update_ratio"]) for r in row if "train/update_ratio" in r]
    assert len(ratios) == 4
    assert all(0 < ratio < 1 for ratio in ratios)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Checkpoints("x", every=0), "every must be at least 1"),
        (lambda: Checkpoints("x", keep_last=0), "keep_last must be at least 1"),
        (lambda: Health("x", stop_after=0), "stop_after must be at least 1"),
        (lambda: LossMap("x", every=0), "every must be at least 1"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
