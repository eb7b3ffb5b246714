"""The network of tagging, and what it knows of words.

A word is seen in three ways: by a vector of its own (lower-cased), by the final states of a recurrent
layer over its characters (Ling et al., "Finding Function in Form", 2015; Plank et al., "Multilingual
Part-of-Speech Tagging with Bidirectional LSTMs", 2016), and by its first and last characters. A word
that training has not seen has the last two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cello.tasks.cells import Layer, last_step, output_size
from cello.tasks.members import Members, each
from cello.tasks.tag.crf import CRF, ForwardBackward

UNKNOWN = 1
"""The number of what is not in a vocabulary; 0 is padding, what is known begins at 2."""

PADDING, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
"""What stands for these two where tokens have names."""

Lexicon = dict[str, tuple[int, str]]
"""For each word of the training set, how often it is there, and its most frequent tag."""


def lexicon(sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Lexicon:
    """Count words; of tags that are equally frequent, the first in the alphabet counts.

    Example:
        >>> lexicon([(["a", "fly"], ["DET", "NOUN"]), (["fly"], ["VERB"])])
        {'a': (1, 'DET'), 'fly': (2, 'NOUN')}
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in sentences:
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    return {
        word: (tags.total(), min(tags, key=lambda tag: (-tags[tag], tag)))
        for word, tags in counts.items()
    }


class Vocabulary:
    """Numbers for the most frequent of some things, each with how often it was seen.

    Example:
        >>> vocabulary = Vocabulary(Counter("banana"), most=2)
        >>> [vocabulary[letter] for letter in "abn"], len(vocabulary), vocabulary.counts
        ([2, 1, 3], 4, [0, 0, 3, 2])
    """

    def __init__(self, counts: Counter[str], *, least: int = 1, most: int | None = None) -> None:
        known = sorted((x for x in counts if counts[x] >= least), key=lambda x: (-counts[x], x))
        self.tokens = [PADDING, UNKNOWN_TOKEN, *known[:most]]
        self._numbers = {x: i for i, x in enumerate(known[:most], UNKNOWN + 1)}
        self.counts = [0, 0, *(counts[x] for x in self._numbers)]

    def __getitem__(self, x: str) -> int:
        return self._numbers.get(x, UNKNOWN)

    def __len__(self) -> int:
        return len(self.counts)


class Batch(NamedTuple):
    """B sentences of up to T words, which are U different ones of up to C characters.

    `spelling` says for each word which of the different ones it is; past a sentence's end it is 0,
    and so are `words` and `tags`.
    """

    words: Tensor  # (T, B)
    spelling: Tensor  # (T, B)
    lengths: Tensor  # (B,)
    characters: Tensor  # (C, U)
    character_lengths: Tensor  # (U,)
    affixes: Tensor  # (U, A)
    tags: Tensor  # (T, B)


class Encoder:
    """Words to numbers, by the words of the training set.

    Args:
        words: what :func:`lexicon` returned.
        vocabulary: the largest number of words with a vector of their own.
        affixes: A/2, the longest beginning and end of a word that has a vector.
        longest: characters of a word that are read; of a longer one the middle is left out.
    """

    def __init__(self, words: Lexicon, *, vocabulary: int, affixes: int, longest: int) -> None:
        counts, characters = Counter[str](), Counter[str]()
        pieces = [Counter[str]() for _ in range(2 * affixes)]
        self.sizes, self.longest = range(1, affixes + 1), longest
        for word, (count, _) in words.items():
            counts[word.lower()] += count
            for character in word:
                characters[character] += count
            for counter, piece in zip(pieces, self._pieces(word), strict=True):
                counter[piece] += 1
        self.words = Vocabulary(counts, most=vocabulary)
        self.characters = Vocabulary(characters)
        self.affixes = [Vocabulary(counter, least=3) for counter in pieces]

    def batch(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[int]]) -> Batch:
        """Return sentences and the numbers of their tags as one batch."""
        different = {
            word: i for i, word in enumerate(dict.fromkeys(w for s in sentences for w in s))
        }
        spelled = [self._spell(word) for word in different]
        return Batch(
            words=_padded([[self.words[word.lower()] for word in s] for s in sentences]),
            spelling=_padded([[different[word] for word in s] for s in sentences]),
            lengths=torch.tensor([len(s) for s in sentences]),
            characters=pad_sequence([characters for characters, _ in spelled]),
            character_lengths=torch.tensor([len(characters) for characters, _ in spelled]),
            affixes=torch.tensor([affixes for _, affixes in spelled]),
            tags=_padded(tags),
        )

    def _spell(self, word: str) -> tuple[Tensor, list[int]]:
        if len(word) > self.longest:
            head = self.longest // 2
            word = word[:head] + word[head - self.longest :]
        characters = torch.tensor([self.characters[c] for c in word])
        pieces = zip(self.affixes, self._pieces(word), strict=True)
        return characters, [vocabulary[piece] for vocabulary, piece in pieces]

    def _pieces(self, word: str) -> list[str]:
        word = word.lower()
        return [word[:n] for n in self.sizes] + [word[-n:] for n in self.sizes]


class TaggingNetwork(nn.Module):
    """Vectors of words, a recurrent layer over sentences, and a score for each tag.

    Args:
        encoder: where the sizes of the vocabularies and the counts are from.
        tags: K, the number of tags.
        characters: the recurrent layer over the characters of a word, in both directions.
        sentences: builds the recurrent layer over the words for the size of a word's vector.
        word_embedding: size of a word's own vector.
        affix_embedding: size of the vector of each beginning and end.
        crf: score neighbouring tags too.
        dropout: before and behind the layer over the words.
        unknown: a word that is n times in the training set is taken for an unknown one with
            probability `unknown` / (n + `unknown`), while training; a character the same.
    """

    word_counts: Tensor
    character_counts: Tensor

    def __init__(
        self,
        encoder: Encoder,
        tags: int,
        *,
        characters: Layer,
        sentences: Callable[[int], Layer],
        word_embedding: int,
        affix_embedding: int,
        crf: bool,
        dropout: float,
        unknown: float,
    ) -> None:
        super().__init__()
        self.unknown = unknown
        self.words = nn.Embedding(len(encoder.words), word_embedding, padding_idx=0)
        features = characters.input_size
        assert isinstance(features, int)  # as all layers of tasks
        self.letters = nn.Embedding(len(encoder.characters), features, padding_idx=0)
        self.affixes = nn.ModuleList(nn.Embedding(len(v), affix_embedding) for v in encoder.affixes)
        for name, vocabulary in (("word", encoder.words), ("character", encoder.characters)):
            counts = torch.tensor(vocabulary.counts, dtype=torch.float32)
            self.register_buffer(f"{name}_counts", counts, persistent=False)
        self.characters = characters
        width = word_embedding + output_size(characters) + len(self.affixes) * affix_embedding
        self.sentences = sentences(width)
        self.linear = nn.Linear(output_size(self.sentences), tags)
        self.crf = CRF(tags) if crf else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: Batch) -> Tensor:
        """Return the score of each tag for each word, (T, B, K)."""
        words = self._some_unknown(batch.words, self.word_counts)
        x = torch.cat([self.words(words), self._spelled(batch)[batch.spelling]], -1)
        output, _ = self.sentences(self.dropout(x), lengths=batch.lengths)
        scores: Tensor = self.linear(self.dropout(output))
        return scores.to(self.linear.weight.dtype)  # which autocast does not change

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the negative log likelihood of the tags, summed, by what :meth:`forward` returned.

        A tag that training has not seen (K) has none: its word is left out, or with a conditional random
        field its sentence.
        """
        inside, K = within(batch), scores.shape[2]
        if self.crf is None:
            wanted = batch.tags[inside]
            return nn.functional.cross_entropy(
                scores[inside], wanted, reduction="sum", ignore_index=K
            )
        is_known = ((batch.tags < K) | ~inside).all(0)
        each = self.crf.log_likelihood(scores, batch.tags.clamp(max=K - 1), batch.lengths)
        return -torch.where(is_known, each, 0.0).sum()

    def best(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the likeliest tags, (T, B), by what :meth:`forward` returned."""
        return scores.argmax(2) if self.crf is None else self.crf.best(scores, lengths)

    def probabilities(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the probability of each tag at each word, (T, B, K)."""
        return scores.softmax(2) if self.crf is None else self.crf.marginals(scores, lengths)

    def _spelled(self, batch: Batch) -> Tensor:
        """Return what the spelling of each different word says, (U, ...)."""
        letters = self._some_unknown(batch.characters, self.character_counts)
        output, _ = self.characters(self.letters(letters), lengths=batch.character_lengths)
        ends = last_step(self.characters, output, batch.character_lengths)
        affixes = [e(batch.affixes[:, i]) for i, e in enumerate(self.affixes)]
        return torch.cat([ends, *affixes], 1)

    def _some_unknown(self, numbers: Tensor, counts: Tensor) -> Tensor:
        """Take rare ones for unknown while training, so that there is something to learn of these."""
        if not self.training:
            return numbers
        n = counts[numbers]
        taken = torch.rand_like(n) * (n + self.unknown) < self.unknown
        return torch.where(taken & (numbers > 0), UNKNOWN, numbers)


class Taggers(Members):
    """Taggers that learn side by side; the answer is the mean of their probabilities."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Return the mean of the taggers' losses, by the scores of each, (N, T, B, K)."""
        losses = [one.loss(its, batch) for one, its in zip(each(self), scores, strict=True)]
        return torch.stack(losses).mean()

    def best(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the likeliest tag of each word, (T, B)."""
        return self.probabilities(scores, lengths).argmax(2)

    def probabilities(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """Return the probability of each tag at each word, (T, B, K)."""
        pairs = zip(each(self), scores, strict=True)
        return torch.stack([one.probabilities(its, lengths) for one, its in pairs]).mean(0)


class ExportedTagger(nn.Module):
    """A tagger as other programs use it: the batch first, each word with its own characters.

    Args:
        model: the network.
    """

    def __init__(self, model: TaggingNetwork | Taggers) -> None:
        super().__init__()
        self.model = model
        self.sums, self.bests = nn.ModuleList(), None
        for one in each(model):
            if one.crf is not None:
                self.sums.append(ForwardBackward(one.crf, is_sum=True))
        if len(self.sums) == 1:
            self.bests = ForwardBackward(each(model)[0].crf, is_sum=False)

    def forward(
        self,
        words: Tensor,
        lengths: Tensor,
        characters: Tensor,
        character_lengths: Tensor,
        affixes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the likeliest tags, (B, T), and the probability of each tag, (B, T, K).

        Args:
            words: their numbers, (B, T), 0 past the end.
            lengths: words of each sentence, (B,).
            characters: (B, T, C), 0 past the end of a word.
            character_lengths: (B, T), at least 1, past the end of a sentence too.
            affixes: (B, T, A).
        """
        B, T, C = characters.shape
        flat = characters.reshape(B * T, C).T
        spelling = torch.arange(B * T, device=words.device).view(B, T).T
        batch = Batch(
            words.T, spelling, lengths, flat, character_lengths.reshape(-1),
            affixes.reshape(B * T, -1), words.T,
        )  # fmt: skip
        scores = [one(batch) for one in each(self.model)]
        sums = [two(one, lengths) for two, one in zip(self.sums, scores, strict=False)]
        probabilities = torch.stack([one.softmax(2) for one in sums or scores]).mean(0)
        best = probabilities if self.bests is None else self.bests(scores[0], lengths)
        return best.argmax(2).T, probabilities.transpose(0, 1)


def within(batch: Batch) -> Tensor:
    """Return which places of a batch hold a word, (T, B)."""
    return torch.arange(len(batch.words), device=batch.lengths.device)[:, None] < batch.lengths


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows])
