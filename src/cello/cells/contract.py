"""What a cell is: one step of a recurrence.

``(x, state) -> (output, state)``. The state is always a tuple of named tensors, and the output is
separate from it, so that no layer, engine or tool ever has to know which cell it runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

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

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> State | None:
        """Return the state before the first step: zeros, unless a cell overrides it.

        Args:
            batch_size: B, the number of rows.
            dtype: the dtype of the layer's input, or torch's default where that is an integer.
            device: the device of the layer's input.

        Returns:
            One tensor (B, ...) for each name of :attr:`state_sizes`. ``None`` is for foreign cells
            only (see :mod:`cello.foreign.adapt`), which may make the first state themselves.
        """
        # A width may be a tensor or a SymInt while torch traces.
        shapes = (s if isinstance(s, tuple) else (s,) for s in self.state_sizes.values())
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
