"""What can be chosen of the optimizer's param groups, by name. Loads no torch."""

GROUPS, PREMULTIPLY = "groups", "premultiply"  # how decays are applied, and so how groups are laid out
AUTO = "auto"  # as the groups are laid out, or where they are yet to be made, the faster one that is right
APPLY = (GROUPS, PREMULTIPLY, AUTO)
BASE, ZERO, ZERO_1D = "base", "zero", "zero_1d"  # what is not tuned gets
UNTUNED_DECAYS = (BASE, ZERO, ZERO_1D)
