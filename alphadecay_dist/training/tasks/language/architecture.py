"""How an architecture of transformers gets from tokens to a loss: found by running its own forward.

The forward of a causal language model is a decoder, a projection to the vocabulary and little else. What the
decoder and the projection give is replaced by known numbers, so that it runs without weights, and what it
makes of them shows the rest: a factor, a cap, and whether its loss is the next token's cross entropy.
"""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast

from alphadecay_dist.training.tasks.language.causal import TYPE, causal_values

TOKENS, WIDTH = 5, 7  # of the trial
SMALL, LARGE = 2.0**-30, 2.0**20  # logits where a cap is not felt, and where nothing else is


class UnservedError(Exception):
    """Why an architecture cannot be trained, as the end of a line."""


@dataclass(frozen=True)
class Architecture:
    """What the trainer needs to know of one.

    Attributes:
        kind: its class in transformers.
        decoder: name of the module that gives hidden states, (b, s, h), of token ids, (b, s).
        head: name of the linear layer behind it.
        padded: names of embeddings whose row of the padding token has no gradient.
        scale: factor of the logits.
        cap: c of the logits' c * tanh(logits / c); None without.
        balance: factor of the experts' load-balancing loss; 0 where it is not trained with.
        one_by_one: whether its experts have to be computed one after the other, not by one grouped product.
    """

    kind: Any
    decoder: str
    head: str
    padded: tuple[str, ...] = ()
    scale: float = 1.0
    cap: float | None = None
    balance: float = 0.0
    one_by_one: bool = False


def architecture_of(config: Any) -> Architecture:
    """The architecture of a config.

    Raises:
        UnservedError: it is not one that the trainer serves.
    """
    if type(config) is LlamaConfig:
        return Architecture(LlamaForCausalLM, "model", "lm_head", ("model.embed_tokens",))
    with torch.device("cpu"):  # whatever is built around it
        return _found(json.dumps(causal_values(config), sort_keys=True, default=str))


@functools.cache
def _found(values: str) -> Architecture:
    config = _config(values)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        model = kind(config)
    _require_causal(model)
    _require_plain_numbers(model)
    _require_stacks(model)
    names = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UnservedError(f"the head of {kind.__name__} is {type(head).__name__}, expected Linear")
    padded = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    decoder = names[id(_decoder(model))]
    scale, cap = _of_logits(config, kind, decoder, names[id(head)])
    # torch's grouped product takes rows of 16 bytes each, which are 8 numbers in bf16.
    odd = any(own.ndim == 3 and any(size % 8 for size in own.shape[1:]) for own in model.parameters())
    return Architecture(kind, decoder, names[id(head)], tuple(padded), scale, cap, _balance(model), odd)


def _config(values: str) -> Any:
    own = json.loads(values)
    config = AutoConfig.for_model(own.pop(TYPE), **own)
    config.use_cache = False
    return config


def _decoder(model: Any) -> nn.Module:
    """What the model's forward calls: its base model, or where that is a wrapper, the decoder in it."""
    base = model.base_model
    if base is model:  # Gemma 3's prefix is that of its vision model
        base = getattr(model, "model", None)
    if not isinstance(base, PreTrainedModel):
        raise UnservedError(f"{type(model).__name__} has no decoder of its own before its head")
    inner = getattr(base, "decoder", None)
    return inner if isinstance(inner, PreTrainedModel) else base


def _require_causal(model: nn.Module) -> None:
    """Refuse what may see the tokens that it is to predict."""
    known = [module.is_causal for module in model.modules() if hasattr(module, "is_causal")]
    if not known:
        raise UnservedError(
            f"{type(model).__name__} has no attention that is said to be causal: state-space models and "
            "others without it are not trained"
        )
    if not all(known):
        raise UnservedError(f"the attention of {type(model).__name__} is not causal")


def _require_plain_numbers(model: nn.Module) -> None:
    """Refuse numbers that no checkpoint would hold: buffers that are saved, tensors that are no buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    saved = [name for name in model.state_dict() if name not in parameters]
    if saved:
        raise UnservedError(f"{saved[0]} is a buffer that is saved, expected parameters alone")
    still = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if still:
        raise UnservedError(f"{still[0]} is trained by other means than gradients")
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and key != "original_inv_freq":
                raise UnservedError(f"{name}.{key} is a tensor, expected parameters and buffers alone")


def _require_stacks(model: nn.Module) -> None:
    """Refuse experts that are a module each: ranks that take different ones would wait for each other."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == "experts" and isinstance(module, nn.ModuleList):
            raise UnservedError(f"{name} is a list of modules, expected a stack, as from transformers 5 on")


def _balance(model: Any) -> float:
    """The factor of the load-balancing loss, where the config asks for it as transformers' forward does."""
    if not getattr(model.config, "output_router_logits", False):
        return 0.0
    known = [hasattr(model, key) for key in ("router_aux_loss_coef", "num_experts", "num_experts_per_tok")]
    if not all(known):
        raise UnservedError("output_router_logits is set, and what it adds to the loss is not known")
    return float(model.router_aux_loss_coef)


class _Known(nn.Module):
    """Stands for a module: gives known numbers, and keeps what it was called with."""

    def __init__(self, gives: Any) -> None:
        super().__init__()
        self._gives = [gives]  # no buffer
        self.seen: Any = None

    def forward(self, first: Any = None, *_: Any, **named: Any) -> Any:
        """The numbers."""
        self.seen = named.get("input_ids") if first is None else first
        return self._gives[0]


class _Output(BaseModelOutputWithPast):
    """A decoder's output that has whatever it is asked for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _run(model: Any, decoder: str, head: str, logits: Tensor, labels: Tensor | None) -> Any:
    """The model's own forward behind hidden states and logits that are given."""
    hidden = torch.randn(1, TOKENS, WIDTH, dtype=logits.dtype, generator=torch.Generator().manual_seed(0))
    projection = _Known(logits)
    model.set_submodule(decoder, _Known(_Output(last_hidden_state=hidden)))
    model.set_submodule(head, projection)
    if model.loss_type is None:
        model.loss_type = "ForCausalLM"  # what transformers takes then, after a warning
    ids = torch.zeros(1, TOKENS, dtype=torch.int64)
    try:
        found = model(input_ids=ids, **({} if labels is None else {"labels": labels}))
    except Exception as error:  # whatever a forward does that needs more than these
        raise UnservedError(
            f"the forward of {type(model).__name__} is not a decoder and a head "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    if projection.seen is None or not torch.equal(projection.seen, hidden):
        raise UnservedError(f"the head of {type(model).__name__} reads other than the decoder's output")
    return found


def _of_logits(config: Any, kind: Any, decoder: str, head: str) -> tuple[float, float | None]:
    """Factor and cap of the logits; refuses anything else that is done to them, and any other loss."""
    config = copy.deepcopy(config)
    config.output_router_logits = False  # the load-balancing loss is the trainer's own
    with torch.device("meta"):
        model = kind(config).eval()
    vocabulary = config.vocab_size
    shape = (1, TOKENS, vocabulary)

    def made_of(logits: Tensor) -> Tensor:
        return _run(model, decoder, head, logits, None).logits

    scale = float(made_of(torch.full(shape, SMALL, dtype=torch.float64)).flatten()[0]) / SMALL
    most = float(made_of(torch.full(shape, LARGE, dtype=torch.float64)).flatten()[0])
    capped = abs(most - scale * LARGE) > abs(scale)
    generator = torch.Generator().manual_seed(1)
    logits = 20 * torch.randn(shape, generator=generator)
    expected = scale * logits
    if capped:
        expected = most * torch.tanh(expected / most)
    found = made_of(logits).float()
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise UnservedError(f"{kind.__name__} does more to its logits than a factor and a cap")
    labels = torch.randint(vocabulary, (1, TOKENS), generator=generator)
    loss = _run(model, decoder, head, logits, labels).loss
    own = functional.cross_entropy(expected[0, :-1], labels[0, 1:])
    if loss is None or not torch.allclose(loss.float(), own, rtol=1e-4, atol=1e-4):
        raise UnservedError(f"the loss of {kind.__name__} is not the next token's cross entropy alone")
    return round(scale, 12), most if capped else None
