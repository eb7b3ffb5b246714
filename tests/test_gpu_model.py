"""The model of times on a GPU is near to what others have published, and keeps its own order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_model import H100, KINDS, Layer, compared, model  # noqa: E402

LARGE = Layer(1024, 16, 768, 768)


def test_cudnn_in_float16():
    """As published with FlashRNN (Poeppel et al., 2024): 2.0 ms forward, 5.2 ms with backward."""
    found = model("cuDNN", LARGE, H100, is_float16=True)
    assert found is not None
    assert found.forward == pytest.approx(2.0, rel=0.15)
    assert found.training == pytest.approx(5.2, rel=0.15)


@pytest.mark.parametrize("hidden", [64, 128])
def test_a_program_that_owns_its_rows(hidden: int):
    """FlashRNN's Triton kernels, 1.4 to 2.0 us a step, are such programs without special care."""
    found = model("S", Layer(1024, 16, hidden, hidden), H100)
    assert found is not None
    assert 0.4 < found.forward < 2.0


def test_a_step_of_a_loop_in_python_takes_about_150_microseconds():
    found = model("loop", LARGE, H100)
    assert found is not None
    assert 100 < 1e3 * found.forward / LARGE.steps < 200


def test_memory_bounds_elementwise_cells():
    """At 3.35 TB/s the numbers of a minimal GRU alone take 45 us; products of the input come on top."""
    layer = Layer(1024, 16, 768, 768, gates=2, is_elementwise=True, size=4)
    found = model("E", layer, H100)
    assert found is not None
    assert 0.045 < found.forward < 0.3


def test_the_order_of_the_kinds():
    times = {kind: model(kind, LARGE, H100) for kind in ("P", "G fused", "G", "loop")}
    forward = [found.forward for found in times.values() if found is not None]
    assert forward == sorted(forward)
    assert len(forward) == 4
    for kind in KINDS:  # more steps, rows or units never take less time
        small = model(kind, Layer(512, 16, 256, 256), H100)
        for layer in (Layer(1024, 16, 256, 256), Layer(512, 64, 256, 256), LARGE):
            large = model(kind, layer, H100)
            assert (small is None) == (kind == "E")
            if small is not None and large is not None:
                assert large.forward >= small.forward
                assert large.training >= small.training
    assert model("P", Layer(1024, 64, 2048, 2048), H100) is None  # the weights do not fit the chip


def rows() -> list[dict[str, object]]:
    one = {"layer": "LSTM", "shape": [1024, 16, 768, 768], "dtype": "float16", "options": ""}
    times = {"forward_ms": 4.0, "training_ms": 11.0, "error": 1e-3, "note": ""}
    return [
        {**one, "way": "vendor", **times},
        {**one, "way": "triton", **times},
        {**one, "way": "triton", **times, "layer": "minimal GRU", "dtype": "float32"},
        {**one, "way": "triton, by rows", **times},
        {**one, "way": "triton, as a graph", **times},
        {**one, "way": "triton, persistent", **times},
        {**one, "way": "reference", **times, "forward_ms": None, "training_ms": None},
    ]


def test_measured_beside_modelled():
    _, _, *lines = compared(rows(), H100)
    assert [line.split(" | ")[3:6] for line in lines] == [
        ["vendor", "cuDNN", "4.00 / 11"],
        ["triton", "G", "4.00 / 11"],
        ["triton", "E", "4.00 / 11"],
        ["triton, by rows", "S", "4.00 / 11"],
        ["triton, as a graph", "G", "4.00 / 11"],
        ["triton, persistent", "P", "4.00 / 11"],
    ]
    expected = model("cuDNN", LARGE, H100, is_float16=True)
    assert expected is not None
    assert float(lines[0].split(" | ")[-1].rstrip(" |")) == pytest.approx(
        4 / expected.forward, abs=0.01
    )


def test_the_command(tmp_path: Path):
    results = tmp_path / "gpu.json"
    results.write_text(json.dumps({"about": "a card", "rows": rows()}))
    command = [sys.executable, "-m", "benchmarks.gpu_model"]
    done = subprocess.run(
        [*command, str(results)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "modelled, not measured" in done.stdout
    assert "Measured: a card" in done.stdout
    results.write_text(json.dumps({"about": "a card", "rows": rows()[-1:]}))
    done = subprocess.run(
        [*command, str(results)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "There are no times in it." in done.stdout
    results.write_text("[]")
    done = subprocess.run(
        [*command, str(results)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is no results of benchmarks.gpu" in done.stderr
