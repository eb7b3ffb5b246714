"""Training beside a neighbour that computes: `python -m benchmarks.busy`.

How threads wait is read when torch is loaded, so every measurement is a process of its own: with what
the environment says ("default"), and with what the command `cello` chooses ("chosen"). Each one checks
first that torch.nn and Cello agree, then times a step of training with either in turn. The neighbour
is started and ended here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NEIGHBOUR = """
import os
parent = os.getppid()
while os.getppid() == parent:  # so that it cannot outlive the benchmark
    sum(range(100_000))
"""
SETTINGS = ("default", "chosen")


def main() -> int:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=4, default=[28, 128, 28, 128], help="T B F H")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each kind")
    parser.add_argument("--neighbours", type=int, default=1, help="processes that compute")
    parser.add_argument("--measure", choices=SETTINGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measured(arguments.shape, arguments.seconds, arguments.measure)))
        return 0
    found: dict[tuple[str, str, int], list[float]] = {}
    details: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for count in (0, arguments.neighbours):
            for setting in SETTINGS:
                with neighbours(count):
                    result = in_a_process(arguments, setting)
                details.setdefault((setting, count), []).append(result)
                for way, seconds in result["seconds"].items():
                    found.setdefault((way, setting, count), []).append(seconds)
    print("| | settings | quiet, ms | busy, ms | busy / quiet | threads | others, processors |")
    print("|---|---|---|---|---|---|---|")
    counts = (0, arguments.neighbours)
    for way, setting in [key[:2] for key in found if key[2] == 0]:
        quiet, busy = (1e3 * statistics.median(found[way, setting, count]) for count in counts)
        facts = [f"{quiet:.2f}", f"{busy:.2f}", f"{busy / quiet:.1f}"]
        for key, form in (("threads", ".0f"), ("others", ".1f")):
            medians = (statistics.median(r[key] for r in details[setting, c]) for c in counts)
            facts.append(", ".join(format(median, form) for median in medians))
        print("|", " | ".join([way, setting, *facts]), "|")
    return 0


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Have that many processes compute inside the ``with``."""
    running = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def in_a_process(arguments: argparse.Namespace, setting: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    words = ["--measure", setting, "--seconds", str(arguments.seconds)]
    words += ["--shape", *map(str, arguments.shape)]
    command = [sys.executable, "-m", "benchmarks.busy", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measured(shape: list[int], seconds: float, setting: str) -> dict[str, Any]:
    """Time a step of training of torch.nn's LSTM and of Cello's, in this process.

    Returns:
        Seconds of each, the number of threads, and how many processors others kept busy meanwhile.
    """
    from cello.cli import threads

    if setting == "chosen":
        threads.begin()
    import torch
    from torch import nn

    import cello
    from benchmarks.paired import alternate

    if setting == "chosen":
        torch.set_num_threads(threads.free(torch.get_num_threads()))
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    x, labels = torch.randn(steps, batch, features), torch.randint(10, (batch,))
    libraries: dict[str, Any] = {"torch.nn": nn, "cello": cello.nn}
    layers = {name: library.LSTM(features, hidden) for name, library in libraries.items()}
    layers["cello"].load_state_dict(layers["torch.nn"].state_dict())
    heads = {name: nn.Linear(hidden, 10) for name in layers}
    heads["cello"].load_state_dict(heads["torch.nn"].state_dict())
    models = {name: nn.ModuleList([layers[name], heads[name]]) for name in layers}
    optimizers = {n: torch.optim.AdamW(m.parameters(), fused=True) for n, m in models.items()}

    def loss(name: str) -> torch.Tensor:
        layer, head = models[name]
        return nn.functional.cross_entropy(head(layer(x)[0][-1]), labels)

    def step(name: str) -> None:
        optimizers[name].zero_grad()
        loss(name).backward()
        nn.utils.clip_grad_norm_(models[name].parameters(), 1.0)
        optimizers[name].step()

    gradients = {n: torch.autograd.grad(loss(n), list(m.parameters())) for n, m in models.items()}
    for ours, theirs in zip(gradients["cello"], gradients["torch.nn"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    processors = os.sched_getaffinity(0)
    before = threads.Use.now(processors)
    times = alternate({name: lambda name=name: step(name) for name in models}, seconds=seconds)
    after = threads.Use.now(processors)
    others = before.others(after) if before is not None and after is not None else float("nan")
    return {"seconds": times, "threads": torch.get_num_threads(), "others": others}


if __name__ == "__main__":
    sys.exit(main())
