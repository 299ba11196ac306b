"""The benchmarks of the model at their smallest: they run, and say what they should. Their times mean nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.speed import data_loading, link_map, predict, train_step
from benchmarks.speed.peers import PeerError, load_peer
from benchmarks.speed.report import Report

PEER = """
import torch


class Slow:
    name = "a peer"

    def __init__(self, points):
        self.points = points

    def train_step(self, images):
        return images.square().mean()

    def keypoints(self, images, refine_steps=0):
        return torch.zeros(len(images), self.points, 2)


def build(batch, side, num_keypoints, perceptual_weights, device):
    return Slow(num_keypoints)
"""


def measured(module: Any, *arguments: object) -> Report:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    measure: Callable[[argparse.Namespace], Report] = module.measure
    common = ("--device", "cpu", "--threads", "1", "--repeats", "1")
    return measure(parser.parse_args([str(argument) for argument in (*arguments, *common)]))


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with a small matrix product: a CPU without bf16 takes 20 s for the real one."""
    monkeypatch.setattr(predict, "_PRODUCT_SIDE", {"cpu": 128})


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return path


def test_link_map_needs_far_less_memory_than_the_literal_form() -> None:
    report = measured(link_map, "--batches", 1, 2, "--side", 32)

    assert [row["batch"] for row in report.rows] == [1, 2]
    assert report.ratio == min(row["ratio"] for row in report.rows)
    assert all(row["memory_ratio"] > 2 for row in report.rows)
    assert all(row["moved_mib"] > 0 for row in report.rows)


SMALL_STEP = ("--preset", "compact", "--perceptual", "efficientnet_lite0", "--perceptual-size", 32, "--batch", 2)


def test_train_step_without_a_peer_has_no_ratio() -> None:
    report = measured(train_step, *SMALL_STEP)

    assert report.ratio is None
    assert report.holds is None
    assert any("--peer" in note for note in report.notes)
    assert all(row["ms"] > 0 for row in report.rows)


def test_train_step_is_compared_with_a_peer(peer: Path) -> None:
    report = measured(train_step, *SMALL_STEP, "--peer", peer)

    assert report.rows[-1]["step"] == "a peer"
    assert report.ratio == pytest.approx(report.rows[-1]["ms"] / report.rows[0]["ms"])


def test_keypoints_are_compared_with_a_peer(peer: Path) -> None:
    report = measured(predict, "--preset", "compact", "--batch", 2, "--peer", peer)

    ours, refined, *theirs = report.rows
    assert 0 < ours["gflop"] < refined["gflop"]
    assert ours["of_bf16_rate"] > 0
    assert [row["gflop"] for row in theirs] == [None, None]
    assert report.ratio is not None
    assert report.holds is False


def test_a_peer_that_does_not_refine_is_compared_without_it(peer: Path) -> None:
    refuses = "        if refine_steps:\n            raise NotImplementedError\n"
    body = "        return torch.zeros(len(images), self.points, 2)\n"
    peer.write_text(PEER.replace(body, refuses + body))
    report = measured(predict, "--preset", "compact", "--batch", 2, "--peer", peer)

    assert [row["keypoints"] for row in report.rows] == ["ours, refine 0", "ours, refine 3", "a peer, refine 0"]
    assert report.ratio == pytest.approx(report.rows[2]["ms"] / report.rows[0]["ms"])
    assert any("does not refine" in note for note in report.notes)


def test_data_loading_is_a_share_of_the_step() -> None:
    report = measured(data_loading, "--presets", "compact", "--pictures", 8, "--batch", 2)

    assert report.rows[0]["batch"] == 2
    assert 0 < report.rows[0]["waits"] < 1
    assert report.ratio == pytest.approx(1 / report.rows[0]["waits"])


@pytest.mark.parametrize(("text", "reason"), [(None, "expected a Python file"), ("pass", "no function build")])
def test_a_file_that_is_no_peer_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "peer.py"
    if text:
        path.write_text(text)
    with pytest.raises(PeerError, match=reason):
        load_peer(path, 1, 32, 4, None, torch.device("cpu"))
