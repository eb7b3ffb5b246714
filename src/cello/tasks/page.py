"""A page to look inside a trained model of texts: one HTML file, with nothing to load or to install.

Each token has the colour of a state or gate of one unit; below are the model's answers after each token
and all units at once. The file is made of ``page.html`` and of data, which is JSON.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from cello.inspect import Recording, record
from cello.nn import RecurrentLayer, RNNBase
from cello.tasks.classify import Classifier
from cello.tasks.errors import InputError
from cello.tasks.tag import Tagged, Tagger
from cello.tasks.task import Predictor


@dataclass(frozen=True)
class Read:
    """What a model made of one text.

    Attributes:
        pieces: for each token what stands before it and itself, as in the text.
        rest: what the model did not read.
        recording: of the recurrent layers.
        probabilities: of each class had the text ended after each token, (T, K); for classifiers.
        tags: the number of each token's tag, (T,), and its probability, (T,); for taggers.
    """

    pieces: list[tuple[str, str]]
    rest: str
    recording: Recording
    probabilities: Tensor | None = None
    tags: tuple[Tensor, Tensor] | None = None


def page(predictor: Predictor[Any, Any], texts: Sequence[str], title: str = "Cello") -> str:
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
    layer: RNNBase
    if isinstance(predictor, Classifier) and predictor.tokenizer is not None:
        layer, labels = predictor.model.recurrent, predictor.labels
        read = [_classified(predictor, text, place) for text, place in numbered]
    elif isinstance(predictor, Tagger):
        layer, labels = predictor.model.sentences, predictor.labels
        read = [_tagged(predictor, text, place) for text, place in numbered]
    else:
        raise InputError("page: the model does not read texts")
    first = read[0].recording
    names = [*first.state_names, *(n for n in first.shown() if n not in first.state_names)]
    cell = layer.equations
    meanings = {gate.name: gate.meaning for gate in cell.gates}
    meanings |= {part.name: part.meaning for part in cell.state}
    data = {
        "title": title,
        "about": f"{_repr(layer)}; answers: {', '.join(labels)}",
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


def _classified(classifier: Classifier, text: str, place: str) -> Read:
    (ids,) = classifier.encode([text], [place])
    assert classifier.tokenizer is not None
    pieces, rest = _pieces(classifier.tokenizer, text, len(ids))
    prefixes = [ids[: k + 1] for k in range(len(ids))]
    size = classifier.config.options.batch_size
    groups = [prefixes[k : k + size] for k in range(0, len(prefixes), size)]
    probabilities = torch.cat([classifier.probabilities(group) for group in groups])
    model = classifier.model
    recording = _watched(model.recurrent, lambda: classifier.probabilities([ids]))
    return Read(pieces, rest, recording, probabilities)


def _tagged(tagger: Tagger, text: str, place: str) -> Read:
    words = list(re.finditer(r"\S+", text))
    if not words:
        raise InputError(f"{place}: the text is empty")
    ends = [0, *(word.end() for word in words)]
    pieces = [(text[end : word.start()], word[0]) for end, word in zip(ends, words, strict=False)]
    answers: list[Tagged] = []

    def run() -> None:
        answers.extend(tagger.predict([[word[0] for word in words]]))

    recording = _watched(tagger.model.sentences, run)
    (answer,) = answers
    tags = torch.tensor([tagger.labels.index(tag) for tag in answer.tags])
    return Read(
        pieces, text[ends[-1] :], recording, tags=(tags, torch.tensor(answer.probabilities))
    )


def _watched(layer: RecurrentLayer, run: Any) -> Recording:
    """Record what a layer does with its input in a run of the model."""
    seen: list[tuple[Any, Any]] = []

    def keep(_: nn.Module, inputs: Any, options: Any) -> None:
        seen.append((inputs, options))

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    ((inputs, options),) = seen
    return record(layer, *inputs, **options)


def _pieces(tokenizer: Tokenizer, text: str, most: int) -> tuple[list[tuple[str, str]], str]:
    """Cut a text where its first tokens begin and end; each with what stands before, and the rest."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    pieces, end = [], 0
    tokens = zip(encoding.tokens[:most], encoding.offsets[:most], strict=True)
    for token, (first, last) in tokens:
        start = max(first, end)
        # Two tokens of one character, as in a ligature: the second has its own spelling.
        pieces.append((text[end:start], text[start:last] if last > start else token))
        end = max(end, last)
    return pieces, text[end:]


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


def _repr(layer: RecurrentLayer) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"
