from __future__ import annotations

import pytest
import torch

from alphadecay_dist.spectral.esd import esd
from alphadecay_dist.spectral.farms import Windows, pooled_windows
from alphadecay_dist.spectral.powerlaw import hill
from tests.spectral.truth import gaussian, heavy, true_eigenvalues


def test_one_window_of_the_matrix_size_is_the_plain_spectrum():
    matrix = heavy(80, 60)
    assert torch.equal(pooled_windows(matrix, Windows(80, 80 / 60)).values, esd(matrix).values)


def test_windows_lie_evenly_from_edge_to_edge_and_are_pooled():
    matrix = heavy(100, 70)
    found = pooled_windows(matrix, Windows(rows=60, aspect=1.5, grid=(3, 2)))
    parts = [matrix[top : top + 60, left : left + 40] for top in (0, 20, 40) for left in (0, 30)]
    expected = torch.cat([true_eigenvalues(part) for part in parts]).sort().values
    assert found.values.numel() == 6 * 40
    assert torch.allclose(found.values, expected, rtol=1e-4)


def test_a_single_window_lies_in_the_middle():
    matrix = gaussian(90, 70)
    expected = esd(matrix[20:70, 10:60]).values
    assert torch.equal(pooled_windows(matrix, Windows(50)).values, expected)


def test_alpha_of_a_random_matrix_no_longer_depends_on_its_shape():
    shapes = [(256, 256), (688, 256), (256, 688)]
    plain = [float(hill(esd(gaussian(*shape)).values).alpha) for shape in shapes]
    windowed = [float(hill(pooled_windows(gaussian(*shape), Windows(256)).values).alpha) for shape in shapes]
    assert max(plain) - min(plain) > 0.7
    assert max(windowed) - min(windowed) < 0.1


@pytest.mark.parametrize("windows", [Windows(101), Windows(60, 0.5), Windows(100, 1.0, (2, 2))])
def test_a_window_larger_than_the_matrix_is_refused(windows):
    with pytest.raises(ValueError, match="larger than the matrix of 100 x 70"):
        pooled_windows(gaussian(100, 70), windows)


@pytest.mark.parametrize("options", [{"rows": 0}, {"rows": 5, "aspect": 0}, {"rows": 5, "grid": (0, 1)}])
def test_impossible_windows_are_refused(options):
    with pytest.raises(ValueError, match="farms: found rows"):
        Windows(**options)
