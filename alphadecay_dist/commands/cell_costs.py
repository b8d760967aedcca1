"""What the cells of a table cost, before any is trained: updates, tokens or images, hours of a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from alphadecay_dist.commands.cells import Cell
from alphadecay_dist.commands.published import Table
from alphadecay_dist.commands.published_facts import facts
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.recipe import Config
from alphadecay_dist.training.tasks.registry import task_named

MEASURED = ("60m", "130m")  # sizes whose hours are published, without refreshes and at every update


@dataclass(frozen=True)
class Cost:
    """Of one cell.

    Attributes:
        steps: updates.
        targets: tokens, images or whatever the task counts; at most: short documents leave padding.
        counted: what they are, in a word.
        hours: of an A100, estimated.
        left: hours of the updates that are not made yet.
    """

    steps: int
    targets: int
    counted: str
    hours: float
    left: float


@dataclass(frozen=True)
class _Size:
    """What a published size costs.

    Attributes:
        hours: of a run without refreshes.
        flops: of its training.
        refresh: seconds of one refresh.
        spectra: work of its spectra.
    """

    hours: float
    flops: float
    refresh: float
    spectra: float


def costs_of(table: Table) -> dict[int, Cost | str]:
    """The cost of each cell by its number, or what is wrong with its recipe."""
    return {number: _cost(cell) for number, cell in table.cells.items()}


def describe(table: Table) -> str:
    """The cells with what they cost, a line each, their sum, and where the hours come from."""
    costs = costs_of(table)
    width = max(len(cell.name) for cell in table.cells.values())
    found = [cost for cost in costs.values() if isinstance(cost, Cost)]
    counted = " and ".join(sorted({cost.counted for cost in found}))
    lines = [table.title, f"cell  {'':{width}}  updates  {counted:>9}  A100 hours  state"]
    for number, cell in table.cells.items():
        cost, state = costs[number], cell.result()
        if isinstance(cost, str):
            lines.append(f"{number:4}  {cell.name:{width}}  {cost}")
            continue
        done = f"{state['state']} at update {state['step']}" if state["step"] else state["state"]
        work = f"{cost.steps:7}  {cost.targets:9.3g}  {cost.hours:10.2g}"
        lines.append(f"{number:4}  {cell.name:{width}}  {work}  {done}")
    targets, hours, left = (
        sum(getattr(cost, name) for cost in found) for name in ("targets", "hours", "left")
    )
    wrong = (
        f"; {len(costs) - len(found)} cells with errors are not counted" if len(found) < len(costs) else ""
    )
    work = f"at most {targets:.3g} {counted}, {hours:.3g} A100 hours"
    total = f"{len(costs)} cells, {work}, {left:.3g} of them to go"
    return "\n".join([*lines, total + wrong, *_stated(table), _source(table), *table.notes])


def _basis(cell: Cell) -> str:
    """The size whose published hours a cell's are scaled from: its own, or the largest."""
    sizes = facts()["sizes"]
    return next((name for name in MEASURED if sizes[name]["recipe"] == cell.recipe), MEASURED[-1])


def _cost(cell: Cell) -> Cost | str:
    """Of one cell."""
    wrong = cell.mistake()
    if wrong is not None:
        return wrong
    config, known = cell.config(), _size(_basis(cell))
    steps = config.train.steps
    hours = known.hours * _flops(config) * steps / known.flops
    decay = config.decay.spanning(steps)
    if decay.reads_spectra:
        refreshes = sum(decay.due(update) for update in range(steps))
        hours += refreshes * known.refresh * _spectra(config) / known.spectra / 3600
    done = min(1.0, cell.result()["step"] / steps)
    task = task_named(config.model.task)
    targets = steps * config.train.global_batch * task.targets_of_sample(config)
    return Cost(steps, targets, task.targets, hours, hours * (1 - done))


@functools.cache
def _size(name: str) -> _Size:
    """A published size by its name."""
    hours = facts()["presets"]["interval"]["published"]["hours"][name]
    config = load_config(facts()["sizes"][name]["recipe"])
    refresh = (hours["interval_1"] - hours["uniform"]) * 3600 / config.train.steps
    return _Size(hours["uniform"], _flops(config) * config.train.steps, refresh, _spectra(config))


def _once(work: Callable[[Config], float]) -> Callable[[Config], float]:
    """The work once for all cells of one model, batch and preset."""
    known: dict[object, float] = {}

    def of(config: Config) -> float:
        sizes = config.train.global_batch, config.train.seq_len
        key = (config.model, repr(config.task), *sizes, config.decay.preset)
        if key not in known:
            known[key] = work(config)
        return known[key]

    return of


@_once
def _flops(config: Config) -> float:
    """Of an update."""
    return task_named(config.model.task).model(config).flops()


@_once
def _spectra(config: Config) -> float:
    """Work of all spectra of a refresh."""
    from alphadecay_dist.commands.forecast import job_of_recipe
    from alphadecay_dist.sharding.planning import costs_of as costs_of_spectra

    job = job_of_recipe(config)
    return sum(costs_of_spectra(job.weights, 1.0, job.windows).values())


def _stated(table: Table) -> list[str]:
    """How many tokens the paper says of a run."""
    size = {} if table.size is None else facts()["sizes"][table.size]
    if "tokens" not in size:
        return []
    return [
        f"tokens: updates x sequences x their length, with padding; the paper says {size['tokens']:.3g} a run"
    ]


def _source(table: Table) -> str:
    """Where the hours come from."""
    tree = facts()
    hours = tree["presets"]["interval"]["published"]["hours"]
    titles = {name: tree["sizes"][name]["title"] for name in MEASURED}
    stated = ", ".join(f"{hours[name]['uniform']} of {title}" for name, title in titles.items())
    basis = " and ".join(sorted({titles[_basis(cell)] for cell in table.cells.values()}))
    other = table.size is not None and table.size not in MEASURED
    none = " (of this size none are published)" if other else ""
    dtypes = {cell.config().train.dtype for cell in table.cells.values() if cell.mistake() is None}
    slower = "; they were of bfloat16, and float32 takes longer" if "float32" in dtypes else ""
    return (
        f"hours: an estimate, from the published ones of an A100 ({stated}): those of {basis}{none}, scaled "
        "by the floating-point operations of training. A refresh is what one at every update adds in the "
        f"published hours, scaled by the work of its spectra{slower}"
    )
