"""A tiny model and a few drawn pictures: enough for every behaviour, fast on one core."""

import numpy as np
import pytest
import torch

from model.config import resolve
from model.version.prior import PosePrior

TINY = {
    "image_size": 32,
    "features": "none",  # test_features.py and test_resume.py have them
    "base_width": 8,
    "num_keypoints": 5,
    "num_banks": 6,
    "bank_size": 4,
    "token_dim": 16,
    "memory_width": 16,
    "memory_depth": 2,
    "batch_size": 4,
    "steps": 6,
    "perceptual_size": 32,
    "precision": "fp32",
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    return resolve("compact", TINY)


@pytest.fixture(scope="session")
def images():
    """(10, 32, 32, 3): a bright bar at a different slant in each, on a grey ground."""
    y, x = np.mgrid[:32, :32] - 15.5
    angles = np.linspace(0, np.pi, 10, endpoint=False)
    bars = [np.abs(x * np.sin(a) - y * np.cos(a)) < 3 for a in angles]
    return np.stack([np.where(bar[..., None], [230, 180, 90], [60, 70, 80]) for bar in bars]).astype(np.uint8)


@pytest.fixture
def clips():
    """The clip of each of the ten pictures: three clips of three, two and five frames, not in order."""
    return np.array([7, 7, 2, 2, 2, 7, 9, 2, 9, 2], dtype=np.int64)


@pytest.fixture
def prior():
    """A prior of five keypoints, as written by hand: a cross of four links, without the other six."""
    return PosePrior.from_json(
        {
            "keypoint_names": ["middle", "top", "right", "bottom", "left"],
            "keypoint_prior": [[0.0, 0.1], [0.0, -0.8], [0.6, 0.0], [0.0, 0.7], [-0.6, 0.0]],
            "links": [{"i": 0, "j": j, "weight": 0.2 * j} for j in range(1, 5)],
            "keypoint_prior_source": "predefined",
        }
    )
