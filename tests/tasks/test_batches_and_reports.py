from __future__ import annotations

import gzip
import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score, f1_score

from cello.tasks.batches import Buckets, Examples, answerable, pad, validation_batches
from cello.tasks.classify import Options
from cello.tasks.classify.network import SequenceClassifier
from cello.tasks.classify.options import POOLINGS
from cello.tasks.classify.predictor import _collate
from cello.tasks.classify.text import encode, train_tokenizer
from cello.tasks.confusion import report
from cello.tasks.errors import InputError, show_table
from cello.tasks.files import written_beside


def test_buckets_hold_each_row_once_with_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 400, (3000,), generator=generator).tolist()
    for seed in (None, 3):
        batches = list(Buckets(lengths, 32, seed, epoch=2))
        assert len(batches) == len(Buckets(lengths, 32, seed)) == 94
        assert sorted(i for batch in batches for i in batch) == list(range(3000))
        padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
        assert padded < 1.06 * sum(lengths)
    assert list(Buckets(lengths, 32, 3, 2)) == batches
    assert list(Buckets(lengths, 32, 3, 1)) != batches
    assert list(Buckets(lengths, 32, 4, 2)) != batches


def test_batches_of_no_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="batch_size: 0 is not positive"):
        list(answerable(["a"], 0))


def test_batches_are_padded_with_zeros() -> None:
    sequences = [torch.full((n, 2), float(n)) for n in (3, 1, 2)]
    examples = Examples(list(zip(sequences, [0, 1, 2], strict=True)), [3, 1, 2])
    ((x, lengths, targets),) = validation_batches(examples, _collate, batch_size=8)
    assert lengths.tolist() == [1, 2, 3]
    assert targets.tolist() == [1, 2, 0]
    assert x.shape == (3, 3, 2)
    assert x.sum().item() == 2 * (1 * 1 + 2 * 2 + 3 * 3)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_row_alone_and_in_a_padded_batch_agree(
    pooling: str, cell: str, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    options = Options(
        cell=cell, pooling=pooling, bidirectional=bidirectional, hidden=5, embedding=4, layers=2
    )
    model = SequenceClassifier(options, 3, vocabulary=20, features=None).eval()
    sequences = [torch.randint(1, 20, (n,)) for n in (4, 1, 7)]
    together = model(*pad(sequences))
    for i, sequence in enumerate(sequences):
        torch.testing.assert_close(model(*pad([sequence]))[0], together[i])


def test_pooling_against_a_loop() -> None:
    torch.manual_seed(0)
    options = Options(hidden=3, pooling="mean-max", dropout=0.0)
    model = SequenceClassifier(options, 2, vocabulary=None, features=2)
    x, lengths = pad([torch.randn(n, 2) for n in (2, 5)])
    output, _ = model.recurrent(x, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        steps = output[:n, b]
        expected = model.linear(torch.cat([steps.mean(0), steps.max(0).values]))
        torch.testing.assert_close(model(x, lengths)[b], expected)


@pytest.mark.parametrize("vocabulary", [None, 9])
def test_pooled_input_against_a_loop(vocabulary: int | None) -> None:
    torch.manual_seed(0)
    options = Options(hidden=3, embedding=2, pooling="last", dropout=0.0, pool_input=True)
    features = None if vocabulary else 2
    model = SequenceClassifier(options, 2, vocabulary=vocabulary, features=features).eval()
    steps = [torch.randint(1, 9, (n,)) if vocabulary else torch.randn(n, 2) for n in (2, 5)]
    x, lengths = pad(steps)
    output, _ = model.recurrent(model.embed(x), lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        last = torch.cat([output[n - 1, b, :3], output[0, b, 3:]])
        total = model.embed(x[:n, b]).sum(0) / n**0.5
        torch.testing.assert_close(model(x, lengths)[b], model.linear(torch.cat([last, total])))


def test_tokenizer() -> None:
    texts = ["A film<br /><br />that IS fine, fine.", "a film", "that is \uff46ine"]
    tokenizer = train_tokenizer(texts, kind="word", vocabulary=100, max_length=5)
    assert tokenizer.get_vocab_size() == 7  # two special tokens, and each word seen twice
    (ids,) = encode(tokenizer, ["FINE<BR>film unseen a a a a"], ["here"])
    words = [tokenizer.id_to_token(i) for i in ids.tolist()]
    assert words == ["fine", "film", "[UNK]", "a", "a"]
    with pytest.raises(InputError, match="row 7: the text is empty"):
        encode(tokenizer, ["a", " <br /> "], ["row 6", "row 7"])
    small = train_tokenizer(texts * 9, kind="bpe", vocabulary=25, max_length=5)
    assert small.get_vocab_size() <= 25


def test_report_against_scikit_learn(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(0, 3, (2, 200), generator=generator).tolist()
    result = report("made", ["a", "b [x]", "$c$", "没有"], true, predicted, 1.0)
    assert result.accuracy == accuracy_score(true, predicted)
    macro = f1_score(true, predicted, labels=range(4), average="macro", zero_division=0.0)
    assert result.macro_f1 == pytest.approx(macro, abs=1e-12)
    for i in range(4):
        for j in range(4):
            pairs = zip(true, predicted, strict=True)
            assert result.confusion[i][j] == sum(pair == (i, j) for pair in pairs)
    result.save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["accuracy"] == result.accuracy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.png", "report.json"]
    console = Console(record=True, quiet=False, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    result.show(console)
    console.file.close()
    shown = console.export_text()
    assert "b [x]" in shown
    assert f"accuracy {result.accuracy:.4f}" in shown


def test_numbers_of_a_table_are_whole_on_a_narrow_screen() -> None:
    table = Table()
    for heading in ("name of the column", "mean absolute error", "MASE"):
        table.add_column(heading)
    table.add_row("temperature\\[C]", "1234567.5", "[bold]0.123[/]")
    for width in (20, 100):
        screen = StringIO()
        show_table(Console(file=screen, width=width), table)
        shown = screen.getvalue()
        assert "…" not in shown
        assert [word for word in ("temperature[C]", "1234567.5", "0.123") if word in shown] == [
            "temperature[C]", "1234567.5", "0.123"
        ]  # fmt: skip
    assert "mean absolute error" in shown  # which a wide screen does not break


def test_a_name_that_ends_in_gz_is_written_compressed(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.tsv", tmp_path / "a.tsv.gz"
    for path in (plain, packed, packed):  # a second time, the same bytes
        before = path.read_bytes() if path.exists() else None
        with written_beside(path, "w") as stream:
            stream.write("ünï\n" * 3)
            stream.flush()
        assert before in (None, path.read_bytes())
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() == "ünï\n".encode() * 3
    with pytest.raises(TypeError), written_beside(packed, "w") as stream:
        stream.writelines(["half", 0])
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    with written_beside(tmp_path / "b.gz") as stream:  # of bytes nothing is changed
        stream.write(b"as it is")
    assert (tmp_path / "b.gz").read_bytes() == b"as it is"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "a.tsv.gz", "b.gz"]
