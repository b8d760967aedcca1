"""torchtitan: a hook between its optimizers and its learning rate schedulers.

    decay = TitanDecay(interval=500)
    decay.add_to(config.model_spec)
    trainer = config.build()
    decay.join(trainer)
    trainer.train()

torchtitan's checkpoints save each key of a param group, and loading demands each one. So the groups have our
names while an update is made alone; in between a table has them. torchtitan also makes optimizer states by a
step of each inner optimizer, at a learning rate of 0. What acts here hangs on the container that holds these,
which only the trainer steps: that step is not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from alphadecay_dist.control.controller import AlphaDecay
from alphadecay_dist.control.module_types import means_by_type
from alphadecay_dist.decay.settings import Settings, settings_from
from alphadecay_dist.errors import UserError
from alphadecay_dist.params.group_decay import DECAY_KEY, decay_of
from alphadecay_dist.params.groups import GROUP_KEY, UNTUNED
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.params.regroup import parts_of, split

NAMES = "param_names"  # torchtitan's key of the names of a group's parameters
STATE = "alphadecay"  # under which a checkpoint has the state; exclude_from_loading takes it


class TitanDecay:
    """Lets a torchtitan Trainer train with AlphaDecay, or another policy.

    Args:
        settings: an object of :class:`alphadecay_dist.decay.settings.Settings`; or give its fields.
        modules: which weights are tuned, see :func:`alphadecay_dist.param_groups`.
        parts: sizes of fused weights, see :class:`alphadecay_dist.AlphaDecay`.
        dtype: the type that weights travel in, see :class:`alphadecay_dist.AlphaDecay`.
        **given: fields of ``Settings``. ``weight_decay`` is that of torchtitan's param groups where it is not
            given.

    Attributes:
        decay: the controller, once the Trainer is built; None before.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        modules: Any = None,
        parts: Any = None,
        dtype: Any = None,
        **given: Any,
    ) -> None:
        self.decay: AlphaDecay | None = None
        self._given = (settings, given)
        self._modules = modules
        self._options = {"parts": parts, "dtype": dtype}
        self._optimizers: list[torch.optim.Optimizer] = []
        self._modules_by_parameter: dict[str, str] = {}
        self._trainer: Any = None
        self._begun = False
        self._loaded: Mapping[str, str] | None = None

    def add_to(self, spec: Any) -> None:
        """Be called when the optimizers are made, after what the spec calls then already.

        Args:
            spec: a ``ModelSpec``.
        """
        earlier = spec.post_optimizer_build_fn

        def built(optimizers: Any, model_parts: list[nn.Module], parallel_dims: Any) -> None:
            if earlier is not None:
                earlier(optimizers, model_parts, parallel_dims)
            self.build(optimizers, model_parts, parallel_dims)

        spec.post_optimizer_build_fn = built

    def build(self, optimizers: Any, model_parts: list[nn.Module], parallel_dims: Any) -> None:
        """Give each tuned weight a param group of its own, and make the controller.

        Args:
            optimizers: an ``OptimizersContainer`` without schedulers yet.
            model_parts: the model, alone.
            parallel_dims: of the job.

        Raises:
            UserError: a setting that is not allowed, pipeline parallelism, or groups of several decays.
        """
        if parallel_dims.pp_enabled:
            raise UserError(
                "pipeline_parallel_degree: found pipeline stages, expected 1: one map goes over the weights "
                "of all stages, and a rank has those of its own alone"
            )
        (model,) = model_parts
        names = {id(weight.parameter): weight.name for weight in tuned_weights(model, self._modules)}
        self._optimizers = list(optimizers)
        self._modules_by_parameter = {}
        for optimizer in self._optimizers:
            self._modules_by_parameter |= split_groups(optimizer, names)
        settings, given = self._given
        if settings is None and DECAY_KEY not in given:
            given = {**given, DECAY_KEY: self._base()}
        chosen = settings_from(settings, given)
        with self._named():
            self.decay = AlphaDecay(model, self._optimizers, chosen, **self._options)
        optimizers.register_step_pre_hook(self._before_update)
        optimizers.register_step_post_hook(self._after_update)

    def join(self, trainer: Any) -> None:
        """Be in the Trainer's checkpoints, and log to its metrics; before its ``train()``.

        Args:
            trainer: whose optimizers were built with this object.
        """
        if self.decay is None:
            raise UserError("join: found no optimizers, expected those of this Trainer; call add_to() first")
        self._trainer = trainer
        if trainer.checkpointer.enable:
            trainer.checkpointer.states[STATE] = self

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint keeps; torchtitan asks on all ranks."""
        assert self.decay is not None
        return dict(self._loaded) if self._loaded is not None else self.decay.state_dict()

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Keep what a checkpoint has until the next update: the optimizers may be loaded after this."""
        self._loaded = state

    def _before_update(self, *_: Any) -> None:
        assert self.decay is not None
        self._name_groups()
        if self._loaded is not None:
            self.decay.load_state_dict(self._loaded)
        elif not self._begun and self._trainer is not None:
            self.decay.begin_at(self._trainer.step - 1)  # it counts the update that comes
        self._loaded, self._begun = None, True
        refresh = self.decay.step()
        if refresh is not None and self._trainer is not None:
            self._trainer.metrics_processor.logger.log(means_by_type(refresh), self._trainer.step)

    def _after_update(self, *_: Any) -> None:
        for group in self._groups():
            group.pop(GROUP_KEY, None)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        self._name_groups()
        try:
            yield
        finally:
            self._after_update()

    def _name_groups(self) -> None:
        for group in self._groups():
            group[GROUP_KEY] = self._modules_by_parameter.get(group[NAMES][0], UNTUNED)

    def _groups(self) -> Iterator[dict[str, Any]]:
        for optimizer in self._optimizers:
            yield from optimizer.param_groups

    def _base(self) -> float:
        """The decay that torchtitan's config gives the tuned weights."""
        tuned = [group for group in self._groups() if group[NAMES][0] in self._modules_by_parameter]
        decays = sorted({decay_of(group) for group in tuned})
        if len(decays) != 1:
            raise UserError(
                f"weight_decay: found {decays} in the param groups of the tuned weights, expected one base; "
                "give TitanDecay(weight_decay=...)"
            )
        return decays[0]


def split_groups(optimizer: torch.optim.Optimizer, modules: Mapping[int, str]) -> dict[str, str]:
    """Give each tuned weight a group of its own, in place, before a scheduler has counted the groups.

    Args:
        optimizer: whose groups have the names of their parameters in ``param_names``.
        modules: the module's name by the id of its parameter; others than the optimizer's may be among them.

    Returns:
        The module's name by the parameter's, of those that the optimizer has.
    """
    groups = optimizer.param_groups
    split(groups, parts_of(groups, modules))
    named = {group[NAMES][0]: group.pop(GROUP_KEY) for group in groups}
    return {name: module for name, module in named.items() if module != UNTUNED}
