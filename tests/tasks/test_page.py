"""The page that shows a model inside: its data held against the model, and the page in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs the packages of cello[tasks]")

import cello
from cello.tasks.classify import Classifier, Options
from cello.tasks.classify.predictor import TOKENIZER
from cello.tasks.classify.text import train_tokenizer
from cello.tasks.errors import InputError
from cello.tasks.folder import Config
from cello.tasks.page import page
from cello.tasks.tag import Options as TagOptions
from cello.tasks.tag import Tagger
from cello.tasks.tag.predictor import LEXICON

NASTY = (
    "</script><script>window.hacked = 1</script> <img src=x onerror='window.hacked = 1'> & \u2028"
    " a fine film"
)
CHINESE = "这部电影很好看，我喜欢。"
ARABIC = "هذا فيلم رائع جدا"
LIGATURE = "ﬁne ﬁlm"


def classifier(tokenizer: str = "word", **options: Any) -> Classifier:
    """A classifier with fresh weights, which are large: every value moves."""
    torch.manual_seed(0)
    chosen = Options(tokenizer=tokenizer, hidden=6, embedding=5, epochs=1, patience=1, **options)
    texts = [NASTY, CHINESE, ARABIC, "a fine film, a dull film"] * 2
    words = train_tokenizer(texts, kind=tokenizer, vocabulary=200, max_length=40)
    facts = {"labels": ["bad", "<good>", "so & so"], "features": None}
    config = Config("classify", chosen, facts, {}, (TOKENIZER,))
    made = Classifier(config, {TOKENIZER: words.to_str()}, "cpu")
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.mul_(4)
    made.model.eval()
    return made


def tagger() -> Tagger:
    """A tagger with fresh weights, which are large."""
    torch.manual_seed(0)
    words = dict.fromkeys(("我", "喜欢", "电影", "film"), (3, "NOUN"))
    facts = {"labels": ["<b>", "NOUN", "VERB"], "most_frequent": "NOUN"}
    options = TagOptions(hidden=6, layers=1, embedding=5, character_embedding=4, character_hidden=3)
    config = Config("tag", options, facts, {}, (LEXICON,))
    made = Tagger(config, {LEXICON: json.dumps(words)}, "cpu")
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.mul_(4)
    made.model.eval()
    return made


def data_of(html: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    data: dict[str, Any] = json.loads(found)
    return data


@pytest.mark.parametrize("kind", ["word", "char", "bpe"])
def test_pieces_are_the_text(kind):
    texts = [NASTY, CHINESE, ARABIC, "a  fine <br /> film\n and so on " + "and on " * 30]
    data = data_of(page(classifier(kind), texts))
    for text, shown in zip(texts, data["texts"], strict=True):
        assert "".join(gap + piece for gap, piece in shown["pieces"]) + shown["rest"] == text
    assert len(data["texts"][3]["pieces"]) == 40  # the model reads no more of it
    assert data["texts"][3]["rest"].endswith("and on ")


def test_two_tokens_of_one_character():
    pieces = data_of(page(classifier("char"), [LIGATURE]))["texts"][0]["pieces"]
    assert len(pieces) == len("fine film")
    assert pieces[0] == ["", "ﬁ"]


@pytest.mark.parametrize("options", [{"layers": 2}, {"cell": "gru"}, {"cell": "rnn"}], ids=str)
def test_values_are_those_of_the_recording(options):
    made = classifier(**options)
    text = "a fine film , a dull film"
    data = data_of(page(made, [text]))
    (ids,) = made.encode([text], [""])
    with torch.no_grad():
        recording = cello.record(made.model.recurrent, made.model.embed(ids[:, None]))
    assert {place["key"] for place in data["places"]} == set(recording.reverse)
    assert set(data["names"]) == set(recording.shown())
    for place, values in data["texts"][0]["values"].items():
        for name in data["names"]:
            found, expected = values[name], recording[f"{name}_{place}"][:, 0]
            numbers = np.frombuffer(base64.b64decode(found["d"]), np.int8) * found["s"]
            error = np.abs(numbers.reshape(-1, found["w"]) - expected.numpy()).max()
            assert error <= float(expected.abs().max()) / 127 * 0.51


def test_probabilities_are_those_of_each_beginning():
    made = classifier(batch_size=2)
    (shown,) = data_of(page(made, ["a fine film , a dull film"]))["texts"]
    (ids,) = made.encode(["a fine film , a dull film"], [""])
    assert len(shown["probabilities"]) == len(ids)
    for k, row in enumerate(shown["probabilities"], 1):
        (expected,) = made.probabilities([ids[:k]])
        np.testing.assert_allclose(np.array(row) / 1000, expected, atol=6e-4)


def test_a_tagger():
    made = tagger()
    text = " 我  喜欢 电影 "
    data = data_of(page(made, [text]))
    (shown,) = data["texts"]
    assert shown["pieces"] == [[" ", "我"], ["  ", "喜欢"], [" ", "电影"]]
    assert shown["rest"] == " "
    (answer,) = made.predict([text.split()])
    assert [data["labels"][k] for k in shown["tags"]] == answer.tags
    np.testing.assert_allclose(np.array(shown["sure"]) / 1000, answer.probabilities, atol=6e-4)
    assert "probabilities" not in shown
    values = shown["values"]["l0_reverse"]["f"]
    assert (values["w"], len(base64.b64decode(values["d"]))) == (6, 18)


def test_nothing_of_a_text_or_a_label_is_html():
    html = page(classifier(), [NASTY], title="</script><b>")
    assert html.count("<script") == 2
    assert '"hacked"' in html  # within the data
    assert "<img" not in html
    assert "<b>" not in html
    assert re.findall(r"https?://[^\"' ]+", html) == ["http://www.w3.org/2000/svg"]


def test_what_is_refused():
    with pytest.raises(InputError, match="text 2: the text is empty"):
        page(classifier(), ["a film", " "])
    with pytest.raises(InputError, match="there is no text"):
        page(classifier(), [])
    with pytest.raises(InputError, match="text 1: the text is empty"):
        page(tagger(), [" "])
    options = Options(hidden=4, epochs=1, patience=1)
    facts = {"labels": ["a", "b"], "features": 3}
    numbers = Classifier(Config("classify", options, facts, {}, ()), {}, "cpu")
    with pytest.raises(InputError, match="the model does not read texts"):
        page(numbers, ["a film"])


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("needs Chromium")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    with sync.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class Shown:
    """A page in a browser, with all that went wrong and all that it asked the network for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    @property
    def readout(self) -> str:
        text: str = self.page.inner_text("#readout")
        return re.sub("[\u2068\u2069]", "", text)

    @property
    def token(self) -> int:
        return int(re.findall(r"token (\d+) of", self.readout)[0]) - 1

    def close(self) -> None:
        assert self.troubles == []
        assert [url for url in self.requests if not url.startswith("file:")] == []
        self.page.close()


TEXTS = ["a fine film , a dull film", NASTY, ARABIC]


@pytest.fixture(scope="module")
def made() -> Classifier:
    return classifier(layers=2)


@pytest.fixture
def written(made: Classifier, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(page(made, TEXTS, "Reviews"), encoding="utf-8")
    return path


def test_what_is_told_of_a_token(browser, written, made):
    shown = Shown(browser, written)
    (ids,) = made.encode(TEXTS[:1], [""])
    with torch.no_grad():
        recording = cello.record(made.model.recurrent, made.model.embed(ids[:, None]))
    shown.page.select_option("#place", label="layer 0 backward")
    shown.page.select_option("#value", value=str(data_of(written.read_text())["names"].index("f")))
    shown.page.fill("#unit", "3")
    shown.page.hover("#text .token >> nth=2")
    value = float(re.findall(r"film: f\[3\] = ([-\d.]+);", shown.readout)[0])
    assert value == pytest.approx(float(recording["f_l0_reverse"][2, 0, 3]), abs=0.006)
    (expected,) = made.probabilities([ids[:3]])
    best = int(expected.argmax())
    answer = f"the answer up to here: {made.labels[best]}, {100 * expected[best]:.1f} %"
    assert shown.readout.endswith(answer)
    colour = shown.page.evaluate(
        "getComputedStyle(document.querySelectorAll('#text .token')[2]).backgroundColor"
    )
    depth = float(re.findall(r"[\d.]+", colour)[3])
    assert depth == pytest.approx(0.65 * value, abs=0.01)
    shown.close()


def test_keys_and_mouse(browser, written):
    shown = Shown(browser, written)
    press = shown.page.keyboard.press
    assert shown.token == 0
    for _ in range(3):
        press("ArrowRight")
    press("ArrowLeft")
    assert shown.token == 2
    unit = int(shown.page.input_value("#unit"))
    press("ArrowDown" if unit < 5 else "ArrowUp")
    assert abs(int(shown.page.input_value("#unit")) - unit) == 1
    press("s")
    assert int(shown.page.input_value("#unit")) in range(6)
    cells = shown.page.locator("#map")
    box = cells.bounding_box()
    cells.click(position={"x": box["width"] * 6.5 / 7, "y": box["height"] * 4.5 / 6})
    assert shown.token == 6
    assert shown.page.input_value("#unit") == "4"
    for _ in range(20):  # no further than the end
        press("ArrowRight")
        press("ArrowDown")
    assert shown.token == 6
    assert shown.page.input_value("#unit") == "5"
    chart = shown.page.locator("#chart svg")
    chart.hover(position={"x": chart.bounding_box()["width"] * 0.06, "y": 20})
    assert shown.token == 0
    shown.close()


EVERY = """() => {
  const all = id => [...document.getElementById(id).options].map(option => option.value);
  const pick = (id, value) => {
    const list = document.getElementById(id);
    list.value = value;
    for (const kind of ["input", "change"]) list.dispatchEvent(new Event(kind, {bubbles: true}));
  };
  const found = [];
  for (const text of all("pick")) {
    pick("pick", text);
    for (const place of all("place")) {
      pick("place", place);
      for (const value of all("value")) {
        pick("value", value);
        const width = document.getElementById("map").width;
        found.push([text, value, document.getElementById("readout").innerText, width]);
      }
    }
  }
  return found;
}"""
"""Goes through all three lists, in the page, which takes seconds less than from here."""


def test_every_value_of_every_place_and_text(browser, written):
    shown = Shown(browser, written)
    data = data_of(written.read_text())
    found = shown.page.evaluate(EVERY)
    assert len(found) == 3 * 4 * len(data["names"])
    for text, value, readout, width in found:
        assert f"{data['names'][int(value)]}[" in readout
        assert width == len(data["texts"][int(text)]["pieces"])
    shown.close()


def test_text_is_text(browser, written):
    shown = Shown(browser, written)
    shown.page.select_option("#pick", "1")
    assert shown.page.locator("#text").evaluate("box => box.textContent") == NASTY
    assert shown.page.evaluate("window.hacked") is None
    assert shown.page.locator("img").count() == 0
    assert "<good>" in shown.page.inner_text("#names")
    shown.close()


def test_a_text_from_right_to_left(browser, written):
    shown = Shown(browser, written)
    shown.page.select_option("#pick", "2")
    tokens = shown.page.locator("#text .token")
    first, second = (tokens.nth(k).bounding_box()["x"] for k in (0, 1))
    assert first > second
    shown.page.keyboard.press("ArrowLeft")
    assert shown.token == 1
    shown.close()


def test_chinese_by_characters_and_narrow_screens(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(classifier("char"), [3 * CHINESE]), encoding="utf-8")
    shown = Shown(browser, path, viewport={"width": 360, "height": 700})
    assert shown.page.locator("#text .token").all_inner_texts() == list(3 * CHINESE)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 360
    shown.close()


def test_tags_stand_with_their_words(browser, tmp_path):
    made, path = tagger(), tmp_path / "page.html"
    path.write_text(page(made, ["我 喜欢 电影", "film"]), encoding="utf-8")
    (answer,) = made.predict([["我", "喜欢", "电影"]])
    shown = Shown(browser, path)
    assert shown.page.locator("#text rt").all_inner_texts() == answer.tags
    assert not shown.page.locator("#prediction").is_visible()
    shown.page.keyboard.press("ArrowRight")
    assert shown.readout.endswith(f"tag: {answer.tags[1]}, {100 * answer.probabilities[1]:.1f} %")
    shown.close()


def test_one_token_alone(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(classifier(), ["film"]), encoding="utf-8")
    shown = Shown(browser, path)
    assert shown.readout.startswith("token 1 of 1, film: ")
    assert shown.page.locator("#chart circle").count() == 3
    shown.close()


def test_light_and_dark(browser, written):
    inks = []
    for scheme in ("light", "dark"):
        shown = Shown(browser, written, color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        paper, ink = (
            sum(map(int, re.findall(r"\d+", shown.page.evaluate(f"{style}.{name}"))[:3]))
            for name in ("backgroundColor", "color")
        )
        assert abs(paper - ink) > 400
        inks.append(ink)
        shown.close()
    assert inks[0] < 200 < inks[1]
