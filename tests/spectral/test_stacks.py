"""Stacks of matrices, convolutions, and what neighbours must not do to each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from alphadecay_dist import spectral
from alphadecay_dist.spectral import Estimator, Windows, analyze, analyze_each, analyze_stack
from alphadecay_dist.spectral.batch import STACK_MAX_COUNT, STACK_MAX_NUMEL
from alphadecay_dist.spectral.esd import GRAM_LEAF, conv_esd, esd
from alphadecay_dist.spectral.farms import pooled_windows
from alphadecay_dist.spectral.powerlaw import hill
from tests.spectral.truth import gaussian, heavy, spiked, true_eigenvalues

GOOD = [gaussian(60, 80), heavy(60, 80, 3), spiked(60, 80, 1e5), gaussian(60, 80, 7) * 1e-20]
BAD = {
    "zero": torch.zeros(60, 80),
    "non_finite": torch.full((60, 80), math.nan),
    "rank_deficient": gaussian(60, 1) @ gaussian(1, 80),
    "no_tail": torch.eye(60, 80),
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fit", ["hill", "goodness_of_fit", "fix_finger"])
def test_a_stack_is_analysed_as_its_matrices_bit_for_bit_whatever_stands_beside_them(fit):
    estimator = Estimator(fit)
    alone = [analyze(matrix, estimator) for matrix in GOOD]
    assert {report.status for report in alone} == {"ok"}
    assert analyze_stack(torch.stack(GOOD), estimator) == alone
    infinite = GOOD[0].clone()
    infinite[3, 4] = -math.inf
    mixed = torch.stack([matrix for pair in zip(GOOD, BAD.values(), strict=True) for matrix in pair])
    found = analyze_stack(torch.cat([mixed, infinite[None]]), estimator)
    assert found[:8:2] == alone
    assert [report.status for report in found[1:8:2]] == list(BAD)
    assert found[8].status == "non_finite"


@pytest.mark.parametrize("shape", [(64, 64), (300, 64), (64, 300), (128, 128), (200, 160)])
def test_stacks_of_many_shapes_are_bit_equal_to_single_matrices(shape):
    matrices = [gaussian(*shape, seed) for seed in range(5)]
    assert analyze_stack(torch.stack(matrices)) == [analyze(matrix) for matrix in matrices]


@pytest.mark.parametrize("scale", [1e-9, 3e-10, 1e8])
def test_a_neighbour_of_another_magnitude_changes_no_bit(scale):
    own = gaussian(60, 80, 1) * scale
    found = analyze_stack(torch.stack([gaussian(60, 80) * 1e20, own, gaussian(60, 80, 2) * 1e-20]))
    assert found[1] == analyze(own)


def test_a_stack_is_worked_through_when_its_solver_fails_on_one(monkeypatch):
    solve = torch.linalg.eigvalsh

    def failing(gram, **options):
        if bool((gram[:, 0, 0] > 1e6).any()):
            raise torch.linalg.LinAlgError("did not converge")
        return solve(gram, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", failing)
    matrices = [gaussian(60, 80), gaussian(60, 80) * 1e4, gaussian(60, 80, 1)]
    with pytest.warns(UserWarning, match=r"\(60, 80\) weight failed: did not converge"):
        assert analyze(matrices[1]).status == "failed"
    with pytest.warns(UserWarning, match="did not converge"):
        found = analyze_each([(str(number), matrix) for number, matrix in enumerate(matrices)])
    assert [report.status for report in found.values()] == ["ok", "failed", "ok"]
    assert found["2"] == analyze(matrices[2])


def test_small_stacks_have_no_tail_and_empty_ones_no_matrix():
    assert [report.status for report in analyze_stack(torch.ones(3, 49, 80))] == ["too_small"] * 3
    assert analyze_stack(torch.ones(0, 60, 80)) == []
    assert [report.status for report in analyze_stack(torch.ones(2, 0, 80))] == ["too_small"] * 2


def test_neighbours_of_one_small_shape_go_in_one_call(monkeypatch):
    sizes = []

    def counted(stack, estimator):
        sizes.append(len(stack))
        return analyze_stack(stack, estimator)

    monkeypatch.setattr("alphadecay_dist.spectral.batch.analyze_stack", counted)
    small = [(f"s{number}", gaussian(64, 80, number)) for number in range(STACK_MAX_COUNT + 3)]
    side = math.isqrt(STACK_MAX_NUMEL) + 1
    large = [(f"l{number}", gaussian(side, side, number)) for number in range(2)]
    other = [("o", gaussian(64, 81)), ("h", gaussian(64, 81).half())]
    found = analyze_each([*small, *large, *other, small[0]])
    assert sorted(sizes) == [3, STACK_MAX_COUNT]
    expected = {name: analyze(matrix) for name, matrix in [*small, *large, *other]}
    assert found == expected


@pytest.mark.parametrize("size", [GRAM_LEAF - 1, GRAM_LEAF + 1, 771])
@pytest.mark.parametrize("wide", [False, True])
def test_half_of_the_gram_matrix_is_enough(size, wide):
    matrix = heavy(size + 60, size)
    matrix = matrix.T if wide else matrix
    expected = true_eigenvalues(matrix)
    found = esd(matrix)
    assert float((found.values - expected).abs().max()) <= size * float(found.error[0])


def test_the_eigensolver_reads_nothing_above_the_diagonal():
    gram = gaussian(80, 60).T @ gaussian(80, 60)
    gram = gram + gram.T
    garbage = gram.tril() + torch.full_like(gram, math.nan).triu(1)
    assert torch.equal(torch.linalg.eigvalsh(garbage, UPLO="L"), torch.linalg.eigvalsh(gram, UPLO="L"))


@pytest.mark.parametrize("shape", [(24, 20, 3, 3), (64, 70, 1, 1), (10, 40, 2, 5)])
def test_a_convolution_pools_the_eigenvalues_of_its_positions(shape):
    weight = heavy(shape[0], shape[1] * shape[2] * shape[3]).reshape(shape)
    positions = [weight[:, :, y, x] for y in range(shape[2]) for x in range(shape[3])]
    expected = torch.cat([true_eigenvalues(position) * 0.5 for position in positions]).sort().values
    found = conv_esd(weight).values
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6 * float(expected[-1]))
    assert analyze(weight).alpha == pytest.approx(float(hill(expected).alpha), abs=1e-5)


@pytest.mark.parametrize("channels", [64, 160])
def test_a_loud_position_does_not_hide_the_others(channels):
    weight = gaussian(channels, channels * 9).reshape(channels, channels, 3, 3) * 1e-3
    weight[:, :, 1, 1] *= 1000
    positions = [weight[:, :, y, x] for y in range(3) for x in range(3)]
    expected = torch.cat([true_eigenvalues(position) * 0.5 for position in positions]).sort().values
    assert analyze(weight).alpha == pytest.approx(float(hill(expected).alpha), abs=1e-5)


def test_a_loud_corner_does_not_hide_the_other_windows():
    matrix = heavy(200, 200) * 1e-3
    matrix[:60, :60] *= 1e4
    windows = Windows(50, 1.0, (3, 3))
    parts = [matrix[t : t + 50, left : left + 50] for t in (0, 75, 150) for left in (0, 75, 150)]
    expected = torch.cat([true_eigenvalues(part) for part in parts]).sort().values
    found = analyze(matrix, Estimator(windows=windows))
    assert found.alpha == pytest.approx(float(hill(expected).alpha), abs=1e-5)


def test_a_depthwise_convolution_is_too_small():
    assert analyze(torch.ones(512, 1, 3, 3)).status == "too_small"


def test_windows_take_the_matrix_place():
    matrix, windows = heavy(120, 90), Windows(60, 1.2, (2, 3))
    report = analyze(matrix, Estimator(windows=windows))
    expected = float(hill(pooled_windows(matrix.double(), windows).values).alpha)
    assert report.alpha == pytest.approx(expected, abs=1e-5)
    assert report.alpha != pytest.approx(analyze(matrix).alpha, abs=1e-2)
    with pytest.raises(ValueError, match="larger than the matrix of 50 x 90"):
        analyze(matrix[:50], Estimator(windows=windows))


@pytest.mark.parametrize("wrong", [{"fit": "nope"}, {"xmin_pos": 1.0}, {"xmin_pos": math.inf}])
def test_impossible_estimators_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Estimator(**wrong)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool])
def test_what_is_not_real_floating_point_is_refused(dtype):
    with pytest.raises(ValueError, match="real"):
        analyze(torch.ones(60, 60, dtype=dtype))


def test_a_sharded_tensor_by_mistake_has_a_status():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        sharded = distribute_tensor(gaussian(64, 80), init_device_mesh("cpu", (1,)), [Shard(0)])
        assert analyze(sharded).status == "sharded"
        found = analyze_each([("a", gaussian(64, 80)), ("b", sharded), ("c", gaussian(64, 80, 1))])
    finally:
        dist.destroy_process_group()
    assert [report.status for report in found.values()] == ["ok", "sharded", "ok"]
    assert found["a"] == analyze(gaussian(64, 80))


def test_the_spectra_know_no_rank():
    for path in sorted(Path(spectral.__file__).parent.glob("*.py")):
        assert "torch.distributed" not in path.read_text(), path
