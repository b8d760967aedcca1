"""All that is one engine's own: where it keeps weights, param groups and the update boundary, a file each.

Nothing but the version of torch is looked at here, so that ``engines.registry`` costs no import of torch.
"""

from alphadecay_dist.engines.versions import require

require("torch")
