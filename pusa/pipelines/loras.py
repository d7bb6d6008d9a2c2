"""LoRAs to sample with: what is typed -> which file goes onto which network, and how strongly."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pusa.weights.adapters import Adapter, check_expert
from pusa.weights.lora_files import PEFT_CONFIG, read_lora

log = logging.getLogger(__name__)
EXPERTS = ("high", "low")
LORA_PATHS = ("auto", "merged", "low_rank")
RESULT = "lora.safetensors"  # of a training run: in its folder or, of two experts, high/ and low/
Strength = float | Mapping[str, float]


@dataclass(frozen=True)
class PlacedLoRA:
    """A LoRA for one network: expert is "high" or "low", None where the model has but one."""

    adapter: Adapter
    expert: str | None
    strength: float


def place_loras(
    texts: Iterable[str], experts: Sequence[str | None], strength: Strength = 1.0
) -> tuple[PlacedLoRA, ...]:
    """`[EXPERT=]FILE[:STRENGTH]` -> LoRAs for the networks of a model (`Model.experts()`).

    FILE: of any format, or the folder of a training run. EXPERT: high, low or both; without it a
    file goes to the expert that it says it is for. strength: a factor for all, or one per expert.
    ValueError for a file that does not say, on a model of two experts; for an expert that the model
    has not, or that the file is not for; for a strength that is not finite.
    """
    placed = []
    for text in texts:
        asked, file, own = parse_lora(text)
        for expert, adapter in _adapters(asked, Path(file), experts):
            placed.append(PlacedLoRA(adapter, expert, own * _factor(strength, expert)))
    for lora in placed:
        where = "" if lora.expert is None else f" on the {lora.expert}-noise expert"
        log.info("LoRA %s%s, strength %g", lora.adapter.source, where, lora.strength)
    return tuple(placed)


def choose_path(
    asked: str, loras: Sequence[PlacedLoRA], tokens: int, calls: int, mapped: bool = False
) -> str:
    """ "merged" or "low_rank": how LoRAs of a fixed strength are to be applied.

    asked: one of `LORA_PATHS`; tokens of one call of a network, calls in all. "auto" takes what
    costs fewer floating-point operations: a factor pair of rank r costs 2 r (in + out) of each
    token beside the weight, and 2 r in out once to merge. mapped: weights wait in main memory while
    others work, mapped to their files; merged ones would fill it, so that "auto" does not. Whoever
    changes strengths later asks for "low_rank". Merging into bfloat16 is no less accurate:
    docs/weights.md has the figures.
    """
    if asked not in LORA_PATHS:
        raise ValueError(f"lora_path={asked!r} is unknown; use {', '.join(LORA_PATHS)}.")
    if asked != "auto" or not loras:
        return "low_rank" if asked == "auto" else asked
    if mapped:
        log.info("LoRA: low_rank; merged weights would fill the main memory that they wait in.")
        return "low_rank"
    calls_of_each = calls / len({lora.expert for lora in loras})  # experts share the steps
    once = beside = 0.0
    for lora in loras:
        for target in lora.adapter.values():
            if target.A is not None and target.B is not None:
                rank, out, inner = target.rank, target.B.shape[0], target.A.shape[1]
                once += 2 * rank * out * inner
                beside += 2 * rank * (out + inner) * tokens * calls_of_each
    chosen = "merged" if beside > once else "low_rank"
    log.info(
        "LoRA: %s; beside the weights %.2g FLOP for %d tokens in %d calls, merged %.2g once.",
        chosen, beside, tokens, calls, once,
    )  # fmt: skip
    return chosen


def parse_lora(text: str) -> tuple[str | None, str, float]:
    """[EXPERT=]FILE[:STRENGTH] -> (expert or None, file, strength). ValueError for no number."""
    expert, equals, file = text.partition("=")
    if not equals or expert not in (*EXPERTS, "both"):
        return None, *split_strength(text)
    return expert, *split_strength(file)


def split_strength(text: str) -> tuple[str, float]:
    """FILE[:STRENGTH] -> (file, strength), 1 by default. ValueError if it is no finite number."""
    file, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        strength = float(number)
    except ValueError:
        raise ValueError(f"{text}: {number!r} is no strength; write FILE:1.4.") from None
    if not isfinite(strength):
        raise ValueError(f"{text}: the strength must be a finite number.")
    return file, strength


def parse_strength(text: str) -> Strength:
    """Of all LoRAs: 1.4, or high=1.5,low=1.4. ValueError for anything else."""
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.partition("=") for part in text.split(",")]
        return {expert.strip(): float(number) for expert, _, number in pairs}
    except ValueError:
        raise ValueError(
            f"--strength {text} is no strength; write 1.4, or high=1.5,low=1.4."
        ) from None


def _factor(strength: Strength, expert: str | None) -> float:
    if isinstance(strength, Mapping):
        if expert is None or not strength.keys() <= set(EXPERTS):
            raise ValueError(
                f"strength={dict(strength)} is for the experts high and low; "
                "give one number to a model of one network."
            )
        strength = strength.get(expert, 1.0)
    if not isinstance(strength, int | float) or not isfinite(strength):
        raise ValueError(f"the strength of a LoRA must be a finite number, got {strength!r}.")
    return float(strength)


def _adapters(
    asked: str | None, path: Path, experts: Sequence[str | None]
) -> list[tuple[str | None, Adapter]]:
    """What is at a path, for those networks of the model that it is meant for."""
    wanted = [expert for expert in experts if asked in (None, "both", expert)]
    if not wanted or (asked is not None and None in wanted):
        has = " and ".join(f"{e}-noise" for e in experts if e) or "one network, without experts"
        raise ValueError(f"{asked}={path}: this model is {has}; leave the {asked}= out.")
    found = []
    for expert in wanted:
        file, told = _file(path, expert)
        adapter = read_lora(file, expert)
        if asked is None and not told and len(experts) > 1:
            if adapter.expert is None:
                raise ValueError(
                    f"{path}: does not say which expert it is for; write high={path}, low={path} "
                    f"or both={path}."
                )
            if adapter.expert != expert:
                continue
        check_expert(adapter, expert)
        found.append((expert, adapter))
    return found


def _file(path: Path, expert: str | None) -> tuple[Path, bool]:
    """The file of one network's LoRA, and whether its place tells which network that is."""
    if not path.is_dir() or (path / PEFT_CONFIG).is_file():
        return path, False
    halves = [half for half in EXPERTS if (path / half / RESULT).is_file()]
    if not halves:
        if not (path / RESULT).is_file():
            raise ValueError(
                f"{path}: holds no {RESULT}, nor one in high/ and low/; is the run finished?"
            )
        return path / RESULT, False
    if expert not in halves:
        raise ValueError(
            f"{path}: holds a LoRA of the {' and the '.join(halves)}-noise expert, "
            f"{'this model is one network' if expert is None else f'none of the {expert} one'}; "
            "name the file that is meant."
        )
    return path / expert / RESULT, True
