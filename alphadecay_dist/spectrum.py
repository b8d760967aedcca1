"""Weight files -> a table of spectra: every matrix's alpha, norms, and the decay that it would get."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from alphadecay_dist.decay import Bounds, assign
from alphadecay_dist.errors import UserError
from alphadecay_dist.sharding.fused import Cut, Heads, cut_by_name, output_axis
from alphadecay_dist.spectral import MIN_EIGENVALUES, Analysis, Estimator, analyze


@dataclass(frozen=True)
class Row:
    """One matrix: its name, its shape, its analysis, and its decay, None where alpha is undefined."""

    name: str
    shape: tuple[int, ...]
    analysis: Analysis
    weight_decay: float | None

    def flat(self) -> dict[str, object]:
        """The row as plain values by column name."""
        rows, columns, *kernel = self.shape
        sizes = {"name": self.name, "rows": rows, "columns": columns, "kernel": "x".join(map(str, kernel))}
        return {**sizes, **asdict(self.analysis), "weight_decay": self.weight_decay}


@dataclass(frozen=True)
class _Place:
    """A tensor in a file, and how the matrices in it are cut into parts."""

    file: Path
    name: str
    shape: tuple[int, ...]
    cut: Cut | None

    def matrices(self) -> Iterator[tuple[str, Tensor]]:
        """Its matrices by name, one in memory at a time."""
        with safe_open(self.file, framework="pt") as tensors:
            if len(self.shape) != 3:
                yield from self._parts(self.name, tensors.get_tensor(self.name))
                return
            stack = tensors.get_slice(self.name)
            for expert in range(self.shape[0]):
                yield from self._parts(f"{self.name}.{expert}", stack[expert])

    def _parts(self, name: str, matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
        if self.cut is None:
            yield name, matrix
        else:
            yield from ((f"{name}.{part}", tensor) for part, tensor in self.cut.parts(matrix))


def spectrum(path: Path, bounds: Bounds, *, shape: str, estimator: Estimator) -> list[Row]:
    """Analyse the matrices of a checkpoint, one in memory at a time, with a progress bar.

    A matrix is a two-dimensional ``*.weight`` inside a numbered block, as in training, a Conv2d weight there,
    or a matrix of a stack of experts; fused ones are cut by their names. Embeddings and head are none, nor is
    what has fewer than 50 eigenvalues.

    Args:
        path: a safetensors file, or a directory with such files (a HF checkpoint, whose config.json tells the
            numbers of heads).
        bounds: base decay and bounds of the map.
        shape: the map from alpha to decay, a name of ``alphadecay_dist.decay.SHAPES``.
        estimator: how to read alpha.

    Raises:
        UserError: no such file, no matrix in it, or one that is smaller than a FARMS window.
    """
    places = _places(path)
    if not places:
        raise UserError(
            f"{path}: found no weight matrix inside a numbered block, of {MIN_EIGENVALUES} rows and columns "
            "or more; give the weights of a transformer"
        )
    analyses, shapes = {}, {}
    for place in tqdm(places, desc="spectra", unit="weight"):
        for name, matrix in place.matrices():
            shapes[name] = tuple(matrix.shape)
            try:
                analyses[name] = analyze(matrix, estimator)
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None
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


def _places(path: Path) -> list[_Place]:
    """The tensors to analyse, in the files' order."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: found no safetensors file, expected one or a directory with some")
    heads = _heads(files[0].parent / "config.json")
    shapes = {name: (file, shape) for file in files for name, shape in _shapes_in(file)}
    places = []
    for name, (file, shape) in shapes.items():
        matrix = shape[1:] if len(shape) == 3 else shape
        cut = None if len(shape) == 4 else cut_by_name(name, matrix, heads, _axis(name, shape, shapes))
        parts = [matrix] if cut is None else cut.shapes(matrix)
        if min(min(part[:2]) * math.prod(part[2:]) for part in parts) >= MIN_EIGENVALUES:
            places.append(_Place(file, name, shape, cut))
    return places


def _shapes_in(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights in blocks, without reading them."""
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no dict)
                shape = tuple(tensors.get_slice(name).get_shape())
                if _in_block(name, len(shape)):
                    yield name, shape
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None


def _in_block(name: str, dimensions: int) -> bool:
    """Whether a tensor is a weight matrix, a stack of experts or a Conv2d weight inside a numbered block."""
    fits = dimensions == 3 if "expert" in name else dimensions in (2, 4)
    named = name.endswith((".weight", ".in_proj_weight")) or "expert" in name
    return fits and named and any(part.isdigit() for part in name.split("."))


def _axis(name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[Path, tuple[int, ...]]]) -> int:
    """The axis of a fused weight's outputs: a file does not tell whether it is (out, in) or (in, out)."""
    if len(shape) == 3:
        down = shapes.get(name.replace("gate_up_proj", "down_proj"))
        return output_axis(shape[1:], down[1][1:] if down and len(down[1]) == 3 else None)
    return 1 if len(shape) == 2 and shape[1] == 3 * shape[0] else 0


def _heads(config: Path) -> Heads | None:
    try:
        return Heads.of(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


def _number(value: float | None, form: str) -> str:
    return format(value, form) if value is not None else "-".rjust(int(form.split(".", maxsplit=1)[0]))
