"""Outcomes that were written down, and read from their file in the order of pictures."""

from __future__ import annotations

import tracemalloc

from service.estimates.results import Outcome, StoredOutcomes
from service.estimates.video_frames import video_limits
from service.runtime.settings import Settings


def outcome(index: int, **members) -> Outcome:
    return Outcome(index, [{"index": index, "keypoints": [], **members}], timing_ms=(1.0, 2.0, float(index)))


def test_outcomes_come_in_the_order_of_pictures_whatever_they_were_written_in(tmp_path):
    path = tmp_path / "lines"
    failed = Outcome(1, error={"code": "not_an_image", "index": 1})
    path.write_bytes(b"".join(map(Outcome.to_line, (outcome(2), outcome(0), failed))))
    found = StoredOutcomes(path)
    assert list(found) == list(found) == [outcome(0), failed, outcome(2)]
    assert (len(found), found.failed) == (3, 1)
    assert 1 in found
    assert 3 not in found


def test_no_file_holds_no_outcome(tmp_path):
    found = StoredOutcomes(tmp_path / "lines")
    assert (list(found), len(found), found.failed) == ([], 0, 0)


def test_lines_that_were_cut_short_are_left_out_and_the_first_of_an_index_counts(tmp_path):
    path = tmp_path / "lines"
    cut = outcome(1).to_line()[:20]
    path.write_bytes(outcome(0).to_line() + cut + outcome(1).to_line() + outcome(0, extra=1).to_line() + b"\n" + cut)
    found = StoredOutcomes(path)
    assert list(found) == [outcome(0)]
    assert found.end == path.stat().st_size - len(cut)


def test_outcomes_are_not_held_in_memory(tmp_path):
    path = tmp_path / "lines"
    with path.open("wb") as file:
        for index in range(2000):
            file.write(outcome(index, trajectory="x" * 10_000).to_line())
    tracemalloc.start()
    try:
        found = StoredOutcomes(path)
        assert sum(1 for _ in found) == 2000
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_decoding_a_video_may_take_as_much_memory_as_is_set():
    limits = video_limits(Settings(video_memory_bytes=2**29, image_max_pixels=5000), 7.0)
    assert (limits.memory_bytes, limits.max_pixels, limits.timeout_s) == (2**29, 5000, 7.0)
