"""A table of runs: one recipe under every combination of its axes' values, a cell and a directory each."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alphadecay_dist.commands.published_facts import facts
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config, nearest, read_yaml
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.registry import task_named

KEYS = ("recipe", "deepspeed", "output", "options", "axes")
SEED = "train.seed"
HOURS = "hours"  # beside the numbers of an evaluation
Options = dict[str, Any]  # values of a recipe's fields, by section.key


@dataclass(frozen=True)
class Published:
    """A published number, and its deviation over seeds where that is published."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        place: the name of each axis's value, by axis.
        recipe: a recipe's name or YAML.
        deepspeed: a DeepSpeed JSON; None trains without it.
        options: what differs from the recipe.
        folder: the output directory. It is named by the values, so that a table may grow.
        given: what the command line changes in all cells.
        published: what was published of such runs, by the name of our number.
    """

    place: Mapping[str, str]
    recipe: str
    deepspeed: str | None
    options: Options
    folder: Path
    given: Options = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The values, as in ``method=uniform,weight_decay=0.1,seed=0``."""
        return name_of(self.place)

    @property
    def overrides(self) -> list[str]:
        """``section.key=value`` each."""
        return [f"{key}={_text(value)}" for key, value in (self.options | self.given).items()]

    def config(self) -> Config:
        """The recipe of the run.

        Raises:
            UserError: there is no such recipe, or its options are wrong.
        """
        return load_config(self.recipe, self.overrides)

    def arguments(self) -> list[str]:
        """The options of its ``alphadecay train``."""
        engine = [] if self.deepspeed is None else ["--deepspeed", self.deepspeed]
        overrides = [f"--{override}" for override in self.overrides]
        return ["--recipe", self.recipe, *engine, "--output_dir", str(self.folder), *overrides]

    def result(self) -> dict[str, Any]:
        """How far the run is.

        Returns:
            ``state`` (status.json's, ``not begun``, or what is wrong with the cell), ``step``, and of a run
            that is finished the ``number`` of its last evaluation that its task shows, with its ``name``, and
            all ``numbers`` that tables have a column for.
        """
        from alphadecay_dist.training.outputs.run_files import EVAL, read_lines, read_status

        status = read_status(self.folder)
        if status is None:
            return {"state": self.mistake() or "not begun", "step": 0, "number": None, "numbers": {}}
        finished = status["state"] == "finished"
        lines = read_lines(self.folder / EVAL) if finished else []
        if not lines:
            return {**status, "number": None, "numbers": {}}
        name = task_named(self.config().model.task).shown
        numbers = {
            key: lines[-1][key] for key in (name, *facts()["columns"]) if lines[-1].get(key) is not None
        }
        return {**status, "number": lines[-1][name], "name": name, "numbers": numbers | self._hours()}

    def _hours(self) -> dict[str, float]:
        """What the updates took by the clock."""
        from alphadecay_dist.training.outputs.run_files import METRICS, read_lines

        metrics = self.folder / METRICS
        lines = read_lines(metrics) if metrics.is_file() else []
        return {HOURS: sum(line["step_seconds"] for line in lines) / 3600} if lines else {}

    def mistake(self) -> str | None:
        """What is wrong with the recipe, as ``error: ...``; None where nothing is."""
        try:
            self.config()
        except UserError as error:
            return f"error: {error}"
        return None


def read_table(path: str) -> list[Cell]:
    """The cells of a table, the last axis running fastest.

    Args:
        path: a YAML file with ``recipe``, ``output`` (a directory), ``axes`` and perhaps ``deepspeed`` and
            ``options`` (``section.key: value``). An axis is a ``section.key`` with the list of its values, or
            any name with a mapping from names to such options.

    Raises:
        UserError: no such file, an unknown key, or an axis of another form.
    """
    tree = read_yaml(str(Path(path).absolute()))
    for key in tree:
        if key not in KEYS:
            raise UserError(f"table {path}: unknown key {key!r}{nearest(str(key), KEYS)}")
    for key in ("recipe", "output"):
        if not isinstance(tree.get(key), str):
            raise UserError(f"table {path}: {key}: found {tree.get(key)!r}, expected a text")
    axes = tree.get("axes")
    if not isinstance(axes, dict) or not axes:
        raise UserError(f"table {path}: axes: found {axes!r}, expected axes and their values")
    common = _options(path, "options", tree.get("options") or {})
    choices = [_axis(path, str(axis), values) for axis, values in axes.items()]
    cells = [
        _cell(tree, common, dict(zip(axes, chosen, strict=True))) for chosen in itertools.product(*choices)
    ]
    folders = [cell.folder for cell in cells]
    doubled = next((folder for folder in folders if folders.count(folder) > 1), None)
    if doubled is not None:
        raise UserError(f"table {path}: two cells would write to {doubled}; give their values other names")
    return cells


def cell_of(path: str, number: int) -> Cell:
    """One cell of a table.

    Raises:
        UserError: there is no cell of that number, or see :func:`read_table`.
    """
    cells = read_table(path)
    if not 0 <= number < len(cells):
        raise UserError(f"table {path}: no cell {number}, expected 0 to {len(cells) - 1}")
    return cells[number]


def changed(cells: Sequence[Cell], overrides: Sequence[str]) -> list[Cell]:
    """The cells with fields of their recipe as the command line gives them, ``section.key=value`` each.

    Raises:
        UserError: a value that tells cells apart.
    """
    if not overrides:
        return list(cells)
    runs: dict[str, Cell] = {}
    for cell in (new := [_changed(cell, overrides) for cell in cells]):
        other = runs.setdefault(repr(sorted((cell.options | cell.given).items())), cell)
        if other is not cell:
            taken = next((key for key in cell.given if cell.options.get(key) != other.options.get(key)), None)
            raise UserError(
                f"--{taken or next(iter(cell.given))}: makes {other.name} and {cell.name} the same run; "
                "expected a field that does not tell cells apart"
            )
    return new


def _changed(cell: Cell, overrides: Sequence[str]) -> Cell:
    given = {key: value if equals else True for key, equals, value in (o.partition("=") for o in overrides)}
    taken = next((key for key in given if key in cell.place), None)
    if taken is not None:
        raise UserError(f"--{taken}: has a value of its own in each cell; expected another field")
    return replace(cell, given=given)


def show(cells: list[Cell]) -> str:
    """A line a cell; then, of cells that differ in the seed alone, mean and spread of their numbers."""
    results = [cell.result() for cell in cells]
    lines = [
        f"{number:4}  {name_of(cell.place)}  {result['state']}"
        + (f" at update {result['step']}" if result["step"] else "")
        + (f", {result['name']} {result['number']:.2f}" if result["number"] else "")
        for number, (cell, result) in enumerate(zip(cells, results, strict=True))
    ]
    groups: dict[tuple[str, str], list[float]] = {}
    for cell, result in zip(cells, results, strict=True):
        if SEED in cell.place and result["number"]:
            rest = {axis: value for axis, value in cell.place.items() if axis != SEED}
            groups.setdefault((name_of(rest), result["name"]), []).append(result["number"])
    for (place, name), values in groups.items():
        spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(f"mean  {place}  {name} {statistics.fmean(values):.2f}{spread}, {len(values)} seeds")
    return "\n".join(lines)


def _cell(tree: Mapping[str, Any], common: Options, chosen: Mapping[str, tuple[str, Options]]) -> Cell:
    place = {axis: name for axis, (name, _) in chosen.items()}
    options = dict(common)
    for _, own in chosen.values():
        options |= own
    folder = folder_of(tree["output"], place)
    return Cell(place, tree["recipe"], tree.get("deepspeed"), options, folder)


def folder_of(output: str, place: Mapping[str, str]) -> Path:
    """Where a cell is trained."""
    return Path(output) / re.sub(r"[^\w.,=+-]", "-", name_of(place))


def _axis(path: str, axis: str, values: Any) -> list[tuple[str, Options]]:
    """The values of an axis: the name and the options of each."""
    if isinstance(values, list) and values:
        _options(path, f"axes.{axis}", {axis: None})
        return [(_text(value), {axis: value}) for value in values]
    if isinstance(values, dict) and values:
        return [(str(name), _options(path, f"axes.{axis}.{name}", own or {})) for name, own in values.items()]
    raise UserError(f"table {path}: axes.{axis}: found {values!r}, expected a list, or names with options")


def _options(path: str, where: str, options: Any) -> Options:
    if not isinstance(options, dict) or any(str(key).count(".") != 1 for key in options):
        raise UserError(f"table {path}: {where}: found {options!r}, expected section.key and its values")
    return options


def name_of(place: Mapping[str, str]) -> str:
    """A place in one word, which names directories too."""
    return ",".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in place.items())


def _text(value: Any) -> str:
    """A value as the command line has it."""
    return value if isinstance(value, str) else json.dumps(value)
