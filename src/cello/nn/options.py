"""The names of options of layers and cells, which a subclass may not use for attributes of its own."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

MADE = "_is_made"
"""The attribute of a layer or cell whose options are set."""


def check_attribute(module: nn.Module, name: str, options: Collection[str]) -> None:
    """Refuse an attribute of a subclass with the name of an option, which would change the equations.

    ``torch.nn``'s layers have no such attributes, so that a subclass of them may have its own
    ``self.activation``. What an option of Cello's own classes is set to is meant.

    Raises:
        AttributeError: it is that.
    """
    kind = type(module)
    if name not in options or MADE not in vars(module) or kind.__module__.startswith("cello."):
        return
    base = next(one for one in kind.__mro__ if one.__module__.startswith("cello."))
    raise AttributeError(
        f"{kind.__name__}.{name}: {name} is an option of cello.nn.{base.__name__}, and setting it would "
        "change what it computes; give the attribute another name, or pass "
        f"{name}= to super().__init__()"
    )
