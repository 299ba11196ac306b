"""Packs that the tests draw themselves."""

import numpy as np
import pytest
import torch

from tests.support.drawn_pack import pack_values


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pack_file(tmp_path):
    """bars.npz: 14 pictures to train on and 6 held out, five labelled keypoints and their skeleton."""
    values, _ = pack_values()
    np.savez(tmp_path / "bars.npz", **values)
    return tmp_path / "bars.npz"


@pytest.fixture
def unlabelled_file(tmp_path):
    values, _ = pack_values(labelled=False)
    np.savez(tmp_path / "plain.npz", **values)
    return tmp_path / "plain.npz"
