"""Which scans the Triton engine takes."""

from __future__ import annotations

from collections.abc import Iterator

from cello.engines.contract import Scan
from cello.engines.programs import ProgramEngine, why_no_program
from cello.engines.programs.operator import register
from cello.engines.triton.kernel import TritonKernel
from cello.engines.triton.kinds import (
    SELECTION,
    choose,
    is_persistent_selected,
    persistent,
    room_for_programs,
)
from cello.engines.triton.library import is_interpreted, why_missing


class Triton(ProgramEngine):
    """Compiled cells on a GPU."""

    name = "triton"
    kernels = TritonKernel

    def why_not_here(self, scan: Scan) -> Iterator[str]:
        x = scan.sequence.data
        if x.device.type not in TritonKernel.device_types:
            types = " or ".join(TritonKernel.device_types)
            now = " under TRITON_INTERPRET=1" if is_interpreted() else ""
            yield f"the Triton engine runs on devices of type {types}{now}, not on {x.device.type}"
            return
        missing = why_missing()
        if missing is not None:
            yield missing
        yield from why_no_program(scan, "the Triton engine")

    def describe(self, scan: Scan) -> list[str]:
        loops = self.kernels.of(self._program(scan, scan.directions[0]), False, None).loops
        loop = loops.forward, frozenset[int](), loops.dtype
        room = room_for_programs(scan.sequence.data.device, scan.sequence.batch_size)
        if is_persistent_selected():
            why = choose(*loop, room).why
        else:
            why = choose(*loop).why
            if not isinstance(persistent(*loop, room), str):
                why += f"; {SELECTION}=persistent selects persistent kernels, not measured on a GPU yet"
        return [*super().describe(scan), f"kernels: {why}"]

    def why_rather_not(self, scan: Scan) -> list[str]:
        return [
            "the Triton engine has run in Triton's interpreter only, not on a GPU yet; "
            "cello.engine('triton') selects it"
        ]


if not is_interpreted():  # the interpreter's kernels run on the CPU, where the operators are native
    register(TritonKernel)
