"""What goes wrong on one rank alone: every rank hears of it within seconds, or goes on without it."""

from __future__ import annotations

import json
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from alphadecay_dist import AlphaDecay, param_groups
from alphadecay_dist.errors import RunError
from alphadecay_dist.spectral import batch
from tests.controllers import SETTINGS, decays_in, setup
from tests.engines.tiny import TUNABLE, Uneven, engine_of, matrices_of
from tests.multirank import run_ranks

pytestmark = pytest.mark.ranks


def refused(words, build):
    """What building raises, and that it is soon."""
    begin = time.monotonic()
    with pytest.raises(ValueError, match=words) as found:
        build()
    assert time.monotonic() - begin < 10
    return str(found.value).removeprefix("rank 1: ")


def check_refusals():
    odd = dist.get_rank() == 1
    texts = [
        refused("interval 3.*interval 4", lambda: setup(interval=4 if odd else 3)),
        refused("lacks|interval: found 0", lambda: setup(interval=0 if odd else 3)),
        refused("metric alpha.*metric log_norm", lambda: setup(metric="log_norm" if odd else "alpha")),
        refused("layers.0.up: shape", lambda: setup(shapes=TUNABLE[::-1] if odd else TUNABLE)),
    ]
    model = Uneven(TUNABLE)
    if odd:
        model.layers[0].bfloat16()
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=0.1), lr=0.1)
    texts.append(refused("expected one; name", lambda: AlphaDecay(model, optimizer, **SETTINGS)))

    _, _, decay = setup()
    state = decay.state_dict()
    loaded = json.loads(state["alphadecay"])
    other = {"alphadecay": json.dumps(loaded | {"step": 7})} if odd else state
    texts.append(refused('different ones: .*\'"step": 0.*\'"step": 7', lambda: decay.load_state_dict(other)))
    texts.append(refused("has no 'alphadecay'", lambda: decay.load_state_dict({} if odd else state)))
    decay.load_state_dict(state)

    engine, model, optimizer = engine_of(3, TUNABLE)
    if odd:
        matrices_of(model)[2].parameter.ds_shape = torch.Size((1, 1))
    engine_options = {**SETTINGS, "engine": engine}
    texts.append(refused("DeepSpeed holds shape", lambda: AlphaDecay(model, optimizer, **engine_options)))
    return texts


def test_what_is_wrong_on_one_rank_is_refused_on_all_with_one_text():
    first, *others = run_ranks(check_refusals, 3)
    assert others == [first] * 2


def check_masters():
    """At ZeRO-2 rank 1 alone has no masters to tell of: the numbers gathered would differ in length."""
    engine, model, optimizer = engine_of(2, TUNABLE, torch.bfloat16)
    if dist.get_rank() == 1:
        for matrix in matrices_of(model):
            matrix.parameter.data = matrix.parameter.data.float()
    options = {**SETTINGS, "engine": engine, "dtype": torch.float32}
    with pytest.raises(RuntimeError, match="rank 0 has 10 numbers to tell, rank 1 0, expected as many"):
        AlphaDecay(model, optimizer, **options)


def test_ranks_with_different_facts_all_raise():
    run_ranks(check_masters, 2)


def check_failures():
    """On rank 1: any error in a spectrum, and in taking the spectra at all, a round a matrix."""
    engine, model, optimizer = engine_of(3, TUNABLE)
    decay = AlphaDecay(model, optimizer, engine=engine, memory_budget=1, **SETTINGS)
    odd = dist.get_rank() == 1
    analyze, eigvalsh, empty = batch.analyze, torch.linalg.eigvalsh, torch.empty
    found = []

    def refreshed():
        refresh = decay.refresh()
        found.append({name: (m.owner, m.status) for name, m in refresh.modules.items()})

    def broken(*args, **options):
        raise ValueError("no such thing")

    def no_memory(*size, **options):
        if size and size[0] in {m * n for m, n in TUNABLE} and options.get("dtype"):
            raise torch.OutOfMemoryError("no memory")
        return empty(*size, **options)

    refreshed()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for where, name, fault in (
            (torch.linalg, "eigvalsh", broken),
            (batch, "analyze", broken),
            (batch, "_stacks", broken),
            (torch, "empty", no_memory),
        ):
            before = getattr(where, name)
            if odd:
                setattr(where, name, fault)
            refreshed()
            setattr(where, name, before)
    refreshed()
    assert (batch.analyze, torch.linalg.eigvalsh, torch.empty) == (analyze, eigvalsh, empty)
    return found


def check_no_memory(budget):
    """On rank 1, for what it sends and receives: for all rounds at once, or with that budget in each."""
    engine, model, optimizer = engine_of(3, TUNABLE)
    decay = AlphaDecay(model, optimizer, engine=engine, memory_budget=budget, **SETTINGS)
    before, empty = decay.refresh(), torch.empty

    def no_memory(*size, **options):
        if options.get("dtype", torch.uint8).is_floating_point:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(*size, **options)

    if dist.get_rank() == 1:
        torch.empty = no_memory
    with pytest.raises(RunError, match=r"^(rank 1: )?no memory for .*give a smaller memory_budget") as found:
        decay.refresh()
    torch.empty = empty
    assert decay.refresh().modules == before.modules
    return str(found.value).removeprefix("rank 1: ")


@pytest.mark.parametrize("budget", [None, 1])
def test_one_rank_without_memory_is_heard_of_on_all(budget):
    first, *others = run_ranks(check_no_memory, 3, budget, timeout=60)
    assert others == [first] * 2


def test_whatever_fails_on_one_rank_marks_its_modules_and_hangs_nobody():
    found = run_ranks(check_failures, 3)
    assert found == [found[0]] * 3
    healthy, *broken, again = found[0]
    assert healthy == again
    assert {status for _, status in healthy.values()} == {"assigned"}
    for modules in broken:
        for owner, status in modules.values():
            assert status == ("failed" if owner == 1 else "assigned")
    assert len(broken) == 4


def check_failing_rank():
    """Rank 1 has no memory for any spectrum: its modules keep their decays, the others get theirs."""
    _, optimizer, decay = setup()
    if dist.get_rank() == 1:

        def full(gram, **options):
            raise RuntimeError("can't allocate memory")

        torch.linalg.eigvalsh = full
    refresh = decay.refresh()
    return [(n, m.owner, m.status, m.weight_decay) for n, m in refresh.modules.items()], decays_in(optimizer)


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:analysis of a")
def test_a_rank_that_fails_in_its_spectra_takes_part_and_its_modules_are_marked():
    found = run_ranks(check_failing_rank, 3)
    assert found[1:] == found[:-1]
    modules, decays = found[0]
    for name, owner, status, weight_decay in modules:
        assert status == ("failed" if owner == 1 else "assigned")
        assert decays[name] == weight_decay
        assert (weight_decay == 0.1) or owner != 1
    assert {owner for _, owner, _, _ in modules} == {0, 1, 2}
