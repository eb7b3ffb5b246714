"""What is measured: shapes that people train, and the layers that they train them with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: where the shape comes from.
        kind: the class of torch.nn.
        steps: T.
        batch: B.
        features: F.
        hidden: H.
        options: further arguments of the layer.
        packed: whether the sequences differ in length.
        training: forward and backward, or forward without gradients.
    """

    name: str
    kind: str
    steps: int
    batch: int
    features: int
    hidden: int
    options: tuple[tuple[str, object], ...] = ()
    packed: bool = False
    training: bool = True

    @property
    def label(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options)
        shape = f"({self.steps},{self.batch},{self.features},{self.hidden})"
        form = "packed" if self.packed else "padded"
        return f"{self.name} {self.kind}{options} {shape} {form}"


SHAPES = {
    "classroom": (28, 10, 28, 4),
    "rows of MNIST": (28, 128, 28, 128),
    "text": (100, 32, 100, 256),
    "long text": (400, 32, 100, 128),
    "treebank": (35, 20, 200, 200),
}


def cases() -> list[Case]:
    """Every shape for the LSTM, one for each other layer; training and inference."""
    rows = [Case(name, "LSTM", *shape) for name, shape in SHAPES.items()]
    rows += [
        Case("text", "LSTM", *SHAPES["text"], packed=True),
        Case("long text", "LSTM", *SHAPES["long text"], packed=True),
        Case("long text", "LSTM", *SHAPES["long text"], (("bidirectional", True),), packed=True),
        Case("treebank", "LSTM", *SHAPES["treebank"], (("num_layers", 2),)),
        Case("treebank", "LSTM", *SHAPES["treebank"], (("proj_size", 100),)),
        Case("treebank", "GRU", *SHAPES["treebank"]),
        Case("treebank", "RNN", *SHAPES["treebank"]),
    ]
    return [
        Case(**{**row.__dict__, "training": training}) for training in (True, False) for row in rows
    ]
