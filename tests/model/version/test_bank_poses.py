"""What a bank varies, decoded with numpy, against the model's own decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import PPLConfig
from model.network.memory import HierarchicalMemory
from model.version.bank_poses import vary_bank


@pytest.fixture
def memory():
    torch.manual_seed(0)
    config = PPLConfig(num_keypoints=7, num_banks=5, bank_size=6, token_dim=16, memory_width=8, memory_depth=1)
    memory = HierarchicalMemory(config)
    with torch.no_grad():
        for parameter in memory.decoder.parameters():
            parameter.normal_(std=0.5)
    return memory


def tensors(memory: HierarchicalMemory) -> dict[str, np.ndarray]:
    return {f"memory.{name}": value.numpy() for name, value in memory.state_dict().items()}


def test_poses_are_those_that_the_model_decodes_with_one_code_exchanged(memory):
    codes = torch.tensor([[3, 0, 5, 1, 2]])
    for bank in range(5):
        exchanged = codes.repeat(6, 1)
        exchanged[:, bank] = torch.arange(6)
        expected = memory.decode(memory.lookup(exchanged)).detach().numpy()
        np.testing.assert_allclose(vary_bank(tensors(memory), bank, codes[0].tolist()), expected, atol=1e-5)
    assert vary_bank(tensors(memory), 0, codes[0].tolist()).shape == (6, 7, 2)


def test_without_codes_the_other_banks_have_their_mean_vectors_as_in_the_keypoint_prior(memory):
    vectors = memory.codebook.mean(dim=1).repeat(6, 1, 1)
    vectors[:, 2] = memory.codebook[2]
    expected = memory.decode(vectors).detach().numpy()
    found = vary_bank(tensors(memory), 2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with torch.no_grad():
        memory.codebook[2] = memory.codebook[2].mean(dim=0)
    for pose in vary_bank(tensors(memory), 2):
        np.testing.assert_allclose(pose, memory.keypoint_prior().detach().numpy(), atol=1e-5)
