"""AlphaDecay for sharded training: a weight decay for every matrix, read from its spectrum.

See :class:`AlphaDecay` and :func:`param_groups`; ``alphadecay_dist.spectral.analyze`` looks at one matrix.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from alphadecay_dist.lazy import lazy_names

__version__ = "0.1.0"  # setup.cfg reads it here

if TYPE_CHECKING:
    from alphadecay_dist import spectral
    from alphadecay_dist.condition.sample import ConditionSample, MatrixCondition, log_condition
    from alphadecay_dist.condition.spectral_condition import SpectralCondition
    from alphadecay_dist.control.attach import attach
    from alphadecay_dist.control.controller import AlphaDecay
    from alphadecay_dist.control.refresh import ModuleRefresh, Refresh, TunedModule, log_refresh
    from alphadecay_dist.errors import UserError
    from alphadecay_dist.optimizers.muon import ShardedMuon
    from alphadecay_dist.params.groups import param_groups
else:
    # Loaded at first use: a module of the package can run before torch is loaded, and need not load it.
    _HOMES = {
        "AlphaDecay": "control.controller",
        "ConditionSample": "condition.sample",
        "MatrixCondition": "condition.sample",
        "ModuleRefresh": "control.refresh",
        "Refresh": "control.refresh",
        "ShardedMuon": "optimizers.muon",
        "SpectralCondition": "condition.spectral_condition",
        "TunedModule": "control.refresh",
        "UserError": "errors",
        "attach": "control.attach",
        "log_condition": "condition.sample",
        "log_refresh": "control.refresh",
        "param_groups": "params.groups",
    }
    _load = lazy_names(__name__, _HOMES)

    @functools.cache
    def _require_torch() -> None:
        """Refuse an old torch before a module fails on it, and warn of a new one once."""
        importlib.import_module(f"{__name__}.engines.versions").require("torch")

    def __getattr__(name: str) -> object:
        if name == "spectral":
            return importlib.import_module(f"{__name__}.spectral")
        if name in _HOMES and name != "UserError":
            _require_torch()
        return _load(name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "AlphaDecay",
    "ConditionSample",
    "MatrixCondition",
    "ModuleRefresh",
    "Refresh",
    "ShardedMuon",
    "SpectralCondition",
    "TunedModule",
    "UserError",
    "attach",
    "log_condition",
    "log_refresh",
    "param_groups",
    "spectral",
]
