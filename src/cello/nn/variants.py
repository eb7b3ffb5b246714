"""Layers of cells that torch.nn does not have, with arguments and parameters like those of its layers."""

from __future__ import annotations

from cello import cells
from cello.nn.rnn_base import RNNBase


class MGU(RNNBase):
    r"""Layers of minimal gated units, a GRU with one gate in the place of two.

    .. math::
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        n_t &= \phi(W_{in} x_t + b_{in} + W_{hn} (f_t \odot h_{t-1}) + b_{hn}) \\
        h_t &= (1 - f_t) \odot h_{t-1} + f_t \odot n_t

    The gates lie in the order f, n along the rows of the weights: ``weight_ih_l0`` is (G*H, F) with
    G = 2. The arguments are those of :class:`RNNBase`, without `proj_size`; the state is one tensor `h`.

    Example:
        >>> import torch
        >>> mgu = MGU(10, 20, bidirectional=True)
        >>> output, h_n = mgu(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 40]), torch.Size([2, 3, 20]))

    Reference: G.-B. Zhou et al., "Minimal gated unit for recurrent neural networks", International
    Journal of Automation and Computing 13 (2016).
    """

    equations = cells.MGU


class PeepholeLSTM(RNNBase):
    r"""LSTM layers whose gates see the cell state, unit by unit.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi} + p_i \odot c_{t-1}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf} + p_f \odot c_{t-1}) \\
        g_t &= \phi(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho} + p_o \odot c_t) \\
        h_t &= o_t \odot \phi(c_t)

    The gates lie in the order i, f, g, o along the rows of the weights, as in :class:`LSTM`, and the
    peepholes in the order i, f, o in ``weight_ch_l{k}`` (3*H,). The arguments are those of
    :class:`RNNBase`; the state is the pair (h, c).

    Example:
        >>> import torch
        >>> lstm = PeepholeLSTM(10, 20, proj_size=5)
        >>> output, (h_n, c_n) = lstm(torch.randn(6, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([6, 3, 5]), torch.Size([1, 3, 5]), torch.Size([1, 3, 20]))

    Reference: F. Gers and J. Schmidhuber, "Recurrent nets that time and count", IJCNN (2000).
    """

    equations = cells.PeepholeLSTM
