"""Timing of two or more ways to do the same work, alternating, so that noise falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(
    ways: dict[str, Callable[[], object]], *, seconds: float, least: int = 5
) -> dict[str, float]:
    """Run all ways in turn, again and again, and return the median time of each in seconds.

    Args:
        ways: what to time, by name; each is run once beforehand to warm up.
        seconds: how long to go on, all ways together.
        least: how many rounds to run at least.
    """
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
