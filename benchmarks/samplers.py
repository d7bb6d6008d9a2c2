"""How far Euler, Heun and UniPC stop from where many small steps lead, at equal calls of the
network.

    python benchmarks/samplers.py

On the trained replica (wan_tiny): text to video, and with frame 0 given at multiplier 0.2, of 8
prompts. The figure is the RMS distance of the latents to those of 200 Heun steps; 100 of them (199
calls) say how exact that is. It tells how well a method follows the network's field, not how good
the video is.
"""

import json
from pathlib import Path

from torch import Tensor

from pusa.cli import compose_config
from pusa.diffusion.conditioning import Conditioning
from pusa.entry import build
from pusa.pipelines.generate import Request, Sampler, sample_latents

RESULTS = Path(__file__).parent / "results" / "samplers.json"
CALLS = (4, 6, 10, 20, 40)
TASKS = {"t2v": {}, "i2v, 0.2": {0: 0.2}}  # latent frame -> noise multiplier
PROMPTS = [f"a {colour} {digit} moves {way} over coffee"
           for colour, digit, way in zip(["red", "green", "blue", "yellow"] * 2,
                                         ["one", "two", "three", "four"] * 2,
                                         ["left", "right"] * 4, strict=True)]  # fmt: skip


def main() -> None:
    model = build(compose_config("generate", ["model=wan_tiny", "prompt=-", "output=-"]).model)
    experts, encoder = model.build_experts(()), model.build_text_encoder()
    requests = [Request(encoder.encode([text]), seed=i) for i, text in enumerate(PROMPTS)]

    def sample(task: dict, method: str, steps: int, clip: Tensor | None) -> Tensor:
        conditioning = Conditioning.free((len(requests), *model.latent_shape()))
        if clip is not None:
            conditioning = conditioning.given({f: (clip[:, :, f], m) for f, m in task.items()})
        sampler = Sampler(steps, method=method)
        return sample_latents(experts, model.flow, sampler, conditioning, requests)

    results: dict[str, dict[str, dict[str, float]]] = {}
    given = None
    for name, task in TASKS.items():
        truth = sample(task, "heun", 200, given)
        errors = results[name] = {}
        for method in ("euler", "heun", "unipc"):
            steps = {calls: (calls + 1) // 2 if method == "heun" else calls for calls in CALLS}
            found = {calls: sample(task, method, n, given) for calls, n in steps.items()}
            errors[method] = {str(calls): rms(x - truth) for calls, x in found.items()}
        errors["heun"]["199"] = rms(sample(task, "heun", 100, given) - truth)
        print(name, json.dumps(errors, indent=1))
        given = truth  # a frame that the model itself made
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def rms(x: Tensor) -> float:
    return round(float(x.square().mean().sqrt()), 5)


if __name__ == "__main__":
    main()
