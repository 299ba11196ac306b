import pytest
import torch

from model.network.pose_prior_learner import PosePriorLearner
from model.version.prior import PosePrior, cluster_codes, hamming_distances


def test_hamming_distance_counts_the_banks_that_differ():
    a = torch.tensor([[0, 1, 2], [3, 3, 3]])
    assert hamming_distances(a, a).tolist() == [[0, 3], [3, 0]]
    assert hamming_distances(a, torch.tensor([[0, 1, 3]])).tolist() == [[1], [2]]


def test_clusters_find_the_groups_that_codes_were_drawn_from():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0] * 20, [1] * 20, [2] * 20])
    sizes = (50, 30, 10)
    codes = torch.cat([centre.repeat(size, 1) for centre, size in zip(centres, sizes, strict=True)])
    noise = torch.rand(codes.shape, generator=generator) < 0.1
    noisy = torch.where(noise, torch.randint(0, 4, codes.shape, generator=generator), codes)
    medoids, counts = cluster_codes(noisy, num_clusters=3)
    assert counts.tolist() == [50, 30, 10]
    assert codes[medoids, 0].tolist() == [0, 1, 2]


def test_medoid_is_a_real_picture_and_counts_add_up():
    codes = torch.randint(0, 4, (100, 6), generator=torch.Generator().manual_seed(0))
    medoids, counts = cluster_codes(codes, num_clusters=7, max_sample=40)
    assert counts.sum() == 100
    assert len(set(medoids.tolist())) == len(medoids) <= 7
    assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_equal_codes_make_one_cluster():
    medoids, counts = cluster_codes(torch.zeros(5, 3, dtype=torch.long), num_clusters=12)
    assert (len(medoids), counts.tolist()) == (1, [5])
    with pytest.raises(ValueError, match="no codes"):
        cluster_codes(torch.zeros(0, 3, dtype=torch.long), 2)


def test_prior_names_every_keypoint(tiny):
    model = PosePriorLearner(tiny)
    assert PosePrior.from_model(model).keypoint_names == tuple(f"keypoint_{i}" for i in range(5))
    with pytest.raises(ValueError, match="2 keypoint names given for 5"):
        PosePrior.from_model(model, ("head", "tail"))
