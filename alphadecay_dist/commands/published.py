"""The published tables: their cells, with settings and results, from ``recipes/tables/published.yaml``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alphadecay_dist.commands.cells import (
    SEED,
    Cell,
    Options,
    Published,
    changed,
    folder_of,
)
from alphadecay_dist.commands.published_facts import facts
from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.config import nearest

METHOD, DECAY = "method", "decay.weight_decay"  # the axes, before the seed
WAYS = ("paper", "reference")
FORM = "PRESET:SIZE, perhaps with :WAY and :SEEDS, such as adamw:60m or adam:130m:reference:5,6,7"


@dataclass(frozen=True)
class Table:
    """A table of runs.

    Attributes:
        title: what it is.
        cells: by number.
        notes: what one has to know of its numbers, a line each.
        size: a name of the published sizes, whose cost is known; None of another table.
    """

    title: str
    cells: Mapping[int, Cell]
    notes: Sequence[str] = ()
    size: str | None = None


@dataclass(frozen=True)
class Choice:
    """Which of the published cells.

    Attributes:
        preset: a table of the YAML.
        size: of the model.
        way: which reading of the published runs; None is the first that there is of its task.
        seeds: None are the published runs'.
    """

    preset: str
    size: str
    way: str | None = None
    seeds: tuple[int, ...] | None = None


def names_preset(word: str) -> bool:
    """Whether a word is meant as a preset, and not as the path of a table."""
    return word.partition(":")[0] in facts()["presets"]


def choice_of(word: str) -> Choice:
    """What ``PRESET:SIZE:WAY:SEEDS`` chooses; the last two may be left out, and the size where there is one.

    Raises:
        UserError: it is of another form.
    """
    preset, size, way, seeds, *rest = [*word.split(":"), "", "", ""]
    sizes = sizes_of(preset)
    if (not size and len(sizes) > 1) or len(rest) > 3:
        raise UserError(f"table {shown(word)}: expected {FORM}; sizes of {preset}: {', '.join(sizes)}")
    return Choice(preset, size or sizes[0], way or None, seeds_of(seeds) if seeds else None)


def seeds_of(text: str) -> tuple[int, ...]:
    """The numbers of ``0,1,2``.

    Raises:
        UserError: it is no such list.
    """
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len({int(part) for part in parts}) < len(parts):
        raise UserError(f"--seeds: found {shown(text)}, expected different numbers with commas, as 0,1,2")
    return tuple(map(int, parts))


def sizes_of(preset: str) -> list[str]:
    """Sizes of a preset.

    Raises:
        UserError: there is no such preset.
    """
    presets = facts()["presets"]
    if preset not in presets:
        raise UserError(f"--preset {preset}: unknown{nearest(preset, presets)}")
    return list(presets[preset]["seeds"])


def published_table(
    choice: Choice,
    *,
    output: str | None = None,
    deepspeed: str | None = None,
    methods: Collection[str] | None = None,
    decays: Collection[str] | None = None,
    overrides: Sequence[str] = (),
) -> Table:
    """The cells of a preset.

    Args:
        choice: which.
        output: the directory of all cells; by default one of the preset, size and way under runs/tables.
        deepspeed: a DeepSpeed JSON, with which all cells are trained.
        methods: keep only those. The numbers of cells stay those of the whole table.
        decays: keep only those base decays, as texts.
        overrides: fields of the recipe that are changed in all cells, ``section.key=value`` each.

    Raises:
        UserError: an unknown preset, size, way, method or decay.
    """
    tree = facts()
    sizes = sizes_of(choice.preset)
    if choice.size not in sizes:
        raise UserError(f"--size {choice.size}: not in {choice.preset}{nearest(choice.size, sizes)}")
    preset, size = tree["presets"][choice.preset], tree["sizes"][choice.size]
    task = tree["tasks"][size["task"]]
    way = choice.way or next(iter(task["ways"]))
    if way not in task["ways"]:
        raise UserError(f"--way {way}: there is none of {choice.preset}{nearest(way, task['ways'])}")
    of_size = {name: found.get(choice.size, {}) for name, found in preset.get("published", {}).items()}
    folder = output or f"runs/tables/{choice.preset}_{choice.size}_{way}"
    seeds = choice.seeds or tuple(preset["seeds"][choice.size])
    cells = []
    for method, decay in _places(preset, task):
        published = {
            own: _published(found, method, decay)
            for name, found in of_size.items()
            for own in tree["ours"][name]
        }
        known = {name: number for name, number in published.items() if number is not None}
        for seed in seeds:
            place = {METHOD: method, DECAY: decay, SEED: str(seed)}
            options = _options(size, way, preset["optimizer"], method, decay) | {SEED: seed}
            folder_of_cell = folder_of(folder, place)
            cells.append(Cell(place, size["recipe"], deepspeed, options, folder_of_cell, published=known))
    chosen = dict(enumerate(changed(cells, overrides)))
    for axis, kept in ((METHOD, methods), (DECAY, decays)):
        chosen = _kept(chosen, axis, kept)
    notes = [*task["ways"][way]["differences"], *task["differences"]]
    title = f"{preset['title']}: {size['title']}, {preset['optimizer']}, as in the {way}"
    return Table(title, chosen, notes, choice.size)


def _places(preset: Mapping[str, Any], task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Method and base decay of each cell; a method without a decay has one cell."""
    places: list[tuple[str, str]] = []
    decays = preset.get("decays") or list(task["s2"][preset["optimizer"]])
    for method in preset["methods"]:
        fixed = facts()["methods"][method].get(DECAY)
        places += [(method, f"{fixed:g}")] if fixed is not None else [(method, decay) for decay in decays]
    return places


def _options(size: Mapping[str, Any], way: str, optimizer: str, method: str, decay: str) -> Options:
    """All settings of a cell but the seed; a later one takes the place of an earlier one."""
    task = facts()["tasks"][size["task"]]
    options = {
        **task["common"],
        "train.steps": size["updates"],
        "optimizer.name": optimizer,
        "optimizer.lr": size["lr"],
        "optimizer.warmup": size["warmup"],
        DECAY: float(decay),
        **task["ways"][way]["options"],
    }
    ratio = task["s2"][optimizer].get(decay)
    if ratio is not None:
        options["decay.max_ratio"] = ratio
    return options | facts()["methods"][method] | task.get("methods", {}).get(method, {})


def _published(found: Mapping[str, Any], method: str, decay: str) -> Published | None:
    """The number of a cell: of its method at its base decay, or of its method alone."""
    value = found.get(method)
    if isinstance(value, dict):
        value = value.get(decay)
    if value is None:
        return None
    return Published(*value) if isinstance(value, list) else Published(value)


def _kept(cells: dict[int, Cell], axis: str, kept: Collection[str] | None) -> dict[int, Cell]:
    """The cells with one of these values of an axis."""
    if kept is None:
        return cells
    known = {cell.place[axis] for cell in cells.values()}
    for value in kept:
        if value not in known:
            option = "methods" if axis == METHOD else "decays"
            raise UserError(f"--{option} {value}: not in the table{nearest(value, known)}")
    return {number: cell for number, cell in cells.items() if cell.place[axis] in kept}
