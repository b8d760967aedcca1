"""The small files beside the weights: a checkpoint's state, the decays, the log, the tokenizer, pickles."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from alphadecay_dist.checkpoint.foreign import foreign_tensors
from alphadecay_dist.checkpoint.reader import read
from alphadecay_dist.commands.pictures import plot_run
from alphadecay_dist.commands.weight_files import open_weights
from alphadecay_dist.control.controller import STATE_KEY
from alphadecay_dist.training.data.batches import TrainingData
from alphadecay_dist.training.data.prepared import open_prepared
from alphadecay_dist.training.data.tokenizer_files import load_tokenizer
from alphadecay_dist.training.outputs.run_files import (
    DECAY,
    EVAL,
    METRICS,
    STATUS,
    RunFiles,
    read_lines,
    read_status,
)
from alphadecay_dist.training.process.lock import LOCK, FolderLock
from alphadecay_dist.training.recipe import DataConfig
from alphadecay_dist.training.state import saved_state
from alphadecay_dist.training.tasks.language.model import read_model_config
from tests.checkpoint.layouts import save_with_state
from tests.controllers import setup, update
from tests.fuzz.drawn import accepted, changed, damaged, draws
from tests.training.corpora import number_tokenizer
from tests.training.hf_tokenizers import llama3
from tests.training.runs import SIZES
from tests.training.sequences import TRAIN, data_of
from tests.training.states import FINISHED, STATE


def as_bytes(strategy):
    return strategy.map(lambda tree: json.dumps(tree).encode())


@draws(75)
@given(content=as_bytes(changed(STATE)) | damaged(json.dumps(STATE).encode()))
def test_a_checkpoints_state(place, content):
    """Its checksum fits, so that what reads it sees it."""
    folder = save_with_state(place, content)
    accepted(lambda: saved_state(read(folder)))
    accepted(lambda: open_weights(folder))


LANES = {"text": [{"shuffle": 5}, {"shuffle": 5, "pack": True}], "prepared": [{}, {"pack": True}]}


@pytest.fixture(scope="module")
def lanes(texts, prepared):
    """Training data of each kind, after some updates, and their states."""
    made = [data_of(texts, **options) for options in LANES["text"]]
    source, _ = open_prepared(str(prepared))
    for options in LANES["prepared"]:
        made.append(TrainingData(source, number_tokenizer(), DataConfig(**options), TRAIN, 0, 1))
    for data in made:
        data.next_update()
    return [(data, json.loads(json.dumps(data.state()))) for data in made]


@draws(50)
@given(data=st.data(), which=st.integers(0, 3))
def test_positions_in_the_data(lanes, data, which):
    training, state = lanes[which]
    drawn = data.draw(changed(state, most=2))

    def go_on():
        training.load(drawn)
        training.next_update()

    accepted(go_on)
    training.load(state)
    training.next_update()


@pytest.fixture(scope="module")
def controllers():
    """A controller after a few updates, one with a refresh that is pending, and their states."""
    made = []
    for lag in (0, 2):
        model, optimizer, decay = setup(lag=lag)
        for number in range(5):
            update(model, optimizer, decay, number)
        made.append((decay, json.loads(decay.state_dict()[STATE_KEY])))
    return made


@draws(50)
@given(data=st.data(), which=st.integers(0, 1), whole=st.booleans())
def test_the_decays_state(controllers, data, which, whole):
    decay, state = controllers[which]
    if whole:
        drawn = {STATE_KEY: json.dumps(data.draw(changed(state)))}
    else:
        drawn = data.draw(changed({STATE_KEY: json.dumps(state)}))

    def go_on():
        decay.load_state_dict(drawn)
        for _ in range(3):
            decay.step()

    accepted(go_on)
    decay.load_state_dict({STATE_KEY: json.dumps(state)})


LINES = {
    METRICS: {"step": 3, "loss": 2.0, "tokens": 30},
    EVAL: {"step": 3, "loss": 2.0},
    DECAY: {
        "step": 3,
        "written_at": 3,
        "modules": {"a.q_proj": {"alpha": 2.0, "weight_decay": 0.1, "owner": 0, "status": "assigned"}},
    },
}


def write_lines(place, data, name):
    """A file of each kind, one of which was changed."""
    for other, line in LINES.items():
        (place / other).write_text(json.dumps(line) + "\n" + json.dumps({**line, "step": 4}) + "\n")
    whole = (place / name).read_bytes()
    lines = changed(LINES[name]).map(lambda tree: whole + json.dumps(tree).encode() + b"\n" + whole)
    (place / name).write_bytes(data.draw(lines | damaged(whole)))


@draws(50)
@given(data=st.data(), name=st.sampled_from(list(LINES)))
def test_lines_of_the_log(place, data, name):
    write_lines(place, data, name)
    if accepted(lambda: read_lines(place / name)):
        assert accepted(lambda: RunFiles(place).keep_until(4))


@draws(5)
@given(data=st.data(), name=st.sampled_from(list(LINES)))
def test_a_picture_of_the_log(place, data, name):
    write_lines(place, data, name)
    accepted(lambda: plot_run(place, io.BytesIO()))


@draws(60)
@given(content=as_bytes(changed(FINISHED)) | damaged(json.dumps(FINISHED).encode()))
def test_a_status(place, content):
    (place / STATUS).write_bytes(content)
    assert accepted(lambda: read_status(place))
    assert accepted(lambda: RunFiles(place).status("running", 3))


HOLDER = {"host": "a", "pid": 3, "since": "now"}


@draws(40)
@given(content=as_bytes(changed(HOLDER)) | damaged(json.dumps(HOLDER).encode()))
def test_a_lock(place, content):
    (place / LOCK).write_bytes(content)
    first, second = FolderLock(place), FolderLock(place)
    first.before_reading()
    assert not accepted(second.before_reading)
    first.before_writing()
    first.release()


@draws(50)
@given(content=damaged(number_tokenizer().proto) | st.binary(max_size=300))
def test_a_tokenizer(place, content):
    (place / "a.model").write_bytes(content)
    accepted(lambda: load_tokenizer(str(place / "a.model")).encode(["12 7"]))


@pytest.fixture(scope="module")
def json_tokenizer(tmp_path_factory):
    folder = llama3(tmp_path_factory.mktemp("tokenizer"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [401, 402]}')
    return folder


@draws(120)
@given(data=st.data())
def test_a_tokenizer_json(place, json_tokenizer, data):
    shutil.copytree(json_tokenizer, place, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(sorted(path.name for path in json_tokenizer.iterdir())))
    whole = (json_tokenizer / name).read_bytes()
    content = data.draw(as_bytes(changed(json.loads(whole))) | damaged(whole))
    (place / name).write_bytes(content)
    accepted(lambda: load_tokenizer(str(place)).encode(["12 7", "<|end_of_text|>"]))


def pickled(tensors, old):
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


PICKLES = [pickled({"a.weight": torch.ones(3, 2), "b": torch.zeros(2)}, old) for old in (False, True)]


@draws(75)
@given(data=st.data(), content=st.sampled_from(PICKLES))
def test_a_pickle(place, data, content):
    flips = data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4))
    flipped = bytearray(content)
    for flip in flips:
        flipped[flip] ^= 1 << data.draw(st.integers(0, 7))
    (place / "a.pt").write_bytes(data.draw(damaged(bytes(flipped)) | st.just(bytes(flipped))))

    def look():
        for tensor in foreign_tensors(place / "a.pt", trust=True, option="--trust"):
            for _, matrix in tensor.units():
                matrix.float().sum()

    accepted(look)


NAMES = ["layers.0.a.weight", "layers.1.a.weight"]
INDEX = {"metadata": {"total_size": 8}, "weight_map": {NAMES[0]: "a.safetensors", NAMES[1]: "b.safetensors"}}
HF_CONFIG = {**SIZES, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": None}


@draws(75)
@given(
    index=as_bytes(changed(INDEX))
    | damaged(json.dumps(INDEX).encode())
    | st.just(json.dumps(INDEX).encode()),
    config=as_bytes(changed(HF_CONFIG)) | damaged(json.dumps(HF_CONFIG).encode()),
)
def test_what_lies_beside_the_weights_of_others(place, index, config):
    """The index, which names files, and the config, which names the architecture."""
    for name, file in zip(NAMES, ("a.safetensors", "b.safetensors"), strict=True):
        save_file({name: torch.ones(64, 64)}, place / file)
    (place / "model.safetensors.index.json").write_bytes(index)
    (place / "config.json").write_bytes(config)
    accepted(lambda: open_weights(place))
    accepted(lambda: read_model_config(str(place / "config.json"), 32))


def test_a_state_that_was_not_changed_is_taken(place, lanes, controllers):
    folder = save_with_state(place, json.dumps(STATE).encode())
    assert accepted(lambda: saved_state(read(folder)))
    for training, state in lanes:
        assert accepted(lambda training=training, state=state: training.load(state))
    for decay, state in controllers:
        assert accepted(
            lambda decay=decay, state=state: decay.load_state_dict({STATE_KEY: json.dumps(state)})
        )
