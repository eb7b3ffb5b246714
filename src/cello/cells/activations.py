"""Activation functions by name, and piecewise-linear ones.

Wherever Cello takes an activation it takes a name from :data:`ACTIVATIONS`, knots as text
(:meth:`PiecewiseLinear.read`), an ``nn.Module`` or any function from a tensor to a tensor of the same
shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
"""A function of a tensor, element by element; an ``nn.Module`` is one too."""


def identity(x: Tensor) -> Tensor:
    """Return `x` itself: the activation of a linear recurrence."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "softsign": F.softsign,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "identity": identity,
}
"""The names that `activation=` and `gate_activation=` accept."""

PIECEWISE = "piecewise("
"""With this the text of a piecewise-linear activation begins."""


def resolve_activation(activation: str | Activation, argument: str = "activation") -> Activation:
    """Turn a name, a module or a function into a function.

    Args:
        activation: a key of :data:`ACTIVATIONS`, knots as ``"piecewise(-2:0, 2:1)"``, an ``nn.Module``,
            or a function ``Tensor -> Tensor``.
        argument: the name of the caller's argument, for the message of an error.

    Returns:
        The function; a module or function is returned as it is.

    Raises:
        ValueError: the name is unknown, or the knots cannot be used.
        TypeError: `activation` is neither a name nor callable, or is a module's class.

    Example:
        >>> resolve_activation("tanh") is torch.tanh
        True
    """
    if isinstance(activation, str):
        if activation.lstrip().startswith(PIECEWISE):
            try:
                return PiecewiseLinear.read(activation)
            except ValueError as error:
                raise ValueError(f"{argument}: {error}") from None
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{argument} {activation!r} is not known; choose from {', '.join(ACTIVATIONS)}, "
                "piecewise(x:y, ...), or give an nn.Module or a function"
            )
        return ACTIVATIONS[activation]
    if isinstance(activation, type):
        raise TypeError(
            f"{argument} is the class {activation.__name__}; give an instance of it: "
            f"{activation.__name__}()"
        )
    if not callable(activation):
        raise TypeError(
            f"{argument} must be a name, an nn.Module or a function, got {type(activation).__name__}"
        )
    return activation


def activation_name(activation: Activation) -> str:
    """Return the name of a known activation, or a short description of any other one.

    Example:
        >>> activation_name(torch.tanh), activation_name(PiecewiseLinear.hard_tanh())
        ('tanh', 'PiecewiseLinear([-1, 1], [-1, 1])')
    """
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return name
    if isinstance(activation, nn.Module):
        return repr(activation)
    return getattr(activation, "__name__", repr(activation))


def changed_activations(module: nn.Module, **stock: str) -> list[str]:
    """Return ``"argument=name"`` for each activation of `module` that is not the stock one.

    Args:
        module: a layer or a cell.
        **stock: for each attribute that holds an activation, the name of the usual one.
    """
    names = {argument: activation_name(getattr(module, argument)) for argument in stock}
    return [f"{key}={name}" for key, name in names.items() if name != stock[key]]


class PiecewiseLinear(nn.Module):
    r"""A continuous function made of straight pieces between knots.

    Between two knots :math:`(x_k, y_k)` and :math:`(x_{k+1}, y_{k+1})`

    .. math:: f(x) = y_k + \frac{y_{k+1} - y_k}{x_{k+1} - x_k} (x - x_k).

    Beyond the first and the last knot `f` either stays constant or goes on with the slope of the
    outermost piece. The derivative is the slope of the piece; on a knot it is the slope of the piece
    to its right, and zero on the last knot of a function that is constant beyond it.

    Args:
        xs: the knots' positions, strictly increasing, at least two.
        ys: the knots' values, as many as `xs`.
        beyond: ``"constant"`` (the default) or ``"linear"``: what `f` does outside the knots; a pair
            gives the left and the right side apart.

    Shape:
        Input and output of any one shape, of any floating dtype.

    Raises:
        ValueError: fewer than two knots, lengths that differ, positions that do not increase, a
            value that is not finite, or an unknown `beyond`.

    Example:
        >>> hat = PiecewiseLinear([-1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
        >>> hat(torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0]))
        tensor([0.0000, 0.5000, 1.0000, 0.7500, 0.0000])
    """

    def __init__(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        beyond: str | tuple[str, str] = "constant",
    ) -> None:
        super().__init__()
        self.xs = tuple(float(x) for x in xs)
        self.ys = tuple(float(y) for y in ys)
        sides = (beyond, beyond) if isinstance(beyond, str) else beyond
        if len(self.xs) != len(self.ys):
            raise ValueError(
                f"xs and ys must have the same length, got {len(self.xs)} and {len(self.ys)}"
            )
        if len(self.xs) < 2:
            raise ValueError(f"xs must hold at least two knots, got {len(self.xs)}")
        if not all(math.isfinite(v) for v in self.xs + self.ys):
            raise ValueError(f"xs and ys must be finite, got xs={self.xs} and ys={self.ys}")
        if any(a >= b for a, b in zip(self.xs, self.xs[1:], strict=False)):
            raise ValueError(f"xs must increase strictly, got {self.xs}")
        known = ("constant", "linear")
        if not isinstance(sides, tuple) or len(sides) != 2 or not all(s in known for s in sides):
            raise ValueError(
                f"beyond must be 'constant' or 'linear', or a pair of these, got {beyond!r}"
            )
        self.beyond = sides

    @classmethod
    def read(cls, text: str) -> PiecewiseLinear:
        """Read knots as text: ``piecewise(x:y, x:y, ...)``.

        At the end, ``beyond=linear`` stands for both sides and ``beyond=constant:linear`` for the left
        and the right side.

        Raises:
            ValueError: it is not that, or the knots cannot be used.

        Example:
            >>> PiecewiseLinear.read("piecewise(-2.5:0, 2.5:1)")
            PiecewiseLinear([-2.5, 2.5], [0, 1])
            >>> PiecewiseLinear.read("piecewise(0:0, 1:1, beyond=constant:linear)").text
            'piecewise(0:0, 1:1, beyond=constant:linear)'
        """
        match = re.fullmatch(r"\s*piecewise\((.*)\)\s*", text, re.DOTALL)
        *knots, last = match[1].split(",") if match else [""]
        side, is_beyond, sides = last.partition("=")
        if not is_beyond:
            knots, sides = [*knots, last], "constant"
        pairs = [knot.split(":") for knot in knots]
        try:
            points = [(float(x), float(y)) for x, y in pairs]
            if is_beyond and side.strip() != "beyond":
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{text!r} cannot be read; write the knots as piecewise(-2.5:0, 2.5:1), with "
                "beyond=linear at the end for straight lines that go on"
            ) from None
        left, _, right = (side.strip() for side in sides.partition(":"))
        return cls([x for x, _ in points], [y for _, y in points], (left, right or left))

    @property
    def text(self) -> str:
        """The function as :meth:`read` takes it."""
        knots = [f"{_shortest(x)}:{_shortest(y)}" for x, y in zip(self.xs, self.ys, strict=True)]
        if self.beyond != ("constant", "constant"):
            knots.append(f"beyond={':'.join(dict.fromkeys(self.beyond))}")
        return f"{PIECEWISE}{', '.join(knots)})"

    @classmethod
    def hard_sigmoid(cls) -> PiecewiseLinear:
        """0 up to -3, 1 from 3 on, a straight line between: :func:`torch.nn.functional.hardsigmoid`."""
        return cls([-3.0, 3.0], [0.0, 1.0])

    @classmethod
    def hard_tanh(cls) -> PiecewiseLinear:
        """-1 up to -1, 1 from 1 on, the identity between: :func:`torch.nn.functional.hardtanh`."""
        return cls([-1.0, 1.0], [-1.0, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        left_constant, right_constant = (side == "constant" for side in self.beyond)
        # Clamping first keeps inf finite where the function is constant, and lets NaN through.
        inside = x
        if left_constant or right_constant:
            inside = x.clamp(
                min=self.xs[0] if left_constant else None,
                max=self.xs[-1] if right_constant else None,
            )
        y = x
        for k in range(len(self.xs) - 1):
            slope = (self.ys[k + 1] - self.ys[k]) / (self.xs[k + 1] - self.xs[k])
            piece = self.ys[k] + slope * (inside - self.xs[k])
            y = piece if k == 0 else torch.where(inside >= self.xs[k], piece, y)
        if right_constant:  # exactly the last value, whatever the last slope rounds to
            y = torch.where(inside >= self.xs[-1], self.ys[-1], y)
        return y

    def extra_repr(self) -> str:
        xs, ys = (f"[{', '.join(f'{v:g}' for v in values)}]" for values in (self.xs, self.ys))
        if self.beyond == ("constant", "constant"):
            return f"{xs}, {ys}"
        return f"{xs}, {ys}, beyond={self.beyond}"


def _shortest(number: float) -> str:
    return repr(number).removesuffix(".0")
