"""The kernels of shipped cells compile for GPUs that are not here, and fit their registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: make triton-test")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels(capability: int):
    script = Path(__file__).parent.parent / "triton_ahead.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 24
    for kernel in kernels:
        assert kernel["stack"] == 0, kernel  # or what does not fit the registers goes to memory
        assert kernel["registers"] <= 255, kernel
        assert kernel["shared"] <= 48 * 1024, kernel
        is_elementwise = kernel["cell"] == "MinimalGRU"
        assert (kernel["units"] > 0) == is_elementwise, kernel
        assert kernel["tensor cores"] != is_elementwise, kernel
