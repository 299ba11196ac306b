import pytest
import torch

from model.config import resolve
from model.network.memory import HierarchicalMemory, batch_sums, smooth_counts, update_average


@pytest.fixture
def memory():
    torch.manual_seed(0)
    return HierarchicalMemory(resolve("paper", {"num_keypoints": 5, "num_banks": 6, "bank_size": 4, "token_dim": 16}))


def _poses(batch=8, seed=0):
    return torch.rand(batch, 5, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _buffers(memory):
    return {name: value.clone() for name, value in memory.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
def test_forward_leaves_codebook_and_counts_unchanged(memory, training):
    before = _buffers(memory)
    memory.train(training)(_poses())
    assert all(torch.equal(before[name], value) for name, value in memory.named_buffers())


def test_codes_are_the_nearest_vectors(memory):
    recalled = memory(_poses())
    distances = torch.cdist(recalled.tokens.transpose(0, 1), memory.codebook)  # (M, B, V)
    assert torch.equal(recalled.codes, distances.argmin(-1).T)
    torch.testing.assert_close(recalled.vectors[3, 2], memory.codebook[2, recalled.codes[3, 2]])


def test_gradient_is_copied_straight_from_vectors_to_tokens(memory):
    recalled = memory(_poses())
    recalled.tokens.retain_grad()
    recalled.keypoints.sum().backward()
    through_decoder = memory.lookup(recalled.codes).requires_grad_()
    (expected,) = torch.autograd.grad(memory.decode(through_decoder).sum(), through_decoder)
    torch.testing.assert_close(recalled.tokens.grad, expected)


def test_codebook_is_no_parameter(memory):
    assert "codebook" not in dict(memory.named_parameters())


def test_counts_start_at_one_and_sums_at_the_vectors(memory):
    assert memory.hits.eq(1).all()
    assert torch.equal(memory.sums, memory.codebook)


def test_repeated_update_moves_the_chosen_vectors_to_the_mean_of_their_tokens(memory):
    tokens = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(1))
    codes = torch.zeros(8, 6, dtype=torch.long)
    for _ in range(200):
        memory.update(tokens, codes, decay=0.9, revive_after=10_000, generator=torch.Generator())
    torch.testing.assert_close(memory.codebook[:, 0], tokens.mean(0), atol=1e-3, rtol=0)


def _start(memory, tokens):
    """Run the first update, which fills the banks."""
    memory.update(
        tokens, memory.quantise(tokens), decay=0.9, revive_after=10**6, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_vector_without_hits_stays_where_it_was_until_it_is_revived(memory, decay):
    tokens, codes = torch.randn(8, 6, 16), torch.zeros(8, 6, dtype=torch.long)
    _start(memory, tokens)
    untouched = memory.codebook[:, 3].clone()
    for _ in range(300):
        assert memory.update(tokens, codes, decay=decay, revive_after=10**6, generator=torch.Generator()) == 0
    assert torch.equal(memory.codebook[:, 3], untouched)


def test_vector_that_faded_follows_its_tokens_again_once_it_is_chosen(memory):
    tokens = torch.randn(8, 6, 16)
    _start(memory, tokens)
    for code in [0] * 300 + [3] * 100:
        codes = torch.full((8, 6), code)
        memory.update(tokens, codes, decay=0.9, revive_after=10**6, generator=torch.Generator())
    torch.testing.assert_close(memory.codebook[:, 3], tokens.mean(0), atol=1e-3, rtol=0)


def test_first_update_fills_the_banks_with_different_tokens_of_the_batch(memory):
    tokens = torch.randn(8, 6, 16)
    memory.update(
        tokens,
        torch.zeros(8, 6, dtype=torch.long),
        decay=1 - 1e-9,
        revive_after=100,
        generator=torch.Generator().manual_seed(0),
    )
    for bank in range(6):
        distances, source = torch.cdist(memory.codebook[bank, 1:], tokens[:, bank]).min(dim=1)
        assert distances.max() < 1e-5
        assert len(set(source.tolist())) == 3


def test_dead_vectors_become_tokens_of_the_batch(memory):
    tokens, codes = torch.randn(8, 6, 16), torch.zeros(8, 6, dtype=torch.long)
    memory.filled.fill_(True)
    revived = 0
    for _ in range(3):
        revived += memory.update(tokens, codes, decay=0.9, revive_after=3, generator=torch.Generator().manual_seed(3))
    assert revived == 6 * 3  # three of the four vectors in each of the six banks
    for bank in range(6):
        assert torch.cdist(memory.codebook[bank, 1:], tokens[:, bank]).amin(1).max() < 1e-5
    assert memory.idle_steps.eq(0).all()
    assert memory.hits[:, 1:].eq(1).all()
    assert torch.equal(memory.sums[:, 1:], memory.codebook[:, 1:]), "they move on from where they were put"


def test_choices_of_a_vector_are_counted_anew_once_it_is_revived(memory):
    tokens = torch.randn(8, 6, 16)
    _start(memory, tokens)
    memory.use_counts.zero_()
    for code, counted in ((3, 8), (0, 8), (0, 0)):
        codes = torch.full((8, 6), code)
        memory.update(tokens, codes, decay=0.9, revive_after=2, generator=torch.Generator())
        assert memory.use_counts[:, 3].eq(counted).all()


def test_use_counts_count_every_choice(memory):
    tokens = torch.randn(8, 6, 16)
    memory.update(tokens, memory.quantise(tokens), decay=0.9, revive_after=100, generator=torch.Generator())
    assert memory.use_counts.sum(1).eq(8).all()


def test_keypoint_prior_is_the_decoded_mean_of_every_bank(memory):
    mean = torch.stack([bank.mean(0) for bank in memory.codebook])
    torch.testing.assert_close(memory.keypoint_prior(), memory.decode(mean[None])[0])


def test_batch_sums_add_the_tokens_of_each_vector():
    tokens = torch.tensor([[[1.0]], [[2.0]], [[5.0]]])
    hits, sums = batch_sums(tokens, torch.tensor([[0], [0], [1]]), 3)
    assert hits.tolist() == [[2, 1, 0]]
    assert sums.tolist() == [[[3], [5], [0]]]


def test_moving_average_and_smoothing():
    average = torch.tensor([1.0, 0.0])
    update_average(average, torch.tensor([0.0, 1.0]), 0.9)
    torch.testing.assert_close(average, torch.tensor([0.9, 0.1]))
    counts = torch.tensor([[0.0, 4.0]])
    assert smooth_counts(counts).sum() == pytest.approx(4.0)
    assert smooth_counts(counts).min() > 0
