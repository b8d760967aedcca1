"""Jobs to be planned, and the machine that they are planned for."""

from __future__ import annotations

from alphadecay_dist.commands.forecast import Job, Machine
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.spectral import Rates

HERE = Machine(Rates(1e11, 2e10), "cpu", bandwidth=1e9, update_seconds=0.5)


def job_for(model, **options):
    return Job(model, tuned_weights(model), **options)
