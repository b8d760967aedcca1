"""The reference preset against the released algorithm, written anew from its description in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from alphadecay_dist import AlphaDecay, UserError, param_groups
from tests.spectral.truth import heavy

BASE, LOW, HIGH = 0.1, 2 / 3, 5.0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(60, 180)
        self.proj = nn.Linear(60, 60)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.fc1 = nn.Linear(60, 120)
        self.conv1 = nn.Conv2d(20, 24, 3)
        self.bn1 = nn.BatchNorm2d(24)


class Model(nn.Module):
    """Blocks as a ViT has them, biases and all, a convolution with its norm, and a head."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 60, 16)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(60, 70)


@pytest.fixture
def model():
    found = Model()
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            if parameter.ndim > 1:
                # Both sides of 1: fix-finger's released bound compares a logarithm with an eigenvalue.
                scale = (0.03, 1.0, 20.0)[number % 3]
                parameter.copy_(
                    scale * heavy(parameter.shape[0], parameter[0].numel(), number).view_as(parameter)
                )
    return nn.ModuleDict({"model": found})


def spectrum_of(weight):
    """Ascending eigenvalues; a convolution's of all positions, each times the square root of 0.5."""
    weight = weight.detach().double().numpy()
    if weight.ndim == 4:
        matrices = weight.reshape(*weight.shape[:2], -1).transpose(2, 0, 1) * math.sqrt(0.5)
    else:
        matrices = weight[None]
    return np.sort(np.concatenate([np.linalg.svd(m, compute_uv=False) ** 2 for m in matrices]))


def tail_of(values, start):
    """Alpha and KS distance of the tail that begins at an index."""
    tail = values[start:]
    alpha = 1 + len(tail) / (np.log(tail).sum() - len(tail) * np.log(tail[0]))
    return alpha, np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()


def alpha_of(values, fit):
    if fit == "hill":
        return tail_of(values, len(values) // 2)[0]
    starts = range(len(values) - 1)
    if fit == "fix_finger":
        counts, edges = np.histogram(np.log10(values), 100)
        peak = 10 ** edges[counts.argmax()]
        starts = [i for i in starts if np.log10(0.95 * peak) <= values[i] <= 1.5 * peak]
    return min((tail_of(values, start) for start in starts), key=lambda tail: tail[1])[0]


def metric_of(values, metric, fit):
    alpha = alpha_of(values, fit)
    return {
        "alpha": alpha,
        "alpha_hat": math.log1p(math.exp(alpha * math.log10(values[-1]))),
        "stable_rank": values.sum() / values[-1],
        "spectral_norm": values[-1],
        "frobenius_norm": values.sum(),
    }[metric]


def mapped(scores, names, shape):
    scores = np.array(scores)
    if shape == "linear":
        return np.interp(scores, [scores.min(), scores.max()], [LOW * BASE, HIGH * BASE])
    if shape == "sigmoid":
        layers = np.array([name.split(".")[2] for name in names])
        decays = np.zeros_like(scores)
        for layer in set(layers):
            own = scores[layers == layer]
            decays[layers == layer] = 2 / (1 + np.exp(-4 * (own - own.mean()) / own.std())) * BASE
        return decays
    values = {"sqrt": np.sqrt, "log2": np.log2}[shape](scores)
    return values / values.sum() * len(values) * BASE


def released(model, metric="alpha", fit="hill", shape="linear"):
    """Decays by module: neither the first nor the last Linear or Conv2d, and none of under 50 eigenvalues."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    spectra = {name: spectrum_of(modules[name].weight) for name in list(modules)[1:-1]}
    spectra = {name: values for name, values in spectra.items() if len(values) >= 50}
    scores = [metric_of(values, metric, fit) for values in spectra.values()]
    return dict(zip(spectra, mapped(scores, list(spectra), shape), strict=True))


def ours(model, metric="alpha", fit="hill", shape="linear"):
    groups = param_groups(model, weight_decay=BASE, follow=["bias", "batchnorm"])
    optimizer = torch.optim.SGD(groups, lr=0.1)
    decay = AlphaDecay(
        model, optimizer, weight_decay=BASE, metric=metric, fit=fit, assign=shape, preset="reference"
    )
    decay.refresh()
    return optimizer.param_groups


CASES = [
    (metric, "hill", "linear") for metric in ("alpha_hat", "stable_rank", "spectral_norm", "frobenius_norm")
]
CASES += [
    ("alpha", fit, s)
    for fit in ("hill", "goodness_of_fit", "fix_finger")
    for s in ("linear", "sqrt", "log2", "sigmoid")
]


@pytest.mark.parametrize(("metric", "fit", "shape"), CASES)
def test_decays_are_those_of_the_released_algorithm(model, metric, fit, shape):
    expected = released(model, metric, fit, shape)
    found = {group["module"]: group["weight_decay"] for group in ours(model, metric, fit, shape)}
    assert set(found) == {*expected, "untuned"}
    assert found.pop("untuned") == BASE
    assert found == pytest.approx(expected, rel=1e-4)


def test_fix_finger_as_released_is_not_the_corrected_one(model):
    expected = released(model, fit="fix_finger")
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=BASE), lr=0.1)
    modules = AlphaDecay(model, optimizer, weight_decay=BASE, fit="fix_finger").refresh().modules
    assert any(
        modules[name].weight_decay != pytest.approx(decay, rel=0.01) for name, decay in expected.items()
    )


def test_biases_and_batch_norms_share_the_decay_of_their_weight(model):
    expected = released(model)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in ours(model):
        names = {named[id(parameter)] for parameter in group["params"]}
        if group["module"] in expected:
            own = {f"{group['module']}.{kind}" for kind in ("weight", "bias")}
            norm = {name.replace("conv", "bn") for name in own if "conv" in name}
            assert names == own | norm
    plain = param_groups(model, weight_decay=BASE)
    assert all(len(group["params"]) == 1 for group in plain[:-1])
    with pytest.raises(UserError, match=r"follow: found \['norm'\]"):
        param_groups(model, weight_decay=BASE, follow=["norm"])


def test_the_first_and_the_last_keep_the_base_decay_also_where_they_are_named(model):
    groups = param_groups(model, weight_decay=BASE, modules=["*"])
    optimizer = torch.optim.SGD(groups, lr=0.1)
    found = AlphaDecay(model, optimizer, weight_decay=BASE, preset="reference").refresh().modules
    assert set(found) == set(released(model))
    decays = {group["module"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays["model.patch"] == decays["model.head"] == BASE


def test_the_calendar_is_one_update_earlier(model):
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=BASE), lr=0.1)
    decay = AlphaDecay(model, optimizer, weight_decay=BASE, interval=4, preset="reference")
    steps = [refresh.step for refresh in (decay.step() for _ in range(13)) if refresh]
    # Before updates 1 (the start), 4, 8 and 12, counted from 1.
    assert steps == [0, 3, 7, 11]


def test_bounds_are_those_of_the_linear_map_alone(model):
    narrow = {"weight_decay": BASE, "min_ratio": 0.999, "max_ratio": 1.001, "assign": "sqrt"}
    largest = []
    for preset in (None, "reference"):
        optimizer = torch.optim.SGD(param_groups(model, weight_decay=BASE), lr=0.1)
        refresh = AlphaDecay(model, optimizer, **narrow, preset=preset).refresh()
        largest.append(max(module.weight_decay for module in refresh.modules.values()))
    assert largest[0] <= 0.1001 * (1 + 1e-9)
    assert largest[1] > 0.105


@pytest.mark.parametrize("metric", ["spectral_norm", "frobenius_norm"])
@pytest.mark.parametrize("shape", ["linear", "sigmoid"])
def test_the_papers_preset_maps_eigenvalues_of_all_modules_without_bounds(metric, shape):
    blocks = [nn.ModuleDict({name: nn.Linear(60, 120, bias=False) for name in "ab"}) for _ in range(3)]
    model = nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(blocks)})})
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_((0.03, 1.0, 20.0)[number % 3] * heavy(*parameter.shape, number))
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=BASE), lr=0.1)
    rule = {"metric": metric, "assign": shape, "interval": 4, "max_ratio": HIGH if shape == "linear" else 1.1}
    decay = AlphaDecay(model, optimizer, weight_decay=BASE, **rule, preset="paper")
    found = [decay.step() for _ in range(9)]
    assert [refresh.step for refresh in found if refresh] == [0, 4, 8]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    scores = [metric_of(spectrum_of(model.get_submodule(name).weight), metric, "hill") for name in names]
    expected = dict(zip(names, mapped(scores, names, shape), strict=True))
    decays = {name: own.weight_decay for name, own in found[0].modules.items()}
    assert decays == pytest.approx(expected, rel=1e-5)
    assert max(decays.values()) > 1.5 * BASE


def test_what_the_preset_cannot_repeat_is_refused(model):
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=BASE), lr=0.1)
    with pytest.raises(UserError, match=r"matrix_entropy.*reference"):
        AlphaDecay(model, optimizer, weight_decay=BASE, preset="reference", metric="matrix_entropy")
    with pytest.raises(UserError, match="fit: found 'fix_finger_released'"):
        AlphaDecay(model, optimizer, weight_decay=BASE, fit="fix_finger_released")
    single = nn.Sequential(nn.Linear(60, 60))
    optimizer = torch.optim.SGD(param_groups(single, weight_decay=BASE, modules=["*"]), lr=0.1)
    with pytest.raises(UserError, match="no module to tune"):
        AlphaDecay(single, optimizer, weight_decay=BASE, preset="reference")
