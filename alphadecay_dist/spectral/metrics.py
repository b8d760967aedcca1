"""Eigenvalues -> other metrics of the matrix.

Every function takes (..., N) ascending fp64 eigenvalues, the largest positive, and returns (...) numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spectral_norm(eigenvalues: Tensor) -> Tensor:
    """Largest singular value: the square root of the largest eigenvalue."""
    return eigenvalues[..., -1].sqrt()


def frobenius_norm(eigenvalues: Tensor) -> Tensor:
    """Square root of the sum of the eigenvalues."""
    return eigenvalues.sum(-1).sqrt()


def stable_rank(eigenvalues: Tensor) -> Tensor:
    """Squared Frobenius over squared spectral norm, between 1 and N."""
    return (eigenvalues / eigenvalues[..., -1:]).sum(-1)


def matrix_entropy(eigenvalues: Tensor) -> Tensor:
    """Entropy of the eigenvalues as shares of their sum, over ln N: 1 if all are equal, 0 at rank one."""
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1) / math.log(eigenvalues.shape[-1])


def alpha_hat(alpha: Tensor, eigenvalues: Tensor) -> Tensor:
    """softplus(alpha log10 lambda_max), the weighted alpha in the form of the released code.

    Args:
        alpha: (...) tail exponents.
        eigenvalues: (..., N) ascending.
    """
    weighted = alpha * eigenvalues[..., -1].log10()
    return weighted.clamp_min(0) + torch.log1p(torch.exp(-weighted.abs()))


def nuclear_to_frobenius(eigenvalues: Tensor) -> Tensor:
    """Squared nuclear over squared Frobenius norm, between 1 and N (arXiv 2512.04299)."""
    singular = (eigenvalues / eigenvalues[..., -1:]).sqrt()
    return singular.sum(-1).square() / singular.square().sum(-1)


def log_norm(eigenvalues: Tensor) -> Tensor:
    """log10 of the squared Frobenius norm, the sum of the eigenvalues."""
    return eigenvalues.sum(-1).log10()
