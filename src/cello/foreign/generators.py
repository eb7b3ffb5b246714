"""The states of torch's generators of random numbers, to be put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from typing_extensions import Self


class Generators:
    """The states of torch's generators of random numbers, on the CPU and a device.

    In a ``with`` statement they are put back at its end.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._states: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
            (torch.set_rng_state, (torch.get_rng_state(),))
        ]
        if device.type in ("cuda", "xpu", "mps") and torch.accelerator.is_available():
            of_device = getattr(torch, device.type)
            place = () if device.type == "mps" else (device,)
            state = of_device.get_rng_state(*place)
            self._states.append((of_device.set_rng_state, (state, *place)))

    def put_back(self) -> None:
        """Draw from here on what was to be drawn then."""
        for put_back, state in self._states:
            put_back(*state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.put_back()
