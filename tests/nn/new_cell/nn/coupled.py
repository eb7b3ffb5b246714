"""Step 3: the layer, in a file of ``cello/nn``."""

from cello import cells
from cello.nn.rnn import RNNBase


class CoupledLSTM(RNNBase):
    """LSTM layers with coupled gates and peepholes; the arguments are those of :class:`RNNBase`."""

    equations = cells.Coupled
