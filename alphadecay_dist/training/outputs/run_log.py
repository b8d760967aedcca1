"""What rank 0 logs of a run while it trains; a file that cannot be written ends the run on all ranks."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from alphadecay_dist.condition.numbers import medians_by_type
from alphadecay_dist.condition.sample import CONDITION, ConditionSample
from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.control.refresh import DECAY, SPECTRA, Refresh
from alphadecay_dist.errors import RunError
from alphadecay_dist.training.outputs.run_files import EVENTS, METRICS, STATUS, RunFiles
from alphadecay_dist.training.outputs.trackers import Trackers
from alphadecay_dist.training.process.preemption import StopRequests

SHOWN_AT_ONCE, SECONDS_BETWEEN = 10, 10.0  # the first refreshes are all shown, later ones now and then


class RunLog:
    """The run's files and its trackers on rank 0; on other ranks it does nothing.

    A line that cannot be written does not raise: the other ranks would wait for this one. The failure is
    left with the requests to stop, and all ranks learn of it when they next agree on those. Nothing is
    written after it, so that no file has a gap.

    Args:
        files: of the output directory; None on other ranks.
        trackers: wandb and the like; None on other ranks.
        requests: of this rank, to stop.
        spectra: keep the histograms of every so many refreshes; 0 keeps none.
    """

    def __init__(
        self, files: RunFiles | None, trackers: Trackers | None, requests: StopRequests, spectra: int = 0
    ) -> None:
        self._files = files
        self._trackers = trackers
        self._requests = requests
        self._spectra = spectra
        self._written = files.count(DECAY) if files else 0  # refreshes, by this process and those before it
        self._refreshes = 0
        self._shown_at = -math.inf  # when the last refresh was shown

    def line(self, name: str, record: Mapping[str, Any], tracked: bool = True) -> None:
        """A line in a file of the output directory, and a record of the file's name for the trackers."""
        self._write(name, lambda files: files.append(name, record))
        if tracked and self._trackers:
            values = {key: value for key, value in record.items() if key != "step"}
            self._trackers.log(name.removesuffix(".jsonl"), record["step"], values)

    def refresh(self, refresh: Refresh) -> None:
        """A refresh's line, its means for the trackers, and a short line on stderr."""
        self._write(DECAY, lambda files: files.append(DECAY, refresh.as_dict()))
        if refresh.histograms and self._spectra and self._written % self._spectra == 0:
            self._write(SPECTRA, lambda files: files.append(SPECTRA, refresh.histograms_as_dict()))
        self._written += 1
        if self._trackers:
            self._trackers.log("decay", refresh.step, means_by_type(refresh))
        now = time.monotonic()
        if self._refreshes < SHOWN_AT_ONCE or now - self._shown_at >= SECONDS_BETWEEN:
            self.say(refresh_line(refresh))
            self._shown_at = now
        self._refreshes += 1

    def condition(self, sample: ConditionSample) -> None:
        """A sample's line, and its medians for the trackers; a short line on stderr."""
        record = sample.as_dict()
        self._write(CONDITION, lambda files: files.append(CONDITION, record))
        if self._trackers:
            self._trackers.log("condition", sample.step, medians_by_type(record))
        self.say(condition_line(record))

    def go_back(self, step: int) -> None:
        """Drop the lines of updates after a checkpoint."""
        self._write(METRICS, lambda files: files.keep_until(step))
        self._write(EVENTS, lambda files: files.event("rolled_back", step))
        self._written = self._files.count(DECAY) if self._files else 0
        if self._trackers:
            self._trackers.go_back(step)

    def say(self, text: str) -> None:
        """A line on stderr, beside the progress bar."""
        if self._files:
            tqdm.write(text, file=sys.stderr)

    def ended(self, state: str, step: int, exit_code: int, reason: str | None = None) -> None:
        """How the run ended, in status.json; and in events.jsonl, which a full disk may not keep from it.

        Raises:
            RunError: it cannot be written.
        """
        if self._files is None:
            return
        try:
            self._files.status(state, step, exit_code, reason)
        except OSError as error:
            raise RunError(f"{self._files.folder / STATUS} cannot be written: {error.strerror}") from None
        with suppress(OSError):
            self._files.event(state, step, reason)

    def close(self, exit_code: int) -> None:
        """End the trackers."""
        if self._trackers:
            self._trackers.close(exit_code)

    def _write(self, name: str, work: Callable[[RunFiles], None]) -> None:
        if self._files is None or self._requests.failure is not None:
            return
        try:
            work(self._files)
        except OSError as error:
            self._requests.fail(
                f"{self._files.folder / name} cannot be written: {error.strerror}; fix that and start "
                "again: the last checkpoint is whole"
            )


def refresh_line(refresh: Refresh) -> str:
    """A refresh in a line for the terminal."""
    modules = refresh.modules.values()
    lagged = f", written at {refresh.written_at}" if refresh.written_at != refresh.step else ""
    undefined = refresh.undefined
    alpha = _span("alpha", ".2f", [module.alpha for module in modules], middle=True)
    shown = [
        alpha or ("alpha undefined" if undefined else ""),
        _span("value", ".3g", [module.value for module in modules], middle=True),
        _span("decay", ".3g", [m.weight_decay for m in modules if m.lr_ratio is None]),
        _span("learning rate x", ".3g", [module.lr_ratio for module in modules]),
    ]
    kept = f" ({undefined} undefined keep what they had)" if undefined else ""
    return (
        f"refresh at update {refresh.step}{lagged}: {len(modules)} matrices, "
        f"{', '.join(filter(None, shown))}, {refresh.seconds:.2g} s{kept}"
    )


def condition_line(record: Mapping[str, Any]) -> str:
    """A sample of the spectral condition in a line for the terminal."""
    ratios = [own["ratio"] for own in record["matrices"].values() if own["ratio"] is not None]
    passing = sum(ratio >= 1 for ratio in ratios)
    span = _span("nr / st", ".2f", ratios, middle=True) or "undefined"
    return (
        f"spectral condition at update {record['step']}: {span}; {passing} of {len(ratios)} matrices pass, "
        f"{record['n_tokens']} tokens, {record['seconds']:.2g} s"
    )


def _span(name: str, form: str, numbers: list[float | None], *, middle: bool = False) -> str:
    """The range of what is defined, with its median too if asked; nothing where nothing is."""
    defined = [number for number in numbers if number is not None]
    if not defined:
        return ""
    median = f", median {statistics.median(defined):{form}}" if middle else ""
    return f"{name} {min(defined):{form}} to {max(defined):{form}}{median}"
