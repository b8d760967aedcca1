"""All that is one engine's own: where it keeps weights, param groups and the update boundary, a file each."""

from alphadecay_dist.engines.versions import require

require("torch")
