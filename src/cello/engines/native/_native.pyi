from torch import Tensor

_Rows = list[list[int]]

class Schedule:
    def __init__(
        self,
        buffers: _Rows,
        numbers: list[float],
        instructions: _Rows,
        matrices: _Rows,
        terms: _Rows,
        biases: _Rows,
        stages: _Rows,
        before: list[int],
        after: list[int],
        outers: _Rows,
        sums: list[int],
        targets: _Rows,
        tiles: list[int],
        bfloat16: list[bool],
    ) -> None: ...
    def call(
        self,
        is_double: bool,
        descending: bool,
        steps: int,
        batch: int,
        rows: int,
        batch_sizes: int,
        streams: list[int],
        statics: list[int],
        states: list[int],
        new_states: list[int],
        origins: list[int],
        gradients: list[int],
    ) -> Call: ...

class Call:
    def is_better_together(self, threads: int) -> bool: ...

def run(calls: list[Call], threads: int) -> None: ...
def multiplies_bfloat16() -> bool: ...
def shares_threads() -> bool: ...
def operations() -> list[str]: ...
def spaces() -> list[str]: ...
def instruction_sets() -> list[str]: ...
def empty(rows: int, width: int, is_double: bool) -> Tensor: ...
