"""A model config that names a padding token, as many on the hub do, trains under every engine."""

from __future__ import annotations

import json

import pytest

from tests.training.runs import SIZES, tiny_options, train_on

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


def test_zero_3_builds_a_model_with_a_padding_token(tmp_path):
    path = tmp_path / "padded.json"
    path.write_text(json.dumps({**SIZES, "pad_token_id": 0}))
    options = tiny_options(tmp_path, model__name=str(path), train__steps=3)
    sharded = train_on(2, "3", tmp_path / "sharded", options)
    whole = train_on(1, "1", tmp_path / "whole", options)
    losses = [[line["loss"] for line in run["metrics"]] for run in (sharded, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
