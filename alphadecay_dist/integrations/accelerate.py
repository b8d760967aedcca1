"""accelerate: one object beside model and optimizer, stepped after each backward.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    decay = AcceleratedDecay(accelerator, model, optimizer, weight_decay=0.1, interval=500)
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            decay.step()
            optimizer.step()
            optimizer.zero_grad()

accelerate makes DeepSpeed's update inside of ``backward``, and sets DeepSpeed's accumulation boundary there.
So under DeepSpeed the policy acts in the engine's step, and :meth:`AcceleratedDecay.step` tells what it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.amp.grad_scaler import OptState

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.refresh import Refresh
from alphadecay_dist.engines.versions import without_extra
from alphadecay_dist.errors import UserError
from alphadecay_dist.integrations.asked import warn_if_another_runs
from alphadecay_dist.integrations.engine_step import before_engine_step

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    raise without_extra("hf", error) from None


class AcceleratedDecay:
    """An :class:`alphadecay_dist.AlphaDecay` that knows when accelerate updates.

    It is registered for checkpointing: ``accelerator.save_state()`` and ``load_state()`` have its state.

    Args:
        accelerator: that prepared the model and the optimizer, in one call.
        model: as ``prepare()`` returned it.
        optimizer: as ``prepare()`` returned it, over :func:`alphadecay_dist.param_groups`; or a list of them.
        *settings: see :class:`alphadecay_dist.AlphaDecay`.
        **given: see :class:`alphadecay_dist.AlphaDecay`.

    Attributes:
        decay: the controller.

    Raises:
        UserError: a model that was not prepared; see :class:`alphadecay_dist.AlphaDecay`.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, *settings: Any, **given: Any
    ) -> None:
        if not isinstance(accelerator, Accelerator):
            raise UserError(
                f"accelerator: found {type(accelerator).__name__}, expected an accelerate.Accelerator; give "
                "AcceleratedDecay(accelerator, model, optimizer, ...)"
            )
        warn_if_another_runs()
        self._accelerator = accelerator
        self._made: Refresh | None = None
        self._optimizers = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
        wrapped = getattr(accelerator, "deepspeed_engine_wrapped", None)
        self._engine = None if wrapped is None else wrapped.engine
        if self._engine is not None:
            model = self._engine.module
            before_engine_step(self._engine, self._act)
        self.decay = AlphaDecay(model, optimizer, *settings, engine=self._engine, **given)
        accelerator.register_for_checkpointing(self)

    def step(self) -> Refresh | None:
        """Act before an update; to be called after each ``accelerator.backward()``.

        Returns:
            The refresh that was written for this update, if there was one.
        """
        if self._engine is None and self._accelerator.sync_gradients:
            if self.decay.settings.reads_gradients:
                self._unscale()
            self._act()
        made, self._made = self._made, None
        return made

    def state_dict(self) -> dict[str, str]:
        """See :meth:`alphadecay_dist.AlphaDecay.state_dict`."""
        return self.decay.state_dict()

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """See :meth:`alphadecay_dist.AlphaDecay.load_state_dict`."""
        self.decay.load_state_dict(state)

    def _unscale(self) -> None:
        """Divide fp16's gradients by the loss scale, where clipping has not done it."""
        for prepared in self._optimizers:
            scaler = getattr(prepared, "scaler", None)
            if scaler is None:
                continue
            stage = scaler._per_optimizer_states[id(prepared.optimizer)]["stage"]  # nothing public tells it
            if stage is OptState.READY:
                scaler.unscale_(prepared.optimizer)

    def _act(self) -> None:
        self._made = self.decay.step() or self._made
