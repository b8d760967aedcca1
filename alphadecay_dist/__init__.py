"""AlphaDecay for sharded training: a weight decay for every matrix, read from its spectrum.

See :class:`AlphaDecay` and :func:`param_groups`; ``alphadecay_dist.spectral.analyze`` looks at one matrix.
"""

from alphadecay_dist.controller import AlphaDecay
from alphadecay_dist.errors import UserError
from alphadecay_dist.refresh import ModuleRefresh, Refresh
from alphadecay_dist.sharding.groups import param_groups

__version__ = "0.1.0"  # setup.cfg reads it here

__all__ = ["AlphaDecay", "ModuleRefresh", "Refresh", "UserError", "param_groups"]
