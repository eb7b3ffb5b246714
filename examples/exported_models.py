"""Models of all tasks as ONNX files, and all that it takes to run them without PyTorch and Cello.

The functions above `main` need numpy, onnxruntime and, for texts, tokenizers. They can be copied, or
written in another language: what a model has to know is JSON in the metadata of its file.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime


def opened(path):
    """Return a model and what its file says of it."""
    session = onnxruntime.InferenceSession(path)
    return session, json.loads(session.get_modelmeta().custom_metadata_map["cello"])


def classify(path, tokenizer, texts):
    """Return the probability of each label for each text."""
    session, facts = opened(path)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    ids = [one.ids[: facts["max_length"]] for one in encoded]
    lengths = np.array([len(one) for one in ids])
    tokens = np.zeros((len(ids), lengths.max()), np.int64)
    for row, one in zip(tokens, ids, strict=True):
        row[: len(one)] = one
    (found,) = session.run(None, {"tokens": tokens, "lengths": lengths})
    return [dict(zip(facts["labels"], row.tolist(), strict=True)) for row in found]


def generate(path, tokenizer, prompt, length):
    """Continue a text with the most probable tokens."""
    session, facts = opened(path)
    state = [np.zeros((rows, 1, *sizes), np.float32) for rows, *sizes in facts["states"]]
    tokens = [facts["first_token"], *tokenizer.encode(prompt, add_special_tokens=False).ids]
    for _ in range(length):
        given = {f"state{k}": part for k, part in enumerate(state)}
        logits, *state = session.run(None, {"tokens": np.array([tokens]), **given})
        scores = logits[0, -1]
        scores[facts["never"]] = -np.inf  # tokens without a spelling
        tokens = [int(scores.argmax())]
        if tokens == [facts["last_token"]]:
            break
        prompt += tokenizer.id_to_token(tokens[0])
    return prompt


def tag(path, sentences):
    """Return the tags of sentences, lists of words, and how probable each is."""
    session, facts = opened(path)
    numbers = [
        {token: number for number, token in enumerate(tokens)}
        for tokens in (facts["words"], facts["characters"], *facts["affixes"])
    ]
    words, characters, *affixes = numbers
    unknown, longest, sizes = 1, facts["longest_word"], range(1, len(affixes) // 2 + 1)
    shape = len(sentences), max(map(len, sentences))
    most = max(min(len(word), longest) for sentence in sentences for word in sentence)
    given = {
        "words": np.zeros(shape, np.int64),
        "lengths": np.array([len(sentence) for sentence in sentences]),
        "characters": np.zeros((*shape, most), np.int64),
        "character_lengths": np.ones(shape, np.int64),
        "affixes": np.zeros((*shape, len(affixes)), np.int64),
    }
    for b, sentence in enumerate(sentences):
        for t, word in enumerate(sentence):
            given["words"][b, t] = words.get(word.lower(), unknown)
            if len(word) > longest:  # the middle of a long word is left out
                word = word[: longest // 2] + word[longest // 2 - longest :]
            spelled = [characters.get(character, unknown) for character in word]
            given["characters"][b, t, : len(word)] = spelled
            given["character_lengths"][b, t] = len(word)
            low = word.lower()
            pieces = [*(low[:n] for n in sizes), *(low[-n:] for n in sizes)]
            found = (
                known.get(piece, unknown) for known, piece in zip(affixes, pieces, strict=True)
            )
            given["affixes"][b, t] = list(found)
    tags, shares = session.run(["tags", "probabilities"], given)
    shares = np.take_along_axis(shares, tags[..., None], 2)[..., 0]
    found = [
        ([facts["labels"][k] for k in row[:n]], share[:n].tolist())
        for row, share, n in zip(tags, shares, given["lengths"], strict=True)
    ]
    return [row for row, _ in found], [share for _, share in found]


def phases(times, cycles):
    """Return sine and cosine of where in each cycle of the calendar times are, (T, 2 * cycles)."""
    days, day = times.astype("datetime64[D]"), np.timedelta64(1, "D")
    starts = {
        "day": (days, day),
        "week": (days - (days.astype(np.int64) + 3) % 7, 7 * day),
        "year": (times.astype("datetime64[Y]").astype("datetime64[D]"), 366 * day),
    }
    angles = [2 * np.pi * ((times - starts[name][0]) / starts[name][1]) for name in cycles]
    return np.array([wave(angle) for angle in angles for wave in (np.sin, np.cos)]).T


def forecast(path, series, rows, times, future=None, static=()):
    """Return what follows the rows of one series (T, columns), with its bounds.

    Args:
        path: the file.
        series: its name.
        rows: the last rows, in the order of the file's columns.
        times: of these rows and of the steps that follow, as ``datetime64[us]``.
        future: the columns that are known ahead, in the steps that follow.
        static: the values of the static columns, in order.
    """
    session, facts = opened(path)
    T, H, scale = facts["window"], facts["horizon"], facts["series"][series]
    features = []
    for value, column in zip(static, facts["static"], strict=True):
        if "texts" in column:
            features += [float(value == text) for text in column["texts"]]
        else:
            features.append((float(value) - column["mean"]) / column["deviation"])
    every = {
        "past": rows[-T:],
        "mean": scale["mean"],
        "deviation": scale["deviation"],
        "calendar": phases(times[-T - H :], facts["cycles"]),
        "static": features,
        "future": future,
    }
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, {name: np.array([every[name]], np.float64) for name in names})
    return [part[0] for part in found]


def main(folder):
    """Train a small model of each task, export it, and run it in both ways."""
    from tokenizers import Tokenizer

    from cello.tasks import classify as classification
    from cello.tasks import forecast as forecasting
    from cello.tasks import language
    from cello.tasks import tag as tagging

    quick = {"hidden": 8, "epochs": 1, "device": "cpu"}

    def exported(task, data, **options):
        run, file = folder / task.__name__, folder / f"{task.__name__}.onnx"
        task.train(data, run, task.Options(**quick, **options), verbose=False)
        model = task.load(run, device="cpu")
        model.export(file)
        return model, file, run / "tokenizer.json"

    films = ["a fine film", "a dull film"] * 40, ["good", "bad"] * 40
    model, file, tokens = exported(classification, films)
    (answer,) = classify(file, Tokenizer.from_file(str(tokens)), ["a fine film"])
    expected = model.predict("a fine film").probabilities
    assert all(abs(answer[label] - expected[label]) < 1e-5 for label in expected)
    print("classify:", {label: round(share, 3) for label, share in answer.items()})

    (folder / "text.txt").write_text("to be, or not to be: that is the question.\n" * 40)
    model, file, tokens = exported(language, folder / "text.txt", steps=10, batch_size=4)
    text = generate(file, Tokenizer.from_file(str(tokens)), "to be", 10)
    assert text == "to be" + "".join(model.generate("to be", length=10, temperature=0.0))
    print("language:", repr(text))

    sentences = [["The", "dog", "barks"], ["A", "bird", "sings", "here"]] * 40
    model, file, _ = exported(tagging, (sentences, [["D", "N", "V"], ["D", "N", "V", "A"]] * 40))
    (tags,), _ = tag(file, [["The", "bird", "barks"]])
    assert tags == model.predict([["The", "bird", "barks"]])[0].tags
    print("tag:", tags)

    days = np.arange("2020-01-01", "2020-07-19", dtype="datetime64[D]").astype("datetime64[us]")
    sold = 10 + np.sin(2 * np.pi * np.arange(200) / 7)
    lines = ["date,sold", *(f"{str(day)[:10]},{x}" for day, x in zip(days, sold, strict=True))]
    (folder / "sales.csv").write_text("\n".join(lines))
    model, file, _ = exported(forecasting, folder / "sales.csv", horizon=7, window=21)
    later = days[-1] + np.arange(1, 8).astype("timedelta64[D]")
    point, lower, upper = forecast(file, "", sold[:, None], np.concatenate([days, later]))
    (answer,) = model.predict(folder / "sales.csv")
    np.testing.assert_allclose(point, answer.values, rtol=1e-6)
    np.testing.assert_allclose(lower[..., 0], answer.intervals[0.8][0], rtol=1e-6)
    for value, low, high in zip(point[:3, 0], lower[:3, 0, 0], upper[:3, 0, 0], strict=True):
        print(f"forecast: {value:.2f}, 80 % between {low:.2f} and {high:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
