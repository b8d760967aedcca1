"""Small models under a controller, and the decays that they should get."""

from __future__ import annotations

import torch

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.decay import Bounds, assign
from tests.engines.tiny import TUNABLE, Uneven
from tests.spectral.truth import true_alpha

SETTINGS = {"weight_decay": 0.1, "min_ratio": 0.5, "max_ratio": 3.0}


def setup(shapes=TUNABLE, seed=0, interval=3, **options):
    torch.manual_seed(seed)
    model = Uneven(shapes)
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    return model, optimizer, AlphaDecay(model, optimizer, interval=interval, **{**SETTINGS, **options})


def update(model, optimizer, decay, number):
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(number)
    model(torch.randn(2, 172, generator=generator)).backward()
    refresh = decay.step()
    optimizer.step()
    return refresh


def decays_in(optimizer):
    return {group["module"]: group["weight_decay"] for group in optimizer.param_groups}


def expected_decays(model, **settings):
    return mapped({name: true_alpha(p) for name, p in weights(model).items()}, **settings)


def mapped(alphas, **settings):
    chosen = {**SETTINGS, **settings}
    bounds = Bounds(chosen["weight_decay"], chosen["min_ratio"], chosen["max_ratio"])
    found = assign(alphas, bounds, shape="linear", last={})
    return {name: assignment.weight_decay for name, assignment in found.items()}


def weights(model):
    return {name.removesuffix(".weight"): p.detach() for name, p in model.named_parameters()}


def refreshed(model, tuned=None, **options):
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1, modules=tuned), lr=0.1)
    refresh = AlphaDecay(model, optimizer, **{**SETTINGS, **options}).refresh()
    return refresh.modules, decays_in(optimizer)
