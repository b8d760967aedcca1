"""Eigenvalues -> what else they say of a matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def spectral_norm(eigenvalues: Tensor) -> float:
    """Largest singular value: the square root of the largest of (N,) ascending eigenvalues."""
    return float(eigenvalues[-1].sqrt())


def frobenius_norm(eigenvalues: Tensor) -> float:
    """Square root of the sum of the (N,) eigenvalues."""
    return float(eigenvalues.sum().sqrt())


def stable_rank(eigenvalues: Tensor) -> float:
    """Squared Frobenius over squared spectral norm, between 1 and N, of (N,) ascending eigenvalues."""
    return float((eigenvalues / eigenvalues[-1]).sum())


def matrix_entropy(eigenvalues: Tensor) -> float:
    """Entropy of the eigenvalues as shares of their sum, over ln N: 1 where all are equal, 0 at rank one."""
    shares = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(shares).sum()) / math.log(eigenvalues.numel())


def alpha_hat(alpha: float, eigenvalues: Tensor) -> float:
    """softplus(alpha log10 lambda_max), the weighted alpha in the form of the released code.

    Args:
        alpha: tail exponent.
        eigenvalues: (N,) ascending.
    """
    return float(functional.softplus(alpha * eigenvalues[-1].log10()))


def nuclear_to_frobenius(eigenvalues: Tensor) -> float:
    """Squared nuclear over squared Frobenius norm, between 1 and N (arXiv 2512.04299)."""
    singular = (eigenvalues / eigenvalues[-1]).sqrt()
    return float(singular.sum().square() / singular.square().sum())


def log_norm(eigenvalues: Tensor) -> float:
    """log10 of the squared Frobenius norm, the sum of the (N,) eigenvalues."""
    return float(eigenvalues.sum().log10())
