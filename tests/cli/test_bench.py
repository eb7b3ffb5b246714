"""``cello bench``: tables and pictures of small shapes and of a trained model."""

from __future__ import annotations

import pytest
import torch
from matplotlib import image

from cello.inspect import measure

QUICK = ["--time", 4, "--batch", 2, "--features", 3, "--hidden", 5, "--seconds", 0.01]


def test_a_shape(cello, tmp_path):
    picture = tmp_path / "bench.png"
    threads = torch.get_num_threads()
    result = cello("bench", *QUICK, "--cell", "gru", "--layers", 2, "--bidirectional", "--packed",
                   "--threads", 1, "--dtype", "float64", "--out", picture)  # fmt: skip
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    title = "GRU(3, 5, num_layers=2, bidirectional=True) on packed ("
    assert lines[0].startswith(title)
    assert lines[0].endswith(", 3), float64, 1 threads")
    ways = [line.split()[0] for line in lines if line.split()[:1] != []]
    kinds = ["torch.nn", "cello", "native", "vendor"]
    assert [way for way in ways if way in (*kinds, "forward", "training")] == [
        "forward", *kinds, "training", *kinds,
    ]  # fmt: skip
    assert image.imread(picture).std() > 0.02
    assert torch.get_num_threads() == threads


def test_a_model(cello, toy_model):
    result = cello("bench", "--model", toy_model, "--time", 5, "--batch", 2, "--seconds", 0.01,
                   "--engines", "reference")  # fmt: skip
    assert result.code == 0, result.err
    assert result.out.startswith("recurrent: LSTM(8, 8, bidirectional=True) on (5, 2, 8), float32")
    ways = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert "reference" in ways
    assert "native" not in ways


def test_results_that_differ_are_an_error(cello, monkeypatch):
    def other_weights(layer):
        twin = original(layer)
        with torch.no_grad():
            twin.weight_hh_l0[0, 0] += 1
        return twin

    original = measure.torch_layer
    monkeypatch.setattr(measure, "torch_layer", other_weights)
    result = cello("bench", *QUICK)
    assert result.code == 1
    assert "native not timed: results differ by " in result.out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--cell", "lsm"], "cell: 'lsm' is not one of lstm, peephole-lstm, gru, mgu, rnn"),
        (["--dtype", "int8"], "dtype: 'int8' is not one of float32, float64, bfloat16"),
        (
            ["--engines", "native,fast"],
            "engines: 'fast' is not one of native, vendor, triton, reference",
        ),
        (["--out", "bench.txt"], "out: bench.txt is not a picture; its name must end in"),
        (["--projection", "500"], "projection: proj_size has to be smaller than hidden_size"),
        (["--model", "nowhere"], "nowhere: no such model folder"),
        (["--time", "0"], "Invalid value for '--time'"),
    ],
)
def test_what_is_refused(cello, arguments, line):
    assert line in cello("bench", *arguments).complaint
