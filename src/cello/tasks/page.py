"""A page to look inside a trained model of texts: one HTML file, with nothing to load or to install.

Each token has the colour of a state or gate of one unit; below are the model's answers after each token
and all units at once. The file is made of ``page.html`` and of data, which is JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from cello.inspect import Recording, record
from cello.nn import RecurrentLayer, RNNBase
from cello.tasks.cells import Layer
from cello.tasks.errors import InputError
from cello.tasks.task import Predictor


@dataclass(frozen=True)
class Read:
    """What a model made of one text.

    Attributes:
        pieces: for each token what stands before it and itself, as in the text.
        rest: what the model did not read.
        layer: the recurrent layers.
        recording: of these layers.
        labels: the model's answers.
        probabilities: of each class had the text ended after each token, (T, K); for classifiers.
        tags: the number of each token's tag, (T,), and its probability, (T,); for taggers.
    """

    pieces: list[tuple[str, str]]
    rest: str
    layer: RecurrentLayer
    recording: Recording
    labels: list[str]
    probabilities: Tensor | None = None
    tags: tuple[Tensor, Tensor] | None = None


def page(predictor: Predictor[Any, Any, Any], texts: Sequence[str], title: str = "Cello") -> str:
    """Return the HTML of a page that shows what a model does with some texts.

    Args:
        predictor: a model of texts, from ``classify.load`` or ``tag.load``; to a tagger the words of a
            sentence are what has spaces in between.
        texts: what to show.
        title: the heading.

    Raises:
        InputError: the model does not read texts, a text is empty, or there is none.
    """
    if not texts:
        raise InputError("page: there is no text to show")
    numbered = [(text, f"text {i}") for i, text in enumerate(texts, 1)]
    read: list[Read] = [predictor.watch(text, place) for text, place in numbered]
    first, labels, layer = read[0].recording, read[0].labels, read[0].layer
    names = [*first.state_names, *(n for n in first.shown() if n not in first.state_names)]
    meanings = {}
    if isinstance(layer, RNNBase):  # a cell of one's own says no meanings
        meanings = {gate.name: gate.meaning for gate in layer.equations.gates}
        meanings |= {part.name: part.meaning for part in layer.equations.state}
    data = {
        "title": title,
        "about": f"{type(layer).__name__}({layer.extra_repr()}); answers: {', '.join(labels)}",
        "labels": labels,
        "names": names,
        "meanings": [meanings.get(name, "") for name in names],
        "places": [
            {
                "key": place,
                "name": f"layer {place.split('_')[0][1:]} {'backward' if back else 'forward'}",
                "reverse": back,
            }
            for place, back in first.reverse.items()
        ],
        "texts": [_data(one, names) for one in read],
    }
    template = files("cello.tasks").joinpath("page.html").read_text("utf-8")
    return template.replace(">DATA<", f">{_json(data)}<")


def _json(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it begins a tag or a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def watched(layer: Layer, run: Callable[[], object]) -> tuple[RecurrentLayer, Recording]:
    """Record what a layer does with its input in a run of the model; return both.

    Raises:
        InputError: it is torch's own layer, which shows neither states nor gates.
    """
    if not isinstance(layer, RecurrentLayer):
        raise InputError(
            "page: torch's own layer shows no states and gates; train with a cell of Cello's, as lstm"
        )
    with record(layer) as calls:
        run()
    (recording,) = calls
    return layer, recording


def _data(read: Read, names: Sequence[str]) -> dict[str, Any]:
    """One text as JSON: probabilities in thousandths, values as bytes with a scale."""
    recording = read.recording
    places = {
        place: {name: _bytes(recording.dense(rows[name])[:, 0]) for name in names}
        for place, rows in recording.places()
    }
    data: dict[str, Any] = {"pieces": read.pieces, "rest": read.rest, "values": places}
    if read.probabilities is not None:
        data["probabilities"] = _thousandths(read.probabilities)
    if read.tags is not None:
        tags, sure = read.tags
        data |= {"tags": tags.tolist(), "sure": _thousandths(sure)}
    return data


def _thousandths(probabilities: Tensor) -> list[Any]:
    rounded: list[Any] = (1000 * probabilities).round().int().tolist()
    return rounded


def _bytes(values: Tensor) -> dict[str, Any]:
    """Values (T, H) rounded to 1/127 of the largest, in base64."""
    scale = float(values.abs().max()) / 127 or 1.0
    rounded = (values / scale).round().to(torch.int8)
    content = base64.b64encode(rounded.contiguous().numpy().tobytes()).decode("ascii")
    return {"w": values.shape[1], "s": float(f"{scale:.6g}"), "d": content}
