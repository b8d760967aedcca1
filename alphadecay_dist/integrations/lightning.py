"""Lightning: a callback, and our param groups in ``configure_optimizers``.

    class Model(LightningModule):
        def configure_optimizers(self):
            return torch.optim.AdamW(param_groups(self, weight_decay=0.1), lr=1e-3)

    trainer = Trainer(callbacks=[AlphaDecayCallback(weight_decay=0.1, interval=500)])

Lightning clips after the hook that this acts in. So a policy that reads gradients is refused where it clips,
but for DeepSpeed, whose own clipping is foreseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.decay.settings import Settings, settings_from
from alphadecay_dist.engines.versions import without_extra
from alphadecay_dist.errors import UserError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise without_extra("lightning", error) from None


class AlphaDecayCallback(Callback):
    """Lets a Lightning Trainer train with AlphaDecay, or another policy.

    It has all of the Trainer's optimizers. Where a manual optimization steps several, it acts once an update:
    before the first of them, whichever that is, and again when one comes a second time.

    Its state is in Lightning's checkpoints. Means of alpha and decay by module type go to the loggers.

    Args:
        settings: an object of :class:`alphadecay_dist.decay.settings.Settings`; or give its fields.
        parts: sizes of fused weights, see :class:`alphadecay_dist.AlphaDecay`.
        dtype: the type that weights travel in, see :class:`alphadecay_dist.AlphaDecay`.
        **given: fields of ``Settings``; ``weight_decay`` is needed without ``settings``.

    Attributes:
        decay: the controller, from the beginning of training on; None before.

    Raises:
        UserError: a setting that is not allowed.
    """

    def __init__(
        self, settings: Settings | None = None, *, parts: Any = None, dtype: Any = None, **given: Any
    ) -> None:
        self.settings = settings_from(settings, given)
        self.decay: AlphaDecay | None = None
        self._options = {"parts": parts, "dtype": dtype}
        self._loaded: Mapping[str, Any] | None = None
        self._stepped: set[int] = set()  # which optimizers have stepped in this update

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the controller, over what the strategy has wrapped and loaded by now."""
        engine = getattr(trainer.strategy, "deepspeed_engine", None)
        if engine is None and self.settings.reads_gradients and trainer.gradient_clip_val:
            raise UserError(
                f"policy: {self.settings.policy!r} reads gradients, which Lightning clips later "
                f"(gradient_clip_val={trainer.gradient_clip_val}); leave gradient_clip_val out, or take a "
                "policy that reads none"
            )
        self.decay = AlphaDecay(pl_module, trainer.optimizers, self.settings, engine=engine, **self._options)
        self._stepped.clear()
        if self._loaded and trainer.global_step:  # validate() loads states too, of runs that do not go on
            self.decay.load_state_dict(self._loaded)
        elif trainer.global_step:
            self.decay.begin_at(trainer.global_step // len(trainer.optimizers))  # it counts each one's steps
        self._loaded = None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Act before the update; under DeepSpeed this comes at each micro-batch, and the engine is asked."""
        assert self.decay is not None
        begins = not self._stepped or id(optimizer) in self._stepped
        self._stepped = {id(optimizer)} if begins else self._stepped | {id(optimizer)}
        refresh = self.decay.step() if begins else None
        if refresh is not None:
            for logger in trainer.loggers:
                logger.log_metrics(means_by_type(refresh), step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; Lightning asks on all ranks."""
        return dict(self.decay.state_dict()) if self.decay is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint has until the optimizer is loaded too."""
        self._loaded = state_dict
