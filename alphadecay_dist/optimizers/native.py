"""Muon under torch's engines: torch's own for whole weights, ours for those in pieces, or cut by heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from alphadecay_dist.optimizers.division import Division, divided, head_cuts
from alphadecay_dist.optimizers.muon import ShardedMuon
from alphadecay_dist.optimizers.pair import MuonWithAdamW
from alphadecay_dist.optimizers.settings import MuonSettings


def for_whole_weights(
    model: nn.Module, groups: Sequence[dict[str, Any]], settings: MuonSettings
) -> torch.optim.Optimizer:
    """``torch.optim.Muon`` and ``torch.optim.AdamW``; heads go through :class:`ShardedMuon`'s products."""
    division = divided(model, groups, settings)
    if settings.heads:
        return _paired(_sharded(model, division, settings), division, settings)
    return _paired(torch.optim.Muon(division.muon, **_options(settings)), division, settings)


def for_sharded_weights(
    model: nn.Module, groups: Sequence[dict[str, Any]], settings: MuonSettings
) -> torch.optim.Optimizer:
    """:class:`ShardedMuon` and ``torch.optim.AdamW``."""
    division = divided(model, groups, settings)
    return _paired(_sharded(model, division, settings), division, settings)


def _sharded(model: nn.Module, division: Division, settings: MuonSettings) -> ShardedMuon:
    cuts = head_cuts(division.weights, model, settings.heads)
    by_parameter = {own.parameter: cuts[own.name] for own in division.weights if own.name in cuts}
    options = _options(settings)
    return ShardedMuon(division.muon, **options, cuts=by_parameter, memory_budget=settings.memory_budget)


def _paired(muon: torch.optim.Muon, division: Division, settings: MuonSettings) -> MuonWithAdamW:
    adamw = torch.optim.AdamW(
        division.adamw, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=settings.fused
    )
    return MuonWithAdamW(muon, adamw)


def _options(settings: MuonSettings) -> dict[str, Any]:
    return {
        "lr": settings.muon_rate,
        "momentum": settings.momentum,
        "nesterov": settings.nesterov,
        "ns_steps": settings.ns_steps,
        "adjust_lr_fn": settings.adjust_lr,
    }
