"""The picture of docs/concepts/spectrum.md, from a run that kept its spectra: RUN, and where to write.

    python train.py --decay.interval=25 --logging.spectra=1 --output_dir runs/picture
    python docs/pictures/spectrum.py runs/picture docs/pictures/spectrum

It writes two files, for light and dark pages: the last refresh's heaviest and lightest tail, all alphas, and
the map.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

HEAVY = {"light": "#0f8b8d", "dark": "#3fc1c4"}
LIGHT = {"light": "#e07a1f", "dark": "#f0974a"}
INK = {"light": "#33383f", "dark": "#d5d9e0"}
GREY = "#8a93a0"
TYPES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def last_line(path: Path) -> dict[str, Any]:
    """The modules of a file's last refresh."""
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])["modules"]


def short(name: str) -> str:
    """A module's name for a legend."""
    parts = name.split(".")
    return f"block {parts[2]}, {parts[-1]}"


def draw_spectra(ax: Axes, spectra: dict[str, Any], chosen: dict[str, str]) -> None:
    """The share of eigenvalues above x, and the tail as it was fitted, of the modules by their colours."""
    for name, colour in chosen.items():
        own = spectra[name]
        edges = np.logspace(own["low"], own["high"], len(own["counts"]) + 1)
        above = np.cumsum(own["counts"][::-1])[::-1] / own["eigenvalues"]
        ax.plot(edges[:-1] / own["xmin"], above, ".", color=colour, markersize=5)
        x = np.array([1.0, edges[-1] / own["xmin"]])
        label = f"{short(name)}: α = {own['alpha']:.2f}"
        ax.plot(
            x, own["tail"] / own["eigenvalues"] * x ** (1 - own["alpha"]), color=colour, lw=2, label=label
        )
    ax.axvline(1, color=GREY, lw=1, ls=":")
    ax.set(
        xscale="log",
        yscale="log",
        xlim=(0.02, None),
        ylim=(1.5e-3, None),
        xlabel="eigenvalue of WᵀW, in medians",
    )
    ax.set(ylabel="share of eigenvalues above", title="1  The spectrum has a tail")
    ax.legend(loc="lower left")


def draw_alphas(ax: Axes, refresh: dict[str, Any], chosen: dict[str, str]) -> None:
    """The alpha of every matrix, by its type."""
    for name, own in refresh.items():
        kind = TYPES.index(name.split(".")[-1])
        ax.plot(own["alpha"], kind, "o", color=chosen.get(name, GREY), alpha=0.9, markersize=7)
    ax.set(yticks=range(len(TYPES)), yticklabels=TYPES, xlabel="α", title="2  Its slope is α")
    ax.invert_yaxis()


def draw_map(ax: Axes, refresh: dict[str, Any], chosen: dict[str, str], base: float) -> None:
    """The decay of every matrix by its alpha."""
    for name, own in sorted(refresh.items(), key=lambda item: item[0] in chosen):
        ax.plot(own["alpha"], own["weight_decay"], "o", color=chosen.get(name, GREY), alpha=0.9, markersize=7)
    ax.axhline(base, color=GREY, lw=1, ls=":")
    ax.annotate("base decay", (ax.get_xlim()[1], base), ha="right", va="bottom", color=GREY)
    ax.set(xlabel="α", ylabel="weight decay", title="3  α decides the decay")
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())


def draw(run: Path, out: Path, scheme: str, base: float = 0.1) -> None:
    """Write the picture for one scheme of colours, the same bytes for the same run."""
    refresh, spectra = last_line(run / "decay.jsonl"), last_line(run / "spectra.jsonl")
    ordered = sorted(refresh, key=lambda name: refresh[name]["alpha"])
    chosen = {ordered[0]: HEAVY[scheme], ordered[-1]: LIGHT[scheme]}
    inked = (
        "text.color",
        "axes.labelcolor",
        "axes.titlecolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
    )
    ink = dict.fromkeys(inked, INK[scheme])
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    fixed = {"svg.hashsalt": "spectrum", "axes.titlelocation": "left", "axes.titleweight": "bold"}
    with mpl.rc_context({**ink, **style, **fixed}):
        figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
        draw_spectra(axes[0], spectra, chosen)
        draw_alphas(axes[1], refresh, chosen)
        draw_map(axes[2], refresh, chosen, base)
        figure.savefig(f"{out}_{scheme}.svg", transparent=True, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    for scheme in INK:
        draw(Path(sys.argv[1]), Path(sys.argv[2]), scheme)
