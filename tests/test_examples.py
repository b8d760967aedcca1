"""The examples run as scripts, and train as the package does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alphadecay_dist import AlphaDecay, param_groups

SCRIPT = Path(__file__).parents[1] / "examples" / "alphadecay_simple.py"
UPDATES, INTERVAL, BASE_DECAY = 22, 10, 0.1  # three refreshes, and updates after the last


@pytest.fixture(scope="module")
def simple():
    spec = importlib.util.spec_from_file_location("alphadecay_simple", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def begin(simple, dtype):
    """A model with initial weights that are the same in every call, and its batches."""
    torch.manual_seed(0)
    model = simple.Net().to(dtype)
    return model, [(x.to(dtype), y.to(dtype)) for x, y in simple.random_batches(UPDATES)]


def optimizer_of(params):
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=BASE_DECAY)


def train_with_the_example(simple, dtype):
    model, batches = begin(simple, dtype)
    optimizer = optimizer_of(simple.param_groups(model, BASE_DECAY))
    refreshes = simple.train(model, optimizer, batches, BASE_DECAY, INTERVAL)
    decays = {update: found for update, _, found in refreshes}
    written = {group["module"]: group["weight_decay"] for group in optimizer.param_groups}
    return model.state_dict(), decays, written


def train_with_the_package(simple, dtype):
    model, batches = begin(simple, dtype)
    optimizer = optimizer_of(param_groups(model, weight_decay=BASE_DECAY))
    decay = AlphaDecay(model, optimizer, weight_decay=BASE_DECAY, interval=INTERVAL)
    decays = {}
    for inputs, targets in batches:
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        refresh = decay.step()
        if refresh is not None:
            decays[refresh.step] = {name: own.weight_decay for name, own in refresh.modules.items()}
        optimizer.step()
        optimizer.zero_grad()
    written = {group["module"]: group["weight_decay"] for group in optimizer.param_groups}
    return model.state_dict(), decays, written


def train_with_one_decay(simple, dtype):
    """As the example would if its refreshes changed nothing."""
    model, batches = begin(simple, dtype)
    optimizer = optimizer_of(model.parameters())
    for inputs, targets in batches:
        torch.nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


def distances(weights, others):
    """By name, relative to the other's norm."""
    return {name: float((weights[name] - other).norm() / other.norm()) for name, other in others.items()}


@pytest.mark.parametrize(
    ("dtype", "of_decays", "of_weights"),
    # The package reads fp32 spectra in fp32, the example always in fp64: here alphas are 1e-6 apart,
    # decays 1e-5 and weights 1e-6.
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 5e-5, 5e-6)],
)
def test_the_simple_example_and_the_package_train_alike(simple, dtype, of_decays, of_weights):
    weights, decays, written = train_with_the_example(simple, dtype)
    expected_weights, expected_decays, expected_written = train_with_the_package(simple, dtype)
    assert list(decays) == list(expected_decays) == [0, INTERVAL, 2 * INTERVAL]
    for update, found in decays.items():
        assert found == pytest.approx(expected_decays[update], rel=of_decays), update
        assert max(found.values()) / min(found.values()) == pytest.approx(7.5)
    assert written == pytest.approx(expected_written, rel=of_decays)
    assert {name: found for name, found in written.items() if name != "untuned"} == decays[2 * INTERVAL]
    assert max(distances(weights, expected_weights).values()) <= of_weights
    without = distances(weights, train_with_one_decay(simple, dtype))
    assert min(moved for name, moved in without.items() if name.startswith("blocks.")) > 1e-3


@pytest.mark.launcher
def test_the_simple_example_runs_without_the_package():
    code = (
        f"import runpy, sys; runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
        "assert not any(name.startswith('alphadecay_dist') for name in sys.modules)"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "20", "40", "60", "80", "100"]
    losses = [float(line.split()[3]) for line in lines]
    assert losses[-1] < losses[0] / 2
