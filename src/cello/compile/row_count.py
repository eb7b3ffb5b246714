"""A number of rows, while a step is traced: it sees how it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from cello.compile.reasons import CannotCompile
from cello.foreign.scope import words


class RowCount(int):
    """A number of rows, or a multiple of it, to be used as a size.

    Two of them may be compared, since that holds in every batch or in none, and one with a number that is
    below every number of rows. Whatever else is asked of one is refused, as far as Python lets a number see
    it.

    Args:
        value: the number.
        refuse: makes the error.
    """

    refuse: Callable[[], CannotCompile]

    def __new__(cls, value: int, refuse: Callable[[], CannotCompile]) -> RowCount:
        self = super().__new__(cls, value)
        self.refuse = refuse
        return self

    def __add__(self, other: int) -> RowCount:
        if not isinstance(other, RowCount):
            raise self.refuse()
        return RowCount(int.__add__(self, other), self.refuse)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Tensor):  # the number is then an argument of an operation
            return NotImplemented
        if not isinstance(other, int) or isinstance(other, RowCount) or other < 1:
            raise self.refuse()
        return RowCount(int.__mul__(self, other), self.refuse)

    __rmul__ = __mul__

    def __bool__(self) -> bool:
        return True


def _decision(self: RowCount, *_: Any) -> Any:
    raise self.refuse()


def _comparison(name: str) -> Callable[[RowCount, Any], Any]:
    def compare(self: RowCount, other: Any) -> Any:
        if isinstance(other, Tensor):  # the number is then an argument of an operation
            return NotImplemented
        greatest = 1 if name in ("__lt__", "__ge__") else 0
        if isinstance(other, RowCount) or (type(other) is int and other <= greatest):
            return bool(getattr(int, name)(self, other))
        raise self.refuse()

    return compare


for _name in words(
    "hash int float complex str repr format round trunc floor ceil neg abs invert radd sub rsub "
    "truediv rtruediv floordiv rfloordiv mod rmod divmod rdivmod pow rpow and rand or ror xor rxor lshift "
    "rlshift rshift rrshift"
):
    setattr(RowCount, f"__{_name}__", _decision)
for _name in words("bit_length bit_count to_bytes conjugate as_integer_ratio is_integer"):
    setattr(RowCount, _name, _decision)
for _name in words("real imag numerator denominator"):
    setattr(RowCount, _name, property(_decision))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(RowCount, f"__{_name}__", _comparison(f"__{_name}__"))
