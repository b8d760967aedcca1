"""transformers' Trainer: one line after it was made, or two of its arguments.

    trainer = Trainer(model=model, args=args, train_dataset=dataset)
    AlphaDecayCallback(trainer, interval=500)
    trainer.train()

    decay = AlphaDecayCallback(interval=500)
    optimizer = decay.optimizer(torch.optim.AdamW, lr=1e-3)
    trainer = Trainer(..., optimizer_cls_and_kwargs=optimizer, callbacks=[decay])

The Trainer makes its optimizer when training begins. Both give it a factory for that, which makes an
optimizer of AlphaDecay's param groups; so it serves one process, DDP, FSDP2 and DeepSpeed alike.
The controller is made in ``on_train_begin``, when model and optimizer are wrapped and a checkpoint is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.control.refresh import Refresh
from alphadecay_dist.decay.policies import MATRIX_RATE
from alphadecay_dist.decay.settings import Settings, settings_from
from alphadecay_dist.engines.zero.marks import engine_on
from alphadecay_dist.errors import UserError
from alphadecay_dist.integrations.asked import warn_if_another_runs
from alphadecay_dist.integrations.engine_step import before_engine_step
from alphadecay_dist.params.groups import param_groups


class AlphaDecayCallback(TrainerCallback, ExportableState):
    """Lets a Trainer train with AlphaDecay, or another policy.

    Its state is in the checkpoints' trainer_state.json, and ``resume_from_checkpoint`` takes it up: this
    object goes on to be the one that works. With a Trainer given, means of alpha and decay by module type go
    to its reporters; else to its ``state.log_history`` alone, for a callback does not reach the reporters.

    Args:
        trainer: before its first ``train()``; the callback adds itself to it, and makes the optimizer that
            ``TrainingArguments.optim`` names. Without it give the Trainer :meth:`optimizer` and this object.
        settings: an object of :class:`alphadecay_dist.decay.settings.Settings`; or give its fields.
        untuned: see :func:`alphadecay_dist.param_groups`.
        no_decay: patterns of what gets no decay, see :func:`alphadecay_dist.param_groups`.
        modules: which weights are tuned, see :func:`alphadecay_dist.param_groups`.
        parts: sizes of fused weights, see :class:`alphadecay_dist.AlphaDecay`.
        dtype: the type that weights travel in, see :class:`alphadecay_dist.AlphaDecay`.
        **given: fields of ``Settings``, such as ``interval`` and ``policy``. ``weight_decay`` is the
            Trainer's (``TrainingArguments.weight_decay``) where it is not given.

    Attributes:
        decay: the controller, from the beginning of training on; None before.
        settings: None until a Trainer is known.

    Raises:
        UserError: a setting that is not allowed, or a Trainer that has its optimizer already.
    """

    def __init__(
        self,
        trainer: Trainer | None = None,
        settings: Settings | None = None,
        *,
        untuned: str = "base",
        no_decay: Any = (),
        modules: Any = None,
        parts: Any = None,
        dtype: Any = None,
        **given: Any,
    ) -> None:
        self.settings = settings
        self.decay: AlphaDecay | None = None
        self._trainer = trainer
        self._given = (settings, given)
        self._grouping = {"untuned": untuned, "no_decay": no_decay, "modules": modules}
        self._options = {"parts": parts, "dtype": dtype}
        self._args: TrainingArguments | None = None
        self._engine: Any = None
        self._settled: dict[str, str] | None = None  # the state after this update, if all ranks made it
        if trainer is not None:
            self._join(trainer)

    def optimizer(
        self, kind: Callable[..., torch.optim.Optimizer], **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """What a Trainer takes as ``optimizer_cls_and_kwargs``, with this object among its ``callbacks``.

        Args:
            kind: of the optimizer, such as torch.optim.AdamW; or a function of the groups that makes it.
            **options: of it, such as ``lr``; no groups and no weight decay.

        Raises:
            UserError: Muon alone, which cannot take what is no matrix.
        """
        if _is_muon(kind):
            raise UserError(
                "optimizer: found Muon, which takes matrices alone, expected a function of all "
                "groups that gives it the tuned ones and AdamW the rest: see docs/hosts.md"
            )

        def over_groups(model: nn.Module) -> torch.optim.Optimizer:
            return kind(self._groups(model), **options)

        return _factory_of(over_groups), {}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the base decay of the Trainer's arguments."""
        self._args = args
        self._take_base()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the controller, and give it the state of the checkpoint that was loaded, if one was."""
        warn_if_another_runs()
        model, self._engine = kwargs["model"], engine_on(kwargs["model"])
        self.decay = AlphaDecay(
            model, kwargs["optimizer"], self.settings, engine=self._engine, **self._options
        )
        if self._engine is not None:
            before_engine_step(self._engine, functools.partial(self._act, state))
        saved = _attributes(state.stateful_callbacks.get(type(self).__name__))
        if state.global_step and saved is not None:  # at 0 it is what this object had in another train()
            self.decay.load_state_dict(saved)
        elif state.global_step:
            self.decay.begin_at(state.global_step)
        self._settled = self.decay.state_dict()
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What was saved is of the update before."""
        self._settled = None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Act before the update; under DeepSpeed it is made by now, and the engine's step was the place."""
        if self._engine is None:
            self._act(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where a checkpoint may come, let all ranks settle a refresh in the background: it is shared."""
        self._settle(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As after an update: here the Trainer asks for checkpoints by epoch."""
        self._settle(control)

    def state(self) -> dict[str, Any]:
        """What goes into trainer_state.json; on rank 0 alone, so that nothing is gathered here.

        With a lag it is what all ranks have settled; nothing where a callback behind this one has asked for
        the checkpoint, so that a resume refreshes at once.
        """
        if self.decay is None or self.decay.settings.lag:
            return {"args": {}, "attributes": {"saved": self._settled}}
        return {"args": {}, "attributes": {"saved": self.decay.state_dict()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AlphaDecayCallback:
        """Refused: the one that was given the Trainer takes its state up.

        Raises:
            UserError: always.
        """
        raise UserError(RESTORED)

    def _join(self, trainer: Trainer) -> None:
        """Be the Trainer's callback, and make the optimizer that its arguments name."""
        if not isinstance(trainer, Trainer):
            raise UserError(
                f"trainer: found {type(trainer).__name__}, expected a transformers.Trainer; give "
                "AlphaDecayCallback(trainer, ...) after it was made, and do not add it again"
            )
        if trainer.optimizer is not None or trainer.optimizer_cls_and_kwargs is not None:
            raise UserError(
                "trainer: has an optimizer already; let AlphaDecayCallback make it: leave optimizers= and "
                "optimizer_cls_and_kwargs= out, and choose by TrainingArguments(optim=...)"
            )
        self._args = trainer.args
        self._take_base()

        def of_arguments(model: nn.Module) -> torch.optim.Optimizer:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
            if not isinstance(kind, type) or {"params", "model", "optimizer_dict"} & set(options):
                raise UserError(
                    f"TrainingArguments.optim: found {trainer.args.optim}, which makes its own param "
                    "groups; use one such as adamw_torch_fused"
                )
            return kind(self._groups(model), **options)

        trainer.optimizer_cls_and_kwargs = (_factory_of(of_arguments), {})
        trainer.add_callback(self)

    def _take_base(self) -> None:
        """The settings, with the base decay of the Trainer's arguments as they are now."""
        assert self._args is not None
        settings, given = self._given
        base = {} if settings is not None else {"weight_decay": self._args.weight_decay}
        self.settings = settings_from(settings, base | given)

    def _settle(self, control: TrainerControl) -> None:
        if control.should_save or control.should_evaluate:  # the evaluation may find that it is the best
            assert self.decay is not None
            self._settled = self.decay.state_dict()

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        if self._args is None:
            raise UserError(
                "callbacks: found no AlphaDecayCallback, expected the one whose optimizer() the Trainer has; "
                "give Trainer(..., callbacks=[decay])"
            )
        self._take_base()  # a search of hyperparameters sets arguments anew
        assert self.settings is not None
        return param_groups(
            model,
            weight_decay=self.settings.weight_decay,
            matrices_apart=self.settings.row.moves == MATRIX_RATE,
            **self._grouping,
        )

    def _act(self, state: TrainerState) -> None:
        assert self.decay is not None
        refresh: Refresh | None = self.decay.step()
        if refresh is None:
            return
        if self._trainer is not None:
            self._trainer.log(means_by_type(refresh))
        else:
            state.log_history.append({**means_by_type(refresh), "step": state.global_step})


RESTORED = (
    "restore_callback_states_from_checkpoint: found True, expected False: AlphaDecayCallback takes its state "
    "up itself, and another object could not"
)


def _is_muon(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, torch.optim.Muon)


def _factory_of(make: Callable[[nn.Module], torch.optim.Optimizer]) -> Any:
    """What the Trainer takes for a factory: called without arguments, and what that gives with the model."""

    def factory() -> Any:
        return make

    return factory


def _attributes(stored: Any) -> dict[str, str] | None:
    """The controller's state in what a checkpoint has of this callback; None where it has none."""
    if isinstance(stored, list):
        stored = stored[-1] if stored else None
    found = (stored or {}).get("attributes", {}).get("saved")
    return dict(found) if found else None
