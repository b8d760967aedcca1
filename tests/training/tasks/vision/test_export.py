"""What is exported is what timm loads: the same outputs, from the weights and from their moving average."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import yaml

from alphadecay_dist import cli
from tests.training.tasks.vision.runs import options_of, run, tensors_of, write_idx

pytestmark = [pytest.mark.ranks, pytest.mark.launcher]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    options = options_of(write_idx(folder / "idx"), train__steps=3, eval__every=0)
    run(1, "ddp", folder / "run", options)
    return folder / "run"


def expected_outputs(run_folder, kind, images):
    sizes = {"img_size": 16, "in_chans": 1, "num_classes": 10, "patch_size": 4, "embed_dim": 64, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_heads=2, **sizes).eval()
    model.load_state_dict({name: t for (name, of), t in tensors_of(run_folder).items() if of == kind})
    return model(images)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "options"), [("weight", []), ("ema", ["--weights", "ema"])])
def test_timm_loads_it_with_equal_outputs(finished, tmp_path, kind, options):
    output = tmp_path / "exported"
    assert cli.main(["export", str(finished), "--to", "hf", "--output", str(output), *options]) == 0
    model = timm.create_model(f"local-dir:{output}", pretrained=True).eval()
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(model(images), expected_outputs(finished, kind, images))
    settings = timm.data.resolve_model_data_config(model)
    assert settings["input_size"] == (1, 16, 16)
    assert [*settings["mean"], *settings["std"], settings["crop_pct"]] == [0.5, 0.5, 0.875]
    named = timm.create_model(
        "vit_tiny_patch16_224",
        checkpoint_path=str(output / "model.safetensors"),
        **json.loads((output / "config.json").read_text())["model_args"],
    )
    assert torch.equal(named.eval()(images), model(images))
    head = yaml.safe_load((output / "README.md").read_text().split("---")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("timm", "image-classification")
    assert "| ema_top1 |" in (output / "README.md").read_text()


def test_what_cannot_be_exported(finished, tmp_path, capsys):
    argv = ["export", str(finished), "--output", str(tmp_path / "out"), "--to"]
    assert cli.main([*argv, "hf", "--weights", "average"]) == 2
    assert "has no such tensors; it has ema, exp_avg, exp_avg_sq, weight" in capsys.readouterr().err
    assert cli.main([*argv, "deepspeed", "--weights", "ema"]) == 2
    assert "--weights ema: found with --to deepspeed" in capsys.readouterr().err
