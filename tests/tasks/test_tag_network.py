"""The network of tagging: what it sees of a word, what padding and company do, what it learns from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cello.nn import GRU, LSTM
from cello.tasks.tag.network import UNKNOWN, Batch, Encoder, TaggingNetwork, lexicon, within

TRAINING = [
    (["The", "cat", "sat", "there"], ["DET", "NOUN", "VERB", "ADV"]),
    (["the", "dog", "sat"], ["DET", "NOUN", "VERB"]),
    (["a", "flight"], ["DET", "NOUN"]),
    (["nights", "sights", "lights"], ["NOUN", "NOUN", "NOUN"]),
]
TAGS = ["ADV", "DET", "NOUN", "VERB"]


def encoder(**changes: int) -> Encoder:
    return Encoder(lexicon(TRAINING), **{"vocabulary": 100, "affixes": 2, "longest": 8, **changes})


def network(words: Encoder, **changes: Any) -> TaggingNetwork:
    torch.manual_seed(0)
    options = {"word_embedding": 5, "affix_embedding": 2, "crf": False, "dropout": 0.0}
    return TaggingNetwork(
        words,
        len(TAGS),
        characters=LSTM(3, 4, bidirectional=True),
        sentences=lambda width: GRU(width, 6, bidirectional=True),
        **{**options, "unknown": 0.25, **changes},
    )


def batch(words: Encoder, sentences: list[tuple[list[str], list[str]]]) -> Batch:
    tags = [[TAGS.index(tag) for tag in tags] for _, tags in sentences]
    return words.batch([sentence for sentence, _ in sentences], tags)


def answers(model: TaggingNetwork, one: Batch) -> tuple[Tensor, Tensor]:
    scores = model(one)
    return model.best(scores, one.lengths), model.probabilities(scores, one.lengths)


def test_the_lexicon_has_the_most_frequent_tag_of_each_word() -> None:
    sentences = [(["fly", "fly"], ["VERB", "NOUN"]), (["fly", "Fly"], ["VERB", "X"])]
    assert lexicon(sentences) == {"fly": (3, "VERB"), "Fly": (1, "X")}


def test_words_are_counted_in_lower_case_and_rare_ones_left_out() -> None:
    words = encoder(vocabulary=2).words
    assert len(words) == 4
    assert {words["the"], words["sat"]} == {2, 3}
    assert words["cat"] == UNKNOWN
    assert words.counts == [0, 0, 2, 2]


def test_a_batch_spells_each_different_word_once() -> None:
    words = encoder()
    found = batch(words, [TRAINING[0], TRAINING[1]])
    assert found.words.shape == found.spelling.shape == found.tags.shape == (4, 2)
    different = ["The", "cat", "sat", "there", "the", "dog"]
    assert found.spelling.T.tolist() == [[0, 1, 2, 3], [4, 5, 2, 0]]
    assert found.character_lengths.tolist() == [len(word) for word in different]
    for i, word in enumerate(different):
        expected = [words.characters[c] for c in word]
        assert found.characters[: len(word), i].tolist() == expected
    assert found.words[0, 0] == found.words[0, 1] != UNKNOWN
    assert within(found).T.tolist() == [[True] * 4, [True] * 3 + [False]]


def test_of_a_long_word_the_middle_is_left_out() -> None:
    words = encoder()
    found = batch(words, [(["caaaaaaaaaaaaaaaats"], ["NOUN"])])
    assert found.characters[:, 0].tolist() == [words.characters[c] for c in "caaaaats"]


def test_ends_of_words_that_several_words_share_are_known() -> None:
    words = encoder()
    ends = batch(words, [(["insights"], ["NOUN"]), (["cats"], ["NOUN"])]).affixes
    first, second, last, last_two = range(4)
    assert ends[0, last_two] == words.affixes[last_two]["ts"] != UNKNOWN
    assert ends[0, second] == UNKNOWN
    assert ends[1, last_two] == ends[0, last_two]
    assert ends[1, first] == UNKNOWN
    assert ends[0, last] == words.affixes[last]["s"] != UNKNOWN


def test_without_affixes_there_are_none() -> None:
    words = encoder(affixes=0)
    assert network(words)(batch(words, TRAINING)).shape == (4, 4, 4)


@pytest.mark.parametrize("crf", [False, True])
def test_company_and_padding_make_no_difference(crf: bool) -> None:
    words = encoder()
    model = network(words, crf=crf).double().eval()
    if model.crf is not None:
        for parameter in model.crf.parameters():
            nn.init.normal_(parameter)
    together = batch(words, TRAINING)
    tags, probabilities = answers(model, together)
    losses = []
    for b, sentence in enumerate(TRAINING):
        alone = batch(words, [sentence])
        alone_tags, alone_probabilities = answers(model, alone)
        n = len(sentence[0])
        assert tags[:n, b].tolist() == alone_tags[:, 0].tolist()
        torch.testing.assert_close(probabilities[:n, b], alone_probabilities[:, 0])
        losses.append(model.loss(model(alone), alone))
    torch.testing.assert_close(model.loss(model(together), together), torch.stack(losses).sum())


def test_the_loss_is_the_sum_over_words() -> None:
    words = encoder()
    model = network(words).eval()
    [sentence] = [TRAINING[0]]
    one = batch(words, [sentence])
    p = model(one)[:, 0].softmax(1)
    expected = -sum(p[t, TAGS.index(tag)].log() for t, tag in enumerate(sentence[1]))
    torch.testing.assert_close(model.loss(model(one), one), expected)


def test_rare_words_are_taken_for_unknown_ones_in_training_alone() -> None:
    words = encoder()
    model, one = network(words, unknown=1e9), batch(words, TRAINING)

    def outputs() -> tuple[Tensor, Tensor]:
        return model.train()(one), model.eval()(one)

    before = outputs()
    with torch.no_grad():
        model.words.weight[UNKNOWN + 1 :] += 1.0
    after = outputs()
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])


def test_how_often_depends_on_how_rare_a_word_is() -> None:
    model = network(encoder(), unknown=0.5).train()
    counts = torch.tensor([0.0, 0.0, 1.0, 4.5])
    numbers = torch.tensor([0, 1, 2, 3]).repeat(20_000, 1)
    torch.manual_seed(0)
    found = model._some_unknown(numbers, counts)
    share = (found == UNKNOWN).double().mean(0)
    torch.testing.assert_close(share, torch.tensor([0, 1, 1 / 3, 0.1]).double(), atol=0.01, rtol=0)
    assert found[:, 0].eq(0).all()


@pytest.mark.parametrize("crf", [False, True])
def test_it_learns_tags_that_only_neighbours_tell(crf: bool) -> None:
    sentences = [(["x", "y"], ["DET", "VERB"]), (["z", "y"], ["ADV", "NOUN"])]
    words = Encoder(lexicon(sentences), vocabulary=10, affixes=1, longest=8)
    model, one = network(words, crf=crf), batch(words, sentences)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(model(one), one).backward()
        optimizer.step()
    tags, probabilities = answers(model.eval(), one)
    assert tags.tolist() == one.tags.tolist()
    assert probabilities.amax(2).detach().min().item() > 0.8
