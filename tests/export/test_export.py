"""Models with layers of Cello as ONNX files, beside the models themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cello

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Leaky(nn.Module):
    """A cell that is not Cello's, with dropout, a norm and a first state of its own."""

    def __init__(self, features: int, size: int):
        super().__init__()
        self.hidden_size = size
        self.x, self.h = nn.Linear(features, size), nn.Linear(size, size)
        self.drop, self.norm = nn.Dropout(0.5), nn.LayerNorm(size)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = torch.zeros(len(x), self.hidden_size, dtype=x.dtype)
        return self.norm(h + 0.5 * (torch.tanh(self.x(x) + self.h(self.drop(h))) - h))


class ConvRNN(nn.Module):
    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(inputs + channels, channels, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.mix(torch.cat([x, h], 1)))
        return h, h


def check(
    model: nn.Module, path: Path, *calls: tuple[Any, ...], tolerance: float = 1e-5, **options: Any
) -> Any:
    """Export a model at its first call, and compare all of them; return the program."""
    model.train()
    program = cello.onnx.export(model, calls[0], path, **options)
    assert all(module.training for module in model.modules())
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    model.eval()
    for call in calls:
        flat = [t.numpy() for t in torch.utils._pytree.tree_leaves(call)]
        found = session.run(None, dict(zip(names, flat, strict=True)))
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(model(*call))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance)
    return program


def scans(program: Any) -> int:
    return [node.op_type for node in program.model.graph].count("Scan")


LAYERS = {
    "LSTM": lambda: cello.nn.LSTM(4, 5, num_layers=2, bidirectional=True, dropout=0.5),
    "GRU": lambda: cello.nn.GRU(4, 5, reverse=True, learn_initial_state=True),
    "RNN": lambda: cello.nn.RNN(4, 5, nonlinearity="relu", bias=False),
    "projected": lambda: cello.nn.LSTM(4, 6, proj_size=3, bidirectional=True, merge="sum"),
    "hard gates": lambda: cello.nn.LSTM(4, 5, activation="hardtanh", gate_activation="hardsigmoid"),
    "MGU": lambda: cello.nn.MGU(4, 5),
    "peepholes": lambda: cello.nn.PeepholeLSTM(4, 5),
    "own cell": lambda: cello.Recurrent(Leaky, 4, 5, num_layers=2, bidirectional=True),
    "own cell, not called": lambda: cello.Recurrent(Leaky(4, 5)),
}
SCANS = {"LSTM": 4, "own cell": 4, "projected": 2}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_for_any_steps_and_sequences(name: str, tmp_path: Path):
    torch.manual_seed(0)
    calls = [(torch.randn(t, b, 4),) for t, b in ((7, 3), (1, 1), (50, 2), (3, 20))]
    axes = ({0: "time", 1: "batch"},)
    program = check(LAYERS[name](), tmp_path / "model.onnx", *calls, dynamic_shapes=axes)
    assert scans(program) == SCANS.get(name, 1)


class Texts(nn.Module):
    """A model of texts, which reads their lengths."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.embed, self.layer = nn.Embedding(20, 4), layer

    def forward(self, ids: Tensor, lengths: Tensor) -> Any:
        return self.layer(self.embed(ids).transpose(0, 1), lengths=lengths)


@pytest.mark.parametrize("name", LAYERS)
def test_lengths(name: str, tmp_path: Path):
    torch.manual_seed(0)
    lengths = [[7, 0, 3], [9, 9], [0], [1, 5, 6, 2, 6]]
    calls = [(torch.randint(20, (len(one), max(7, *one, 1))), torch.tensor(one)) for one in lengths]
    axes = ({0: "batch", 1: "time"}, {0: "batch"})
    check(Texts(LAYERS[name]()), tmp_path / "model.onnx", *calls, dynamic_shapes=axes)


def test_images(tmp_path: Path):
    torch.manual_seed(0)
    layer = cello.Recurrent(ConvRNN(1, 4), state_size=torch.Size((4, 6, 5)))
    calls = [(torch.randn(t, b, 1, 6, 5),) for t, b in ((5, 2), (7, 3))]
    check(layer, tmp_path / "model.onnx", *calls, dynamic_shapes=({0: "time", 1: "batch"},))


class Holder(nn.Module):
    """A cell with weights, and a step that reads them."""

    def __init__(self, step: Any):
        super().__init__()
        self.hidden_size, self.step = 6, step
        self.x, self.h, self.both = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self, self.x(x) + self.h(h), h)


STEPS = {
    "halves": lambda c, z, h: torch.tanh(z + h[:, :3].sum(-1, True) - 2 * h[:, 3:].sum(-1, True)),
    "gated halves": lambda c, z, h: F.glu(c.both(torch.tanh(z)), -1),
    "rolled": lambda c, z, h: torch.tanh(z + torch.roll(h, 1, -1)),
    "a constant": lambda c, z, h: torch.tanh(z * torch.tensor([0.5]) + torch.tensor([1, 0] * 3)),
    "places": lambda c, z, h: torch.tanh(z[:, [5, 0, 1, 2, 3, 4]]),
    "a composite function": lambda c, z, h: F.relu6(F.selu(z)) + F.rms_norm(h, (6,)),
    "cosine similarity": lambda c, z, h: torch.tanh(z * F.cosine_similarity(h, z, -1)[:, None]),
    "extrema": lambda c, z, h: torch.tanh(z - z.amax(-1, True)) + h.amin(-1, True) / 4,
    "a quotient of sigmoids": lambda c, z, h: torch.tanh(
        torch.log(torch.sigmoid(40 * z)) / 40 + h / (1 + torch.sigmoid(-30 * z).reciprocal())
    ),
    "a logarithm of a sum of sigmoids": lambda c, z, h: torch.tanh(
        torch.log((torch.cat([torch.sigmoid(60 * z), h * 0], -1) * 2).sum(-1, True)) / 40 + h / 2
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step(name: str, tmp_path: Path):
    torch.manual_seed(0)
    layer = cello.Recurrent(Holder(STEPS[name]), bidirectional=False)
    calls = [(torch.randn(t, b, 4),) for t, b in ((5, 2), (9, 3))]
    axes = ({0: "time", 1: "batch"},)
    assert scans(check(layer, tmp_path / "model.onnx", *calls, dynamic_shapes=axes)) == 1


def test_a_first_state_that_is_learned_later(tmp_path: Path):
    """Each export finds out anew whether it is zero whatever the weights are."""

    class Learned(Leaky):
        def __init__(self, features: int, size: int):
            super().__init__(features, size)
            self.start = nn.Parameter(torch.zeros(size))

        def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
            h = self.start.expand(x.shape[0], -1) if h is None else h
            return torch.tanh(self.x(x) + self.h(h))

    torch.manual_seed(0)
    cell = Learned(4, 5)
    calls = [(torch.randn(t, b, 4),) for t, b in ((7, 3), (2, 1), (9, 5))]
    axes = ({0: "time", 1: "batch"},)
    for start in (0.0, 1.0):
        torch.nn.init.constant_(cell.start, start)
        check(cello.Recurrent(cell), tmp_path / "model.onnx", *calls, dynamic_shapes=axes)
    layer, dims = cello.Recurrent(cell), (dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC),)
    graph = torch.export.export(layer, calls[0], dynamic_shapes=dims, strict=False).module()
    for (x,) in [*calls, (torch.randn(1, 1, 4),)]:
        torch.testing.assert_close(graph(x), layer(x))


@pytest.mark.parametrize("external_data", [False, True])
def test_what_was_there_stays_until_a_file_is_complete(
    external_data: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, layer, x = tmp_path / "model.onnx", cello.nn.GRU(4, 5), torch.randn(7, 3, 4)
    path.write_bytes(b"before")

    def stop(program: Any, place: Any, **options: Any) -> None:
        Path(place).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cello.onnx.export(layer, (x,), path, external_data=external_data)
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    monkeypatch.undo()
    cello.onnx.export(layer, (x,), path, external_data=external_data)
    assert onnx.load(path).graph.node  # with its weights
    names = ["model.onnx", "model.onnx.data"] if external_data else ["model.onnx"]
    assert sorted(one.name for one in tmp_path.iterdir()) == names


class Stream(nn.Module):
    """One step of a layer, which takes a state and returns the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = cello.nn.LSTM(4, 5, num_layers=2)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        return self.layer.step(x, (h, c))


def test_a_step_of_a_stream(tmp_path: Path):
    torch.manual_seed(0)
    calls = [(torch.randn(b, 4), *torch.randn(2, 2, b, 5).unbind()) for b in (3, 1)]
    axes = ({0: "batch"}, {1: "batch"}, {1: "batch"})
    check(Stream(), tmp_path / "model.onnx", *calls, dynamic_shapes=axes)


def test_states_of_all_steps(tmp_path: Path):
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = cello.nn.LSTM(4, 5, bidirectional=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            return self.layer(x, lengths=lengths, return_states="all")

    check(Watched(), tmp_path / "model.onnx", (torch.randn(7, 2, 4), torch.tensor([3, 7])))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["double", "half"])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path):
    torch.manual_seed(0)
    layer, x = cello.nn.GRU(4, 5).to(dtype), torch.randn(7, 3, 4, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-3
    check(layer, tmp_path / "model.onnx", (x,), tolerance=tolerance)


def test_options_are_those_of_torch(tmp_path: Path):
    layer, path = cello.nn.GRU(4, 5), tmp_path / "model.onnx"
    cello.onnx.export(layer, (torch.randn(7, 3, 4),), path, input_names=["x"], opset_version=20)
    model = onnx.load(path)
    assert [given.name for given in model.graph.input] == ["x"]
    assert [one.version for one in model.opset_import if one.domain == ""] == [20]


def test_a_file_needs_neither_torch_nor_cello(tmp_path: Path):
    layer, x = cello.nn.LSTM(4, 5).eval(), torch.randn(7, 3, 4)
    cello.onnx.export(layer, (x,), tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    code = f"""
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(tmp_path / "model.onnx")!r})
output, h, c = session.run(None, {{"input": np.load({str(tmp_path / "x.npy")!r})}})
assert "torch" not in sys.modules and "cello" not in sys.modules
print(repr(float(np.abs(output).sum())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "x.npy"}
    assert float(done.stdout) == pytest.approx(float(layer(x)[0].detach().abs().sum()), rel=1e-5)


def test_a_cell_that_is_not_compiled_is_refused():
    class Asks(nn.Module):
        hidden_size = 4

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return x if h.sum() > 0 else x + h

    with pytest.raises(cello.EngineError, match="Asks depends on the values of tensors in Python"):
        cello.onnx.export(cello.Recurrent(Asks()), (torch.randn(7, 3, 4),))


def test_bad_arguments(tmp_path: Path):
    layer, x = cello.nn.GRU(4, 5), torch.randn(7, 3, 4)
    with pytest.raises(
        TypeError, match="args must be a tuple of the model's arguments, got Tensor"
    ):
        cello.onnx.export(layer, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dynamo must be True"):
        cello.onnx.export(layer, (x,), dynamo=False)
    with pytest.raises(ValueError, match="model must be on the CPU, got weight_ih_l0 on meta"):
        cello.onnx.export(cello.nn.GRU(4, 5, device="meta"), (x,))
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        cello.onnx.export(layer, (x,), tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(
        IsADirectoryError, match=r"path: .* is a folder; expected the name of a file"
    ):
        cello.onnx.export(layer, (x,), tmp_path)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        cello.onnx.export(lambda x: x, (x,))  # type: ignore[arg-type]


def test_packed_sequences_are_refused():
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = cello.nn.GRU(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 3]))
            return self.layer(packed)[1]

    with pytest.raises(torch.onnx.OnnxExporterError, match="give the layer padded ones"):
        cello.onnx.export(Packs(), (torch.randn(7, 2, 4),))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["cello.onnx.export"], "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnx and onnxscript: pip install"):
        cello.onnx.export(cello.nn.GRU(4, 5), (torch.randn(7, 3, 4),))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.filterwarnings("ignore")  # of torch, about the older exporter
def test_the_older_exporter_writes_operators_of_onnx(kind: str, tmp_path: Path):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(cello.nn, kind)(4, 5, bidirectional=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    torch.manual_seed(0)
    model, path = Around().eval(), tmp_path / "model.onnx"
    axes, x = {"x": {0: "time", 1: "batch"}}, torch.randn(7, 3, 4)
    torch.onnx.export(model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    assert kind in [node.op_type for node in onnx.load(path).graph.node]
    session = onnxruntime.InferenceSession(path)
    for sizes in ((7, 3), (2, 1), (20, 4)):
        x = torch.randn(*sizes, 4)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-5, atol=1e-5)
