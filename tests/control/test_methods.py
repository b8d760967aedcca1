"""Every policy on every engine: 20 updates with a resume in between equal its plain rendering."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.decay.policies import MATRIX_RATE, POLICIES
from tests.control.rendering import (
    ACCUMULATION,
    BASE,
    CLIP,
    HIGH,
    INTERVAL,
    LOW,
    NAMES,
    PEAK,
    REST,
    SHAPES,
    TUNED,
    UPDATES,
    Rendering,
    batch,
    learning_rate,
    rendered,
)
from tests.engines.fsdp1 import wrapped
from tests.engines.tiny import Pairs, backward, engine_of, filled, matrices_of
from tests.multirank import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.launcher,
    pytest.mark.filterwarnings("ignore:.*FSDP.*"),
]

OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
ENGINES = {  # name: ranks, stage of ZeRO, its options
    "plain": (1, None, {}),
    "ddp": (2, None, {}),
    "fsdp1": (2, None, {}),
    "fsdp2": (3, None, {}),
    "hsdp": (4, None, {}),
    "zero0": (2, 0, {}),
    "zero1": (3, 1, {}),
    "zero2": (2, 2, {}),
    "zero3": (3, 3, {}),
    "offload2": (2, 2, OFFLOAD),
    "offload3": (2, 3, {**OFFLOAD, "offload_param": {"device": "cpu"}, "sub_group_size": 5000}),
}
OPTIONS = {
    "awd": {"factor": 0.5},
    "shuffled": {"seed": 3},
    "static": {"factors": "layers.2.*=1.5,up=0.7,down=2"},
    "awd, cautious": {"factor": 0.5, "cautious": True},
    "llr, cautious": {"cautious": True},
    "adadecay_original, cautious": {"cautious": True},
}
SPECTRA = ("alphadecay", "shuffled", "uniform_matched", "llr")
METHODS = [name for name in POLICIES if name != "monitor"] + [name for name in OPTIONS if "," in name]
MATRIX_POLICIES = [n for n, row in POLICIES.items() if row.moves in ("matrix_decay", "every_decay")]


class Training:
    """A small model in training under an engine, with accumulation and clipping."""

    def __init__(self, engine, policy, apply):
        self.name, (_, stage, options) = engine, ENGINES[engine]
        self._engine = None
        groups = functools.partial(
            param_groups,
            weight_decay=BASE,
            apply=apply,
            matrices_apart=POLICIES[policy].moves == MATRIX_RATE,
        )
        if stage is not None:
            self._engine, self.model, self.optimizer = engine_of(
                stage, SHAPES, accumulation=ACCUMULATION, groups=groups, clip=CLIP, build=Pairs, **options
            )
            return
        self.model, _ = filled(SHAPES, Pairs)
        self.model = self._wrapped()
        self.optimizer = torch.optim.AdamW(groups(self.model), lr=PEAK)

    def _wrapped(self):
        if self.name == "ddp":
            return DistributedDataParallel(self.model)
        if self.name == "fsdp1":
            return wrapped(self.model)
        if self.name in ("fsdp2", "hsdp"):
            size = dist.get_world_size()
            shape = (size,) if self.name == "fsdp2" else (2, size // 2)
            mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=("r", "s")[2 - len(shape) :])
            for block in self.model.layers:
                for linear in block.values():
                    fully_shard(linear, mesh=mesh)
            return fully_shard(self.model, mesh=mesh)
        return self.model

    def controller(self, policy, **options):
        return AlphaDecay(
            self.model,
            self.optimizer,
            engine=self._engine,
            policy=policy,
            weight_decay=BASE,
            interval=INTERVAL,
            min_ratio=LOW,
            max_ratio=HIGH,
            **options,
        )

    def groups(self):
        return (self._engine.optimizer if self._engine else self.optimizer).param_groups

    def update(self, number, decay):
        for group in self.groups():
            group["lr"] = learning_rate(number)
        for micro in range(ACCUMULATION):
            self._micro_batch(ACCUMULATION * number + micro, last=micro == ACCUMULATION - 1, decay=decay)

    def _micro_batch(self, number, *, last, decay):
        if self._engine:
            backward(self._engine, number)
            decay.step()
            self._engine.step()
            return
        rank = dist.get_rank() if dist.is_initialized() else 0
        (self.model(batch(number, rank)) / ACCUMULATION).backward()
        if last:
            self._clip()
            decay.step()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def _clip(self):
        if self.name == "fsdp1":
            self.model.clip_grad_norm_(CLIP)
        else:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)

    def weights(self):
        if self.name == "fsdp1":
            with FullyShardedDataParallel.summon_full_params(self.model):
                return {m.name: m.parameter.detach().clone() for m in matrices_of(self.model)}
        return {m.name: _whole(m.parameter).reshape(m.shape) for m in matrices_of(self.model)}


def _whole(parameter):
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().clone()  # on one rank it is the weight itself
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        return safe_get_full_fp32_param(parameter).detach().flatten().clone()
    return parameter.detach().clone()


def trained(engine, method, apply, lag):
    """The decays of each update by name, the weights at the end, and what spectra were read from.

    For spectra the weights before each refresh are kept too, and the ratios of learning rates after it.
    """
    policy, options = method.partition(",")[0], {**OPTIONS.get(method, {}), "lag": lag, "apply": apply}
    training = Training(engine, policy, apply)
    decay, decays, seen = training.controller(policy, **options), [], []
    for number in range(UPDATES):
        if number == UPDATES // 2 + 1:  # a resume, whose optimizer was loaded with other decays
            state = decay.state_dict()
            for group in training.groups():
                group["weight_decay"] = 0.123 if group["weight_decay"] else 0.0
            decay = training.controller(policy, **options)
            decay.load_state_dict(state)
            if POLICIES[policy].moves not in ("every_decay",):
                _restore_untuned(training)
        before = training.weights() if policy in SPECTRA and number % INTERVAL == 0 else {}
        training.update(number, decay)
        decays.append(_decays_of(training, decay))
        seen.append((before, {name: module.lr_ratio for name, module in decay.modules.items()}))
    return decays, training.weights(), seen


def _restore_untuned(training):
    """What is not tuned is the optimizer's own, which a load gives back."""
    for group in training.groups():
        if group["module"].startswith("untuned"):
            group["weight_decay"] = BASE


def _decays_of(training, decay):
    rest = next(float(g["weight_decay"]) for g in training.groups() if g["module"].startswith("untuned"))
    return {name: module.weight_decay for name, module in decay.modules.items()} | {REST: rest}


def layouts(engine, method):
    """One layout an engine and method, and the other with --long; hooks know groups alone."""
    policy = method.partition(",")[0]
    if policy not in MATRIX_POLICIES or POLICIES[policy].cautious or "," in method:
        return ["groups"]
    first = (list(ENGINES).index(engine) + METHODS.index(method)) % 2
    return [("groups", "premultiply")[first], ("groups", "premultiply")[1 - first]]


def check_spectra(method, lag, decays, seen, where):
    """Each decay is the map of the weights that this engine had at its refresh."""
    replay = Rendering(method.partition(",")[0], lag, **OPTIONS.get(method, {}))
    for number, (before, ratios) in enumerate(seen):
        replay.before_step(number, before, {})
        for name in TUNED:
            assert decays[number][name] == pytest.approx(replay.decays[name], rel=1e-6), (where, number, name)
            if ratios[name] is not None:
                assert ratios[name] == pytest.approx(replay.target[name], rel=1e-6), (where, number, name)


CONTROLS = ("none", "uniform", "static", "shuffled", "uniform_matched", "gradient_norm")


def methods_on(engine, ranks, place):
    """All of them; but each engine's own ranks leave out what other engines of its kind show."""
    if (engine, ranks, place) not in CASES:
        return METHODS
    left_out = CONTROLS if engine in ("hsdp", "offload2") else ()
    pairs = engine in ("plain", "fsdp2", "zero2")
    return [method for method in METHODS if method not in left_out and (pairs or "," not in method)]


def check(engine, methods, place, references):
    """Train by each method in turn, so that they share a start of the ranks."""
    for method in methods:
        apply = layouts(engine, method)[place:][:1]
        if not apply:
            continue
        lag = 2 if method in SPECTRA and engine in ("fsdp2", "zero2") else 0
        decays, weights, seen = trained(engine, method, apply[0], lag)
        expected_decays, expected_weights = references[method]
        where = f"{method} on {engine} with {apply[0]}"
        if method.partition(",")[0] in SPECTRA:
            check_spectra(method, lag, decays, seen, where)
        # Over 20 updates Adam spreads what the last place of a weight differs by.
        rel = 2e-5 if method.partition(",")[0] in SPECTRA else 1e-6
        for number, (found, expected) in enumerate(zip(decays, expected_decays, strict=True)):
            for name in NAMES:
                assert found[name] == pytest.approx(expected[name], rel=rel), (where, number, name)
        for name, weight in expected_weights.items():
            off = weights[name] - weight
            # A coordinate whose update is 0 but for rounding may fall on either side of a cautious decay.
            if "cautious" in method:
                worst, most = off.norm() / weight.norm(), 1e-4
            else:
                worst, most = off.abs().max() / weight.abs().max(), 1e-5
            assert worst < most, (where, name, float(worst))


@functools.lru_cache(maxsize=256)
def reference(method, ranks, lag):
    policy = method.partition(",")[0]
    return rendered(policy, ranks, lag=lag, options=OPTIONS.get(method))


def references_for(engine, ranks):
    lagged = engine in ("fsdp2", "zero2")
    return {m: reference(m, ranks, 2 if lagged and m in SPECTRA else 0) for m in METHODS}


CASES = [(engine, ranks, 0) for engine, (ranks, _, _) in ENGINES.items()]
CASES += [
    pytest.param(engine, ranks, place, marks=pytest.mark.long)
    for engine in ENGINES
    for ranks in ((1,) if engine == "plain" else (2, 4) if engine == "hsdp" else (1, 2, 3))
    for place in (0, 1)
    if (engine, ranks, place) not in CASES
]


@pytest.mark.parametrize(("engine", "ranks", "place"), CASES)
def test_each_method_is_its_formula_on_each_engine(engine, ranks, place):
    methods = methods_on(engine, ranks, place)
    run_ranks(check, ranks, engine, methods, place, references_for(engine, ranks), timeout=600)


def test_each_method_differs_from_uniform():
    """A run in which the method is ignored would fail the test above: by its decays, or by its weights."""
    plain_decays, plain = reference("uniform", 1, 0)
    for method in METHODS:
        decays, weights = reference(method, 1, 0)
        if method == "uniform":
            continue
        moved = max(float((weights[n] - plain[n]).abs().max() / plain[n].abs().max()) for n in TUNED)
        other = max(abs(decays[-1][n] / plain_decays[-1][n] - 1) for n in TUNED)
        assert moved > 1e-4 or other > 1e-2, (method, moved, other)
