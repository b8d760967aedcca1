"""A model's weights on disk -> a table: every matrix's alpha, norms, and the decay that it would get."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from alphadecay_dist.commands.stored_rule import tuned_tensors
from alphadecay_dist.commands.weight_files import StoredWeights
from alphadecay_dist.decay import weight_decay_of
from alphadecay_dist.decay.maps import Moment
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.errors import UserError
from alphadecay_dist.notices import notice
from alphadecay_dist.params.heads import cut_by_heads
from alphadecay_dist.params.tuned_rule import released_ends
from alphadecay_dist.spectral import MIN_EIGENVALUES, Analysis, analyze


@dataclass(frozen=True)
class Row:
    """One matrix: its name, its shape, its analysis, and the decay of the weight that it belongs to."""

    name: str
    shape: tuple[int, ...]
    analysis: Analysis
    weight_decay: float

    def flat(self) -> dict[str, object]:
        """The row as plain values by column name."""
        rows, columns, *kernel = self.shape
        sizes = {"name": self.name, "rows": rows, "columns": columns, "kernel": "x".join(map(str, kernel))}
        found = asdict(self.analysis)
        del found["histogram"]
        return {**sizes, **found, "weight_decay": self.weight_decay}


def rows_of(weights: StoredWeights, settings: Settings) -> list[Row]:
    """Analyse the matrices of a model on disk, one in memory at a time, with a progress bar.

    What is a matrix, and which share a decay, is what a training run of the model would tune, see
    :func:`alphadecay_dist.commands.stored_rule.tuned_tensors`.

    Args:
        weights: where they are, see :func:`alphadecay_dist.commands.weight_files.open_weights`.
        settings: the rule.

    Returns:
        A row a matrix, with the decay that its weight would get at a first refresh: the mean of its parts',
        where it has several.

    Raises:
        UserError: no matrix is there, none has heads where these are asked for, or one is smaller than a
            FARMS window.
    """
    model = tuned_tensors(weights)
    choices = settings.choices
    tuned = model.tuned if choices.cuts_fused else [own.whole() for own in model.tuned]
    at_base = set[str]() if choices.tunes_ends else released_ends(model.linears)
    if not tuned:
        raise UserError(
            f"{weights.path}: found no weight matrix inside a numbered block, of {MIN_EIGENVALUES} rows and "
            "columns or more; give the weights of a transformer"
        )
    if settings.heads:
        found_heads = cut_by_heads(tuned, model.attention)
        found_heads.require()
        tuned, line = found_heads.weights, found_heads.line()
        if line is not None:
            notice(line)
    rows: list[tuple[str, Row]] = []
    for own in tqdm(tuned, desc="spectra", unit="weight"):
        for name, matrix in own.matrices():
            found = _analyzed(name, matrix, settings)
            rows.append((own.name, Row(name, tuple(matrix.shape), found, settings.weight_decay)))
    parts: dict[str, list[Row]] = {}
    for weight, row in rows:
        if weight not in at_base:
            parts.setdefault(weight, []).append(row)
    decays = _decays(parts, settings)
    return [replace(row, weight_decay=decays[weight]) if weight in decays else row for weight, row in rows]


def as_text(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [f"{'matrix':<48} {'shape':>13} {'alpha':>7} {'KS':>6} {'stable rank':>11} {'decay':>10}  status"]
    for row in rows:
        found = row.analysis
        size = " x ".join(map(str, row.shape))
        lines.append(
            f"{row.name:<48} {size:>13} {_number(found.alpha, '7.3f')} {_number(found.ks, '6.3f')} "
            f"{_number(found.stable_rank, '11.2f')} {_number(row.weight_decay, '10.3g')}  {found.status}"
        )
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list; undefined is null."""
    path.write_text(
        json.dumps([row.flat() for row in rows], indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV with a header; undefined is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0].flat()))
        writer.writeheader()
        writer.writerows(row.flat() for row in rows)


def _analyzed(name: str, matrix: Tensor, settings: Settings) -> Analysis:
    try:
        return analyze(matrix, settings.estimator())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None


def _decays(rows: Mapping[str, Sequence[Row]], settings: Settings) -> dict[str, float]:
    """The decay of each weight, as its first refresh would write it."""
    parts = {row.name: row for own in rows.values() for row in own}
    values = {name: settings.value_of(row.analysis) for name, row in parts.items()}
    sizes = {name: math.prod(row.shape) for name, row in parts.items()}
    assigned = settings.assign_to(Moment(values, dict.fromkeys(parts, settings.start), sizes, first=True))
    return {
        weight: weight_decay_of([assigned[row.name].weight_decay for row in own])
        for weight, own in rows.items()
    }


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-".rjust(int(form.split(".", maxsplit=1)[0]))
