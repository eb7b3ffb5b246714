"""Which scans the Triton engine takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cello.engines.contract import Scan
from cello.engines.programs import ProgramEngine
from cello.engines.triton.kernel import TritonKernel
from cello.engines.triton.library import is_interpreted, why_missing

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Triton(ProgramEngine):
    """Compiled cells on a GPU."""

    name = "triton"
    kernels = TritonKernel

    def why_not_here(self, scan: Scan) -> Iterator[str]:
        x = scan.sequence.data
        expected = "cpu" if is_interpreted() else TritonKernel.device_type
        if x.device.type != expected:
            yield f"the Triton engine runs on a GPU, not on {x.device.type}"
            return
        missing = why_missing()
        if missing is not None:
            yield missing
        for direction in scan.directions:
            dtype = direction.state[0].dtype if direction.state else x.dtype
            if dtype not in _DTYPES:
                yield f"the Triton engine takes {', '.join(map(str, _DTYPES))}, not {dtype}"
                break
        if scan.sequence.batch_size == 0:
            yield "there are no sequences in the batch"

    def why_rather_not(self, scan: Scan) -> list[str]:
        return [
            "the Triton engine has run in Triton's interpreter only, not on a GPU yet; "
            "cello.engine('triton') selects it"
        ]
