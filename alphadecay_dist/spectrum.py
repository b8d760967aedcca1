"""Weight files -> a table of spectra: every matrix's alpha, norms, and the decay that it would get."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from alphadecay_dist.decay import Bounds, assign
from alphadecay_dist.errors import UserError
from alphadecay_dist.spectral import MIN_EIGENVALUES, Analysis, Estimator, analyze


@dataclass(frozen=True)
class Row:
    """One matrix: its name, its shape, its analysis, and its decay, None where alpha is undefined."""

    name: str
    shape: tuple[int, int]
    analysis: Analysis
    weight_decay: float | None

    def flat(self) -> dict[str, object]:
        """The row as plain values by column name."""
        rows, columns = self.shape
        sizes = {"name": self.name, "rows": rows, "columns": columns}
        return {**sizes, **asdict(self.analysis), "weight_decay": self.weight_decay}


def spectrum(path: Path, bounds: Bounds, *, shape: str, fit: str) -> list[Row]:
    """Analyse the matrices of a checkpoint, one in memory at a time, with a progress bar.

    A matrix is a two-dimensional ``*.weight`` inside a numbered block, as in training; embeddings and head
    are none, nor is what has fewer than 50 rows or columns.

    Args:
        path: a safetensors file, or a directory with such files (a HF checkpoint).
        bounds: base decay and bounds of the map.
        shape: the map from alpha to decay, a name of ``alphadecay_dist.decay.SHAPES``.
        fit: the estimator of alpha, a name of ``alphadecay_dist.spectral.FITS``.

    Raises:
        UserError: no such file, or no matrix in it.
    """
    places = [place for file in _files(path) for place in _matrices_in(file)]
    if not places:
        raise UserError(
            f"{path}: found no weight matrix inside a numbered block, of {MIN_EIGENVALUES} rows and columns "
            "or more; give the weights of a transformer"
        )
    analyses, shapes = {}, {}
    for file, name in tqdm(places, desc="spectra", unit="matrix"):
        matrix = _read(file, name)
        shapes[name] = (matrix.shape[0], matrix.shape[1])
        analyses[name] = analyze(matrix, Estimator(fit))
    defined = {name: found.alpha for name, found in analyses.items() if found.alpha is not None}
    decays = assign(defined, bounds, shape=shape, last={})
    return [
        Row(name, shapes[name], found, decays[name].weight_decay if name in decays else None)
        for name, found in analyses.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = [f"{'matrix':<48} {'shape':>13} {'alpha':>7} {'KS':>6} {'stable rank':>11} {'decay':>10}  status"]
    for row in rows:
        found = row.analysis
        size = f"{row.shape[0]} x {row.shape[1]}"
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


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: found no safetensors file, expected one or a directory with some")
    return files


def _matrices_in(file: Path) -> Iterator[tuple[Path, str]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no dict)
                shape = tensors.get_slice(name).get_shape()
                if len(shape) == 2 and min(shape) >= MIN_EIGENVALUES and _in_block(name):
                    yield file, name
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _in_block(name: str) -> bool:
    return name.endswith(".weight") and any(part.isdigit() for part in name.split("."))


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-".rjust(int(form.split(".", maxsplit=1)[0]))
