"""Which scans the native engine takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from cello.engines.contract import Scan
from cello.engines.native.kernel import NativeKernel
from cello.engines.native.library import library, multiplies_bfloat16, why_missing
from cello.engines.programs import ProgramEngine, why_no_program
from cello.engines.programs.operator import register
from cello.engines.vendor import multiplies_in_bfloat16, step_function


class Native(ProgramEngine):
    """Compiled cells on the CPU, in C++."""

    name = "native"
    kernels = NativeKernel

    def why_not_here(self, scan: Scan) -> Iterator[str]:
        x = scan.sequence.data
        if x.device.type not in NativeKernel.device_types:
            yield f"the native engine runs on the CPU, not on {x.device.type}"
            return
        if library() is None:
            yield f"the native engine was not built: {why_missing()}"
        yield from why_no_program(scan, "the native engine")

    def why_rather_not(self, scan: Scan) -> list[str]:
        if torch.is_grad_enabled() and step_function(scan) is not None:
            return [
                "torch has a function for a single step of these equations, which takes less time where "
                "gradients are recorded"
            ]
        if multiplies_in_bfloat16(scan) and not multiplies_bfloat16():
            return [
                "torch's LSTM kernel multiplies in bfloat16, and the native engine does not on this "
                "processor"
            ]
        return super().why_rather_not(scan)


register(NativeKernel)
