"""What others made is data: nothing in it is evaluated, and pickles are opened with trust alone."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alphadecay_dist import cli
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config
from alphadecay_dist.training.options import Options
from alphadecay_dist.training.preflight import resolve
from alphadecay_dist.training.tasks.language.model import build_on_meta, read_model_config
from alphadecay_dist.training.tasks.language.pretrained import values_from
from tests.sources import ROOT, TREES, imported_modules
from tests.spectral.truth import gaussian
from tests.training.runs import SIZES

EVALUATE = {"eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "os.system"}
UNPICKLE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
HARMLESS = {"pickle.UnpicklingError"}  # an error
SAFE_WITH = {"torch.load": ("weights_only", "True"), "from_pretrained": ("trust_remote_code", "False")}
UNSAFE = {
    ("trust_remote_code", "True"),
    ("allow_pickle", "True"),
    ("shell", "True"),
    ("weights_only", "False"),
}


def evaluations(tree: ast.Module) -> list[str]:
    """Calls and imports that would run what is in a file that they read."""
    names = [name for _, name in imported_modules(tree)]
    found = [name for name in names if name.split(".")[0] in UNPICKLE and name not in HARMLESS]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        options = {(option.arg, ast.unparse(option.value)) for option in call.keywords}
        safe = next((option for name, option in SAFE_WITH.items() if called.endswith(name)), None)
        if called in EVALUATE or options & UNSAFE or (safe and safe not in options):
            found.append(ast.unparse(call))
    return found


def test_nothing_that_is_read_is_evaluated():
    found = {str(path.relative_to(ROOT)): evaluations(tree) for path, tree in TREES.items()}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("eval(text)", True),
        ("import pickle\npickle.load(file)", True),
        ("from pickle import loads", True),
        ("from pickle import UnpicklingError", False),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", True),
        ("import yaml\nyaml.safe_load(text)", False),
        ("torch.load(file)", True),
        ("torch.load(file, weights_only=False)", True),
        ("torch.load(file, weights_only=True)", False),
        ("AutoConfig.from_pretrained(name)", True),
        ("AutoConfig.from_pretrained(name, trust_remote_code=False)", False),
        ("f(trust_remote_code=True)", True),
        ("numpy.load(file, allow_pickle=True)", True),
        ("model.eval(); re.compile(x); block.compile()", False),
    ],
)
def test_the_walk_sees_what_evaluates(code, seen):
    assert bool(evaluations(ast.parse(code))) == seen


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{}]",
        "!!python/object/new:os.mkdir [[{}]]",
        "!!python/name:os.mkdir ''",
        "!!python/module:antigravity ''",
    ],
)
def test_a_recipe_builds_no_objects(tmp_path, tag):
    made = tmp_path / "made"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"train:\n  steps: {tag.format(made)}\n")
    with pytest.raises(UserError, match="not YAML: could not determine a constructor"):
        load_config(str(recipe))
    with pytest.raises(UserError, match="not YAML"):
        load_config("demo", [f"train.steps={tag.format(made)}"])
    assert not made.exists()


def test_a_models_config_brings_no_code_with_it(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
        "attn_implementation": "someone/kernel",  # transformers would fetch and load it
        "_attn_implementation": "someone/kernel",
        "experts_implementation": "someone/kernel",
        "rms_norm_eps": 1e-4,
    }
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **code}))
    config = read_model_config(str(tmp_path / "config.json"), 64)
    assert config.rms_norm_eps == 1e-4
    assert not (config.to_dict().keys() & {"auto_map", "trust_remote_code"})
    assert config._attn_implementation == "sdpa"
    build_on_meta(config)
    for name in ({"model_type": "evil"}, {"architectures": ["evil.Model"]}):
        (tmp_path / "config.json").write_text(json.dumps({**SIZES, **code, **name}))
        with pytest.raises(UserError, match="evil"):
            read_model_config(str(tmp_path / "config.json"), 64)
    assert not (tmp_path / "ran").exists()


def test_plan_builds_no_model_of_someone_elses_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    maps = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    argv = ["plan", "--config", str(tmp_path), "--world_size", "2", "--bandwidth", "1e9"]
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **maps, "model_type": "evil"}))
    assert cli.main(argv) == 2
    assert "transformers cannot build a model of it" in capsys.readouterr().err.splitlines()[-1]
    known = {**SIZES, **maps, "model_type": "llama", "attn_implementation": "someone/kernel"}
    (tmp_path / "config.json").write_text(json.dumps(known))
    assert cli.main(argv) == 0
    assert not (tmp_path / "ran").exists()


NAME = "model.layers.0.mlp.up_proj.weight"
MATRIX = gaussian(172, 64)


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.mkdir, (self.place,)


def spectrum(path, *options):
    return cli.main(["spectrum", str(path), *options])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
def test_spectrum_opens_a_pickle_with_trust_alone(tmp_path, capsys, name):
    torch.save({NAME: MATRIX}, tmp_path / name)
    place = tmp_path / name if name.endswith(".pt") else tmp_path
    assert spectrum(place) == 2
    line = capsys.readouterr().err
    assert all(word in line for word in (name, "is a pickle", "convert it to safetensors", "add --trust"))
    assert spectrum(place, "--trust", "--json", str(tmp_path / "rows.json")) == 0
    save_file({NAME: MATRIX}, tmp_path / "model.safetensors")
    assert spectrum(tmp_path, "--json", str(tmp_path / "safe.json")) == 0, "of both, safetensors are read"
    assert (tmp_path / "rows.json").read_text() == (tmp_path / "safe.json").read_text()


@pytest.mark.parametrize("options", [[], ["--trust"]])
@pytest.mark.parametrize("old", [False, True])
def test_what_a_pickle_would_run_is_not_run(tmp_path, capsys, options, old):
    place = tmp_path / "made"
    torch.save({NAME: MATRIX, "x": Evil(place)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    assert spectrum(tmp_path / "w.pt", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ("holds other things than tensors" if options else "is a pickle") in line
    assert not place.exists()


def test_files_of_old_and_nested_ones_are_read(tmp_path):
    torch.save({NAME: MATRIX}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {NAME: MATRIX}, "optimizer": {}}, tmp_path / "nested.pt")
    for name in ("old.pt", "nested.pt"):
        assert spectrum(tmp_path / name, "--trust", "--json", str(tmp_path / f"{name}.json")) == 0
    assert (tmp_path / "old.pt.json").read_text() == (tmp_path / "nested.pt.json").read_text()


NO_WEIGHTS = {
    "empty": lambda f: f.write_bytes(b""),
    "text": lambda f: f.write_text("no weights"),
    "cut short": lambda f: f.write_bytes(f.read_bytes()[:-900]),
    "a number": lambda f: torch.save(3, f),
    "no names": lambda f: torch.save([MATRIX], f),
    "sparse": lambda f: torch.save({NAME: MATRIX.to_sparse()}, f),
    "nowhere": lambda f: torch.save({NAME: MATRIX.to("meta")}, f),
    "larger than the file": lambda f: torch.save({NAME: torch.zeros(1).expand(1 << 20, 1 << 20)}, f),
}


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_a_pickle_without_weights_is_one_line(tmp_path, capsys, name):
    file = tmp_path / "weights.pt"
    torch.save({NAME: MATRIX}, file)
    NO_WEIGHTS[name](file)
    assert spectrum(file, "--trust") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alphadecay: error: {file}: ")


def donor(folder, **more):
    """A HF checkpoint in two pickles, and the index of one in safetensors, which is not there."""
    sizes = read_model_config(str(folder / "model.json"), 32)
    values = {name: torch.randn(p.shape) for name, p in build_on_meta(sizes).named_parameters()}
    place = folder / "donor"
    place.mkdir()
    names = sorted(values)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: values[name] for name in part} | more, place / f"pytorch_model-0000{number}.bin")
    homes = {name: f"pytorch_model-0000{place % 2}.bin" for place, name in enumerate(names)}
    for index, weights in (("pytorch_model.bin", homes), ("model.safetensors", dict.fromkeys(names, "no"))):
        (place / f"{index}.index.json").write_text(json.dumps({"weight_map": weights}))
    return place, values


def tiny(folder):
    """Overrides for a tiny model."""
    (folder / "model.json").write_text(json.dumps(SIZES))
    return [f"model.name={folder / 'model.json'}", "train.seq_len=32"]


def test_init_from_opens_pickles_with_trust_alone(tmp_path):
    options = tiny(tmp_path)
    place, values = donor(tmp_path)
    run = str(tmp_path / "run")

    def checked(*more):
        return resolve(Options("demo", (*options, *more), None, None, run, init_from=str(place)))

    index = place / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(values, "../../etc/passwd")}))
    with pytest.raises(
        UserError, match=r"--init_from .*etc/passwd', expected the name of a file in the same"
    ):
        checked("checkpoint.trust")
    index.unlink()
    with pytest.raises(UserError, match=r"--init_from .*00000.bin: is a pickle.* add --checkpoint.trust$"):
        checked()
    found = checked("checkpoint.trust")
    assert found.config.checkpoint.trust
    value_of = values_from(str(place), found.shapes, trust=True)
    assert all(torch.equal(value_of(name), value) for name, value in values.items())
    assert not (tmp_path / "run").exists()


def test_init_from_runs_nothing_even_with_trust(tmp_path):
    options = tiny(tmp_path)
    place, _ = donor(tmp_path, evil=Evil(tmp_path / "made"))
    with pytest.raises(UserError, match=r"--init_from .*holds other things than tensors"):
        resolve(Options("demo", (*options, "checkpoint.trust=true"), None, None, None, init_from=str(place)))
    assert not (tmp_path / "made").exists()
