"""RNNCell, LSTMCell and GRUCell of ``torch.nn``, with a choice of activations.

They are torch's classes: with the usual activations torch's own kernel runs, and every tool that
knows ``torch.nn.LSTMCell`` knows these.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cello import cells
from cello.cells import (
    ACTIVATIONS,
    Activation,
    Cell,
    Equations,
    changed_activations,
    resolve_activation,
)
from cello.foreign.hooks import has_global_hooks
from cello.foreign.kinds import HOOKS
from cello.nn.devices import check_state, check_weights
from cello.nn.graph import is_symbolic, leaf_of
from cello.nn.options import MADE, check_attribute


class RNNCell(nn.RNNCell):
    r"""One step of an Elman network: :class:`torch.nn.RNNCell` with any activation.

    .. math:: h' = \phi(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input_size: F.
        hidden_size: H.
        bias: whether there are the biases b_ih and b_hh.
        nonlinearity: "tanh" or "relu".
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: a name, an ``nn.Module`` or a function instead of `nonlinearity`.

    Shape:
        input (B, F) or (F,); state h (B, H) or (H,), zeros if left out; returns h'.

    Raises:
        ValueError: an input of another number of dimensions, or an unknown activation.

    Example:
        >>> cell, x, h = RNNCell(10, 20, activation="hardtanh"), torch.randn(6, 3, 10), None
        >>> for t in range(6):
        ...     h = cell(x[t], h)
        >>> h.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self.activation = None if activation is None else resolve_activation(activation)
        vars(self)[MADE] = True

    def __setattr__(self, name: str, value: Any) -> None:
        check_attribute(self, name, ("activation",))
        super().__setattr__(name, value)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_symbolic(input):
            return leaf_of(self, input, hx)  # type: ignore[no-any-return]
        _check_devices(self, input, hx)
        if self.activation is None:
            return super().forward(input, hx)
        return _one_step("RNNCell", self.equations(), input, None if hx is None else (hx,))[0]

    def equations(self) -> Cell:
        """Return the equations of this cell, with its weights as they are now."""
        activation = self.activation or ACTIVATIONS[self.nonlinearity]
        return cells.RNN(*_weights(self), activation=activation)

    def extra_repr(self) -> str:
        stock = {} if self.activation is None else {"activation": self.nonlinearity}
        return ", ".join([super().extra_repr(), *changed_activations(self, **stock)])


class _Gated(nn.RNNCellBase):
    """The activations of a cell with gates; the class of torch's that has the weights stands behind it."""

    _equations: ClassVar[type[Equations]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation = "tanh",
        gate_activation: str | Activation = "sigmoid",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)  # type: ignore[call-arg]
        self.activation = resolve_activation(activation)
        self.gate_activation = resolve_activation(gate_activation, "gate_activation")
        vars(self)[MADE] = True

    def __setattr__(self, name: str, value: Any) -> None:
        check_attribute(self, name, ("activation", "gate_activation"))
        super().__setattr__(name, value)

    def _is_usual(self) -> bool:
        """Whether torch's own kernel has these functions."""
        return self.activation is torch.tanh and self.gate_activation is torch.sigmoid

    def equations(self) -> Cell:
        """Return the equations of this cell, with its weights as they are now."""
        return self._equations(
            *_weights(self), activation=self.activation, gate_activation=self.gate_activation
        )

    def extra_repr(self) -> str:
        changed = changed_activations(self, activation="tanh", gate_activation="sigmoid")
        return ", ".join([super().extra_repr(), *changed])


class LSTMCell(_Gated, nn.LSTMCell):
    r"""One step of an LSTM: :class:`torch.nn.LSTMCell` with any activations.

    The equations and the order of the gates, i, f, g, o, are those of :class:`cello.cells.LSTM`.

    Args:
        input_size: F.
        hidden_size: H.
        bias: whether there are the biases b_ih and b_hh.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: for the candidate g and the output: a name, an ``nn.Module`` or a function.
        gate_activation: for the gates i, f and o, likewise.

    Shape:
        input (B, F) or (F,); state (h, c), each (B, H) or (H,), zeros if left out; returns (h', c').

    Raises:
        ValueError: an input of another number of dimensions, or an unknown activation.

    Example:
        >>> cell = LSTMCell(10, 20, gate_activation="hardsigmoid")
        >>> h, c = cell(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    _equations = cells.LSTM

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        if is_symbolic(input):
            return leaf_of(self, input, hx)  # type: ignore[no-any-return]
        _check_devices(self, input, hx)
        if self._is_usual():
            return super().forward(input, hx)
        h, c = _one_step("LSTMCell", self.equations(), input, hx)
        return h, c


class GRUCell(_Gated, nn.GRUCell):
    r"""One step of a GRU: :class:`torch.nn.GRUCell` with any activations.

    The equations and the order of the gates, r, z, n, are those of :class:`cello.cells.GRU`.

    Args:
        input_size: F.
        hidden_size: H.
        bias: whether there are the biases b_ih and b_hh.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: for the candidate n: a name, an ``nn.Module`` or a function.
        gate_activation: for the gates r and z, likewise.

    Shape:
        input (B, F) or (F,); state h (B, H) or (H,), zeros if left out; returns h'.

    Raises:
        ValueError: an input of another number of dimensions, or an unknown activation.

    Example:
        >>> GRUCell(10, 20, activation="softsign")(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    _equations = cells.GRU

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if is_symbolic(input):
            return leaf_of(self, input, hx)  # type: ignore[no-any-return]
        _check_devices(self, input, hx)
        if self._is_usual():
            return super().forward(input, hx)
        return _one_step("GRUCell", self.equations(), input, None if hx is None else (hx,))[0]


def stock_parts(module: nn.Module) -> list[Any] | None:
    """Return what the equations of a cell of ``torch.nn`` or ``cello.nn`` are made of.

    ``None`` for any other module. Left alone are subclasses, whose forward may be anything (a
    parametrized module is one), modules whose forward someone has replaced, and modules with hooks,
    which are to see every step, as those for all modules are.
    """
    kind = type(module)
    if kind not in _STOCK or "forward" in vars(module) or kind.forward is not _FORWARDS[kind]:
        return None
    if any(getattr(module, hooks) for hooks in HOOKS) or has_global_hooks():
        return None
    functions = (getattr(module, name, None) for name in _FUNCTIONS)
    return [kind, *_weights(module), *functions]  # type: ignore[arg-type]


def equations_of(module: nn.Module) -> Cell | None:
    """Return the equations of a cell that has :func:`stock_parts`, ``None`` for any other module.

    A layer of these equations can run on fused kernels, which the module itself, a step at a time,
    cannot.
    """
    if stock_parts(module) is None:
        return None
    if type(module) is RNNCell or type(module) is LSTMCell or type(module) is GRUCell:
        return module.equations()
    if type(module) is nn.RNNCell:
        return cells.RNN(*_weights(module), activation=ACTIVATIONS[module.nonlinearity])
    if type(module) is nn.LSTMCell:
        return cells.LSTM(*_weights(module))
    assert type(module) is nn.GRUCell
    return cells.GRU(*_weights(module))


_STOCK = (RNNCell, LSTMCell, GRUCell, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
_FORWARDS = {kind: kind.forward for kind in _STOCK}
_FUNCTIONS = ("nonlinearity", "activation", "gate_activation")


def _weights(cell: nn.RNNCellBase) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def _check_devices(cell: nn.RNNCellBase, input: Tensor, hx: Any) -> None:
    """Check that weights and state are on the device of the input; what torch says names none of them.

    Raises:
        RuntimeError: one is not; the message names it.
    """
    if torch._C._len_torch_function_stack():  # in a trace, where all is on meta but the weights
        return
    if not isinstance(input, Tensor):
        raise AttributeError(  # as torch.nn
            f"{type(cell).__name__} takes a tensor (B, F) or (F,), got {type(input).__name__}"
        )
    device = input.device
    check_weights(device, cell._parameters.items())
    if isinstance(hx, Tensor):
        check_state(device, "hx", hx)
    elif isinstance(hx, tuple | list):
        for index, part in enumerate(hx):
            if isinstance(part, Tensor):
                check_state(device, f"hx[{index}]", part)


def _one_step(
    name: str, cell: Cell, input: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Run one step with torch's rules for absent states and for input without a batch."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    batched = input.dim() == 2
    x = input if batched else input.unsqueeze(0)
    if state is None:
        state = cell.initial_state(len(x), dtype=x.dtype, device=x.device)
        assert state is not None
    else:
        for part in state:
            if part.dim() not in (1, 2):
                raise ValueError(
                    f"{name}: Expected hidden to be 1D or 2D, got {part.dim()}D instead"
                )
        state = tuple(part if batched else part.unsqueeze(0) for part in state)
        given = {
            name: tuple(part.shape) for name, part in zip(cell.state_names, state, strict=True)
        }
        expected = {name: (len(x), *shape) for name, shape in cell.state_shapes.items()}
        if given != expected:  # no broadcasting
            raise RuntimeError(f"{name}: expected a state of shapes {expected}, got {given}")
    _, new_state = cell(x, state)
    return tuple(part if batched else part.squeeze(0) for part in new_state)
