"""The files of a run -> the data of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphadecay_dist.commands.page.columns import rounded, thinned
from alphadecay_dist.commands.page.condition_data import CONDITION, condition_data
from alphadecay_dist.commands.page.refresh_data import refresh_data, spectra_data
from alphadecay_dist.control.refresh import DECAY, SPECTRA
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import read_yaml
from alphadecay_dist.training.outputs.run_files import (
    EVAL,
    EVENTS,
    METRICS,
    STATUS,
    read_lines,
    read_status,
)

FILES = (METRICS, EVAL, DECAY, SPECTRA, EVENTS, CONDITION, STATUS)  # that a page is made of
SPEED = "_per_second"  # the end of a metric's name, after what it counts
FACTS = {  # of a recipe, as the page names them
    "model": "model.name",
    "policy": "decay.policy",
    "weight decay": "decay.weight_decay",
    "interval": "decay.interval",
    "updates": "train.steps",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "batch": "train.global_batch",
    "dtype": "train.dtype",
    "engine": "engine.name",
    "seed": "train.seed",
}


@dataclass(frozen=True)
class Detail:
    """How much of a run is drawn.

    Attributes:
        points: of each curve.
        refreshes: that the slider moves over.
        spectra: refreshes whose spectra are there.
    """

    points: int = 1000
    refreshes: int = 200
    spectra: int = 24

    def halved(self) -> Detail:
        """Half as much."""
        return Detail(self.points // 2, self.refreshes // 2, self.spectra // 2)


def runs_data(folders: Sequence[Path], detail: Detail) -> dict[str, Any]:
    """The data of a page of runs.

    Args:
        folders: output directories, or any that have one of their files.
        detail: how much of each.

    Raises:
        UserError: one of them has nothing to draw, or a line that is no record of a run.
    """
    names = _names(folders)
    return {"runs": [_run(folder, name, detail) for folder, name in zip(folders, names, strict=True)]}


def _run(folder: Path, name: str, detail: Detail) -> dict[str, Any]:
    lines = {file: _lines(folder / file) for file in FILES if file != STATUS}
    if not (lines[METRICS] or lines[EVAL] or lines[DECAY]):
        raise UserError(
            f"{folder}: found no line in {DECAY}, {METRICS} or {EVAL}, expected the output directory of a "
            f"run, or a directory with a {DECAY} of your own"
        )
    shown = _shown(lines[EVAL])
    try:
        return {
            "name": name,
            "status": read_status(folder),
            "facts": _facts(folder),
            "shown": shown,
            "events": lines[EVENTS],
            "metrics": _metrics(lines[METRICS], detail.points),
            "eval": thinned(lines[EVAL], ("loss", shown), detail.points),
            "refreshes": refresh_data(lines[DECAY], detail.refreshes),
            "spectra": spectra_data(lines[SPECTRA], detail.spectra),
            "condition": condition_data(lines[CONDITION], detail.points),
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder}: a line of its files is not what a run writes: {type(error).__name__} {error}; give "
            "the output directory of a run"
        ) from None


def _metrics(lines: Sequence[Mapping[str, Any]], points: int) -> dict[str, Any]:
    """Curves of the updates, the updates that were skipped, and what the speed counts."""
    last = lines[-1] if lines else {}
    speed = next((key for key in last if key.endswith(SPEED)), f"tokens{SPEED}")
    keys = ("loss", "lr", "grad_norm", speed, "mfu", "mean_decay")
    curves = thinned(lines, keys, points)
    curves["speed"] = curves.pop(speed)
    return {
        **{key: column for key, column in curves.items() if key in ("step", "every") or _any(column)},
        "targets": speed.removesuffix(SPEED),
        "last": {key: rounded(last.get(key)) for key in ("step", "loss")},
        "seconds": rounded(sum(line.get("step_seconds") or 0 for line in lines)),
        "skipped": [line["step"] for line in lines if line.get("skipped")],
    }


def _shown(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """The number of an evaluation that comes after its loss: to ask the task would load its packages."""
    names = evaluations[-1] if evaluations else {}
    return next((name for name in names if name not in ("step", "loss")), "perplexity")


def _any(column: Sequence[Any]) -> bool:
    return any(value is not None for value in column)


def _facts(folder: Path) -> dict[str, Any]:
    """What the recipe says that a run's config.yaml keeps; nothing where there is none."""
    path = folder / "config.yaml"
    try:
        tree = read_yaml(str(path.absolute())) if path.is_file() else {}
        found = {name: _field(tree, key) for name, key in FACTS.items()}
    except UserError:
        return {}
    return {name: value for name, value in found.items() if value is not None}


def _field(tree: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    values = tree.get(section)
    return values.get(name) if isinstance(values, Mapping) else None


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except (FileNotFoundError, IsADirectoryError):  # never there, or taken away meanwhile
        return []


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, as short as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    for count in range(1, longest + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{folders[0]}: found one run twice, expected different ones")
