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
from cello.engines.sequence import Layout, Packing, Sequence, check_lengths

__all__ = [
    "ENGINES",
    "Choice",
    "Direction",
    "DirectionResult",
    "Engine",
    "EngineError",
    "Layout",
    "Packing",
    "Prepared",
    "Scan",
    "Sequence",
    "check_lengths",
    "choose",
    "engine",
    "latest_settings",
    "observe",
    "run",
    "settings",
]
