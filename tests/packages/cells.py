"""The cells of all packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

from packages.case import Case, installed
from packages.recurrent import (
    einops,
    light_recurrent_unit,
    mingru,
    ncps,
    torchrecurrent,
    torchxlstm,
    xlstm,
)
from packages.spiking import norse, snntorch, spikingjelly

PACKAGES: dict[str, Callable[[], Iterator[Case]]] = {
    "einops": einops,
    "light-recurrent-unit-pytorch": light_recurrent_unit,
    "mingru-pytorch": mingru,
    "ncps": ncps,
    "norse": norse,
    "snntorch": snntorch,
    "spikingjelly": spikingjelly,
    "torchrecurrent": torchrecurrent,
    "torchxlstm": torchxlstm,
    "xlstm": xlstm,
}


def cases() -> list[Case]:
    """The cells of all packages that are installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the packages say while they are imported
        return [case for name, make in PACKAGES.items() if installed(name) for case in make()]
