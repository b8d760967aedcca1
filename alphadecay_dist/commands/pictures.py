"""The files of a run, or a table of spectra -> pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alphadecay_dist.commands.spectrum_rows import Row
from alphadecay_dist.control.module_types import modules_by_type
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.outputs.run_files import DECAY, EVAL, METRICS, read_lines

MEAN_DECAY = "mean_decay"  # in a line of metrics.jsonl, of policies that act at each update
WORDS = {  # of a title, and of its axis
    "alpha": ("alpha", "alpha"),
    "value": ("mapped value", "mapped value"),
    "weight_decay": ("weight decay", "weight decay"),
    "lr_ratio": ("learning rate", "learning rate, in base rates"),
}


def plot_run(folder: Path, picture: Path) -> None:
    """Draw a run: mean alpha and mean decay by module type over updates, and the loss.

    Args:
        folder: a run's output directory, or any that has one of its files.
        picture: where to write the PNG.

    Raises:
        UserError: neither a refresh nor a loss is there, or matplotlib is not installed.
    """
    series = [
        read_lines(folder / name) if (folder / name).is_file() else [] for name in (DECAY, METRICS, EVAL)
    ]
    if not any(series):
        raise UserError(
            f"{folder}: found no line in {DECAY}, {METRICS} or {EVAL}, expected the output directory of a "
            f"run, or a directory with a {DECAY} of your own"
        )
    try:
        figure = _drawn(*series)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{folder}: a line of its files is not what a run writes: {type(error).__name__} {error}; give "
            "the output directory of a run"
        ) from None
    figure.savefig(picture, dpi=110)


def _drawn(
    refreshes: list[dict[str, Any]], metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> Any:
    """What there is: what was mapped, what it moved, losses; of policies without refreshes the mean decay."""
    modules = [module for refresh in refreshes for module in refresh["modules"].values()]
    mapped = "value" if any("value" in module for module in modules) else "alpha"
    moved = "lr_ratio" if any("lr_ratio" in module for module in modules) else "weight_decay"
    keys = [key for key in (mapped, moved) if any(module.get(key) is not None for module in modules)]
    keys = keys or ([mapped] if refreshes else [])
    followed = not refreshes and any(MEAN_DECAY in line for line in metrics)
    losses = bool(metrics or evaluations)
    panels = len(keys) + followed + losses
    figure, colours = _figure(panels)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for key, axis in zip(keys, axes, strict=False):
        _draw_refreshes(refreshes, key, axis, colours)
    if keys:
        axes[len(keys) - 1].legend(fontsize="small", ncols=2)
    if followed:
        axes[0].plot([line["step"] for line in metrics], [_mean([line.get(MEAN_DECAY)]) for line in metrics])
        axes[0].set(title="mean weight decay", xlabel="update", ylabel="weight decay")
    if losses:
        _draw_losses(metrics, evaluations, axes[-1])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def _draw_refreshes(refreshes: list[dict[str, Any]], key: str, axis: Any, colours: Any) -> None:
    """Means by module type, of alpha or what else was mapped, of decays or of learning rates."""
    steps = [refresh["step"] for refresh in refreshes]
    for number, (kind, names) in enumerate(modules_by_type(refreshes[0]["modules"]).items()):
        means = [_mean(r["modules"][name].get(key) for name in names) for r in refreshes]
        colour = colours[number % len(colours)]
        axis.plot(steps, means, label=kind, color=colour, marker=".", linewidth=1.5)
    word, unit = WORDS[key]
    axis.set(title=f"mean {word} by module type", xlabel="update", ylabel=unit)


def _draw_losses(metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]], right: Any) -> None:
    losses = {
        "training": (metrics, {"color": "0.6"}),
        "validation": (evaluations, {"color": "k", "marker": "o"}),
    }
    for label, (lines, look) in losses.items():
        values = [_mean([line["loss"]]) for line in lines]
        if lines:
            right.plot([line["step"] for line in lines], values, label=label, **look)
    right.set(title="loss", xlabel="update", ylabel="nats per token")
    right.legend(fontsize="small")


def plot_spectrum(rows: Sequence[Row], picture: Path) -> None:
    """Draw alpha, decay and stable rank of every matrix, by module type, in the order of the table.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure, colours = _figure(3)
    axes = dict(zip(("alpha", "weight_decay", "stable_rank"), figure.subplots(1, 3), strict=True))
    table = {row.name.removesuffix(".weight"): row.flat() for row in rows}
    for number, (kind, names) in enumerate(modules_by_type(table).items()):
        style = {"label": kind, "color": colours[number % len(colours)]}
        for key, axis in axes.items():
            values = [math.nan if table[name][key] is None else table[name][key] for name in names]
            axis.plot(values, ".-", **style)
    for key, axis in axes.items():
        axis.set(title=key.replace("_", " "), xlabel="layer")
        axis.locator_params(axis="x", integer=True)
        axis.grid(alpha=0.3)
    axes["weight_decay"].legend(fontsize="small", ncols=2)
    figure.savefig(picture, dpi=110)


def _figure(panels: int) -> tuple[Any, Any]:
    """An empty figure for so many pictures in a row, and its colours; matplotlib is loaded with the first."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib: not installed; pip install 'alphadecay-dist[plot]'") from None
    return Figure(figsize=(4 * panels, 3.6), layout="constrained"), mpl.color_sequences["tab10"]


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values that are defined; NaN, which is not drawn, where none is."""
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else math.nan
