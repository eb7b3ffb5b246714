"""What a cell is: one step of a recurrence.

``(x, state) -> (output, state)``. The state is always a tuple of named tensors, and the output is
separate from it, so that no layer, engine or tool ever has to know which cell it runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import dataclass_transform  # which torch imports

State = tuple[Tensor, ...]
"""The state of one cell: a tuple of tensors, each (B, ...)."""


def state_dtype(input_dtype: torch.dtype, module: nn.Module) -> torch.dtype:
    """The dtype of a state that starts at zero.

    Args:
        input_dtype: that of the input, which it is unless the input holds indices.
        module: the cell or the layer, of whose weights it is otherwise.
    """
    if input_dtype.is_floating_point or input_dtype.is_complex:
        return input_dtype
    dtypes = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(dtypes, torch.get_default_dtype())


class CellError(TypeError):
    """A module or function is not a cell; the message says which rule it breaks."""


class Cell(nn.Module, ABC):
    """One step of a recurrence, as plain PyTorch: ``(x, state) -> (output, state)``.

    A subclass writes :meth:`forward`, says in :attr:`state_sizes` what its state consists of, and
    may override :meth:`initial_state`. It knows nothing of time, layers, directions or devices.

    The rules of a cell:

    1. `forward` takes ``x`` (B, F) and a state, and returns ``(output, state)``;
    2. the new state has the structure and the shapes of the old one;
    3. rows of the batch do not see each other;
    4. what is computed does not branch on the values of tensors (``torch.where`` instead of ``if``);
    5. nothing is written into the input or the state in place.

    Example:
        >>> class Leaky(Cell):
        ...     state_sizes = {"h": 3}
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = nn.Parameter(torch.tensor(0.5))
        ...
        ...     def forward(self, x, state):
        ...         (h,) = state
        ...         h = h + self.rate * (x - h)
        ...         return h, (h,)
        >>> output, (h,) = Leaky()(torch.ones(2, 3), (torch.zeros(2, 3),))
        >>> output[0]
        tensor([0.5000, 0.5000, 0.5000], grad_fn=<SelectBackward0>)
    """

    @property
    @abstractmethod
    def state_sizes(self) -> Mapping[str, int | tuple[int, ...]]:
        """Name and shape of each part of the state, without the batch: ``{"h": H, "c": H}``."""

    @property
    def label(self) -> str:
        """What messages and `cello.explain` call this cell."""
        return type(self).__name__

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the parts of the state, in order."""
        return tuple(self.state_sizes)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each part of the state, where a size alone is a shape too."""
        # A width may be a tensor or a SymInt while torch traces.
        return {
            name: tuple(size) if isinstance(size, tuple | list) else (size,)
            for name, size in self.state_sizes.items()
        }

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> State | None:
        """Return the state before the first step: zeros, unless a cell overrides it.

        Args:
            batch_size: B, the number of rows.
            dtype: the dtype of the layer's input; where that is an integer, the dtype of the cell's
                floating-point weights, or torch's default if it has none.
            device: the device of the layer's input.

        Returns:
            One tensor (B, ...) for each name of :attr:`state_sizes`. ``None`` is for foreign cells
            only (see :mod:`cello.foreign.adapt`), which may make the first state themselves.
        """
        shapes = self.state_shapes.values()
        return tuple(torch.zeros(batch_size, *s, dtype=dtype, device=device) for s in shapes)

    def borrow(self, **attributes: object) -> None:
        """Set attributes that belong to somebody else, such as the weights of a layer.

        They are not registered as parameters or children of this cell, which also makes this cheap
        enough to build a cell at each call.
        """
        self.__dict__.update(attributes)

    @abstractmethod
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute one step.

        Args:
            x: the input of this step, (B, F).
            state: one tensor (B, ...) for each name of :attr:`state_sizes`.

        Returns:
            The output (B, H) and the new state, of the same shapes as the old one.
        """


class Gate(NamedTuple):
    """One block of rows in the weights of a cell.

    Attributes:
        name: its usual letter.
        meaning: its name in words.
        function: the field of the cell that holds the function which makes it.
    """

    name: str
    meaning: str
    function: str


class StatePart(NamedTuple):
    """One tensor of the state of a cell.

    Attributes:
        name: its usual letter.
        meaning: its name in words.
        width: its width in letters, see :class:`Weight`.
    """

    name: str
    meaning: str
    width: str


class Weight(NamedTuple):
    """What the field of a weight says about it.

    Attributes:
        part: what it is, in words: "input weights".
        shape: its sizes in letters: G gates, H the width of the cell, F features of the input, P the
            width of h, which is H unless there is a projection; and products such as "G*H", "3*H".
    """

    part: str
    shape: tuple[str, ...]

    def sizes(self, letters: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, where the letters stand for these."""
        return tuple(
            math.prod(letters[factor] if factor in letters else int(factor) for factor in factors)
            for factors in (size.split("*") for size in self.shape)
        )


def weight(part: str, *shape: str, default: Any = MISSING) -> Any:
    """Declare the field of a weight, see :class:`Weight`.

    A part called "biases" is what ``bias=False`` leaves out, one called "projection" is there with
    `proj_size` only; both need ``default=None``.
    """
    return field(default=default, metadata={"weight": Weight(part, shape)})


@dataclass_transform(field_specifiers=(weight,))
class Equations(Cell):
    """A cell over weights that somebody else holds, such as a layer with torch's parameters.

    A subclass declares its weights and functions as fields, from which its ``__init__`` is made, and says
    what it is: its gates and its state. Its output is the first part of its state. Layers, engines and
    tools read these facts and know none of the cells by name.

    Attributes:
        gates: the blocks of rows of a weight G*H, in order.
        state: the parts of the state, in order.
        weights: the fields that are weights, made from what is declared.
        options: the other fields, such as activations.

    Example:
        >>> class Leaky(Equations):
        ...     weight_ih: Tensor = weight("input weights", "H", "F")
        ...     activation: Activation = torch.tanh
        ...
        ...     state = (StatePart("h", "hidden state", "H"),)
        ...
        ...     def forward(self, x, state):
        ...         h = self.activation((state[0] + nn.functional.linear(x, self.weight_ih)) / 2)
        ...         return h, (h,)
        >>> output, (h,) = Leaky(torch.eye(2), activation=torch.relu)(
        ...     torch.tensor([[1.0, -1.0]]), (torch.zeros(1, 2),)
        ... )
        >>> output
        tensor([[0.5000, 0.0000]])
    """

    gates: ClassVar[tuple[Gate, ...]] = ()
    state: ClassVar[tuple[StatePart, ...]]
    weights: ClassVar[Mapping[str, Weight]]
    options: ClassVar[tuple[str, ...]]
    _widths: ClassVar[Mapping[str, tuple[str, int, int]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The __init__ of a frozen dataclass sets its fields past nn.Module, which would register
        # parameters: they stay those of whoever holds them. Nothing else is to be frozen.
        dataclass(frozen=True, eq=False, repr=False)(cls)
        del cls.__setattr__, cls.__delattr__
        declared = {f.name: f.metadata.get("weight") for f in fields(cls)}  # type: ignore[arg-type]  # now it is one
        cls.weights = {name: found for name, found in declared.items() if found is not None}
        cls.options = tuple(name for name, found in declared.items() if found is None)
        if not hasattr(cls, "state"):
            raise TypeError(
                f"{cls.__name__}.state: expected the parts of the state, but it has none"
            )
        cls._widths = {part.name: cls._found_in(part.width) for part in cls.state}

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def _found_in(cls, letter: str) -> tuple[str, int, int]:
        """Where a width can be read: a weight that is always there, its axis, and what to divide by."""
        needed = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
        gates = ((f"G*{letter}", len(cls.gates)),) if cls.gates else ()
        for size, divisor in ((letter, 1), *gates):
            for name, found in cls.weights.items():
                if name in needed and size in found.shape:
                    return name, found.shape.index(size), divisor
        sizes = f"{letter} or G*{letter}" if gates else f"{letter}, and there are no gates"
        raise TypeError(f"{cls.__name__}.state: no weight that is always there has a size {sizes}")

    @property
    def state_sizes(self) -> dict[str, int | tuple[int, ...]]:
        return {
            name: getattr(self, held).shape[axis] // divisor
            for name, (held, axis, divisor) in self._widths.items()
        }
