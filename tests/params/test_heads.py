"""Cuts by heads: a part moves the outputs of its own head alone, and the parts are the whole matrix."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from alphadecay_dist import UserError
from alphadecay_dist.decay.settings import Settings
from alphadecay_dist.params.fused import Cut, Heads
from alphadecay_dist.params.heads import Attention, attention_of, attentions, cut_by_heads, role_of
from alphadecay_dist.params.inventory import tuned_weights
from alphadecay_dist.params.tuned_rule import Tuned
from alphadecay_dist.sharding.planning import analysed
from tests.models import IDS, causal

ONE = {"num_hidden_layers": 1, "vocab_size": 96}
FOUR = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 52}
LATENT = {"q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 48}


def bert():
    sizes = {"hidden_size": 104, "num_attention_heads": 2, "intermediate_size": 96}
    return hf.BertModel(hf.BertConfig(**sizes, **ONE))


def t5():
    return hf.T5EncoderModel(hf.T5Config(d_model=96, d_kv=52, num_heads=3, num_layers=1, d_ff=96, **ONE))


def deepseek():
    sizes = {"hidden_size": 96, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}
    experts = {"n_routed_experts": 4, "first_k_dense_replace": 1}
    return causal("DeepseekV3", **sizes, **LATENT, v_head_dim=52, **experts, **ONE, **IDS)


def gpt2(kind="GPT2", **options):
    sizes = {"n_embd": 104, "n_head": 2, "n_layer": 1, "vocab_size": 96, "n_positions": 32}
    return getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes, **options, **IDS))


MODELS = {  # a model, and the name of its output projection
    "llama": (lambda: causal("Llama", **FOUR, num_key_value_heads=2, **ONE), "o_proj"),
    "phi3": (lambda: causal("Phi3", **FOUR, num_key_value_heads=1, **ONE, **IDS), "o_proj"),
    "gpt_neox": (
        lambda: causal("GPTNeoX", hidden_size=156, intermediate_size=96, num_attention_heads=3, **ONE, **IDS),
        "dense",
    ),
    "bloom": (lambda: hf.BloomModel(hf.BloomConfig(hidden_size=104, n_head=2, n_layer=1)), "dense"),
    "gpt2": (gpt2, "c_proj"),
    "bigcode": (lambda: gpt2("GPTBigCode", multi_query=True), "c_proj"),
    "bert": (bert, "dense"),
    "t5": (t5, "o"),
    "deepseek": (deepseek, "o_proj"),
}


def heads_of(model, parts=None):
    return cut_by_heads(tuned_weights(model, parts=parts), attentions(model), parts)


def moved(model, out, weight, part):
    """Which parts of the output projection see another input when one part of a weight is changed."""
    inputs = []
    hook = model.get_submodule(out.name).register_forward_pre_hook(lambda own, given: inputs.append(given[0]))
    ids = torch.arange(2, 14).reshape(2, 6)
    before = weight.parameter.detach().clone()
    with torch.no_grad():
        model(ids)
        part += torch.randn(part.shape, generator=torch.Generator().manual_seed(0), dtype=part.dtype)
        model(ids)
        weight.parameter.copy_(before)
    hook.remove()
    change = (inputs[1] - inputs[0]).flatten(0, -2).abs()
    columns = Cut(out.cut.names, out.cut.sizes, axis=1)
    return [int(name) for name, own in columns.parts(change) if own.max() > 1e-12]


@pytest.mark.parametrize("name", MODELS)
def test_a_part_moves_its_own_head_alone(name):
    torch.manual_seed(0)
    make, last = MODELS[name]
    model = make().double().eval()
    found = heads_of(model)
    attention = [own for own in found.weights if own.name in found.cut]
    (out,) = (own for own in attention if own.name.rsplit(".", 1)[-1] == last)
    heads = len(out.cut.names)
    seen: dict[str, list[list[int]]] = {}
    for weight in attention:
        if weight is out:
            continue
        for part, tensor in weight.cut.parts(weight.parameter.detach()):
            letter = role_of(weight.name) if part.isdigit() else part[0]
            seen.setdefault(letter, []).append(moved(model, out, weight, tensor))
    assert set(seen) == ({"q"} if name == "deepseek" else {"q", "k", "v"})
    for letter, columns in seen.items():
        assert [head for own in columns for head in own] == list(range(heads)), (
            f"{letter}: each head once, in order"
        )
        assert len({len(own) for own in columns}) == 1
    assert len(seen["q"]) == heads


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_put_together_are_the_whole_matrix(name):
    model = MODELS[name][0]()
    found = heads_of(model)
    assert found.cut
    for weight in found.weights:
        if weight.name not in found.cut:
            continue
        whole = weight.parameter.detach()
        parts = [tensor for _, tensor in weight.cut_up(weight.name, whole)]
        assert torch.equal(torch.cat(parts, weight.cut.axis), whole)
        assert [tuple(part.shape) for part in parts] == weight.part_shapes()
        assert {part.shape[weight.cut.axis] for part in parts} == {weight.cut.sizes[0]}


def test_one_head_is_the_whole_matrix():
    model = causal("Llama", **FOUR, num_key_value_heads=1, **ONE)
    found = heads_of(model)
    cut = {own.name.rsplit(".", 1)[-1]: own.cut for own in found.weights}
    assert (cut["k_proj"], cut["v_proj"]) == (None, None)
    assert len(cut["q_proj"].names) == 4
    assert found.line() is None


def test_names_of_parts():
    cut = {own.name.rsplit(".", 1)[-1]: own for own in heads_of(MODELS["llama"][0]()).weights}
    name = "model.layers.0.self_attn"
    assert cut["q_proj"].parts(f"{name}.q_proj") == [f"{name}.q_proj.{head}" for head in range(4)]
    assert cut["k_proj"].cut.names == ("0", "1")
    assert (cut["o_proj"].cut.names, cut["o_proj"].cut.axis) == (("0", "1", "2", "3"), 1)
    assert cut["up_proj"].cut is None
    fused = next(own for own in heads_of(MODELS["phi3"][0]()).weights if own.name.endswith("qkv_proj"))
    assert fused.cut.names == ("q.0", "q.1", "q.2", "q.3", "k.0", "v.0")
    mixed = next(own for own in heads_of(MODELS["gpt_neox"][0]()).weights if "query_key" in own.name)
    assert mixed.cut.names[:4] == ("q.0", "k.0", "v.0", "q.1")


def test_torchs_attention_needs_no_config():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(104, 2, 96, batch_first=True), 1).double().eval()
    cut = {own.name: own for own in heads_of(model).weights}
    fused, out = cut["layers.0.self_attn.in_proj_weight"], cut["layers.0.self_attn.out_proj"]
    assert fused.cut == Cut(("q.0", "q.1", "k.0", "k.1", "v.0", "v.1"), (52,) * 6)
    assert out.cut == Cut(("0", "1"), (52, 52), axis=1)
    attention = model.layers[0].self_attn
    with torch.no_grad():
        attention.in_proj_bias.zero_()
        parts = dict(fused.cut.parts(attention.in_proj_weight))
        parts["v.1"].zero_()  # nothing goes through the second head's columns then
        x = torch.randn(2, 6, 104, dtype=torch.float64)
        before = attention(x, x, x)[0]
        dict(out.cut.parts(attention.out_proj.weight))["1"].normal_()
        assert torch.equal(attention(x, x, x)[0], before)
        dict(out.cut.parts(attention.out_proj.weight))["0"].normal_()
        assert not torch.equal(attention(x, x, x)[0], before)


class OwnAttention(nn.Module):
    """As timm's: it tells its heads, and there is no config."""

    def __init__(self, grouped=False, tells=True):
        super().__init__()
        if tells:
            self.num_heads = 4
        self.head_dim = 52
        if grouped:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(64, n * 52) for n in (4, 2, 2))
        else:
            self.qkv = nn.Linear(208, 3 * 208)
        self.proj = nn.Linear(208, 64)


def own_model(**options):
    block = nn.ModuleDict({"attn": OwnAttention(**options), "mlp": nn.Linear(64, 64)})
    return nn.ModuleDict({"blocks": nn.ModuleList([block])})


def test_somebodys_own_attention_tells_its_heads():
    found = heads_of(own_model())
    assert found.cut == ["blocks.0.attn.qkv", "blocks.0.attn.proj"]
    assert [len(own.cut.names) for own in found.weights[:2]] == [12, 4]
    assert found.line() is None


def test_without_their_number_key_heads_are_as_wide_as_those_of_queries():
    cut = {own.name.rsplit(".", 1)[-1]: own.cut for own in heads_of(own_model(grouped=True)).weights}
    assert [len(cut[name].names) for name in ("q_proj", "k_proj", "v_proj", "proj")] == [4, 2, 2, 4]


def test_sizes_that_the_user_gives_win():
    model = MODELS["llama"][0]()
    parts = {"*.q_proj": (104, 104), "*.o_proj": (128,)}
    cut = {own.name.rsplit(".", 1)[-1]: own.cut for own in heads_of(model, parts).weights}
    assert cut["q_proj"].sizes == (104, 104)
    assert cut["o_proj"] is None
    assert cut["k_proj"].sizes == (52, 52)


def test_what_cannot_be_cut_stays_whole_with_the_reason():
    falcon = causal("Falcon", hidden_size=104, num_attention_heads=2, **ONE)
    found = heads_of(falcon)
    assert found.cut == ["transformer.h.0.self_attention.dense"]
    assert found.line() == (
        "not cut by heads: transformer.h.*.self_attention.query_key_value: its order of q, k and v is not "
        "known"
    )
    assert set(heads_of(deepseek()).whole.values()) == {"its name is none of q, k, v or o"}
    found = heads_of(own_model(tells=False))
    assert set(found.whole.values()) == {"neither its module nor a config tells the number of heads"}
    with pytest.raises(
        UserError, match=r"heads: found true, but no weight.*blocks\.\*\.attn\.qkv.*: neither"
    ):
        found.require()


def test_a_config_that_does_not_describe_the_attention_is_not_believed():
    weights = [
        Tuned("vision.0.attn.q_proj", (128, 128), None),
        Tuned("text.0.attn.q_proj", (512, 128), None),
        Tuned("text.0.attn.o_proj", (128, 500), None),
        Tuned("vision.0.attn.qkv", (384, 128), Cut(("q", "k", "v"), (128,) * 3)),
        Tuned("text.0.attn.qkv", (640, 128), Cut(("q", "k", "v"), (512, 64, 64))),
        Tuned("text.0.attn.out_proj", (3, 128, 512), None),
    ]
    found = cut_by_heads(weights, lambda name: Attention.of_config(Heads(8, 1, "", 64), 0))
    assert found.cut == ["text.0.attn.q_proj", "text.0.attn.qkv"]
    assert list(found.whole.values()) == [
        "its 128 rows are not those of 8 heads of 64",
        "its 500 columns are not those of 8 heads of 64",
        "its 128 rows are not those of 8 heads of 64",
        "it is no single matrix",
    ]


def test_small_heads_are_refused_with_their_size():
    model = causal("Llama", hidden_size=128, intermediate_size=96, num_attention_heads=4, **ONE)
    settings = Settings(heads=True)
    with pytest.raises(UserError, match=r"no weight can be cut.*heads of 32 have fewer than 50 eigenvalues"):
        analysed(tuned_weights(model), model, settings)


def test_a_model_without_attention_is_refused():
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict({"up": nn.Linear(64, 64)})])})
    with pytest.raises(UserError, match="found no weight of an attention among the tuned ones"):
        analysed(tuned_weights(model), model, Settings(heads=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "reference"}, "heads: found true with preset 'reference', which cuts no weight"),
        ({"policy": "uniform"}, "heads: found true with policy 'uniform', which reads no spectrum"),
        ({"heads": 2}, "heads: found 2, expected true or false"),
    ],
)
def test_settings_that_heads_exclude(given, words):
    with pytest.raises(UserError, match=words):
        Settings(**{"heads": True, **given})


def test_states_of_before_were_measured_without_heads():
    saved = Settings().as_dict()
    del saved["heads"]
    assert Settings().measured_as(saved)
    assert not Settings(heads=True).measured_as(saved)
    assert Settings(heads=True).measured_as(Settings(heads=True).as_dict())


@pytest.mark.parametrize(
    ("name", "place", "role"),
    [
        ("encoder.layer.0.attention.output.dense", "encoder.layer.0.attention", "o"),
        ("encoder.layer.0.output.dense", "encoder.layer.0.output", None),
        ("h.0.attn.attention.q_proj", "h.0.attn.attention", "q"),
        ("block.0.layer.1.DenseReluDense.wo", "block.0.layer.1.DenseReluDense", None),
        ("block.0.layer.0.SelfAttention.o", "block.0.layer.0.SelfAttention", "o"),
        ("h.0.mlp.c_proj", "h.0.mlp", None),
        ("layers.0.q_proj", "layers.0", "q"),
    ],
)
def test_names_tell_the_attention_and_the_role(name, place, role):
    assert (attention_of(name), role_of(name)) == (place, role)
