"""A linear-chain conditional random field: tags of a sequence that depend on their neighbours.

Lafferty, McCallum and Pereira, "Conditional Random Fields", ICML 2001; on top of a recurrent net:
Huang, Xu and Yu, "Bidirectional LSTM-CRF Models for Sequence Tagging", 2015.

The score of tags y_1 ... y_T is that of the start, of each step and of each pair of neighbours::

    score(y) = start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t, y_t+1] + end[y_T]
    p(y) = exp(score(y)) / Z        where Z sums exp(score) over all K^T sequences of tags

Z has K^T terms and takes T*K^2 operations: the forward algorithm is a recurrent cell, whose state is a
row of K numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cello.nn import Recurrent


class ForwardStep(nn.Module):
    """One step of the forward algorithm, as a recurrent cell.

    ``alpha[b, j]`` is the logarithm of the summed ``exp(score)`` of all sequences of tags that have
    tag j at this step; the next one is ``logsumexp_i(alpha[b, i] + transitions[i, j])`` plus the
    emission. The sum over i is a matrix product, on numbers that are scaled so that the largest is 1.

    Args:
        tags: K.
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(tags, tags))  # from row i to column j

    def forward(self, emission: Tensor, alpha: Tensor) -> Tensor:
        """Return the next alpha, (B, K), from an emission and an alpha, (B, K)."""
        top = alpha.amax(-1, keepdim=True)
        return emission + top + torch.log(torch.exp(alpha - top) @ torch.exp(self.transitions))


class CRF(nn.Module):
    """Scores of neighbouring tags, the likelihood of given tags and the likeliest tags.

    Args:
        tags: K, the number of tags.

    Raises:
        ValueError: `tags` is not positive.

    Example:
        >>> crf = CRF(3)
        >>> emissions, lengths = torch.randn(5, 2, 3), torch.tensor([5, 2])
        >>> tags = torch.tensor([[0, 1], [1, 1], [2, 0], [0, 0], [1, 0]])
        >>> crf.log_likelihood(emissions, tags, lengths).shape
        torch.Size([2])
        >>> crf.best(emissions, lengths).shape
        torch.Size([5, 2])
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        if tags < 1:
            raise ValueError(f"tags must be positive, got {tags}")
        self.start = nn.Parameter(torch.zeros(tags))
        self.end = nn.Parameter(torch.zeros(tags))
        self.recurrent = Recurrent(ForwardStep(tags), state_size=tags)

    @property
    def transitions(self) -> Tensor:
        """The score of tag j behind tag i, (K, K)."""
        weight: Tensor = self.recurrent.get_parameter("cells.l0.transitions")
        return weight

    def log_likelihood(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return log p of given tags, (B,): their score less log Z.

        Args:
            emissions: the score of each tag at each step, (T, B, K).
            tags: their numbers, (T, B); past a sequence's end anything in 0 ... K-1.
            lengths: steps of each sequence, (B,), from 1 to T.

        Raises:
            ValueError: shapes do not fit, or a sequence has no steps.
        """
        if tags.shape != emissions.shape[:2]:
            raise ValueError(
                f"tags must be {tuple(emissions.shape[:2])}, as the emissions, got {tuple(tags.shape)}"
            )
        return self.score(emissions, tags, lengths) - self.log_partition(emissions, lengths)

    def score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Return the score of given tags, (B,); arguments as of :meth:`log_likelihood`."""
        inside = self._inside(emissions, lengths)
        each = emissions.gather(2, tags[..., None])[..., 0] * inside
        pairs = self.transitions[tags[:-1], tags[1:]] * inside[1:]
        last = tags.gather(0, lengths[None] - 1)[0]
        return self.start[tags[0]] + each.sum(0) + pairs.sum(0) + self.end[last]

    def log_partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return log Z, (B,), by the forward algorithm; arguments as of :meth:`log_likelihood`."""
        self._inside(emissions, lengths)
        first = self.start + emissions[0]
        # The first step is the initial state. Rolling rather than cutting it off leaves an input of
        # T steps, so that T may be 1; no sequence reads the last of them.
        _, alpha = self.recurrent(emissions.roll(-1, 0), first[None], lengths=lengths - 1)
        return torch.logsumexp(alpha[0] + self.end, 1)

    def marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return the probability of each tag at each step, (T, B, K), zero past the ends.

        It is the derivative of log Z by the emission, so no backward algorithm is written here: it is
        what automatic differentiation makes of the forward algorithm.

        Args:
            emissions: (T, B, K).
            lengths: (B,).
        """
        with torch.inference_mode(False), torch.enable_grad():
            emissions = emissions.detach().clone().requires_grad_()
            total = self.log_partition(emissions, lengths.clone()).sum()
            return torch.autograd.grad(total, emissions)[0]

    @torch.no_grad()
    def best(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return the tags of the highest score, (T, B), zero past the ends: Viterbi's algorithm.

        Args:
            emissions: (T, B, K).
            lengths: (B,).
        """
        inside = self._inside(emissions, lengths)
        score = self.start + emissions[0]  # (B, K): of the best sequence that ends in tag j here
        back = []  # for each later step, the tag before j on that sequence, (B, K)
        stay = torch.arange(emissions.shape[2], device=emissions.device).expand_as(score)
        for emission, alive in zip(emissions[1:], inside[1:, :, None], strict=True):
            longer, before = (score[:, :, None] + self.transitions).max(1)
            score = torch.where(alive, longer + emission, score)
            back.append(torch.where(alive, before, stay))
        tags = [(score + self.end).argmax(1, keepdim=True)]
        for before in reversed(back):
            tags.append(before.gather(1, tags[-1]))
        return torch.cat(tags[::-1], 1).T * inside

    def _inside(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return which steps are within their sequence, (T, B)."""
        steps, rows = emissions.shape[:2]
        if emissions.dim() != 3 or emissions.shape[2] != len(self.start) or steps < 1:
            expected = f"(T, B, {len(self.start)}) with at least one step"
            raise ValueError(f"emissions must be {expected}, got {tuple(emissions.shape)}")
        if lengths.shape != (rows,) or not bool(((lengths >= 1) & (lengths <= steps)).all()):
            raise ValueError(
                f"lengths must be {rows} numbers from 1 to {steps}, got {lengths.tolist()}"
            )
        return torch.arange(steps, device=emissions.device)[:, None] < lengths


class FieldStep(nn.Module):
    """One step of a pass over a sequence, as a recurrent cell: what is known of the steps before goes on.

    The state is the score of each tag by the steps before, and the output has that of this step, too.

    Args:
        transitions: from row i to column j, (K, K).
        is_sum: whether the scores of all sequences of tags are summed, or that of the best one counts.
    """

    def __init__(self, transitions: Tensor, is_sum: bool) -> None:
        super().__init__()
        self.is_sum = is_sum
        self.register_buffer("transitions", transitions)

    def forward(self, emission: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B, K) and the state (B, K) for the next step."""
        score, transitions = emission + before, self.get_buffer("transitions")
        if not self.is_sum:
            return score, (score[:, :, None] + transitions).amax(1)
        top = score.amax(-1, keepdim=True)
        return score, top + torch.log(torch.exp(score - top) @ torch.exp(transitions))


class ForwardBackward(nn.Module):
    """The scores of all tags at all steps by what is before and behind: the forward-backward algorithm.

    Unlike :meth:`CRF.marginals` and :meth:`CRF.best` it needs no gradients and no steps in turn, so that it
    can be exported. The softmax of sums is the probability of each tag, and the largest of the best
    scores is Viterbi's tag.

    Args:
        crf: the field.
        is_sum: as of :class:`FieldStep`.
    """

    def __init__(self, crf: CRF, is_sum: bool) -> None:
        super().__init__()
        matrix = crf.transitions.detach()
        self.ahead, self.back = (
            Recurrent(FieldStep(m, is_sum), state_size=len(m), reverse=k == 1)
            for k, m in enumerate((matrix, matrix.T.contiguous()))
        )
        self.register_buffer("start", crf.start.detach())
        self.register_buffer("end", crf.end.detach())

    def forward(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Return scores (T, B, K) of emissions (T, B, K) and lengths (B,)."""
        first, last = (
            self.get_buffer(name).expand(1, emissions.shape[1], -1) for name in ("start", "end")
        )
        before, _ = self.ahead(emissions, first, lengths=lengths)
        behind, _ = self.back(emissions, last, lengths=lengths)
        scores: Tensor = before + behind - emissions  # which both have counted
        return scores
