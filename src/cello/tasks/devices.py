"""Where to compute, and which of several processes this is."""

from __future__ import annotations

import os
from typing import Any

import torch

from cello.tasks.errors import InputError
from cello.tasks.options import DEVICES

_LAUNCHED = {"MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}
"""Variables of the environment, one of which each way to start on several machines sets."""


def is_first() -> bool:
    """Return whether this process is the first, or the only one, of those that train together."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]  # set on the function
    return rank == 0


def find_device(name: str) -> torch.device:
    """Return the device with that name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: there is none.
    """
    if name not in DEVICES:
        raise InputError(f"device: {name!r} is not one of {', '.join(DEVICES)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    backend: Any = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(name)
    if backend is not None and not backend.is_available():
        raise InputError(f"device: there is no {name} here")
    return torch.device(name)


def check_nodes(nodes: int) -> None:
    """Refuse several machines that would wait for each other in vain.

    Raises:
        InputError: nothing started this process on several.
    """
    if nodes > 1 and not _LAUNCHED & os.environ.keys():
        raise InputError(
            f"nodes: {nodes} machines do not find each other by themselves; start with torchrun"
        )
