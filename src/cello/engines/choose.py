"""Which engine runs a scan: the first of an ordered tuple that has no reason not to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from cello.compile import autocast_dtype
from cello.engines.contract import DirectionResult, Engine, EngineError, Repeat, Scan
from cello.engines.native import Native
from cello.engines.reference import Reference
from cello.engines.sequence import Layout
from cello.engines.vendor import Vendor, returned_in

ENGINES: tuple[Engine, ...] = (Native(), Vendor(), Reference())
"""The engines, the preferred one first."""


class Choice(NamedTuple):
    """Which engine a scan goes to, and why each one before it does not take it.

    Attributes:
        engine: the engine that runs.
        reasons: for each engine that was asked before, its name and its reasons not to.
    """

    engine: Engine
    reasons: dict[str, list[str]]


@dataclass(frozen=True)
class _Policy:
    forced: Engine | None = None
    strict: bool = False
    segment: int | None = None


class _ThisThread(threading.local):
    """What holds for the thread that reads it, as torch's own modes do."""

    policy = _Policy()
    observed: list[tuple[Scan, Choice]] | None = None


_this_thread = _ThisThread()
_terms = ""


def terms() -> str:
    """Return the terms set last, in any thread; for torch.compile, which guards no thread-locals."""
    return _terms


@contextmanager
def engine(
    name: str | Engine | None = None, *, strict: bool | None = None, segment: int | None = None
) -> Iterator[None]:
    """Choose the engine by name, forbid falling back, or save memory, for all layers in the ``with``.

    Like ``torch.no_grad`` this holds for the thread that runs it, and it may decorate a function.

    Args:
        name: ``"native"``, ``"vendor"`` or ``"reference"``. The named engine runs or raises; nothing
            else is tried. An :class:`Engine` of your own stands for itself. ``None`` leaves it as it is;
            at first the choice is Cello's.
        strict: raise instead of falling back to the Python loop of ``reference`` where that was
            not asked for by name. ``None`` leaves it as it is.
        segment: run sequences this many steps at a time, and in training keep nothing of a segment but
            the states at its borders: the backward pass computes it again. Memory is then that of one
            segment, input and output apart, for the time of one more forward pass. 0 ends it, ``None``
            leaves it as it is.

    Raises:
        ValueError: no engine has this name, or `segment` is negative.
        EngineError: inside the ``with``, by a layer that cannot run under these terms; the message
            lists the reasons.

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
            raise ValueError(f"no engine is called {name!r}; choose from {', '.join(known)}")
        changes["forced"] = known[name]
    if strict is not None:
        changes["strict"] = strict
    if segment is not None:
        if type(segment) is not int or segment < 0:
            raise ValueError(f"segment must be a number of steps, or 0, got {segment!r}")
        changes["segment"] = segment or None
    before = _this_thread.policy
    _set_policy(replace(before, **changes))  # type: ignore[arg-type]
    try:
        yield
    finally:
        _set_policy(before)


def _set_policy(policy: _Policy) -> None:
    global _terms
    _this_thread.policy = policy
    name = "" if policy.forced is None else policy.forced.name
    _terms = f"{name}{'!' if policy.strict else ''}"


def choose(scan: Scan) -> Choice:
    """Return the engine for `scan`.

    Raises:
        EngineError: the engine asked for by name has reasons not to run, or strict mode is on and
            only an engine that is not fused is left.
    """
    policy = _this_thread.policy
    if policy.forced is not None:
        reasons = policy.forced.why_not(scan)
        if reasons:
            raise EngineError(
                f"the engine {policy.forced.name!r} was asked for and cannot run this: "
                + "; ".join(reasons)
            )
        return Choice(policy.forced, {})
    asked: dict[str, list[str]] = {}
    for candidate in ENGINES:
        reasons = candidate.why_not(scan) or candidate.why_rather_not(scan)
        if not reasons and (candidate.is_fused or not policy.strict):
            return Choice(candidate, asked)
        asked[candidate.name] = reasons
    raise EngineError(
        "strict mode: no fused engine can run this. "
        + ". ".join(f"{name}: {'; '.join(reasons)}" for name, reasons in asked.items() if reasons)
    )


def run(scan: Scan) -> tuple[DirectionResult, ...]:
    """Run `scan` on the engine that :func:`choose` picks, in segments if that is asked for."""
    segment = _this_thread.policy.segment
    if segment is not None and scan.sequence.steps > segment:
        from cello.engines.segments import run_in_segments  # torch.utils.checkpoint, seldom used

        policy = replace(_this_thread.policy, segment=None)

        def run_segment(part: Scan) -> tuple[DirectionResult, ...]:
            # Once more in the backward pass, perhaps under other terms by then.
            before, _this_thread.policy = _this_thread.policy, policy
            try:
                return run(part)
            finally:
                _this_thread.policy = before

        return run_in_segments(scan, segment, run_segment)
    choice = choose(scan)
    if _this_thread.observed is None:
        return _as_returned(scan, choice.engine.run(scan))
    _this_thread.observed.append((scan, choice))
    with observe():  # a cell may run layers of its own, which are not for this observer
        return _as_returned(scan, choice.engine.run(scan))


def _as_returned(scan: Scan, results: tuple[DirectionResult, ...]) -> tuple[DirectionResult, ...]:
    """Results of any engine in the dtype in which torch's layer would return them."""
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


def repeat(scan: Scan) -> Repeat | None:
    """Return a short way to run scans like `scan` while the terms are what they are now."""
    policy = _this_thread.policy
    found = None if policy.segment is not None else choose(scan).engine.repeat(scan)
    if found is None:
        return None

    def run_again(
        x: Tensor, layout: Layout, state: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]] | None:
        now = _this_thread.policy
        if (now is not policy and now != policy) or _this_thread.observed is not None:
            return None
        return found(x, layout, state)

    return run_again


@contextmanager
def observe() -> Iterator[list[tuple[Scan, Choice]]]:
    """Collect every scan that runs inside the ``with``, and the choice made for it.

    Scans that a cell runs for itself, within a step, are left out.
    """
    seen: list[tuple[Scan, Choice]] = []
    before, _this_thread.observed = _this_thread.observed, seen
    try:
        yield seen
    finally:
        _this_thread.observed = before
