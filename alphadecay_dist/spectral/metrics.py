"""Eigenvalues -> what else they say of a matrix."""

from __future__ import annotations

from torch import Tensor


def spectral_norm(eigenvalues: Tensor) -> float:
    """Largest singular value: the square root of the largest of (N,) ascending eigenvalues."""
    return float(eigenvalues[-1].sqrt())


def frobenius_norm(eigenvalues: Tensor) -> float:
    """Square root of the sum of the (N,) eigenvalues."""
    return float(eigenvalues.sum().sqrt())


def stable_rank(eigenvalues: Tensor) -> float:
    """Squared Frobenius over squared spectral norm, between 1 and N, of (N,) ascending eigenvalues."""
    return float((eigenvalues / eigenvalues[-1]).sum())
