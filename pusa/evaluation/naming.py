"""What a result may be called. Every table, page and file of VBench-I2V dimensions asks here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pusa.evaluation.scoring import SCALES


@dataclass(frozen=True)
class BackboneRecord:
    """The network behind a score, by name. comparable: it is the benchmark's own, by its sha256."""

    id: str
    sha256: str
    comparable: bool


@dataclass(frozen=True)
class Basis:
    """What a result stands on. public: on the published prompts; complete: on all their videos."""

    backbones: Mapping[str, BackboneRecord]
    public: bool
    complete: bool

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Dimensions whose backbone is not the benchmark's own, or is not named at all."""
        own = {name for name, backbone in self.backbones.items() if backbone.comparable}
        return tuple(name for name in SCALES if name not in own)


def common(bases: Sequence[Basis]) -> Basis:
    """Of a table of several runs: what one of them falls short of, all of it does. A network is the
    benchmark's own if it is so in every run that asked one for the dimension."""
    backbones: dict[str, BackboneRecord] = {}
    for basis in bases:
        for name, record in basis.backbones.items():
            if name not in backbones or not record.comparable:
                backbones[name] = record
    return Basis(backbones, all(b.public for b in bases), all(b.complete for b in bases))


def title(basis: Basis) -> str:
    """The name of a result: "VBench-I2V" alone if all nine backbones are the benchmark's own and
    every video of its public suite was scored; else what sets it apart is part of the name."""
    if basis.stand_ins:
        count = f"{len(basis.stand_ins)} of {len(SCALES)} backbones"
        name = f"stand-in, not VBench ({count} are not the benchmark's)"
    elif not basis.public:
        name = "VBench-I2V's measures on another suite"
    else:
        name = "VBench-I2V"
    return name if basis.complete else f"{name}, incomplete"


def file_stem(basis: Basis) -> str:
    """The same as a file's name: a stand-in's table cannot be taken for the benchmark's."""
    if basis.stand_ins:
        name = "standin"
    elif not basis.public:
        name = "vbench_measures_other_suite"
    else:
        name = "vbench_i2v"
    return name if basis.complete else f"{name}_incomplete"
