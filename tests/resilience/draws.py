"""What a seed draws: runs of the trainer, and what kills their starts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from tests.resilience.faults import POINTS, Fault
from tests.resilience.launching import Moment
from tests.training.runs import argv_of, tiny_options

DRAWN = ("1", "2", "3", "3_offload", "fsdp2", "ddp")
SHARDED = ("3", "3_offload", "fsdp2")
STEPS = 26
BY_TIME = "time"
LONGEST = 5.0  # seconds until a kill by time; most of them pass until a run that goes on is where it was
LONGEST_FIRST = 1.5  # seconds after a run's first update


@dataclass(frozen=True)
class Setup:
    """What a run is made of: an engine as tests.training.runs names it, its number of ranks, and options."""

    engine: str
    ranks: int
    dtype: str
    lag: int
    every: int
    keep: int
    background: bool = False

    @property
    def most_redone(self) -> int:
        """Updates that a kill may cost: beside training, one checkpoint is whole before the next begins."""
        return 2 * self.every if self.background else self.every

    def argv(self, inputs: Path, output: Path) -> list[str]:
        """The trainer's options: refreshes, evaluations and checkpoints at updates of their own."""
        options = tiny_options(
            inputs,
            train__steps=STEPS,
            train__dtype=self.dtype,
            checkpoint__every=self.every,
            checkpoint__keep=self.keep,
            checkpoint__background=self.background,
            eval__every=7,
            eval__tokens=1000,
            decay__interval=6,
            decay__lag=self.lag,
            decay__memory_budget=100000,  # several rounds
            logging__sequences=True,
        )
        return argv_of(self.engine, output, options)


def draw_setup(dice: random.Random, engine: str) -> Setup:
    """Options for an engine."""
    return Setup(
        engine=engine,
        ranks=dice.choice([1, 2, 2, 3]),
        dtype=dice.choice(["float32", "float32", "bfloat16"]) if engine != "ddp" else "float32",
        lag=dice.choice([0, 0, 4]),
        every=dice.choice([4, 5, 8]),
        keep=dice.choice([1, 2]),
        background=dice.choice([False, False, True]),
    )


def draw_fault(dice: random.Random, setup: Setup, goes_on: bool) -> Fault | Moment:
    """What kills the next start of a run: by time as often as by a kind of place."""
    everyone = setup.ranks > 1 and dice.random() < 0.5
    moving = setup.engine in SHARDED and setup.ranks > 1
    fitting = {
        name: point
        for name, point in POINTS.items()
        if (moving or not point.moving) and (goes_on or not point.joining)
    }
    kind = dice.choice([BY_TIME, *sorted({point.kind for point in fitting.values()})])
    if kind == BY_TIME:
        longest = LONGEST if goes_on else LONGEST_FIRST
        return Moment(dice.randrange(setup.ranks), everyone, dice.uniform(0, longest))
    name = dice.choice([name for name, point in fitting.items() if point.kind == kind])
    point = POINTS[name]
    rank = 0 if point.main else dice.randrange(setup.ranks)
    return Fault(name, rank, everyone, dice.randint(1, point.most))


def kind_of(fault: Fault | Moment) -> str:
    """What a fault is in the midst of, or that it comes by time."""
    return POINTS[fault.point].kind if isinstance(fault, Fault) else BY_TIME
