"""What the tests of tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("lightning", reason="needs the packages of cello[tasks]")
pytest.importorskip("tokenizers", reason="needs the packages of cello[tasks]")


@dataclass
class Interrupt:
    """Ctrl-C at the start of a step of training.

    Attributes:
        at: the number of the step, counted from 1 over all runs since it was set; 0 for none.
        calls: how many steps have begun since then.
    """

    at: int = 0
    calls: int = 0

    def at_step(self, number: int) -> None:
        """Count from now on."""
        self.at, self.calls = number, 0


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """What interrupts a training."""
    from cello.tasks import trainer

    step, interrupt = trainer.Training.step, Interrupt()

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        interrupt.calls += 1
        if interrupt.calls == interrupt.at:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "step", interrupted)
    return interrupt
