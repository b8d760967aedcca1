"""Runs that are killed again and again, by a seed, and are to end as the unbroken run does."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import train
from alphadecay_dist.checkpoint.random_state import PREFIX
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.checkpoint.writer import LATEST
from alphadecay_dist.training.outputs.run_files import SEQUENCES, read_lines, read_status
from tests.multirank import run_ranks, started
from tests.resilience.draws import DRAWN, Setup, draw_fault, draw_setup
from tests.resilience.faults import MARK, UPDATES, Fault, processes, train_until
from tests.resilience.launching import FORCED, Ended, Moment, holders, launched
from tests.training.runs import left_behind, without_times

KILLS_A_RUN = 4

Main = Callable[[list[str]], int]


@dataclass
class Kill:
    """A kill that happened; ``redone``: updates that were made and are not in the checkpoint gone on from."""

    fault: Fault | Moment
    others: str
    redone: int = 0


@dataclass
class Result:
    """A run with its kills.

    Attributes:
        number: of the run.
        setup: what it is made of.
        folder: of the run, kept where there are problems.
        kills: in their order.
        missed: faults that were drawn and not reached.
        resumes: starts after a kill.
        left: processes that outlived their start.
        problems: what was not as promised.
    """

    number: int
    setup: Setup
    folder: Path
    kills: list[Kill] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    resumes: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)


class Campaign:
    """Runs of one seed.

    Args:
        seed: draws runs and kills.
        folder: where runs are kept, an absolute path.
        main: the trainer's, or one that is broken on purpose: in the starts that go on.
    """

    def __init__(self, seed: int, folder: Path, main: Main = train.main) -> None:
        self._seed = seed
        self._folder = folder
        self._main = main
        self._whole: dict[Setup, Path] = {}

    def count(self, kills: int) -> Iterator[Result]:
        """Drawn runs until so many kills have happened; fewer, where most faults are not reached."""
        left = kills
        for number in range(2 * kills):
            if left > 0:
                result = self.draw(number, min(KILLS_A_RUN, left))
                left -= len(result.kills)
                yield result

    def draw(self, number: int, most_kills: int) -> Result:
        """A run drawn by the seed, killed up to so often."""
        dice = random.Random(f"{self._seed}/{number}")
        engines = random.Random(self._seed).sample(DRAWN, len(DRAWN))  # in turn, so that few runs have all
        setup = draw_setup(dice, engines[number % len(engines)])

        def faults() -> Iterator[Fault | Moment]:
            for kills in range(most_kills):
                yield draw_fault(dice, setup, goes_on=kills > 0)

        return self.run(number, setup, faults(), dice)

    def run(self, number: int, setup: Setup, faults: Iterable[Fault | Moment], dice: random.Random) -> Result:
        """Start a run again and again until it is finished, each start with the next fault.

        Args:
            number: of the run, which names its directory.
            setup: what it is made of.
            faults: one that is not reached lets the run finish.
            dice: draws whether its launcher gives the others time to end when a rank has died.
        """
        result = Result(number, setup, self._folder / f"run-{number:04d}")
        try:
            self._until_finished(result, iter(faults), dice)
            result.problems += differences(self.whole(setup), result.folder / "run")
        except AssertionError as error:
            last = f"after the kill {result.kills[-1].fault}: " if result.kills else ""
            result.problems.append(f"{last}{error}")
        if not result.problems:
            shutil.rmtree(result.folder)
        return result

    def whole(self, setup: Setup) -> Path:
        """The unbroken run of a setup, made once."""
        if setup not in self._whole:
            output = self._folder / f"whole-{len(self._whole):04d}"
            codes = run_ranks(train.main, setup.ranks, setup.argv(self._folder, output))
            assert codes == [0] * setup.ranks
            self._whole[setup] = output
        return self._whole[setup]

    def _until_finished(self, result: Result, faults: Iterator[Fault | Moment], dice: random.Random) -> None:
        done, finished = 0, False  # updates made so far, in their order
        while not finished:
            begin = begin_of(result.folder / "run")
            if result.kills:
                result.kills[-1].redone = done - begin
                assert done - begin <= result.setup.most_redone, (
                    f"{done} updates were made, {begin} are saved"
                )
            fault = next(faults, None)
            start = result.folder / f"start-{len(result.kills):02d}"
            ended = self._start(result, fault, start, patience=dice.choice([30.0, 0.0]))  # torchrun has none
            made = _numbers(start / UPDATES)
            assert made == list(range(begin + 1, begin + len(made) + 1)), f"began at {begin}, made {made}"
            done = begin + len(made)
            finished = self._judge(result, fault, start, ended)

    def _start(self, result: Result, fault: Fault | Moment | None, start: Path, patience: float) -> Ended:
        """Start the run's command, as a launcher does that may kill it."""
        setup, goes_on = result.setup, bool(result.kills)
        start.mkdir(parents=True)
        moment, inside = (fault, None) if isinstance(fault, Moment) else (None, fault)
        argv = setup.argv(self._folder, result.folder / "run")
        main = self._main if goes_on else train.main
        result.resumes += goes_on
        with started(start, train_until, setup.ranks, main, argv, inside, start, goes_on) as ranks:
            ended = launched(ranks, moment, lambda: goes_on or bool(_numbers(start / UPDATES)), patience)
        left = holders(result.folder) | {own for own in processes(start) if Path(f"/proc/{own}").exists()}
        result.left += len(left)
        assert not left, f"{fault}: processes {left} are left"
        return ended

    def _judge(self, result: Result, fault: Fault | Moment | None, start: Path, ended: Ended) -> bool:
        """Whether the run is finished; else the fault that was drawn, and no other, has ended this start."""
        mark = start / MARK
        struck = ended.struck if isinstance(fault, Moment) else mark.is_file()
        if not struck:
            assert ended.fine, f"start {start.name}, {fault}: not killed, but: {_told(ended)}"
            result.missed += [str(fault)] if fault else []
            kept = len(list((result.folder / "run" / "checkpoints").glob("step-*")))
            assert kept <= result.setup.keep, f"{kept} checkpoints are left, keep={result.setup.keep}"
            return True
        assert fault is not None
        assert isinstance(fault, Moment) or mark.read_text() == str(fault)
        ranks = range(result.setup.ranks)
        victims = set(ranks) if fault.everyone else {fault.rank}
        killed = {rank for rank in ranks if ended.codes[rank] == -9}
        expected = killed if ended.others == FORCED else victims
        assert victims <= killed == expected, f"{fault}: exit codes {ended.codes}"
        result.kills.append(Kill(fault, ended.others))
        return False


def begin_of(run: Path) -> int:
    """From which update a run is to go on: of its newest whole checkpoint, which ``latest`` names.

    Raises:
        AssertionError: ``latest`` names what is not whole.
    """
    checkpoints = run / "checkpoints"
    checkpoint = newest(checkpoints)
    if (checkpoints / LATEST).is_file():
        name = (checkpoints / LATEST).read_text().strip()
        found = checkpoint.folder.name if checkpoint else None
        assert name == found, f"latest names {name}, whole is {found}"
    return checkpoint.manifest.step if checkpoint else 0


def differences(expected: Path, found: Path) -> list[str]:
    """In what a finished run is not the expected one, bit for bit."""
    status = read_status(found)
    faults = [] if status and status["state"] == "finished" else [f"status {status}"]
    for name, lines in _logged(expected).items():
        own = _logged(found)[name]
        if own != lines:
            first = next((a for a, b in zip(own, lines, strict=False) if a != b), f"{len(own)} lines")
            faults.append(f"{name}: {json.dumps(first)[:300]}")
    left, right = _tensors(found), _tensors(expected)
    odd = sorted(left.keys() ^ right.keys()) or [
        key for key in right if not torch.equal(left[key], right[key])
    ]
    return faults + ([f"last checkpoint: {len(odd)} tensors, {odd[0]}"] if odd else [])


def _logged(output: Path) -> dict[str, Any]:
    return without_times(left_behind(output)) | {"sequences": read_lines(output / SEQUENCES)}


def _tensors(output: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of every rank, of the last checkpoint.

    Not the random generators: nothing in a run draws from them, and each process begins with others.
    """
    checkpoint = newest(output / "checkpoints")
    assert checkpoint is not None
    shards = sorted((checkpoint.folder / "shards").iterdir())
    tensors = {f"{shard.name}: {key}": value for shard in shards for key, value in load_file(shard).items()}
    return {key: value for key, value in tensors.items() if PREFIX not in key}


def _numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.is_file() else []


def _told(ended: Ended) -> str:
    told = [f"rank {rank}: {outcome}" for rank, (_, outcome) in enumerate(ended.outcomes)]
    return f"codes {ended.codes}; " + "; ".join(told)[-3000:]
