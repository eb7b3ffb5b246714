"""The CRF against the sum, and the maximum, over all sequences of tags."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

from cello.tasks.tag.crf import CRF

K = 3
LENGTHS = [4, 1, 3, 4, 2]


def crf_and_emissions(dtype: torch.dtype = torch.float64) -> tuple[CRF, Tensor, Tensor]:
    torch.manual_seed(0)
    crf = CRF(K).to(dtype)
    for parameter in crf.parameters():
        nn.init.normal_(parameter)
    emissions = 2 * torch.randn(max(LENGTHS), len(LENGTHS), K, dtype=dtype)
    return crf, emissions.requires_grad_(), torch.tensor(LENGTHS)


def all_scores(crf: CRF, emissions: Tensor) -> dict[tuple[int, ...], Tensor]:
    """The score of every sequence of tags of one sequence, (T, K), summed term by term."""
    scores = {}
    for tags in product(range(K), repeat=len(emissions)):
        score = crf.start[tags[0]] + crf.end[tags[-1]]
        for t, tag in enumerate(tags):
            score = score + emissions[t, tag]
        for i, j in pairwise(tags):
            score = score + crf.transitions[i, j]
        scores[tags] = score
    return scores


def brute(crf: CRF, emissions: Tensor) -> list[dict[tuple[int, ...], Tensor]]:
    return [all_scores(crf, emissions[:length, b]) for b, length in enumerate(LENGTHS)]


def padded(rows: list[tuple[int, ...]], filler: int) -> Tensor:
    longest = max(LENGTHS)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows]).T


def test_log_partition_is_the_sum_over_all_sequences_with_its_gradients() -> None:
    crf, emissions, lengths = crf_and_emissions()
    found = crf.log_partition(emissions, lengths)
    expected = torch.stack(
        [torch.stack(list(scores.values())).logsumexp(0) for scores in brute(crf, emissions)]
    )
    torch.testing.assert_close(found, expected)
    weights = torch.randn(len(LENGTHS), dtype=torch.float64)
    wanted = [emissions, *crf.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
    )


@pytest.mark.parametrize("filler", [0, K - 1])
def test_likelihood_of_given_tags_with_its_gradients(filler: int) -> None:
    crf, emissions, lengths = crf_and_emissions()
    rows = [(2, 0, 1, 1), (1,), (0, 0, 2), (1, 2, 0, 2), (2, 2)]
    found = crf.log_likelihood(emissions, padded(rows, filler), lengths)
    expected = torch.stack(
        [
            scores[row] - torch.stack(list(scores.values())).logsumexp(0)
            for row, scores in zip(rows, brute(crf, emissions), strict=True)
        ]
    )
    torch.testing.assert_close(found, expected)
    wanted = [emissions, *crf.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), wanted), torch.autograd.grad(expected.sum(), wanted)
    )


def test_probabilities_of_all_sequences_add_up_to_one() -> None:
    crf, emissions, _ = crf_and_emissions()
    tags = torch.tensor(list(product(range(K), repeat=4))).T
    same = emissions[:, :1].expand(-1, tags.shape[1], -1)
    lengths = torch.full((tags.shape[1],), 4)
    total = crf.log_likelihood(same, tags, lengths).exp().sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64))


def test_best_tags_are_those_of_the_highest_score() -> None:
    crf, emissions, lengths = crf_and_emissions()
    found = crf.best(emissions, lengths)
    rows = [max(scores, key=lambda y: scores[y].item()) for scores in brute(crf, emissions)]
    assert found.tolist() == padded(rows, 0).tolist()


def test_best_tags_are_not_those_of_each_step_alone() -> None:
    crf, emissions, lengths = crf_and_emissions()
    assert crf.best(emissions, lengths)[:, 0].tolist() != emissions[:, 0].argmax(1).tolist()


@pytest.mark.parametrize("inference", [False, True])
def test_marginals_are_shares_of_all_sequences(inference: bool) -> None:
    crf, emissions, lengths = crf_and_emissions()
    expected = torch.zeros_like(emissions)
    for b, scores in enumerate(brute(crf, emissions)):
        shares = torch.stack(list(scores.values())).detach().softmax(0)
        for tags, share in zip(scores, shares, strict=True):
            for t, tag in enumerate(tags):
                expected[t, b, tag] += share
    with torch.inference_mode(inference):
        found = crf.marginals(emissions.detach() + 0.0, lengths + 0)
    torch.testing.assert_close(found, expected)


def test_without_scores_of_pairs_it_is_a_softmax_at_each_step() -> None:
    torch.manual_seed(0)
    crf, emissions, tags = CRF(K), torch.randn(4, 2, K), torch.randint(K, (4, 2))
    cross_entropy = nn.functional.cross_entropy(
        emissions.permute(1, 2, 0), tags.T, reduction="none"
    )
    found = crf.log_likelihood(emissions, tags, torch.tensor([4, 4]))
    torch.testing.assert_close(found, -cross_entropy.sum(1))


def test_large_scores_stay_finite_and_right() -> None:
    crf, emissions, lengths = crf_and_emissions(torch.float32)
    exact, _, _ = crf_and_emissions()
    large = 40 * emissions.detach()
    found = crf.log_partition(large, lengths)
    expected = exact.log_partition(large.double(), lengths)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("emissions", "tags", "lengths", "words"),
    [
        ((4, 2, K + 1), (4, 2), [4, 4], r"emissions must be \(T, B, 3\)"),
        ((4, 2), (4, 2), [4, 4], r"emissions must be \(T, B, 3\)"),
        ((4, 2, K), (2, 4), [4, 4], r"tags must be \(4, 2\)"),
        ((4, 2, K), (4, 2), [4], "lengths must be 2 numbers"),
        ((4, 2, K), (4, 2), [4, 0], "from 1 to 4"),
        ((4, 2, K), (4, 2), [5, 1], "from 1 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(
    emissions: tuple[int, ...], tags: tuple[int, ...], lengths: list[int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        CRF(K).log_likelihood(
            torch.zeros(emissions), torch.zeros(tags, dtype=torch.long), torch.tensor(lengths)
        )


def test_a_crf_has_tags() -> None:
    with pytest.raises(ValueError, match="tags must be positive, got 0"):
        CRF(0)
