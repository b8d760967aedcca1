"""What the samples of a run say together: a table by type, an order, and a suggestion for Muon."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from alphadecay_dist.condition.matrices import EMBED, OUTPUT
from alphadecay_dist.condition.stable_ranks import COUNTS
from alphadecay_dist.params.coverage import pattern_of
from alphadecay_dist.params.heads import OUT, K, Q, V, role_of

Line = Mapping[str, Any]  # of condition.jsonl

FAMILIES = {"q, k": (Q, K), "v, o": (V, OUT)}
MLP = "MLP"
WARNING = """\
The condition compares one step of plain gradient descent with one of plain spectral descent, by upper bounds;
it knows no momentum and no Adam, and its authors chose no matrices by it. In their runs nearly all matrices
of the blocks passed, by 5x to 100x, so that it tells these apart hardly at all. A stable rank grows with the
number of tokens where activations are gated (SwiGLU). Compare runs before you rely on it."""
SPELLINGS = """\
from fnmatch import fnmatchcase

MUON = {patterns}
named = [(name.removesuffix(".weight"), own) for name, own in model.named_parameters() if own.requires_grad]
muon = [own for name, own in named if any(fnmatchcase(name, pattern) for pattern in MUON)]
rest = [own for name, own in named if not any(fnmatchcase(name, pattern) for pattern in MUON)]

# DeepSpeed: a flag on every parameter
for own in muon: own.use_muon = True
for own in rest: own.use_muon = False

# Dion: a group an algorithm
groups = [{{"params": muon, "algorithm": "muon"}}, {{"params": rest, "algorithm": "adamw"}}]

# torch: two optimizers
optimizers = [torch.optim.Muon(muon), torch.optim.AdamW(rest)]"""


def summary(lines: Sequence[Line]) -> str:
    """The samples of a run in words and a table.

    Args:
        lines: of condition.jsonl, at least one.
    """
    steps = [line["step"] for line in lines]
    most = max(line["n_tokens"] for line in lines)
    title = (
        f"spectral condition nr / st: {len(lines)} samples, updates {min(steps)} to {max(steps)}, "
        f"up to {most} tokens"
    )
    return "\n".join([title, "", *_table(lines), "", _order(lines)])


def suggestion(lines: Sequence[Line], least: float = 1) -> str:
    """Which matrices of the blocks pass at the median of their samples, as optimizers would be told.

    Args:
        lines: of condition.jsonl, at least one.
        least: the ratio nr / st from which on a matrix passes: 1 is the condition; from 2 on a spectral step
            is the better one for certain in the random-feature model of its paper (arXiv 2512.04299).
    """
    names = _suggested(lines, least)
    if not names:
        return f"Suggestion: no matrix of the blocks passes; none for Muon.\n{WARNING}"
    patterns = ",\n".join(f'    "{name}"' for name in names)
    code = SPELLINGS.format(patterns=f"(\n{patterns},\n)")
    return (
        f"A suggestion, no more: nr / st is {least:g} or more at the median of their samples.\n{WARNING}\n\n"
        f"train.py: --optimizer.name=muon --optimizer.muon_modules='{','.join(names)}'\n\n{code}"
    )


def _table(lines: Sequence[Line]) -> list[str]:
    """A row a type, over all its matrices and samples."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    names: dict[str, set[str]] = {}
    for line in lines:
        for name, own in line["matrices"].items():
            rows.setdefault(own["type"], []).append(own)
            names.setdefault(own["type"], set()).add(name)
    head = "| type | matrices | nr | st | nr / st | passes 1x | passes 2x |"
    return [head, "|---" * 7 + "|", *(_row(kind, len(names[kind]), own) for kind, own in rows.items())]


def _row(kind: str, count: int, samples: Sequence[Mapping[str, Any]]) -> str:
    numbers = {key: [own[key] for own in samples if own[key] is not None] for key in ("nr", "st", "ratio")}
    middle = [f"{statistics.median(found):.3g}" if found else "-" for found in numbers.values()]
    ratios = numbers["ratio"]
    shares = [f"{sum(r >= least for r in ratios) / len(ratios):.0%}" if ratios else "-" for least in (1, 2)]
    return f"| {' | '.join([kind, str(count), *middle, *shares])} |"


def _order(lines: Sequence[Line]) -> str:
    """Whether the ratio orders the kinds as ablations of Muon do."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, own in line["matrices"].items():
            if own["ratio"] is not None and _is_of_a_block(own):
                found.setdefault(_family(name), []).append(own["ratio"])
    order = [name for name in (*FAMILIES, MLP) if name in found]
    if len(order) < len(FAMILIES) + 1:
        return "order of q, k < v, o < MLP, as ablations of Muon have it: not all of them were sampled"
    medians = [statistics.median(found[name]) for name in order]
    shown = ", ".join(f"{name} {number:.3g}" for name, number in zip(order, medians, strict=True))
    same = medians == sorted(medians) and len(set(medians)) == len(medians)
    return (
        f"order q, k < v, o < MLP, as ablations of Muon have it (arXiv 2509.26030): "
        f"{'the same here' if same else 'not so here'}: {shown}"
    )


def _family(name: str) -> str:
    role = role_of(name)
    return next((family for family, roles in FAMILIES.items() if role in roles), MLP)


def _is_of_a_block(own: Mapping[str, Any]) -> bool:
    """Whether it is neither the head nor an embedding, of tokens or of positions."""
    return own["type"] not in (EMBED, OUTPUT) and own.get("st_method") != COUNTS


def _suggested(lines: Sequence[Line], least: float) -> list[str]:
    """Weights of the blocks all parts of which pass, as patterns that match no other one, else by name."""
    ratios: dict[str, dict[str, list[float]]] = {}  # by weight and part
    for line in lines:
        for name, own in line["matrices"].items():
            if _is_of_a_block(own):
                numbers = ratios.setdefault(own["weight"], {}).setdefault(name, [])
                numbers += [] if own["ratio"] is None else [own["ratio"]]
    passing = {
        weight: all(own and statistics.median(own) >= least for own in parts.values())
        for weight, parts in ratios.items()
    }
    others = {own["weight"] for line in lines for own in line["matrices"].values()}
    others -= {weight for weight, passes in passing.items() if passes}
    alike: dict[str, list[str]] = {}
    for weight in passing:
        alike.setdefault(pattern_of(weight), []).append(weight)
    names: list[str] = []
    for pattern, weights in alike.items():
        chosen = [weight for weight in weights if passing[weight]]
        names += chosen if any(fnmatchcase(name, pattern) for name in others) else [pattern]
    return names
