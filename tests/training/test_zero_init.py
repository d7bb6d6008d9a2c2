"""Why a LoRA is injected before ZeRO-3 divides anything."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.training import test_strategies
from tests.training.test_strategies import environment

pytestmark = test_strategies.pytestmark


@pytest.mark.slow
def test_peft_inside_zero_init_leaves_lora_b_random_and_ours_refuses():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
               "-m", "tests.training.zero_init"]  # fmt: skip
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # The day this is "zero", the refusal may go.
    assert done.stdout.count("peft: lora_B is random") == 2
    assert done.stdout.count("ours: the model is divided by ZeRO-3 already") == 2
    assert done.stdout.count("outside: lora_B is zero") == 2
