"""Run for test_zero_init.py, under two processes: what peft leaves of lora_B inside zero.Init."""

import deepspeed
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: F401 - loads the engine's parts
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from pusa.weights.lora import LoRA, inject_lora

CONFIG = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.ffn = nn.ModuleList([nn.Linear(8, 8)])


def main() -> None:
    deepspeed.init_distributed("gloo")
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        net = Net()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["ffn.0"]), net)
    b = net.ffn[0].lora_B["default"].weight
    with deepspeed.zero.GatheredParameters([b]):
        print(f"peft: lora_B is {'zero' if not b.any() else 'random'}", flush=True)
    with deepspeed.zero.Init(config_dict_or_path=CONFIG):
        net = Net()
        try:
            inject_lora(net, LoRA(2, 2.0, ("ffn.0",)))
        except ValueError as error:
            print(f"ours: {error}", flush=True)
    net = Net()
    inject_lora(net, LoRA(2, 2.0, ("ffn.0",)))
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
    deepspeed.initialize(model=net, optimizer=optimizer, config=CONFIG, dist_init_required=False)
    b = net.ffn[0].lora_B["default"].weight
    with deepspeed.zero.GatheredParameters([b]):
        print(f"outside: lora_B is {'zero' if not b.any() else 'random'}", flush=True)


if __name__ == "__main__":
    main()
