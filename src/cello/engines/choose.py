"""Chooses the engine for a scan: the first one that has no reason not to run it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from cello.compile import autocast_dtype
from cello.engines.contract import Declined, DirectionResult, Engine, EngineError, Scan
from cello.engines.native import Native
from cello.engines.reference import Reference
from cello.engines.triton import Triton
from cello.engines.vendor import Vendor, returned_in

ENGINES: tuple[Engine, ...] = (Native(), Vendor(), Triton(), Reference())
"""The engines, the preferred one first."""


class Choice(NamedTuple):
    """The engine for a scan, and the reasons of the engines before it.

    Attributes:
        engine: the engine that runs the scan.
        reasons: for each engine that was tried before, its name and its reasons not to run.
    """

    engine: Engine
    reasons: dict[str, list[str]]


@dataclass(frozen=True)
class _Policy:
    forced: Engine | None = None
    strict: bool = False
    segment: int | None = None


class _ThisThread(threading.local):
    """The settings of the current thread, like torch's own modes."""

    policy = _Policy()
    observed: list[tuple[Scan, Choice]] | None = None


_this_thread = _ThisThread()
_latest_settings = ""


def latest_settings() -> str:
    """Return the latest settings of any thread; for torch.compile, which does not guard thread-locals."""
    return _latest_settings


def engine(
    name: str | Engine | None = None, *, strict: bool | None = None, segment: int | None = None
) -> AbstractContextManager[None]:
    """Select the engine, forbid the Python loop, or bound the memory, for all layers in the ``with``.

    Like ``torch.no_grad`` it applies to the current thread, it can be used as a decorator, and without
    ``with`` it has no effect.

    Args:
        name: ``"native"``, ``"vendor"``, ``"triton"`` or ``"reference"``. The engine runs or raises an
            error; Cello tries no other engine. It may also be your own :class:`Engine`. ``None`` does not
            change the setting; by default Cello chooses.
        strict: raise an error instead of running the Python loop of ``reference``, unless it was selected
            by name. ``None`` does not change the setting.
        segment: run this many steps at a time, and in training save only the states between two segments;
            the backward pass computes each segment again. Apart from input and output, the memory is that
            of one segment, and the cost is one more forward pass. 0 switches it off, ``None`` does not
            change the setting.

    Raises:
        ValueError: no engine has this name, or `segment` is negative.
        EngineError: raised by a layer inside the ``with`` that cannot run with these settings; the
            message lists the reasons.

    Example:
        >>> import torch, cello
        >>> layer, x = cello.nn.GRU(3, 4), torch.zeros(5, 2, 3)
        >>> with cello.engine("reference"):
        ...     output, h_n = layer(x)
        >>> long = torch.zeros(10_000, 1, 3)
        >>> with cello.engine(segment=500):
        ...     layer(long)[0].sum().backward()
    """
    changes: dict[str, object] = {}
    if isinstance(name, Engine):
        changes["forced"] = name
    elif name is not None:
        known = {candidate.name: candidate for candidate in ENGINES}
        if name not in known:
            raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
        changes["forced"] = known[name]
    if strict is not None:
        changes["strict"] = strict
    if segment is not None:
        if type(segment) is not int or segment < 0:
            raise ValueError(f"segment must be a number of steps or 0, got {segment!r}")
        changes["segment"] = segment or None
    return _changed(changes)


@contextmanager
def _changed(changes: dict[str, object]) -> Iterator[None]:
    before = _this_thread.policy
    _set_policy(replace(before, **changes))  # type: ignore[arg-type]
    try:
        yield
    finally:
        _set_policy(before)


def _set_policy(policy: _Policy) -> None:
    global _latest_settings
    _this_thread.policy = policy
    name = "" if policy.forced is None else policy.forced.name
    _latest_settings = f"{name}{'!' if policy.strict else ''}"


def choose(scan: Scan, declined: Mapping[Engine, Declined] = MappingProxyType({})) -> Choice:
    """Return the engine for `scan`.

    Args:
        scan: the scan.
        declined: the engines that have begun to run it, and found that they cannot.

    Raises:
        EngineError: the engine selected by name cannot run, or strict mode is on and no fused engine
            can run.
    """
    policy = _this_thread.policy
    if policy.forced is not None:
        reasons = _why_not(policy.forced, scan, declined)
        if reasons:
            raise EngineError(
                f"the engine {policy.forced.name!r} was selected and cannot run this: "
                + "; ".join(reasons)
            )
        return Choice(policy.forced, {})
    asked: dict[str, list[str]] = {}
    for candidate in ENGINES:
        reasons = _why_not(candidate, scan, declined) or candidate.why_rather_not(scan)
        if not reasons and (candidate.is_fused or not policy.strict):
            return Choice(candidate, asked)
        asked[candidate.name] = reasons
    raise EngineError(
        "strict mode: no fused engine can run this. "
        + ". ".join(f"{name}: {'; '.join(reasons)}" for name, reasons in asked.items() if reasons)
    )


def _why_not(engine: Engine, scan: Scan, declined: Mapping[Engine, Declined]) -> list[str]:
    return [declined[engine].reason] if engine in declined else engine.why_not(scan)


def run(scan: Scan) -> tuple[DirectionResult, ...]:
    """Run `scan` on the engine that :func:`choose` returns, in segments if they are switched on."""
    segment = _this_thread.policy.segment
    if segment is not None and scan.sequence.steps > segment:
        from cello.engines.segments import (
            run_in_segments,
        )  # imports torch.utils.checkpoint, which is seldom needed

        policy = replace(_this_thread.policy, segment=None)

        def run_segment(part: Scan) -> tuple[DirectionResult, ...]:
            # It runs again in the backward pass, possibly with other settings.
            before, _this_thread.policy = _this_thread.policy, policy
            try:
                return run(part)
            finally:
                _this_thread.policy = before

        return run_in_segments(scan, segment, run_segment)
    declined: dict[Engine, Declined] = {}
    while True:
        choice = choose(scan, declined)
        results = _run_on(choice, scan)
        if not isinstance(results, Declined):
            return _as_returned(scan, results)
        declined[choice.engine] = results


def _run_on(choice: Choice, scan: Scan) -> tuple[DirectionResult, ...] | Declined:
    """Run a scan on the chosen engine, and let the observer see the choice if it does run it."""
    observed = _this_thread.observed
    if observed is None:
        return choice.engine.run(scan)
    place = len(observed)
    observed.append((scan, choice))
    with observe():  # a cell may run its own layers, which this observer must not see
        results = choice.engine.run(scan)
    if isinstance(results, Declined):
        del observed[place]
    return results


def _as_returned(scan: Scan, results: tuple[DirectionResult, ...]) -> tuple[DirectionResult, ...]:
    """Return results of any engine in the dtype in which torch's layer would return them."""
    if autocast_dtype(scan.sequence.data.device) is None:
        return results
    dtypes = [returned_in(scan.sequence, direction.cell) for direction in scan.directions]
    return tuple(
        [
            result
            if dtype is None
            else DirectionResult(
                result.output.to(dtype),
                tuple([part.to(dtype) for part in result.state]),
                tuple([part.to(dtype) for part in result.states]),
            )
            for result, dtype in zip(results, dtypes, strict=True)
        ]
    )


def settings() -> object | None:
    """Return what the choice of an engine depends on, beside the scan and torch's modes.

    ``None`` where nothing may be kept of a choice: a sequence is run in segments, or someone observes.
    """
    policy = _this_thread.policy
    return policy if policy.segment is None and _this_thread.observed is None else None


@contextmanager
def observe() -> Iterator[list[tuple[Scan, Choice]]]:
    """Collect every scan that runs inside the ``with``, and the engine chosen for it.

    Scans that a cell runs within a step are left out.
    """
    seen: list[tuple[Scan, Choice]] = []
    before, _this_thread.observed = _this_thread.observed, seen
    try:
        yield seen
    finally:
        _this_thread.observed = before
