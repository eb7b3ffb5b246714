"""Layers of any cell that declares its equations, with the arguments and parameters of ``torch.nn``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from cello.cells import (
    Activation,
    Cell,
    Equations,
    State,
    activation_name,
    changed_activations,
    resolve_activation,
)
from cello.engines.vendor import flatten_weights
from cello.foreign.structure import LEAF, Nested, Structure
from cello.nn.base import Cells, RecurrentLayer, read_count
from cello.nn.options import MADE

if TYPE_CHECKING:
    from typing_extensions import Self

PAIR = Structure(tuple, (LEAF, LEAF))


class RNNBase(RecurrentLayer):
    """Layers of a cell with the arguments, the names and the first values of torch's parameters.

    A subclass says which :attr:`equations` it has; all else follows from what they declare. Where these
    have other options than activations, it may set them before it calls ``__init__``. The parameters
    of layer k are ``weight_ih_l{k}``, ``weight_hh_l{k}``, ``bias_ih_l{k}``, ``bias_hh_l{k}`` and
    ``weight_hr_l{k}``, or what else the equations call their weights, with the suffix ``_reverse`` for
    the second direction.

    Args:
        input_size: F, the number of features of the input.
        hidden_size: H, the width of the state; a sequence of L gives each layer its own.
        num_layers: L, how many layers lie on top of each other.
        bias: whether the layers have biases.
        batch_first: input and output are (B, T, F) instead of (T, B, F); states are not affected.
        dropout: probability of zeroing each output of every layer but the last, while training.
        bidirectional: a second set of cells reads the sequence in reverse.
        proj_size: P > 0 projects h to P features, where the equations have a projection; 0 does not.
        device: where the parameters lie.
        dtype: the dtype of the parameters.
        activation: a name, an ``nn.Module`` or a function; that of the equations unless given.
        gate_activation: likewise.
        merge: how the outputs of both directions join: "concat", "sum", "mean", "mul", or "none" for
            a pair of outputs (between layers they are then concatenated).
        reverse: a single direction that reads the sequence in reverse.
        learn_initial_state: the state before the first step is made of parameters
            ``initial_{name}_l{k}``, one for each part of the state, zero at first.

    Raises:
        ValueError: a value out of range, or an option that the equations do not have; the message
            names it.
        TypeError: an argument of the wrong type.
    """

    equations: ClassVar[type[Equations]]
    """The class of the cells."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | Activation | None = None,
        gate_activation: str | Activation | None = None,
        merge: str = "concat",
        reverse: bool = False,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__()
        self._set_options(
            num_layers=num_layers,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            merge=merge,
            reverse=reverse,
        )
        proj_size = read_count("proj_size", proj_size)
        _check_arguments(input_size, hidden_size, num_layers, bias, proj_size)
        self.input_size = input_size
        self.hidden_size = hidden_size if isinstance(hidden_size, int) else tuple(hidden_size)
        self.bias = bias
        self.proj_size = proj_size
        self.learn_initial_state = learn_initial_state
        self._set_functions(activation=activation, gate_activation=gate_activation)
        if proj_size and all(w.part != "projection" for w in self.equations.weights.values()):
            raise ValueError(f"proj_size: {type(self).__name__} has no projection, got {proj_size}")
        # For each layer and direction, what the cell and what the layer call each field.
        functions = tuple((name, name) for name in self.equations.options)
        self._names = tuple(
            tuple((name, f"{name}_{suffix}") for name in self._shapes(layer)) + functions
            for layer, suffix in self._places()
        )
        for layer, suffix in self._places():
            for name, shape in self._shapes(layer).items():
                weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_{suffix}", weight)
        if learn_initial_state:
            for layer, suffix in self._places():
                for name, size in zip(self.state_names, self._state_widths(layer), strict=True):
                    start = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
                    self.register_parameter(f"initial_{name}_{suffix}", start)
        self.reset_parameters()
        self.flatten_parameters()
        vars(self)[MADE] = True

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the parts of the state, in order."""
        return tuple(part.name for part in self.equations.state)

    def _set_functions(self, **given: str | Activation | None) -> None:
        """Hold what the equations take beside weights, as attributes of the same names."""
        for name, function in given.items():
            if name in self.equations.options:
                chosen = getattr(self.equations, name) if function is None else function
                setattr(self, name, resolve_activation(chosen, name))
            elif function is not None:
                raise ValueError(f"{name}: {type(self).__name__} has none, got {function!r}")
        for name in self.equations.options:
            if name not in vars(self) and name not in self._modules:  # a subclass may have set it
                setattr(self, name, getattr(self.equations, name))

    def _places(self) -> Iterator[tuple[int, str]]:
        """Each layer and direction in the order of torch, with the suffix of its parameters."""
        for layer in range(self.num_layers):
            for direction in ("", "_reverse")[: self.num_directions]:
                yield layer, f"l{layer}{direction}"

    def _width(self, layer: int) -> int:
        return self.hidden_size if isinstance(self.hidden_size, int) else self.hidden_size[layer]

    def _output_width(self, layer: int) -> int:
        return self.proj_size or self._width(layer)

    def _sizes(self, layer: int) -> dict[str, int]:
        """What the letters of the equations stand for."""
        before = self._merged(self._output_width(layer - 1)) if layer else self.input_size
        width = self._width(layer)
        gates = len(self.equations.gates)
        return {"F": before, "G": gates, "H": width, "P": self._output_width(layer)}

    def _state_widths(self, layer: int) -> tuple[int, ...]:
        """The width of each part of the state."""
        sizes = self._sizes(layer)
        return tuple(sizes[part.width] for part in self.equations.state)

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight of one direction of a layer, in the order of torch."""
        sizes = self._sizes(layer)
        is_there = {"biases": self.bias, "projection": self.proj_size > 0}
        return {
            name: weight.sizes(sizes)
            for name, weight in self.equations.weights.items()
            if is_there.get(weight.part, True)
        }

    def _merged(self, width: int) -> int:
        """The width that a next layer reads where each direction gives `width`."""
        return width * self.num_directions if self.merge in ("concat", "none") else width

    def reset_parameters(self) -> None:
        """Draw every weight from U(-1/sqrt(H), 1/sqrt(H)), in the order and stream of torch."""
        for layer, suffix in self._places():
            bound = 1.0 / math.sqrt(self._width(layer))
            for name in self._shapes(layer):
                weight = getattr(self, f"{name}_{suffix}", None)
                if weight is not None:  # one that was taken away is left out, as in torch
                    nn.init.uniform_(weight, -bound, bound)
        if self.learn_initial_state:
            for _, suffix in self._places():
                for name in self.state_names:
                    nn.init.zeros_(getattr(self, f"initial_{name}_{suffix}"))

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if not hasattr(cls, "equations"):
            raise TypeError(f"{cls.__name__} is abstract: a subclass says which `equations` it has")
        return super().__new__(cls, *args, **kwargs)

    def _cells(self) -> Cells:
        found = [
            self.equations(**{name: self._weight(attribute) for name, attribute in names})
            for names in self._names
        ]
        self._check_shapes(found)
        if not self.bidirectional:
            return [(cell,) for cell in found]
        return list(zip(found[::2], found[1::2], strict=True))

    def _check_shapes(self, cells: Sequence[Equations]) -> None:
        """Refuse matrices of other shapes, on which a kernel may read what is not theirs.

        Raises:
            RuntimeError: there is one; the message names it.
        """
        for (layer, suffix), cell in zip(self._places(), cells, strict=True):
            for name, shape in self._shapes(layer).items():
                found = getattr(cell, name).shape
                if found != shape and len(shape) == 2:
                    raise RuntimeError(
                        f"{name}_{suffix} must have the shape {shape}, got {tuple(found)}"
                    )

    def _weight(self, name: str) -> Tensor:
        weight = getattr(self, name)
        if weight is None:
            raise TypeError(
                f"{name} must be a tensor, got None: it was taken away and not set again"
            )
        return weight  # type: ignore[no-any-return]

    def _structure(self) -> Structure:
        return LEAF if len(self.state_names) == 1 else PAIR

    def _made_of(self) -> list[Any] | None:
        return [*self._parameters.values(), *self._modules.values()]

    def _starts_at_zero(self) -> bool:
        return not self.learn_initial_state

    def _output_shapes_of(self, layer: int) -> tuple[tuple[int, ...], ...]:
        width = self._output_width(layer)
        if self.merge == "none" and layer == self.num_layers - 1:
            return ((width,), (width,))
        return ((self._merged(width),),)

    def _initial_state(
        self, cell: Cell, layer: int, direction: int, batch_size: int, like: Tensor
    ) -> State | None:
        if not self.learn_initial_state:
            return super()._initial_state(cell, layer, direction, batch_size, like)
        suffix = f"l{layer}{'_reverse' if direction == 1 else ''}"
        learned = (getattr(self, f"initial_{name}_{suffix}") for name in self.state_names)
        return tuple(start.to(like.dtype).expand(batch_size, -1) for start in learned)

    def _prepare(self, x: Tensor, hx: Nested | None, *, packed: bool, batched: bool) -> None:
        if x.dim() > 3:
            raise ValueError(
                f"{type(self).__name__}: expected input (T, B, F), (B, T, F) or (T, F), "
                f"got {x.dim()}D {tuple(x.shape)}"
            )
        if packed and x.dim() != 2:
            raise RuntimeError(f"input.data must have 2 dimensions (N, F), got {x.dim()}")
        weight_dtype = self.weight_ih_l0.dtype  # of one only: a parametrization computes it anew
        if x.dtype != weight_dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight_dtype}). Convert "
                f"input: input.to({weight_dtype}), or convert model: model.to({x.dtype})"
            )
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, in the order of torch."""
        return [
            [getattr(self, f"{name}_{suffix}") for name in self._shapes(layer)]
            for layer, suffix in self._places()
        ]

    @property
    def _all_weights(self) -> list[list[str]]:
        """Their names, likewise."""
        return [
            [f"{name}_{suffix}" for name in self._shapes(layer)] for layer, suffix in self._places()
        ]

    # What subclasses of torch's layers call, and tools that know them from inside.
    __constants__ = nn.RNNBase.__constants__
    get_expected_hidden_size: Any = nn.RNNBase.get_expected_hidden_size
    check_input: Any = nn.RNNBase.check_input
    check_hidden_size: Any = nn.RNNBase.check_hidden_size
    check_forward_args: Any = nn.RNNBase.check_forward_args
    permute_hidden: Any = nn.RNNBase.permute_hidden

    @property
    def _flat_weights_names(self) -> list[str]:
        """Read, with `_flat_weights`, by tools that know torch's layers from inside."""
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Lay the weights of each layer out as cuDNN wants them; without cuDNN this does nothing."""
        if any(getattr(self, name, None) is None for name in self._flat_weights_names):
            return  # taken away, to be set again by whoever did
        for cells_of_layer in self._cells():
            flatten_weights(cells_of_layer, self.batch_first)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()  # .to() and .cuda() have moved the weights apart
        return result

    def extra_repr(self) -> str:
        sizes = [str(self.input_size), str(self.hidden_size)]
        return ", ".join([*sizes, *self._changed_options(), *self._extra_options()])

    def _extra_options(self) -> list[str]:
        stock = {name: getattr(self.equations, name) for name in self.equations.options}
        return changed_activations(self, **{k: activation_name(f) for k, f in stock.items()})


def _check_arguments(
    input_size: int,
    hidden_size: int | Sequence[int],
    num_layers: int,
    bias: bool,
    proj_size: int,
) -> None:
    """Refuse what torch refuses, with the same types of exceptions."""
    if not isinstance(bias, bool):
        raise TypeError(f"bias should be of type bool, got: {type(bias).__name__}")
    if not isinstance(input_size, int):
        raise TypeError(f"input_size should be of type int, got: {type(input_size).__name__}")
    if input_size <= 0:
        raise ValueError(f"input_size must be greater than zero, got {input_size}")
    is_one = not isinstance(hidden_size, list | tuple)
    widths = [hidden_size] if is_one else list(hidden_size)  # type: ignore[arg-type]
    for width in widths:
        if not isinstance(width, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(width).__name__}")
        if width <= 0:
            raise ValueError(f"hidden_size must be greater than zero, got {width}")
        if proj_size >= width:
            raise ValueError(
                f"proj_size has to be smaller than hidden_size, got {proj_size} and {width}"
            )
    if not is_one and len(widths) != num_layers:
        raise ValueError(
            f"hidden_size must hold one size for each of the {num_layers} layers, got {len(widths)}"
        )
    if proj_size < 0:
        raise ValueError(f"proj_size should be a positive integer or zero, got {proj_size}")
