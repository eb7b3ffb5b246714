"""The face of Cello: the recurrent classes of ``torch.nn``, and :class:`Recurrent` for any cell."""

from cello.nn.base import RecurrentLayer
from cello.nn.cells import GRUCell, LSTMCell, RNNCell
from cello.nn.recurrent import Recurrent
from cello.nn.rnn import GRU, LSTM, RNN, RNNBase

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNBase",
    "RNNCell",
    "Recurrent",
    "RecurrentLayer",
]
