"""How large the page of a long run is, and how long a browser takes to open it.

The run is made up: 10,000 updates, 100 refreshes of 168 matrices (LLaMA-1B's), spectra of every fourth. Needs
the extra ``plot``, playwright, and Chromium, whose path is the first argument (``/usr/bin/chromium``).
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from alphadecay_dist.commands.page.report import report_page
from alphadecay_dist.spectral.report import BINS
from alphadecay_dist.training.outputs.run_files import DECAY, EVAL, METRICS, SPECTRA, RunFiles

UPDATES, REFRESHES, DEPTH, SPECTRA_EVERY, TIMES = 10_000, 100, 24, 4, 5
MODULES = [
    f"model.layers.{layer}.{part}_proj"
    for layer in range(DEPTH)
    for part in (
        *(f"self_attn.{name}" for name in "qkvo"),
        *(f"mlp.{name}" for name in ("gate", "up", "down")),
    )
]


def main() -> None:
    """Write the run and its page, and open it some times."""
    chromium = sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/chromium"
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run)
        begin = time.perf_counter()
        text = report_page([run])
        print(f"made in {time.perf_counter() - begin:.2f} s, {len(text.encode()) / 1e6:.2f} MB")
        page = Path(folder) / "report.html"
        page.write_text(text, encoding="utf-8")
        for text, figures, computed in opened(page, chromium):
            print(f"texts {text:.2f} s, figures of the screen {figures:.2f} s; computed for {computed:.2f} s")


def write_run(folder: Path) -> None:
    """The files of a long run."""
    draw = random.Random(0)
    files = RunFiles(folder)
    lines: dict[str, list[dict[str, Any]]] = {METRICS: [], EVAL: [], DECAY: [], SPECTRA: []}
    for step in range(1, UPDATES + 1):
        loss = 3 + 5 / math.sqrt(step) + draw.gauss(0, 0.05)
        speed = {"tokens_per_second": draw.gauss(1e5, 2e3), "step_seconds": 1.3}
        lines[METRICS].append({"step": step, "loss": loss, "lr": 1e-3, "grad_norm": draw.random(), **speed})
        if step % 500 == 0:
            lines[EVAL].append({"step": step, "loss": loss, "perplexity": math.exp(loss)})
    for number in range(REFRESHES):
        step = number * UPDATES // REFRESHES
        alphas = [draw.uniform(2, 6) for _ in MODULES]
        modules = {
            name: {"alpha": alpha, "weight_decay": alpha / 40, "owner": place % 8, "status": "assigned"}
            for place, (name, alpha) in enumerate(zip(MODULES, alphas, strict=True))
        }
        received = [draw.randrange(2**27) for _ in range(8)]
        line = {"step": step, "written_at": step, "seconds": 1.2, "bytes_received": received}
        lines[DECAY].append({**line, "undefined": 0, "modules": modules})
        if number % SPECTRA_EVERY == 0:
            spectra = {name: histogram(draw, alpha) for name, alpha in zip(MODULES, alphas, strict=True)}
            lines[SPECTRA].append({"step": step, "written_at": step, "modules": spectra})
    for name, own in lines.items():
        files.text(name, "".join(json.dumps(line) + "\n" for line in own))
    files.status("finished", UPDATES, 0)


def histogram(draw: random.Random, alpha: float) -> dict[str, Any]:
    """A spectrum that a matrix of 2048 rows may have."""
    counts = [draw.randrange(100) for _ in range(BINS)]
    ends = {"eigenvalues": sum(counts), "low": -5.1, "high": 1.2}
    return {**ends, "alpha": alpha, "xmin": 0.31, "tail": sum(counts) // 2, "counts": counts}


def opened(page: Path, chromium: str) -> list[tuple[float, float, float]]:
    """Seconds until tables, and figures of the first screen, are there; and those of the page's thread."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(TIMES):
            tab = browser.new_page(viewport={"width": 1440, "height": 900})
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            begin = time.perf_counter()
            tab.goto(page.as_uri())
            tab.wait_for_selector("#runs td")
            text = time.perf_counter() - begin
            tab.wait_for_selector("html[data-drawn=true]")
            figures = time.perf_counter() - begin
            metrics = session.send("Performance.getMetrics")["metrics"]
            computed = next(own["value"] for own in metrics if own["name"] == "TaskDuration")
            found.append((text, figures, computed))
            tab.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
