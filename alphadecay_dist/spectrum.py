"""A model's weights on disk -> a table: every matrix's alpha, norms, and the decay that it would get."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from alphadecay_dist.decay import weight_decay_of
from alphadecay_dist.errors import UserError
from alphadecay_dist.settings import REFERENCE, Settings
from alphadecay_dist.sharding.fused import Cut, cut_by_name, output_axis
from alphadecay_dist.spectral import MIN_EIGENVALUES, Analysis, analyze
from alphadecay_dist.weight_files import StoredTensor, StoredWeights


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
        return {**sizes, **asdict(self.analysis), "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class _Weight:
    """A stored tensor, and how the matrices in it are cut into parts."""

    stored: StoredTensor
    cut: Cut | None

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Its matrices by name, one in memory at a time."""
        for name, unit in self.stored.units():
            if self.cut is None:
                yield name, unit
            else:
                yield from ((f"{name}.{part}", matrix) for part, matrix in self.cut.parts(unit))


def spectrum(weights: StoredWeights, settings: Settings) -> list[Row]:
    """Analyse the matrices of a model on disk, one in memory at a time, with a progress bar.

    A matrix is a two-dimensional ``*.weight`` inside a numbered block, as in training, a Conv2d weight there,
    or a matrix of a stack of experts; fused ones are cut by their names. Embeddings and head are none, nor is
    what has fewer than 50 eigenvalues.

    Args:
        weights: where they are, see :func:`alphadecay_dist.weight_files.open_weights`.
        settings: the rule.

    Returns:
        A row a matrix, with the decay that its weight would get at a first refresh: the mean of its parts',
        where it has several.

    Raises:
        UserError: no matrix is there, or one is smaller than a FARMS window.
    """
    chosen = _tuned(weights, uncut=settings.preset == REFERENCE)
    if not chosen:
        raise UserError(
            f"{weights.path}: found no weight matrix inside a numbered block, of {MIN_EIGENVALUES} rows and "
            "columns or more; give the weights of a transformer"
        )
    rows: dict[str, list[Row]] = {}
    for weight in tqdm(chosen, desc="spectra", unit="weight"):
        rows[weight.stored.name] = [
            Row(name, tuple(matrix.shape), _analyzed(name, matrix, settings), settings.weight_decay)
            for name, matrix in weight.parts()
        ]
    # The released code leaves the first nn.Linear at the base decay.
    assigned = list(rows)[1:] if settings.preset == REFERENCE else list(rows)
    decays = _decays({name: rows[name] for name in assigned}, settings)
    return [
        replace(row, weight_decay=decays[name]) if name in decays else row
        for name, parts in rows.items()
        for row in parts
    ]


def table(rows: Sequence[Row]) -> str:
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
    assigned = settings.decays(values, dict.fromkeys(parts, settings.weight_decay), sizes)
    return {
        weight: weight_decay_of([assigned[row.name].weight_decay for row in own])
        for weight, own in rows.items()
    }


def _tuned(weights: StoredWeights, *, uncut: bool) -> list[_Weight]:
    """The weights to analyse; ``uncut`` keeps fused ones whole, as the released code does."""
    shapes = {tensor.name: tensor.shape for tensor in weights.tensors}
    tuned = []
    for tensor in weights.tensors:
        if not _in_block(tensor.name, len(tensor.shape)):
            continue
        stacked = len(tensor.shape) == 3
        unit = tensor.shape[1:] if stacked else tensor.shape
        axis = _axis(tensor.name, tensor.shape, shapes)
        cut = None if uncut or len(unit) == 4 else cut_by_name(tensor.name, unit, weights.heads, axis)
        parts = [unit] if cut is None else cut.shapes(unit)
        if max(min(part[:2]) * math.prod(part[2:]) for part in parts) >= MIN_EIGENVALUES:
            tuned.append(_Weight(tensor, cut))
    return tuned


def _in_block(name: str, dimensions: int) -> bool:
    """Whether a tensor is a weight matrix, a stack of experts or a Conv2d weight inside a numbered block."""
    fits = dimensions == 3 if "expert" in name else dimensions in (2, 4)
    named = name.endswith((".weight", ".in_proj_weight")) or "expert" in name
    return fits and named and any(part.isdigit() for part in name.split("."))


def _axis(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The axis of a fused weight's outputs: a file does not tell whether it is (out, in) or (in, out)."""
    if len(shape) == 3:
        down = shapes.get(name.replace("gate_up_proj", "down_proj"))
        return output_axis(shape[1:], down[1:] if down and len(down) == 3 else None)
    return 1 if len(shape) == 2 and shape[1] == 3 * shape[0] else 0


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-".rjust(int(form.split(".", maxsplit=1)[0]))
