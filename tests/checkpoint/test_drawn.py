"""Drawn manifests: accepted, or one named error."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from alphadecay_dist.checkpoint import manifest
from alphadecay_dist.checkpoint.manifest import (
    Manifest,
    StoredFile,
    StoredPiece,
    TensorEntry,
    from_text,
    to_text,
)
from alphadecay_dist.sharding.layout import Flat, Grid
from tests.json_trees import JSON, places, put

SMALL = Manifest(
    step=3,
    world_size=2,
    engine="fsdp2",
    versions={"torch": "2.13"},
    files={"state.json": StoredFile(10, 5), "shards/rank-00000.safetensors": StoredFile(20, 6)},
    scalars={"step": {"a": 3.0}},
    tensors=(
        TensorEntry(
            "a",
            "weight",
            (2, 3),
            "F32",
            (
                StoredPiece("shards/rank-00000.safetensors", "weight/a", Flat(0, 3)),
                StoredPiece(
                    "shards/rank-00000.safetensors", "more/a", Grid(((Flat(1, 2),), (Flat(0, 2), Flat(2, 3))))
                ),
            ),
        ),
    ),
)


def accepted_or_named(text):
    try:
        found = from_text(text)
    except ValueError as error:
        line = str(error)
    else:
        assert isinstance(found, Manifest)
        return found
    assert "\n" not in line
    assert len(line) < 400
    return None


def test_a_manifest_comes_back_as_it_was():
    assert from_text(to_text(SMALL)) == SMALL


@settings(max_examples=300)
@given(st.data(), JSON)
def test_any_value_in_any_place_is_accepted_or_named(data, new):
    whole = json.loads(to_text(SMALL))
    whole.pop("crc32")
    changed = put(whole, data.draw(st.sampled_from(list(places(whole)))), new)
    if isinstance(changed, dict):
        changed = json.loads(json.dumps({**changed, "crc32": manifest._checksum(changed)}))
    accepted_or_named(json.dumps(changed))


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_bit_is_seen(data):
    text = bytearray(to_text(SMALL).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = accepted_or_named(text.decode())
    except UnicodeDecodeError:
        return
    assert found is None or found == SMALL  # a space, or the case of a letter in an escape


@given(st.text(max_size=30) | JSON.map(json.dumps))
def test_any_text_is_named(text):
    assert accepted_or_named(text) is None
