"""All that is one engine's own: where it keeps weights, param groups and the update boundary, a file each."""

from alphadecay_dist.engines.versions import require

require("torch")

# isort: split

from alphadecay_dist.engines.host import Host, host_for  # noqa: E402  (after the check)

__all__ = ["Host", "host_for"]
