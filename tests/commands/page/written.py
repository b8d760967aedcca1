"""Files of small runs, with real spectra."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from alphadecay_dist.control.refresh import ModuleRefresh, Refresh, log_refresh
from alphadecay_dist.spectral import Estimator, analyze
from alphadecay_dist.training.config import load_config, to_yaml
from alphadecay_dist.training.outputs.run_files import RunFiles

PARTS = ("self_attn.q_proj", "mlp.down_proj", "mlp.gate")
NAMES = [f"model.layers.{layer}.{part}" for layer in range(3) for part in PARTS]
STEPS = (0, 10, 20)
UNDEFINED = "model.layers.1.mlp.gate"  # at the last refresh


def write_run(folder: Path) -> Path:
    """A run of 30 updates on two ranks, stopped once: two refreshes have spectra, one matrix is undefined."""
    files = RunFiles(folder)
    files.text("config.yaml", to_yaml(load_config("demo")))
    for step in range(1, 31):
        write_update(folder, step)
    for step in (0, 15, 30):
        loss = 6 - step / 20
        files.append("eval.jsonl", {"step": step, "loss": loss, "perplexity": math.exp(loss)})
    for number, step in enumerate(STEPS):
        write_refresh(folder, step, spectra=number != 1)
    for event, step in (("started", 0), ("preempted", 15), ("resumed", 15), ("finished", 30)):
        files.event(event, step, "SIGTERM" if event == "preempted" else None)
    for step in range(0, 30, 3):
        write_condition(folder, step)
    files.status("finished", 30, 0)
    return folder


def write_update(folder: Path, step: int) -> None:
    """A line of metrics.jsonl."""
    numbers = {"loss": 5 / math.sqrt(step), "lr": 1e-3 / step, "grad_norm": 1 + 1 / step}
    speed = {"tokens": 100 * step, "tokens_per_second": 1000.0 + step, "step_seconds": 0.5, "mfu": None}
    RunFiles(folder).append("metrics.jsonl", {"step": step, **numbers, **speed})


def write_refresh(folder: Path, step: int, spectra: bool = True) -> None:
    """A line of decay.jsonl, and of spectra.jsonl."""
    modules, histograms = {}, {}
    for place, name in enumerate(NAMES):
        matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(100 * step + place))
        found = analyze(matrix if (name, step) != (UNDEFINED, STEPS[-1]) else 0 * matrix, KEEPING)
        status = found.status if found.alpha is None else "assigned"
        modules[name] = ModuleRefresh(found.alpha, 0.01 * (place + 1) + step / 1e3, place % 2, status)
        if found.histogram and spectra:
            histograms[name] = found.histogram
    log_refresh(folder, Refresh(step, step + 2, 0.25 + step / 100, (2**20, 3 * 2**20), modules, histograms))


KEEPING = Estimator(keeps_histogram=True)


def write_condition(folder: Path, step: int) -> None:
    """A line of condition.jsonl."""
    matrices = {
        name: {
            "type": name.split(".")[-1].removesuffix("_proj"),
            "nr": 10.0 + step + place,
            "st": 5.0 - place / 9,
        }
        | {"spectral_norm": 2 + step / 100, "stable_rank": None, "passes_1": True}
        for place, name in enumerate(NAMES)
    }
    RunFiles(folder).append("condition.jsonl", {"step": step, "n_tokens": 100, "matrices": matrices})
