"""Every policy rendered plainly: one process, whole fp32 weights, the formulas as the papers have them."""

from __future__ import annotations

import math
import random
import statistics

import torch

from alphadecay_dist.spectral import analyze
from tests.engines.tiny import Pairs, filled, matrices_of

SHAPES = [(64, 172), (64, 68), (172, 64), (68, 64), (50, 96), (5, 3)]  # the last is not tuned
NAMES = [f"layers.{place // 2}.{('up', 'down')[place % 2]}" for place in range(len(SHAPES))]
*TUNED, REST = NAMES
LAYERS = (TUNED[:2], TUNED[2:4], TUNED[4:])
BASE, LOW, HIGH = 0.5, 0.5, 3.0
PEAK = 1e-2  # the learning rate that the optimizer is made with
INTERVAL, UPDATES, ACCUMULATION, CLIP = 5, 20, 2, 0.02
SPREAD = 50


def learning_rate(update: int) -> float:
    """Of an update counted from 0: rising to the peak, then falling."""
    return PEAK * (0.25 + 0.75 * update / 12 if update < 12 else 1.0 - 0.05 * (update - 12))


def batch(number: int, rank: int) -> torch.Tensor:
    """A rank's micro-batch, as ``tests.engines.tiny.backward`` draws it."""
    return torch.randn(1, 172, generator=torch.Generator().manual_seed(100 * number + rank))


def linear(values: dict[str, float], low: float = BASE * LOW, high: float = BASE * HIGH) -> dict[str, float]:
    least, most = min(values.values()), max(values.values())
    return {name: low + (v - least) / (most - least) * (high - low) for name, v in values.items()}


class Rendering:
    """A policy's decays and rates, of weights and gradients by name.

    Attributes:
        decays: by name, of all weights.
        ratios: learning rates over the base one; ``target`` is what they move to.
        theta: what each coordinate's decay is multiplied with.
    """

    def __init__(self, policy: str, lag: int = 0, **options: object) -> None:
        self.policy, self.lag, self.options = policy, lag, options
        self.decays = dict.fromkeys([*TUNED, REST], BASE)
        self.ratios = dict.fromkeys([*TUNED, REST], 1.0)
        self.theta: dict[str, torch.Tensor] = {}
        self.cautious = policy == "cautious" or bool(options.get("cautious"))
        self._bar = 0.0
        self._waiting: tuple[int, dict[str, float]] | None = None
        self.target = dict(self.ratios)
        self._from, self._at = dict(self.ratios), 0

    def before_step(self, update: int, weights: dict, gradients: dict) -> None:
        """Act before an update, counted from 0; the gradients are averaged and clipped."""
        act = getattr(self, f"_{self.policy}", None)
        if act is not None:
            act(update, weights, gradients)

    def _none(self, update, weights, gradients):
        self.decays = dict.fromkeys(self.decays, 0.0)

    def _alphas(self, update, weights):
        """Of the weights ``lag`` updates ago, when it is time to write."""
        due = self._waiting if self._waiting and self._waiting[0] == update else None
        if due is not None:
            self._waiting = None
        if update % INTERVAL == 0:
            now = {name: analyze(weights[name]).alpha for name in TUNED}
            if not self.lag:
                return now
            self._waiting = (update + self.lag, now)
        return due and due[1]

    def _alphadecay(self, update, weights, gradients):
        alphas = self._alphas(update, weights)
        if alphas:
            self.decays |= linear(alphas)

    def _shuffled(self, update, weights, gradients):
        alphas = self._alphas(update, weights)
        if alphas:
            decays = linear(alphas)
            others = random.Random(self.options["seed"]).sample(sorted(TUNED), len(TUNED))
            self.decays |= {name: decays[other] for name, other in zip(sorted(TUNED), others, strict=True)}

    def _uniform_matched(self, update, weights, gradients):
        alphas = self._alphas(update, weights)
        if alphas:
            decays, sizes = (
                linear(alphas),
                {n: shape[0] * shape[1] for n, shape in zip(TUNED, SHAPES, strict=False)},
            )
            total = sum(sizes[name] * decays[name] for name in TUNED)
            self.decays |= dict.fromkeys(TUNED, total / sum(sizes.values()))

    def _llr(self, update, weights, gradients):
        alphas = self._alphas(update, weights)
        if alphas:
            self._from, self._at = dict(self.ratios), update
            self.target = linear(alphas, LOW, HIGH)
        share = min(1.0, (update - self._at + 1) / SPREAD)
        reached = {n: self._from[n] + share * (self.target[n] - self._from[n]) for n in TUNED}
        most = max(self.target[n] for n in TUNED)  # the embedding is given the largest alpha
        self.ratios = reached | {REST: self._from[REST] + share * (most - self._from[REST])}

    def _awd(self, update, weights, gradients):
        norm = math.sqrt(sum(g.double().square().sum() for g in gradients.values()))
        of_weights = math.sqrt(sum(w.double().square().sum() for w in weights.values()))
        current = norm * BASE * self.options["factor"] / (of_weights + 1e-8)
        self._bar = 0.1 * self._bar + 0.9 * current
        self.decays = dict.fromkeys(self.decays, self._bar)

    def _norms(self, update, gradients):
        if update == 0:
            return dict.fromkeys(TUNED, 10.0)
        return {name: float(gradients[name].double().norm()) for name in TUNED}

    def _adadecay(self, update, weights, gradients):
        if update % INTERVAL == 0:
            norms = self._norms(update, gradients)
            for layer in LAYERS:
                own = [norms[name] for name in layer]
                mean, deviation = statistics.fmean(own), statistics.pstdev(own)
                for name in layer:
                    z = (norms[name] - mean) / (deviation + 1e-8)
                    self.decays[name] = BASE * 2 / (1 + math.exp(-4 * z))

    def _gradient_norm(self, update, weights, gradients):
        if update % INTERVAL == 0 and update > 0:
            self.decays |= linear(self._norms(update, gradients))

    def _adadecay_original(self, update, weights, gradients):
        for name in TUNED:
            size = gradients[name].double().abs()
            z = (size - size.mean()) / (size.std(unbiased=False) + 1e-8)
            self.theta[name] = 2 / (1 + torch.exp(-4 * z))

    def _static(self, update, weights, gradients):
        self.decays |= {name: (0.7 if name.endswith("up") else 2) * BASE for name in TUNED}
        self.decays[TUNED[4]] = 1.5 * BASE

    def _adamc(self, update, weights, gradients):
        self.decays |= dict.fromkeys(TUNED, BASE * learning_rate(update) / PEAK)


def rendered(
    policy: str, ranks: int, *, lag: int = 0, updates: int = UPDATES, options: dict | None = None
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Train in one process on what so many ranks would see.

    Returns:
        The decays of each update by name, and the weights at the end.
    """
    model, _ = filled(SHAPES, Pairs)
    rendering = Rendering(policy, lag, **(options or {}))
    weights = {matrix.name: matrix.parameter for matrix in matrices_of(model)}
    groups = [{"params": [weight], "weight_decay": 0.0, "name": name} for name, weight in weights.items()]
    optimizer = torch.optim.AdamW(groups, lr=PEAK)
    decays = []
    for update in range(updates):
        gradients = _gradients(model, update, ranks)
        with torch.no_grad():
            rendering.before_step(update, {n: w.detach() for n, w in weights.items()}, gradients)
            _step(optimizer, weights, gradients, rendering, learning_rate(update))
        decays.append(dict(rendering.decays))
    return decays, {name: weight.detach() for name, weight in weights.items()}


def _gradients(model: Pairs, update: int, ranks: int) -> dict[str, torch.Tensor]:
    """Averaged over ranks and micro-batches, and clipped."""
    model.zero_grad()
    for micro in range(ACCUMULATION):
        for rank in range(ranks):
            (model(batch(ACCUMULATION * update + micro, rank)) / (ACCUMULATION * ranks)).backward()
    norm = math.sqrt(sum(p.grad.double().square().sum() for p in model.parameters()))
    scale = min(1.0, CLIP / (norm + 1e-6))
    return {matrix.name: matrix.parameter.grad * scale for matrix in matrices_of(model)}


def _step(optimizer, weights, gradients, rendering, rate) -> None:
    """AdamW with the rendering's decays and rates."""
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    strength = {}
    for group in optimizer.param_groups:
        name = group["name"]
        group["lr"] = rate * rendering.ratios[name]
        theta = rendering.theta.get(name, torch.ones(()))
        strength[name] = group["lr"] * rendering.decays[name] * theta.float()
        weights[name].grad = gradients[name]
        if not rendering.cautious:
            weights[name].mul_(1 - strength[name])
    optimizer.step()
    if rendering.cautious:
        for name, old in before.items():
            agrees = (old - weights[name]) * old >= 0
            weights[name].sub_(strength[name] * old * agrees)
