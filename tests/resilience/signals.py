"""The trainer, signalled at a place in its code."""

from __future__ import annotations

import os
import time

import train
from alphadecay_dist.checkpoint import writer
from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.engines.native.training import TorchTraining
from alphadecay_dist.engines.zero.training import ZeroTraining


def signalled(argv, place, call, signals, rank="1"):
    """Train; one rank signals itself when it comes to a place for the n-th time."""
    owners = {"refresh": [AlphaDecay], "write_shard": [writer]}.get(place, [ZeroTraining, TorchTraining])
    for owner in owners:
        before(owner, place, call, lambda: _signal(signals if os.environ["RANK"] == rank else ()))
    return train.main(argv)


def _signal(signals):
    for number in signals:
        os.kill(os.getpid(), number)
    time.sleep(0.5 if signals else 0)  # the thread that hears them has its turn


def before(owner, place, call, act):
    """Act before the n-th call of a method."""
    original, calls = getattr(owner, place), 0

    def wrapped(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            act()
        return original(self, *args, **kwargs)

    setattr(owner, place, wrapped)
