"""A refresh beside training is the plain one, written later, whatever the timing."""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from alphadecay_dist import UserError
from alphadecay_dist.spectral import esd
from tests.controllers import decays_in, setup, update, weights
from tests.multirank import run_ranks

LAG, INTERVAL = 4, 7

pytestmark = pytest.mark.usefixtures("one_thread")


class Gate:
    """Holds every Gram matrix of the thread beside training until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.open, gram = threading.Event(), threading.Event(), esd._gram

        def held(columns):
            self.reached.set()
            assert self.open.wait(60)
            return gram(columns)

        monkeypatch.setattr(esd, "_gram", held)


@pytest.fixture
def gate(monkeypatch):
    held = Gate(monkeypatch)
    yield held
    held.open.set()


def lagged(**options):
    return setup(**{"interval": INTERVAL, "lag": LAG, **options})


def beside_training():
    return [thread for thread in threading.enumerate() if thread.name.startswith("alphadecay")]


def trained(model, optimizer, decay, numbers):
    """Refreshes by the update before which they were written, and the decays of each update."""
    found = {number: (update(model, optimizer, decay, number), decays_in(optimizer)) for number in numbers}
    return {number: refresh for number, (refresh, _) in found.items() if refresh}, [
        d for _, d in found.values()
    ]


def test_what_is_written_is_what_was_found_before_and_training_goes_on_meanwhile(gate):
    model, optimizer, decay = lagged()
    for number in range(LAG):
        assert update(model, optimizer, decay, number) is None  # while no spectrum can be finished
    assert gate.reached.wait(60)
    assert set(decays_in(optimizer).values()) == {0.1}
    gate.open.set()
    refresh = update(model, optimizer, decay, LAG)
    assert (refresh.step, refresh.written_at) == (0, LAG)
    _, plain_optimizer, plain = setup()
    expected = plain.refresh()
    assert (expected.step, expected.written_at) == (0, 0)
    assert refresh.modules == expected.modules
    assert decays_in(optimizer) == decays_in(plain_optimizer)
    assert not beside_training()


def test_refreshes_come_every_interval_and_are_written_after_the_lag():
    refreshes, _ = trained(*lagged(), range(30))
    assert {number: (r.step, r.written_at) for number, r in refreshes.items()} == {
        4: (0, 4),
        11: (7, 11),
        18: (14, 18),
        25: (21, 25),
    }


def test_the_longest_lag_is_written_where_the_next_refresh_begins():
    refreshes, _ = trained(*lagged(interval=3, lag=2, preset="reference"), range(9))
    assert {number: r.step for number, r in refreshes.items()} == {2: 0, 4: 2, 7: 5}


def test_training_computes_with_its_own_threads_and_precision_meanwhile(gate):
    torch.set_num_threads(3)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 700, 700, generator=generator)
    product, spectrum = left @ right, torch.linalg.eigvalsh(left @ left.T)
    model, optimizer, decay = lagged()
    precisions = esd.matmul_precisions()
    update(model, optimizer, decay, 0)
    assert gate.reached.wait(60)  # the thread is in the middle of a spectrum
    threads = []
    new = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert [torch.get_num_threads(), *threads] == [3, 3]
    assert esd.matmul_precisions() == precisions
    gate.open.set()
    while beside_training():
        assert torch.equal(left @ right, product)
        assert torch.equal(torch.linalg.eigvalsh(left @ left.T), spectrum)
    assert torch.get_num_threads() == 3
    assert esd.matmul_precisions() == precisions


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_is_refused_with_a_lag_alone(precision):
    _, _, started = lagged()
    torch.set_float32_matmul_precision(precision)
    try:
        words = r"lag: found torch\.backends\.mkldnn\.matmul\.fp32_precision '\w+', expected 'ieee'.*lag 0"
        with pytest.raises(UserError, match=words):
            lagged()
        with pytest.raises(UserError, match=words):
            started.step()
        _, _, plain = setup()
        assert plain.step().step == 0
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lag": 7}, "lag: found 7 with interval 7, expected 0 <= lag < interval"),
        ({"lag": -1}, "lag: found -1"),
        ({"lag": 1.5}, r"lag: found 1\.5"),
        ({"device": "gpu"}, "device: found 'gpu', expected one of auto, cuda, cpu"),
    ],
)
def test_a_wrong_lag_or_device_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        lagged(**options)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device: found 'cuda', but torch sees no GPU here"):
        lagged(device="cuda")


@pytest.mark.parametrize("lag", [0, LAG])
def test_a_named_device_finds_the_same_on_the_same_device(lag):
    runs = [trained(*lagged(lag=lag, device=device), range(9)) for device in ("auto", "cpu")]
    assert runs[0][1] == runs[1][1]
    assert [r.modules for r in runs[0][0].values()] == [r.modules for r in runs[1][0].values()]


def test_a_refresh_by_hand_is_immediate_and_drops_the_pending_one(gate):
    model, optimizer, decay = lagged()
    for number in range(2):
        update(model, optimizer, decay, number)
    gate.open.set()
    refresh = decay.refresh()
    assert (refresh.step, refresh.written_at) == (2, 2)
    assert not beside_training()
    by_hand = decays_in(optimizer)
    later, decays = trained(model, optimizer, decay, range(2, INTERVAL + LAG + 1))
    assert {number: r.step for number, r in later.items()} == {INTERVAL + LAG: INTERVAL}
    assert decays[LAG - 2] == by_hand


def test_what_goes_wrong_in_the_thread_is_a_status_when_it_would_be_written(monkeypatch):
    def broken(stack, estimator):
        raise TypeError("no such spectrum")

    monkeypatch.setattr("alphadecay_dist.spectral.batch._analyze_all", broken)
    model, optimizer, decay = lagged()
    for number in range(LAG):
        update(model, optimizer, decay, number)
    with pytest.warns(UserWarning, match="no such spectrum"):
        refresh = decay.step()
    assert {module.status for module in refresh.modules.values()} == {"failed"}
    assert set(decays_in(optimizer).values()) == {0.1}
    monkeypatch.undo()
    assert {module.status for module in decay.refresh().modules.values()} == {"assigned"}


def test_a_controller_that_goes_ends_its_thread(gate):
    model, optimizer, decay = lagged()
    update(model, optimizer, decay, 0)
    assert gate.reached.wait(60)
    gate.open.set()
    del decay
    gc.collect()
    assert not beside_training()


LEAVING = """
import sys, time, torch
from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.spectral import esd
from tests.engines.tiny import Uneven
gram = esd._gram
def slow(columns):
    print("a spectrum", flush=True)
    time.sleep(0.2)
    return gram(columns)
esd._gram = slow
model = Uneven([(257 + n, 300) for n in range(40)])
optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1))
decay = AlphaDecay(model, optimizer, weight_decay=0.1, interval=9, lag=8)
decay.step()
"""


@pytest.mark.launcher
@pytest.mark.parametrize(
    ("last", "code"),
    [pytest.param("", 0, marks=pytest.mark.long), ("sys.exit(3)", 3), ("raise KeyError('mine')", 1)],
)
def test_a_process_ends_with_its_own_exit_code_and_without_finishing_the_spectra(last, code):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LEAVING + last],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout.count("a spectrum") < 40  # of 40
    said = [line for line in done.stderr.splitlines() if not line.startswith("AlphaDecay: ")]
    assert said[-1:] == (["KeyError: 'mine'"] if code == 1 else [])


BREAK = INTERVAL + 2  # two updates after a snapshot, two before it is written


def unbroken(numbers=range(20), **options):
    model, optimizer, decay = lagged(**options)
    return trained(model, optimizer, decay, numbers)[1]


def broken_off(**options):
    """State, weights and optimizer of a run that stopped while a refresh was pending."""
    model, optimizer, decay = lagged(**options)
    trained(model, optimizer, decay, range(BREAK))
    return decay.state_dict(), model.state_dict(), optimizer.state_dict()


def resumed(state, parameters, moments, **options):
    """Decays of the updates that follow, and the refreshes written."""
    model, optimizer, decay = lagged(seed=1, **options)
    model.load_state_dict(parameters)
    optimizer.load_state_dict(copy.deepcopy(moments))  # ranks have them in one shared memory
    decay.load_state_dict(state)
    refreshes, decays = trained(model, optimizer, decay, range(BREAK, 20))
    return decays, {number: (r.step, r.written_at) for number, r in refreshes.items()}


def test_a_state_taken_while_a_refresh_is_pending_goes_on_as_the_unbroken_run():
    state, *rest = broken_off()
    json.loads(state["alphadecay"], parse_constant=pytest.fail)
    decays, refreshes = resumed(state, *rest)
    assert decays == unbroken()[BREAK:]
    assert refreshes == {11: (7, 11), 18: (14, 18)}
    assert len({tuple(d.values()) for d in decays}) == 3  # before the pending one, after it, after the next


@pytest.mark.ranks
def test_a_pending_refresh_is_written_on_another_number_of_ranks():
    expected = unbroken()[BREAK:]
    alone = broken_off()
    for decays, refreshes in run_ranks(resumed, 2, *alone):
        assert decays == expected
        assert list(refreshes) == [11, 18]
    both = run_ranks(broken_off, 3)
    assert both[0][0] == both[1][0] == both[2][0]
    assert resumed(*both[0])[0] == expected


def test_taking_a_state_changes_nothing():
    model, optimizer, decay = lagged()
    decays = []
    for number in range(20):
        update(model, optimizer, decay, number)
        decays.append(decays_in(optimizer))
        assert decay.state_dict() == decay.state_dict()
    assert decays == unbroken()


def test_a_pending_undefined_alpha_is_null_and_keeps_the_decay():
    model, optimizer, decay = lagged()
    torch.nn.init.zeros_(model.layers[2]["up"].weight)
    update(model, optimizer, decay, 0)
    state = decay.state_dict()
    pending = json.loads(state["alphadecay"], parse_constant=pytest.fail)["pending"]
    assert pending["found"]["layers.2.up"] == [None, None, "zero", 0]
    _, fresh, loaded = lagged(seed=1)
    loaded.load_state_dict(state)
    refreshes = [loaded.step() for _ in range(LAG)]
    assert refreshes[: LAG - 1] == [None] * (LAG - 1)
    assert refreshes[-1].modules["layers.2.up"].status == "zero"
    assert decays_in(fresh)["layers.2.up"] == 0.1
    assert len(set(decays_in(fresh).values())) == 5


def test_a_loaded_state_drops_the_refresh_that_was_running(gate):
    _, _, fresh = lagged()
    before = fresh.state_dict()
    model, optimizer, decay = lagged()
    update(model, optimizer, decay, 0)
    assert gate.reached.wait(60)
    gate.open.set()
    decay.load_state_dict(before)
    assert not beside_training()
    assert decay.state_dict() == before
    assert [r and r.step for r in (decay.step() for _ in range(LAG + 1))] == [None] * LAG + [0]


def test_a_state_of_before_there_was_a_lag_is_taken_up():
    _, _, plain = setup(interval=INTERVAL)
    plain.refresh()
    state = json.loads(plain.state_dict()["alphadecay"])
    del state["pending"], state["settings"]["lag"]
    _, optimizer, decay = lagged(seed=1)
    decay.load_state_dict({"alphadecay": json.dumps(state)})
    assert decays_in(optimizer) == {name: m["weight_decay"] for name, m in state["modules"].items()}
    assert decay.step() is None


def test_a_resume_with_another_lag_writes_the_pending_one_at_its_update():
    decays, refreshes = resumed(*broken_off(), lag=0)
    assert refreshes == {11: (7, 11), 14: (14, 14)}
    assert decays[: 14 - BREAK] == unbroken()[BREAK:14]
    assert resumed(*broken_off(), lag=6)[1] == {11: (7, 11)}


def test_a_resume_with_other_bounds_maps_the_pending_alphas_by_them():
    state, *rest = broken_off()
    decays, _ = resumed(state, *rest, weight_decay=0.2, max_ratio=4.0)
    assert max(decays[11 - BREAK].values()) == pytest.approx(0.8)
    assert min(decays[11 - BREAK].values()) == pytest.approx(0.1)


def test_a_resume_that_measures_something_else_drops_the_pending_numbers():
    state, *rest = broken_off()
    decays, refreshes = resumed(state, *rest, metric="stable_rank")
    assert refreshes == {18: (14, 18)}
    assert decays[11 - BREAK] == decays[0]


def test_weights_of_the_snapshot_do_not_follow_training(gate):
    model, optimizer, decay = lagged()
    update(model, optimizer, decay, 0)
    with torch.no_grad():
        for weight in weights(model).values():
            weight.zero_()
    gate.open.set()
    assert {m.status for m in [decay.step() for _ in range(LAG)][-1].modules.values()} == {"assigned"}
