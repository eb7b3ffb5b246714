"""Values that were read from JSON, held to the types that they should have."""

from __future__ import annotations

from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict


def fits(value: Any, form: Any) -> bool:
    """Return whether a value is of a type: of a plain one, a list, a union or a ``TypedDict``.

    Example:
        >>> fits(["neg", "pos"], list[str]), fits(["neg", 1], list[str]), fits(None, int | None)
        (True, False, True)
    """
    if is_typeddict(form):
        hints = get_type_hints(form)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(fits(value[name], hint) for name, hint in hints.items())
        )
    if get_origin(form) in (UnionType, Union):
        return any(fits(value, part) for part in get_args(form))
    if get_origin(form) is list:
        (part,) = get_args(form)
        return isinstance(value, list) and all(fits(one, part) for one in value)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))
