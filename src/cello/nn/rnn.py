"""RNN, LSTM and GRU with the arguments, parameters and results of ``torch.nn``, and options beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cello import cells
from cello.cells import (
    Activation,
    changed_activations,
)
from cello.nn.rnn_base import RNNBase


class RNN(RNNBase):
    r"""Elman layers, in the place of :class:`torch.nn.RNN`.

    .. math:: h_t = \phi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Args:
        input_size: F, the number of features of the input.
        hidden_size: H, the width of the state; a sequence of L gives each layer its own.
        num_layers: L, how many layers lie on top of each other.
        nonlinearity: "tanh" or "relu".
        bias: whether the layers have the biases b_ih and b_hh.
        batch_first: input and output are (B, T, F) instead of (T, B, F); states are not affected.
        dropout: probability of zeroing each output of every layer but the last, while training.
        bidirectional: a second set of cells reads the sequence in reverse.
        _proj_size: 0, in the place where ``torch.nn``'s layers take `proj_size`.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: a name, an ``nn.Module`` or a function instead of `nonlinearity`.
        merge: how the outputs of both directions join: "concat", "sum", "mean", "mul", or "none" for
            a pair of outputs (between layers they are then concatenated).
        reverse: a single direction that reads the sequence in reverse.
        learn_initial_state: the state before the first step is a parameter ``initial_h_l{k}`` (H,),
            zero at first.

    Shape:
        See :meth:`RecurrentLayer.forward`; the state is one tensor `h`.

    Raises:
        ValueError: a value out of range; the message names it.
        TypeError: an argument of the wrong type.

    Example:
        >>> rnn = RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(3, 5, 10))
        >>> output.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([2, 5, 20]))

    Reference: J. L. Elman, "Finding structure in time", Cognitive Science 14 (1990).
    """

    equations = cells.RNN

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        _proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation | None = None,
        merge: str = "concat",
        reverse: bool = False,
        learn_initial_state: bool = False,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size, _proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity {nonlinearity!r}. Select from 'tanh' or 'relu', "
                "or give any other function as activation="
            )
        if activation is not None and nonlinearity != "tanh":
            raise ValueError(
                f"activation takes the place of nonlinearity, got both: {nonlinearity!r} and "
                f"{activation!r}"
            )
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            activation=nonlinearity if activation is None else activation,
            merge=merge,
            reverse=reverse,
            learn_initial_state=learn_initial_state,
        )
        self.nonlinearity = nonlinearity

    @property
    def mode(self) -> str:
        """What torch calls the equations, "RNN_TANH" or "RNN_RELU"."""
        return f"RNN_{self.nonlinearity.upper()}"

    def _extra_options(self) -> list[str]:
        return changed_activations(self, activation=self.nonlinearity)


class LSTM(RNNBase):
    r"""Long short-term memory layers, in the place of :class:`torch.nn.LSTM`.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \phi(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \phi(c_t)

    The gates lie in the order i, f, g, o along the rows of the weights: ``weight_ih_l0`` is
    (G*H, F) with G = 4, ``weight_hh_l0`` is (G*H, H), and ``weight_ih_l1`` is (G*H, D*H).

    Args:
        input_size: F, the number of features of the input.
        hidden_size: H, the width of h and c; a sequence of L gives each layer its own.
        num_layers: L, how many layers lie on top of each other.
        bias: whether the layers have the biases b_ih and b_hh.
        batch_first: input and output are (B, T, F) instead of (T, B, F); states are not affected.
        dropout: probability of zeroing each output of every layer but the last, while training.
        bidirectional: a second set of cells reads the sequence in reverse.
        proj_size: P > 0 projects h to P features with ``weight_hr_l{k}`` (P, H); 0 does not.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: :math:`\phi`, a name, an ``nn.Module`` or a function.
        gate_activation: :math:`\sigma`, likewise.
        forget_bias: the forget gate's bias at the start: b_if is set to it and b_hf to zero.
            ``None`` leaves both as torch draws them.
        merge: how the outputs of both directions join: "concat", "sum", "mean", "mul", or "none" for
            a pair of outputs (between layers they are then concatenated).
        reverse: a single direction that reads the sequence in reverse.
        learn_initial_state: the state before the first step is made of the parameters
            ``initial_h_l{k}`` and ``initial_c_l{k}``, zero at first.

    Shape:
        See :meth:`RecurrentLayer.forward`; the state is the pair (h, c).

    Raises:
        ValueError: a value out of range; the message names it.
        TypeError: an argument of the wrong type.

    Example:
        >>> lstm = LSTM(28, 4, num_layers=2, batch_first=True, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(10, 3, 28))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([10, 3, 8]), torch.Size([4, 10, 4]), torch.Size([4, 10, 4]))
        >>> output, _, states = lstm(torch.randn(10, 3, 28), return_states=True)
        >>> states["c"].shape
        torch.Size([10, 3, 8])

    References: S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9
    (1997); for the forget bias R. Jozefowicz et al., "An empirical exploration of recurrent network
    architectures" (2015).
    """

    equations = cells.LSTM
    mode = "LSTM"
    """What torch calls the equations."""
    get_expected_cell_size: Any = nn.LSTM.get_expected_cell_size
    check_forward_args: Any = nn.LSTM.check_forward_args
    permute_hidden: Any = nn.LSTM.permute_hidden

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation = "tanh",
        gate_activation: str | Activation = "sigmoid",
        forget_bias: float | None = None,
        merge: str = "concat",
        reverse: bool = False,
        learn_initial_state: bool = False,
    ) -> None:
        if forget_bias is not None and not isinstance(forget_bias, int | float):
            raise TypeError(f"forget_bias must be a number, got {type(forget_bias).__name__}")
        if forget_bias is not None and not bias:
            raise ValueError("forget_bias needs bias=True: there is no bias to set")
        self.forget_bias = forget_bias
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
            activation=activation,
            gate_activation=gate_activation,
            merge=merge,
            reverse=reverse,
            learn_initial_state=learn_initial_state,
        )

    def reset_parameters(self) -> None:
        """Draw every weight as torch does, then set the bias of the forget gates if one is given."""
        super().reset_parameters()
        if self.forget_bias is None:
            return
        for layer, suffix in self._places():
            rows = slice(self._width(layer), 2 * self._width(layer))  # f is the second gate
            nn.init.constant_(getattr(self, f"bias_ih_{suffix}")[rows], self.forget_bias)
            nn.init.zeros_(getattr(self, f"bias_hh_{suffix}")[rows])

    def _extra_options(self) -> list[str]:
        options = super()._extra_options()
        if self.forget_bias is not None:
            options.append(f"forget_bias={self.forget_bias}")
        return options


class GRU(RNNBase):
    r"""Gated recurrent unit layers, in the place of :class:`torch.nn.GRU`.

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \phi(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    The gates lie in the order r, z, n along the rows of the weights: ``weight_ih_l0`` is (G*H, F)
    with G = 3.

    Args:
        input_size: F, the number of features of the input.
        hidden_size: H, the width of the state; a sequence of L gives each layer its own.
        num_layers: L, how many layers lie on top of each other.
        bias: whether the layers have the biases b_ih and b_hh.
        batch_first: input and output are (B, T, F) instead of (T, B, F); states are not affected.
        dropout: probability of zeroing each output of every layer but the last, while training.
        bidirectional: a second set of cells reads the sequence in reverse.
        _proj_size: 0, in the place where ``torch.nn``'s layers take `proj_size`.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: :math:`\phi`, a name, an ``nn.Module`` or a function.
        gate_activation: :math:`\sigma`, likewise.
        merge: how the outputs of both directions join: "concat", "sum", "mean", "mul", or "none" for
            a pair of outputs (between layers they are then concatenated).
        reverse: a single direction that reads the sequence in reverse.
        learn_initial_state: the state before the first step is a parameter ``initial_h_l{k}`` (H,),
            zero at first.

    Shape:
        See :meth:`RecurrentLayer.forward`; the state is one tensor `h`.

    Raises:
        ValueError: a value out of range; the message names it.
        TypeError: an argument of the wrong type.

    Example:
        >>> gru = GRU(10, 20, bidirectional=True, merge="sum")
        >>> output, h_n = gru(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

    Reference: K. Cho et al., "Learning phrase representations using RNN encoder-decoder for
    statistical machine translation" (2014).
    """

    equations = cells.GRU
    mode = "GRU"
    """What torch calls the equations."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        _proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation = "tanh",
        gate_activation: str | Activation = "sigmoid",
        merge: str = "concat",
        reverse: bool = False,
        learn_initial_state: bool = False,
        proj_size: None = None,
    ) -> None:
        _refuse_projection(proj_size, _proj_size)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            activation=activation,
            gate_activation=gate_activation,
            merge=merge,
            reverse=reverse,
            learn_initial_state=learn_initial_state,
        )


def _refuse_projection(named: None, by_place: int) -> None:
    """Refuse a projection; by its place among the arguments 0 can be given, as in torch."""
    if named is not None or by_place not in (0, None):
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
