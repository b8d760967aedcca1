"""What can be chosen of the optimizer's param groups, by name. Loads no torch."""

BASE, ZERO, ZERO_1D = "base", "zero", "zero_1d"  # the decay of what is not tuned
UNTUNED_DECAYS = (BASE, ZERO, ZERO_1D)
BIAS, BATCHNORM, LAYERNORM = "bias", "batchnorm", "layernorm"  # what may share a tuned weight's group
FOLLOWERS = (BIAS, BATCHNORM, LAYERNORM)
