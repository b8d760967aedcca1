from __future__ import annotations

import threading

import pytest
import torch

from alphadecay_dist.spectral import Estimator, Workers, analyze, analyze_each
from tests.spectral.truth import MATRICES, gaussian


@pytest.fixture
def threads():
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_are_bit_equal_for_any_number_of_threads_and_in_order(threads):
    matrices = {**MATRICES, "large": gaussian(300, 500), "nan": torch.full((60, 60), torch.nan)}
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        found.append(analyze_each(matrices.items()))
        assert torch.get_num_threads() == count
    assert all(list(reports) == list(matrices) for reports in found)
    assert all(reports == found[0] for reports in found)
    threads(1)
    assert found[0] == {name: analyze(matrix) for name, matrix in matrices.items()}


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_matrices_are_taken_than_there_are_threads(threads, monkeypatch, count):
    threads(count)
    analysed, ahead, lock = [], [], threading.Lock()

    def counted(matrix, estimator):
        report = analyze(matrix, estimator)
        with lock:
            analysed.append(report)
        return report

    def matrices():
        for number in range(12):
            with lock:
                ahead.append(number + 1 - len(analysed))
            yield str(number), gaussian(200, 400, number)  # too large for stacks

    monkeypatch.setattr("alphadecay_dist.spectral.batch.analyze", counted)
    found = analyze_each(matrices())
    assert list(found) == [str(number) for number in range(12)]
    assert max(ahead) <= count


def test_the_matrices_are_taken_by_the_calling_thread_alone(threads):
    threads(2)
    takers = []

    def matrices():
        for number in range(5):
            takers.append(threading.get_ident())
            yield str(number), gaussian(60, 60, number)

    analyze_each(matrices())
    assert takers == [threading.get_ident()] * 5


def test_an_error_while_taking_matrices_is_raised_and_the_threads_restored(threads):
    threads(3)

    def broken():
        yield "first", gaussian(60, 60)
        raise ConnectionError("a rank is gone")

    with pytest.raises(ConnectionError, match="a rank is gone"):
        analyze_each(broken())
    assert torch.get_num_threads() == 3


def test_workers_are_one_thread_each_and_change_no_other_thread(threads):
    threads(3)
    workers, seen = Workers(2), []

    def matrices():
        seen.append(torch.get_num_threads())
        yield "only", gaussian(300, 500)

    def analysed(stack, estimator):
        reports = [analyze(matrix, estimator) for matrix in stack]
        seen.append(torch.get_num_threads())
        return reports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alphadecay_dist.spectral.batch._analyze_all", analysed)
        beside = threading.Thread(target=workers.analyze_each, args=(matrices(), Estimator()))
        beside.start()
        beside.join()
    assert seen == [3, 1]
    assert torch.get_num_threads() == 3


def test_nothing_to_analyse_is_nothing():
    assert analyze_each([]) == {}


@pytest.mark.parametrize("repeat", range(3))
def test_threads_leave_the_matmul_precision_as_it_was(threads, repeat):
    threads(4)
    matrices = [(str(number), gaussian(96, 160, number)) for number in range(12)]
    exact = analyze_each(matrices)
    torch.set_float32_matmul_precision("medium")
    try:
        assert analyze_each(matrices) == exact
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision("highest")
