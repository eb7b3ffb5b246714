"""What is measured: shapes that people train, and the layers that they train them with."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        group: the rows that one line of the summary is made of.
        name: where the shape comes from.
        kind: the class of torch.nn.
        steps: T.
        batch: B.
        features: F.
        hidden: H.
        options: further arguments of the layer.
        packed: whether the sequences differ in length.
        training: forward and backward, or forward without gradients.
        dtype: the dtype of everything.
    """

    group: str
    name: str
    kind: str
    steps: int
    batch: int
    features: int
    hidden: int
    options: tuple[tuple[str, object], ...] = ()
    packed: bool = False
    training: bool = True
    dtype: str = "float32"

    @property
    def label(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options)
        shape = f"({self.steps},{self.batch},{self.features},{self.hidden})"
        form = "packed" if self.packed else "padded"
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.name} {self.kind}{options}{dtype} {shape} {form}"


SHAPES = {
    "classroom": (28, 10, 28, 4),
    "classroom wide": (28, 128, 28, 128),
    "text": (100, 64, 100, 256),
    "text long": (400, 32, 100, 256),
    "treebank small": (20, 20, 200, 200),
    "treebank medium": (35, 20, 650, 650),
    "treebank large": (35, 20, 1500, 1500),
    "translation": (50, 128, 1024, 1024),
    "speech": (500, 16, 80, 512),
    "speech narrow": (1500, 8, 80, 128),
    "long": (10_000, 1, 64, 64),
}
"""(T, B, F, H)"""

OTHERS = ("classroom wide", "text", "treebank medium")
"""The shapes for everything but the padded float32 LSTM."""


IN_BFLOAT16 = ("classroom", "text long", "treebank large", "speech narrow", "long")
"""Further ones for the LSTM in bfloat16, which people train in it for its speed."""


BOTH_WAYS = {
    "one text": (100, 1, 100, 128),
    "few texts": (100, 8, 100, 128),
    "speech narrow": SHAPES["speech narrow"],
    "long": SHAPES["long"],
}
"""Further ones for two directions, which gain the more from two threads the fewer their rows are."""


def cases() -> list[Case]:
    """Every shape for the LSTM, some for each other layer and dtype; training and inference."""
    rows = [Case("LSTM", name, "LSTM", *shape) for name, shape in SHAPES.items()]
    for name in OTHERS:
        like = Case("", name, "LSTM", *SHAPES[name])
        rows += [
            replace(like, group="GRU", kind="GRU"),
            replace(like, group="RNN", kind="RNN"),
            replace(like, group="projected", options=(("proj_size", like.hidden // 2),)),
            replace(like, group="float64", dtype="float64"),
            replace(like, group="bfloat16", dtype="bfloat16"),
            replace(like, group="bfloat16 others", kind="GRU", dtype="bfloat16"),
            replace(like, group="bfloat16 others", kind="RNN", dtype="bfloat16"),
            replace(like, group="bidirectional", options=(("bidirectional", True),)),
            replace(like, group="two layers", options=(("num_layers", 2),)),
        ]
    rows += [
        Case("bfloat16", name, "LSTM", *SHAPES[name], dtype="bfloat16") for name in IN_BFLOAT16
    ]
    rows += [
        Case("bidirectional", name, "LSTM", *shape, options=(("bidirectional", True),))
        for name, shape in BOTH_WAYS.items()
    ]
    text = Case("packed", "text", "LSTM", *SHAPES["text"], packed=True)
    rows += [text, replace(text, name="text long", steps=400, batch=32)]
    return [replace(row, training=training) for training in (True, False) for row in rows]


TARGETS = {
    ("LSTM", True): (1.5, 1.0),
    ("LSTM", False): (1.25, 0.95),
    ("packed", True): (9.0, None),
    ("GRU", True): (1.5, None),
    ("RNN", True): (1.5, None),
    ("projected", True): (1.5, None),
    ("float64", True): (1.5, None),
    ("cells over loops", True): (4.0, None),
}
"""For a group and a mode: how many times as fast as torch.nn in the geometric mean, and at least."""
