"""Engines are named once: everybody reads the registry, and a new engine is a file and a line in it."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from alphadecay_dist import UserError
from alphadecay_dist.checkpoint.reader import newest
from alphadecay_dist.engines.expected_layouts import Sharding
from alphadecay_dist.engines.host import Host, host_for
from alphadecay_dist.engines.registry import DEEPSPEED, DEFAULT, ENGINES, SHARDINGS, engine_of, load
from alphadecay_dist.engines.training import TrainEngine
from alphadecay_dist.training.options import add_options
from alphadecay_dist.training.recipe import CHOICES
from tests.python_path import python_path
from tests.training import runs


def members_of(protocol):
    return {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}


@pytest.mark.parametrize("name", ENGINES)
def test_a_name_leads_to_all_that_is_asked_of_an_engine(name):
    engine = ENGINES[name]
    training = load(engine.training)
    assert members_of(TrainEngine) - {"device"} <= set(dir(training))  # a device is made with the object
    assert callable(load(engine.settings))
    assert (engine.handle is None) == (engine.host is None)
    if engine.host is not None:
        assert members_of(Host) <= set(dir(load(engine.host)))
        assert isinstance(load(engine.handle), type)


@pytest.mark.parametrize("name", SHARDINGS)
def test_a_sharding_has_its_layout(name):
    assert callable(load(SHARDINGS[name].layouts))
    assert Sharding(name, 4).keeps_fp32 == (not name.startswith("zero"))


def test_recipes_and_the_command_line_have_the_names_of_the_registry():
    assert CHOICES["engine.name"] == ("auto", *ENGINES)
    parser = argparse.ArgumentParser()
    add_options(parser)
    (option,) = (action for action in parser._actions if "--engine" in action.option_strings)
    assert set(option.choices) == set(ENGINES) - {DEEPSPEED}
    assert DEFAULT in option.choices


def test_each_engine_of_torch_is_trained_by_the_tests_of_the_trainer():
    assert set(ENGINES) - {DEEPSPEED} <= set(runs.ENGINES)


def test_the_names_load_no_torch():
    code = (
        "import sys; from alphadecay_dist.engines.registry import ENGINES, SHARDINGS; "
        "assert ENGINES and SHARDINGS; print({'torch', 'deepspeed'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_is_no_engine_has_no_host():
    assert engine_of("zero3") is None
    with pytest.raises(UserError, match=r"engine: found str, which is not one of fsdp2, ddp, deepspeed"):
        host_for(None, None, "zero3", None)


TOY = '''
"""DDP with an object of its own around model and optimizer, as DeepSpeed has one."""
from alphadecay_dist.engines.native.ddp_training import DDPTraining
from alphadecay_dist.engines.native.host import PlainHost

class ToyEngine:
    def __init__(self, model, optimizer):
        self.module, self.optimizer = model, optimizer

class ToyTraining(DDPTraining):
    def initialize(self, model, optimizer):
        super().initialize(model, optimizer)
        return ToyEngine(model, optimizer)

class ToyHost(PlainHost):
    def __init__(self, engine):
        super().__init__(engine.module, [engine.optimizer], None)
        print("the toy's host was asked for")
'''

MAIN = """
import os
import sys

from alphadecay_dist.engines.registry import ENGINES, Engine

ENGINES["toy"] = Engine("toy.engine:ToyTraining", handle="toy.engine:ToyEngine", host="toy.engine:ToyHost")

import train

code = train.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""


@pytest.mark.launcher
@pytest.mark.ranks
def test_a_file_and_a_line_make_an_engine_that_the_trainer_trains(tmp_path, monkeypatch):
    package = tmp_path / "toy"
    package.mkdir()
    for name, text in (("__init__", ""), ("engine", TOY), ("__main__", MAIN)):
        (package / f"{name}.py").write_text(text)
    options = runs.tiny_options(tmp_path, train__steps=4, decay__interval=2)
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path, runs.ROOT))
    output = tmp_path / "run"
    code, printed = runs.launch("python", "-m", "toy", "--engine=toy", f"--output_dir={output}", *options)
    assert code == 0, printed
    assert "the toy's host was asked for" in printed
    assert newest(output / "checkpoints").manifest.engine == "toy"
    found, expected = runs.left_behind(output), runs.train_on(1, "ddp", tmp_path / "ddp", options)
    losses, as_ddp = ([line["loss"] for line in own["metrics"]] for own in (found, expected))
    assert losses == pytest.approx(as_ddp, rel=1e-6)
    assert [line["step"] for line in found["decay"]] == [0, 2]
