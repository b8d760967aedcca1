"""What of a recipe's optimizer types and least values cannot tell; nothing slow is loaded for it."""

from __future__ import annotations

from alphadecay_dist.errors import UserError, shown
from alphadecay_dist.training.recipe import Config


def check_optimizer(config: Config) -> None:
    """Check the section ``optimizer``, and what does not go with it.

    Raises:
        UserError: the first value that is not allowed.
    """
    if not all(0 <= beta < 1 for beta in config.optimizer.betas):
        raise UserError(f"optimizer.betas: found {config.optimizer.betas}, expected two numbers in [0, 1)")
    _check_muon(config)


def _check_muon(config: Config) -> None:
    """Refuse what goes with Muon alone where there is none, and what does not go with it."""
    own = config.optimizer
    if own.name != "muon":
        for key in ("muon_lr", "muon_heads", "muon_modules"):
            if getattr(own, key) not in (None, ()):
                raise UserError(
                    f"optimizer.{key}: found {shown(getattr(own, key))} with optimizer.name {own.name!r}, "
                    "expected 'muon'; leave it out"
                )
        return
    if not own.momentum < 1:
        raise UserError(f"optimizer.momentum: found {own.momentum}, expected a number in [0, 1)")
    if own.muon_lr is not None and own.muon_lr < 0:
        raise UserError(f"optimizer.muon_lr: found {own.muon_lr}, expected 0 or more")
    if own.muon_lr is not None and not own.lr:
        raise UserError(
            "optimizer.lr: found 0 with optimizer.muon_lr, expected more: Muon's is a multiple of it"
        )
    if config.decay.follow:
        raise UserError(
            f"decay.follow: found {list(config.decay.follow)} with optimizer.name 'muon', expected none: "
            "Muon takes matrices alone"
        )
