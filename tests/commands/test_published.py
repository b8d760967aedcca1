"""The published tables: every setting and result, against lists that were written here from the facts."""

from __future__ import annotations

import pytest

from alphadecay_dist.commands.published import Choice, choice_of, facts, published_table, seeds_of
from alphadecay_dist.errors import UserError
from alphadecay_dist.training.config import load_config

# updates, peak learning rate, recipe, tokens that the paper says
SIZES = {
    "60m": (10_000, 1e-3, "llama_60m", 1e9),
    "130m": (20_000, 1e-3, "llama_130m", 2e9),
    "350m": (60_000, 1e-3, "llama_350m", 6e9),
    "1b": (90_000, 6e-4, "llama_1b", 8.9e9),
    "tiny": (120 * (1_281_167 // 384), 4e-3, "vit_tiny", None),
}
LLAMAS = [size for size in SIZES if size != "tiny"]
IMAGES = ("5e-6", "1e-6")  # base decays of the vision transformer, with an s2 of their own
S2_OF_IMAGES = {"5e-6": 3, "1e-6": 5}
S2 = {"1e-5": 3, "5e-6": 5, "1e-6": 5, "0.1": 5, "0.05": 5, "0.01": 5}
ADAM, ADAMW = ("1e-5", "5e-6", "1e-6"), ("0.1", "0.05", "0.01")
COMMON = {
    "train.global_batch": 512,
    "train.seq_len": 256,
    "train.dtype": "bfloat16",
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.warmup": 0.1,
    "optimizer.schedule": "cosine",
    "optimizer.min_lr_ratio": 0.1,
    "decay.interval": 500,
    "decay.min_ratio": 0.6666,
    "decay.untuned": "base",
    "eval.tokens": 10_000_000,
}
COMMON_OF_IMAGES = {
    "train.global_batch": 192 * 2,
    "train.dtype": "float32",
    "train.clip": 0.0,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.warmup": 0.1666667,
    "optimizer.schedule": "cosine",
    "optimizer.min_lr_ratio": 1e-6,
    "decay.interval": 3336,
    "decay.min_ratio": 0.6666,
    "decay.untuned": "base",
}
WAYS = {
    "paper": {"train.clip": 1.0, "optimizer.zero_first": False, "decay.preset": "paper"},
    "reference": {"train.clip": 0.0, "optimizer.zero_first": True, "decay.preset": "reference"},
}
WAYS_OF_IMAGES = {
    "reference": {
        "optimizer.zero_first": True,
        "decay.preset": "reference_vit",
        "decay.follow": ["bias"],
    }
}
METHODS = {
    "none": {"decay.policy": "none", "decay.weight_decay": 0.0},
    "uniform": {"decay.policy": "uniform"},
    "awd": {"decay.policy": "awd", "decay.factor": 100},
    "adadecay": {"decay.policy": "adadecay"},
    "alphadecay": {"decay.policy": "alphadecay"},
    **{
        shape: {"decay.policy": "alphadecay", "decay.assign": shape}
        for shape in ("linear", "sqrt", "log2", "sigmoid")
    },
    **{
        metric: {"decay.policy": "alphadecay", "decay.metric": metric}
        for metric in ("alpha", "frobenius_norm", "spectral_norm")
    },
    "gradient_norm": {"decay.policy": "gradient_norm"},
    **{
        f"interval_{updates}": {"decay.policy": "alphadecay", "decay.interval": updates}
        for updates in (500, 250, 100, 50, 1)
    },
    **{
        name: {"decay.policy": name}
        for name in ("static", "shuffled", "uniform_matched", "adamc", "cautious")
    },
    "llr": {
        "decay.policy": "llr",
        "decay.interval": 100,
        "decay.min_ratio": 1.0,
        "decay.max_ratio": 5.0,
        "decay.until": 0.2,
    },
}
FIVE = ("none", "uniform", "awd", "adadecay", "alphadecay")
# optimizer, base decays, methods, seeds by size
PRESETS = {
    "adam": ("adam", ADAM, FIVE, {"60m": [0], "130m": [5], "350m": [0], "1b": [0]}),
    "adamw": ("adamw", ADAMW, FIVE, {"60m": [0], "130m": [0]}),
    "seeds": ("adam", ADAM, FIVE, {"130m": [5, 6, 7, 8, 9, 10]}),
    "assign": ("adam", ADAM, ("uniform", "linear", "sqrt", "log2", "sigmoid"), {"60m": [0]}),
    "metrics": (
        "adam",
        ADAM,
        ("alpha", "gradient_norm", "frobenius_norm", "spectral_norm"),
        {"130m": [5]},
    ),
    "interval": (
        "adam",
        ("1e-5",),
        ("uniform", "interval_500", "interval_250", "interval_100", "interval_50", "interval_1"),
        {"60m": [0], "130m": [5]},
    ),
    "controls": (
        "adamw",
        ADAMW,
        ("uniform", "alphadecay", "static", "shuffled", "uniform_matched", "adamc", "cautious", "llr"),
        {size: [0, 1, 2] for size in LLAMAS},
    ),
    "vit": ("adam", IMAGES, FIVE, {"tiny": [0]}),
}
PLACES = [(preset, size) for preset, (*_, seeds) in PRESETS.items() for size in seeds]
EVERY_WAY = [
    (preset, size, way) for preset, size in PLACES for way in (WAYS_OF_IMAGES if preset == "vit" else WAYS)
]

# Perplexities, of "vit" top-1 accuracies, a line a method; base decays from the largest to the smallest.
RESULTS = {
    ("adam", "60m"): """
        none 33.23
        uniform 32.39 32.56 33.03
        awd 33.78 33.74 33.74
        adadecay 32.24 32.52 33.03
        alphadecay 31.56 31.58 32.61""",
    ("adam", "130m"): """
        none 24.60
        uniform 22.99 23.14 24.14
        awd 24.25 24.45 24.53
        adadecay 23.20 23.08 23.96
        alphadecay 22.76 22.55 23.49""",
    ("adam", "350m"): """
        none 18.62
        uniform 17.12 16.74 17.50
        awd 18.32 18.55 18.79
        adadecay 18.21 17.42 17.91
        alphadecay 17.00 16.66 16.88""",
    ("adam", "1b"): """
        none 16.11
        uniform 15.36 14.66 15.03
        awd 16.03 16.22 16.38
        adadecay 17.23 18.14 15.35
        alphadecay 15.13 14.55 14.63""",
    ("adamw", "60m"): """
        none 32.73
        uniform 31.95 32.31 32.66
        awd 32.58 32.67 32.67
        adadecay 31.88 32.25 32.58
        alphadecay 31.20 31.65 32.45""",
    ("adamw", "130m"): """
        none 24.39
        uniform 23.32 23.81 24.28
        awd 24.30 24.35 24.41
        adadecay 23.18 23.62 24.21
        alphadecay 22.66 23.04 23.98""",
    ("seeds", "130m"): """
        none 24.55+-.07
        uniform 22.97+-.07 23.12+-.03 24.12+-.04
        awd 24.13+-.15 24.46+-.07 24.53+-.03
        adadecay 23.18+-.05 23.07+-.04 24.00+-.03
        alphadecay 22.77+-.02 22.54+-.03 23.44+-.02""",
    ("assign", "60m"): """
        uniform 32.386 32.562 33.028
        linear 31.565 31.582 32.537
        sqrt 32.326 32.517 33.074
        log2 32.301 32.501 33.033
        sigmoid 32.201 32.171 33.095""",
    ("metrics", "130m"): """
        alpha 22.763 22.551 23.488
        gradient_norm 22.855 22.714 23.801
        frobenius_norm 23.265 22.910 23.596
        spectral_norm 23.348 23.006 23.601""",
    ("interval", "60m"): "uniform 32.386",
    ("vit", "tiny"): """
        none 65.12
        uniform 66.97 66.41
        awd 65.21 64.98
        adadecay 65.86 66.26
        alphadecay 67.40 67.73""",
}
HOURS = {  # of an A100: without refreshes, and with one every 500, 250, 100, 50 updates, and at each
    "60m": (1.4, 1.4, 1.4, 1.5, 1.6, 9.3),
    "130m": (5.6, 5.7, 5.9, 6.3, 7.1, 74.5),
}


def read(text, decays):
    """Published numbers by method and decay: (mean, deviation)."""
    found = {}
    for line in text.split("\n"):
        method, *numbers = line.split() or [""]
        own = ("0",) if method == "none" else decays
        for decay, number in zip(own, numbers, strict=bool(method)):
            mean, _, deviation = number.partition("+-")
            found[method, decay] = (float(mean), float(deviation) if deviation else None)
    return found


def test_the_presets_and_sizes_are_those():
    assert list(facts()["presets"]) == list(PRESETS)
    assert facts()["sizes"].keys() == SIZES.keys()
    assert {name: tokens for name, (*_, tokens) in SIZES.items()} == {
        name: size.get("tokens") for name, size in facts()["sizes"].items()
    }
    assert facts()["methods"].keys() == METHODS.keys()


@pytest.mark.parametrize(("preset", "size", "way"), EVERY_WAY)
def test_the_settings_of_every_cell(preset, size, way):
    optimizer, decays, methods, seeds = PRESETS[preset]
    updates, rate, recipe, _ = SIZES[size]
    common, s2, ways = (
        (COMMON_OF_IMAGES, S2_OF_IMAGES, WAYS_OF_IMAGES) if preset == "vit" else (COMMON, S2, WAYS)
    )
    cells = iter(published_table(Choice(preset, size, way)).cells.items())
    number = 0
    for method in methods:
        for decay in ("0",) if method == "none" else decays:
            for seed in seeds[size]:
                found, cell = next(cells)
                assert (found, cell.recipe) == (number, recipe)
                assert cell.place == {"method": method, "decay.weight_decay": decay, "train.seed": str(seed)}
                expected = {
                    **common,
                    "train.steps": updates,
                    "train.seed": seed,
                    "optimizer.name": optimizer,
                    "optimizer.lr": rate,
                    "decay.weight_decay": float(decay),
                    **({"decay.max_ratio": s2[decay]} if decay in s2 else {}),
                    **ways[way],
                    **METHODS[method],
                    **({"decay.factor": 50} if (preset, method) == ("vit", "awd") else {}),
                }
                assert cell.options == expected
                number += 1
    assert next(cells, None) is None


@pytest.mark.parametrize(("preset", "size", "way"), EVERY_WAY)
def test_the_published_number_of_every_cell(preset, size, way):
    _, decays, methods, _ = PRESETS[preset]
    numbers = read(RESULTS.get((preset, size), ""), decays)
    hours = dict(zip(methods, HOURS[size], strict=True)) if preset == "interval" else {}
    ours = ("top1", "ema_top1") if preset == "vit" else ("perplexity_as_published",)
    seen = set()
    for cell in published_table(Choice(preset, size, way)).cells.values():
        method, decay, _ = cell.place.values()
        found = {name: (number.mean, number.deviation) for name, number in cell.published.items()}
        expected = {}
        if (method, decay) in numbers:
            expected |= dict.fromkeys(ours, numbers[method, decay])
            seen.add((method, decay))
        if method in hours:
            expected["hours"] = (hours[method], None)
        assert found == expected
    assert seen == numbers.keys()


@pytest.mark.parametrize(("preset", "size"), [place for place in PLACES if place[0] != "vit"])
def test_the_options_of_every_cell_load_as_a_recipe(preset, size):
    for cell in published_table(Choice(preset, size)).cells.values():
        config = cell.config()
        assert config.decay.policy == cell.options["decay.policy"]
        assert config.decay.weight_decay == cell.options["decay.weight_decay"]
        assert (config.train.steps, config.optimizer.lr) == SIZES[size][:2]
        assert config.model.name == SIZES[size][2]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_tells_how_it_differs_from_the_published_runs(way):
    notes = "\n".join(published_table(Choice("adamw", "60m", way)).notes)
    for word in ("clipping:", "first learning rate:", "masters: fp32 masters are kept"):
        assert word in notes
    assert ("clipped at a global norm of 1.0" in notes) == (way == "paper")


def test_a_cell_is_a_run_of_the_trainer_in_a_directory_of_its_own():
    table = published_table(Choice("adam", "130m"), deepspeed="ds_configs/zero2.json")
    cell = table.cells[12]
    assert cell.place["method"] == "alphadecay"
    folder = "runs/tables/adam_130m_paper/method=alphadecay,weight_decay=1e-6,seed=5"
    assert cell.arguments()[:6] == [
        *("--recipe", "llama_130m", "--deepspeed", "ds_configs/zero2.json", "--output_dir", folder),
    ]
    assert load_config(cell.recipe, [word[2:] for word in cell.arguments()[6:]]) == cell.config()
    folders = {
        cell.folder for name in WAYS for cell in published_table(Choice("adam", "130m", name)).cells.values()
    }
    assert len(folders) == 26


def test_chosen_cells_keep_their_numbers_and_take_changes():
    table = published_table(
        Choice("adamw", "60m", seeds=(3, 4)),
        methods=["uniform", "alphadecay"],
        decays=["0.05"],
        overrides=["train.steps=7", "data.pack"],
        output="there",
    )
    assert list(table.cells) == [4, 5, 22, 23]
    config = table.cells[22].config()
    assert (config.train.steps, config.data.pack, config.train.seed) == (7, True, 3)
    assert str(table.cells[22].folder) == "there/method=alphadecay,weight_decay=0.05,seed=3"


def test_a_word_names_preset_size_way_and_seeds():
    assert choice_of("adamw:60m") == Choice("adamw", "60m", None, None)
    assert choice_of("adam:130m:reference") == Choice("adam", "130m", "reference")
    assert choice_of("adam:130m::5,6") == Choice("adam", "130m", None, (5, 6))
    assert choice_of("vit") == choice_of("vit:tiny") == Choice("vit", "tiny")  # there is one size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choice_of("adamw"), "expected PRESET:SIZE, perhaps with :WAY and :SEEDS"),
        (lambda: choice_of("adamw:60m:paper:0:1"), "expected PRESET:SIZE, perhaps"),
        (lambda: seeds_of("0,x"), "--seeds: found '0,x', expected different numbers"),
        (lambda: seeds_of("1,1"), "--seeds: found '1,1', expected different numbers"),
        (lambda: published_table(Choice("adam2", "60m")), "--preset adam2: unknown; did you mean 'adam'?"),
        (lambda: published_table(Choice("adamw", "1b")), "--size 1b: not in adamw"),
        (lambda: published_table(Choice("adamw", "60m", "text")), "--way text: there is none of"),
        (
            lambda: published_table(Choice("vit", "tiny", "paper")),
            "--way paper: there is none of vit; known: reference",
        ),
        (lambda: published_table(Choice("adamw", "60m"), methods=["unifrm"]), "did you mean 'uniform'?"),
        (lambda: published_table(Choice("adamw", "60m"), decays=["1"]), "--decays 1: not in the table"),
        (
            lambda: published_table(Choice("adamw", "60m"), overrides=["train.seed=3"]),
            "--train.seed: has a value of its own in each cell",
        ),
    ],
)
def test_a_mistake_is_one_line(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
