"""The recurrent layers of torch itself, in the place of Cello's: to compare with."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class TorchLayer(nn.Module):
    """A layer of ``torch.nn`` that is called as one of Cello's; packed where lengths are given.

    Args:
        kind: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``.
        input_size: F.
        hidden_size: H.
        **options: as `kind` takes them; without `batch_first`.
    """

    KINDS: ClassVar[dict[str, type[nn.RNNBase]]] = {
        "torch-lstm": nn.LSTM,
        "torch-gru": nn.GRU,
        "torch-rnn": nn.RNN,
    }
    """The names by which tasks know these layers."""

    def __init__(
        self, kind: type[nn.RNNBase], input_size: int, hidden_size: int, **options: Any
    ) -> None:
        super().__init__()
        self.input_size = input_size
        made: Any = kind  # whose constructor torch writes with the name of the equations first
        self.layer: nn.RNNBase = made(input_size, hidden_size, **options)
        self.bidirectional = self.layer.bidirectional
        self.num_directions = 2 if self.bidirectional else 1
        self.output_size = (self.layer.proj_size or hidden_size) * self.num_directions

    def forward(
        self, input: Tensor, hx: Any = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Run over sequences, (T, B, F); past the end of each the output is zero."""
        if lengths is None:
            output, state = self.layer(input, hx)
            return output, state
        packed = pack_padded_sequence(input, lengths.cpu(), enforce_sorted=False)
        packed, state = self.layer(packed, hx)
        output, _ = pad_packed_sequence(packed, total_length=len(input))
        return output, state

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Run one step, (B, F)."""
        output, state = self.layer(input[None], hx)
        return output[0], state
