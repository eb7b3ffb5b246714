"""Draw the pictures of docs/inspect.md: `python docs/draw_inside.py [MODEL]`.

With MODEL, the folder of a trained classifier of English texts, also a photograph of its page, which
takes playwright and Chromium.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import cello

HERE = Path(__file__).parent / "pictures"
TEXT = (
    "It begins as a dull and tedious exercise, and I was about to leave; but the last hour is one of "
    "the most moving and beautiful things I have seen this year."
)


def remember(steps: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences (T, B, 2) of noise; what is asked is the sign that the first step had beside it."""
    x = torch.randn(steps, batch, 2)
    x[:, :, 0] = 0
    x[0, :, 0] = torch.randint(0, 2, (batch,)) * 2.0 - 1
    return x, (x[0, :, 0] > 0).float()


def trained(layer: nn.Module, steps: int = 30, updates: int = 300) -> nn.Module:
    """Teach a layer to remember."""
    answer = nn.Linear(layer.hidden_size, 1)
    parameters = [*layer.parameters(), *answer.parameters()]
    adam = torch.optim.Adam(parameters, lr=0.02)
    for update in range(updates):
        length = 3 + (steps - 3) * update // updates
        x, wanted = remember(length, 64)
        output, _ = layer(x)
        loss = nn.functional.binary_cross_entropy_with_logits(answer(output[-1])[:, 0], wanted)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
    print(f"{layer}: loss {loss.item():.4f}")
    return layer


def draw_reach(path: Path) -> None:
    """Draw how far the gradient reaches in layers before training."""
    torch.manual_seed(0)
    layers = {
        "RNN": cello.nn.RNN(2, 8),
        "LSTM": cello.nn.LSTM(2, 8),
        "GRU": cello.nn.GRU(2, 8),
        "LSTM, forget_bias=2": cello.nn.LSTM(2, 8, forget_bias=2.0),
    }
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, layer in layers.items():
        recording = cello.record(layer, remember(30, 64)[0], gradients=True)
        axes.plot(recording.reach(recording.state_names[-1]).log().mean(1).exp(), label=name)
    axes.set_yscale("log")
    axes.set_xlabel("steps before the last one")
    axes.set_ylabel("norm of d loss / d state")
    axes.legend(frameon=False, fontsize=9)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)


def photograph(model: str, path: Path) -> None:
    """Take a picture of a model's page."""
    from playwright.sync_api import sync_playwright

    from cello.tasks import classify
    from cello.tasks.page import page

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        file = Path(folder) / "page.html"
        html = page(classify.load(model, device="cpu"), [TEXT], "Film reviews")
        file.write_text(html, encoding="utf-8")
        arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        view = browser.new_page(viewport={"width": 1150, "height": 790}, device_scale_factor=1.2)
        view.goto(file.as_uri())
        for _ in range(6):
            view.keyboard.press("ArrowRight")
        view.keyboard.press("s")
        view.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    lstm = cello.nn.LSTM(28, 4, num_layers=2, bidirectional=True)
    cello.draw(lstm, torch.zeros(3, 10, 28), HERE / "unrolled.png")
    torch.manual_seed(0)
    latch = trained(cello.nn.LSTM(2, 8, forget_bias=1.0))
    torch.manual_seed(3)
    recording = cello.record(latch, remember(30, 64)[0])
    recording.plot(path=HERE / "gates.png")
    recording.plot_saturation(path=HERE / "saturation.png")
    draw_reach(HERE / "reach.png")
    for folder in sys.argv[1:]:
        photograph(folder, HERE / "page.png")
