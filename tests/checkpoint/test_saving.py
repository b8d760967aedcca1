"""What a save keeps, clears and leaves as it is."""

from __future__ import annotations

import pytest

from alphadecay_dist.checkpoint import writer
from alphadecay_dist.checkpoint.manifest import MANIFEST, read_manifest
from alphadecay_dist.checkpoint.reader import newest, read
from alphadecay_dist.errors import RunError
from tests.checkpoint.layouts import (
    NUMBERS,
    VALUES,
    fill_the_disk,
    save,
    state_of,
    steps_in,
)
from tests.checkpoint.ranks import on_ranks


def test_the_newest_whole_ones_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=0)
    (tmp_path / "step-00000006" / MANIFEST).unlink()
    save(tmp_path, 10, keep=3)
    assert steps_in(tmp_path) == [4, 8, 10], "what is not whole does not count, and goes"
    (tmp_path / "step-00000008" / MANIFEST).unlink()
    save(tmp_path, 5, keep=1)
    assert steps_in(tmp_path) == [5, 8, 10], "later steps are another branch's"
    assert newest(tmp_path).folder.name == "step-00000005", "which latest names"


def test_a_whole_checkpoint_stays_where_a_rank_dies_before_it_hears_of_it(tmp_path):
    """Rank 0 has written the manifest and `latest` when telling the others of it fails."""
    save(tmp_path, step=1)

    def work(ranks):
        from_main, calls = ranks.from_main, []

        def broken_off(work):
            calls.append(from_main(work))
            if len(calls) == 2:
                raise RuntimeError("connection closed by peer")
            return calls[-1]

        ranks.from_main = broken_off
        state = state_of("flat", 0, 1)
        state.put(VALUES, NUMBERS)
        writer.save(tmp_path, 2, engine_state=state, layout="flat", state={}, ranks=ranks, keep=1)

    with pytest.raises(RuntimeError, match="closed by peer"):
        on_ranks(1, work)
    assert (tmp_path / "latest").read_text() == "step-00000002\n"
    assert newest(tmp_path).manifest.step == 2
    assert read(tmp_path / "step-00000001").manifest.step == 1


def test_a_step_is_saved_anew_over_what_a_killed_save_left(tmp_path):
    folder = save(tmp_path, 3)
    (folder / MANIFEST).unlink()
    (folder / "shards" / "rank-00009.safetensors").write_bytes(b"of more ranks")
    save(tmp_path, 3)
    assert not (folder / "shards" / "rank-00009.safetensors").exists()
    assert read_manifest(folder).world_size == 2
    assert newest(tmp_path).folder == folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_is_one_line_and_harms_no_whole_checkpoint(tmp_path, monkeypatch, rank):
    whole = save(tmp_path, 1)
    fill_the_disk(monkeypatch, rank)
    with pytest.raises(RunError, match=r"step-00000002: the checkpoint cannot be written: No space left"):
        save(tmp_path, 2, keep=1)
    assert steps_in(tmp_path) == [1]
    assert newest(tmp_path).folder == whole


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory; .* older checkpoints"):
        save(tmp_path / "file" / "checkpoints")
