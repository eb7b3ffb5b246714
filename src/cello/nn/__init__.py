"""The face of Cello: the recurrent classes of ``torch.nn``, and :class:`Recurrent` for any cell."""

from cello.nn.base import RecurrentLayer
from cello.nn.cells import GRUCell, LSTMCell, RNNCell
from cello.nn.recurrent import Recurrent
from cello.nn.rnn import GRU, LSTM, RNN
from cello.nn.rnn_base import RNNBase
from cello.nn.variants import MGU, PeepholeLSTM

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "RNNBase",
    "RNNCell",
    "Recurrent",
    "RecurrentLayer",
]
