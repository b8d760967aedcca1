"""What one sample of the condition says, and its line in condition.jsonl."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from alphadecay_dist.condition.matrices import Part, rank_of
from alphadecay_dist.condition.stable_ranks import StableRank
from alphadecay_dist.spectral.condition import GradientSpectrum
from alphadecay_dist.spectral.report import OK

CONDITION = "condition.jsonl"  # a line a sample
TIED = "tied"  # the status of an embedding whose weight is the head too: its gradient is of both


@dataclass(frozen=True)
class MatrixCondition:
    """One matrix in one sample; None is undefined, and ``status`` says why.

    Attributes:
        type: ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, ``embed``, ``head`` or another.
        shape: of the whole matrix.
        weight: name of the weight that it is, or is a part of.
        nr: nuclear rank of its gradient.
        nr_over_rank: that over the rank of the shape.
        st: stable rank of the activations that the condition is about: ``st_norm`` where there is one, else
            ``st_in``.
        st_in: of the input that the matrix multiplies.
        st_norm: for an attention's output matrix, of the normalised input of that attention.
        st_method: ``gram`` or ``rows``, both exact; ``counts`` of an embedding.
        n_tokens: tokens that ``st`` is of; it grows with their number.
        ratio: nr / st.
        passes_1: whether the ratio is 1 or more, as the condition asks.
        passes_2: whether it is 2 or more.
        grad_norm: Frobenius norm of the gradient before the update's step.
        stable_rank: of the weight.
        spectral_norm: of the weight.
        alpha: tail exponent of the weight.
        decay: that the update applies to it.
        heads: nuclear rank of each head's gradient, where heads are asked for.
        status: "ok"; "zero_gradient", "non_finite_gradient" or "failed_gradient"; "no_input", "zero_input",
            "non_finite_input" or "failed_input"; "tied".
    """

    type: str
    shape: tuple[int, ...]
    weight: str
    nr: float | None
    nr_over_rank: float | None
    st: float | None
    st_in: float | None
    st_norm: float | None
    st_method: str | None
    n_tokens: int
    ratio: float | None
    passes_1: bool | None
    passes_2: bool | None
    grad_norm: float | None
    stable_rank: float | None
    spectral_norm: float | None
    alpha: float | None
    decay: float | None
    heads: tuple[float | None, ...]
    status: str


@dataclass(frozen=True)
class WeightNumbers:
    """What a sample says of the weight itself."""

    stable_rank: float | None
    spectral_norm: float | None
    alpha: float | None
    decay: float | None


@dataclass(frozen=True)
class ConditionSample:
    """One sample, equal on every rank but for ``seconds``.

    Attributes:
        step: optimizer updates finished before it.
        seconds: wall-clock time that it took this rank before the update's step.
        n_tokens: tokens of the largest input.
        inv_p_max: one over the share of the most frequent token: the stable rank of the model's tokens; None
            for a model without.
        matrices: by name.
    """

    step: int
    seconds: float
    n_tokens: int
    inv_p_max: float | None
    matrices: dict[str, MatrixCondition]

    def as_dict(self) -> dict[str, Any]:
        """The record of a line in condition.jsonl, as docs/spectral_condition.md describes it."""
        return asdict(self)


def matrix_condition(
    part: Part,
    gradient: GradientSpectrum,
    own: StableRank,
    normalised: StableRank | None,
    weight: WeightNumbers,
    *,
    tied: bool = False,
) -> MatrixCondition:
    """One matrix from all that was found of it.

    Args:
        part: the matrix.
        gradient: of its own.
        own: of the input that it multiplies.
        normalised: of its attention's normalised input, where it is an output matrix.
        weight: as it is.
        tied: whether its gradient is that of another matrix too.
    """
    meant = normalised if normalised is not None and normalised.value is not None else own
    rank = gradient.nuclear_rank
    ratio = None if rank is None or meant.value is None or tied else rank / meant.value
    return MatrixCondition(
        type=part.type,
        shape=part.shape,
        weight=part.weight,
        nr=rank,
        nr_over_rank=None if rank is None else rank / rank_of(part.shape),
        st=meant.value,
        st_in=own.value,
        st_norm=None if normalised is None else normalised.value,
        st_method=meant.method,
        n_tokens=meant.tokens,
        ratio=ratio,
        passes_1=None if ratio is None else ratio >= 1,
        passes_2=None if ratio is None else ratio >= 2,
        grad_norm=gradient.norm,
        stable_rank=weight.stable_rank,
        spectral_norm=weight.spectral_norm,
        alpha=weight.alpha,
        decay=weight.decay,
        heads=gradient.blocks,
        status=_status(gradient, meant, tied),
    )


def _status(gradient: GradientSpectrum, meant: StableRank, tied: bool) -> str:
    if gradient.status != OK:
        return f"{gradient.status}_gradient"
    if tied:
        return TIED
    return meant.status if meant.status.endswith("input") or meant.status == OK else f"{meant.status}_input"


def log_condition(folder: str | Path, sample: ConditionSample | None) -> None:
    """Add a sample to ``condition.jsonl`` in a directory; on rank 0 alone.

    Args:
        folder: made where it is not there.
        sample: what ``step()`` returned; None adds nothing.
    """
    if sample is None or (dist.is_initialized() and dist.get_rank() != 0):
        return
    path = Path(folder) / CONDITION
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(sample.as_dict(), allow_nan=False) + "\n")
