"""How cells run over time. `choose.ENGINES` lists the engines, the preferred one first."""

from cello.engines.choose import (
    ENGINES,
    Choice,
    choose,
    engine,
    latest_settings,
    observe,
    run,
    settings,
)
from cello.engines.contract import Direction, DirectionResult, Engine, EngineError, Prepared, Scan
from cello.engines.sequence import Layout, Sequence, sent

__all__ = [
    "ENGINES",
    "Choice",
    "Direction",
    "DirectionResult",
    "Engine",
    "EngineError",
    "Layout",
    "Prepared",
    "Scan",
    "Sequence",
    "choose",
    "engine",
    "latest_settings",
    "observe",
    "run",
    "sent",
    "settings",
]
