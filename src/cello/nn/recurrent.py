"""Any cell as a full layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from cello.cells.contract import Cell, CellError, Equations, State
from cello.engines import observe
from cello.foreign.adapt import Adapted, CellForm, FunctionCell, adapt
from cello.foreign.apart import TRIAL_LOCK, unobserved
from cello.foreign.guess import StateSize
from cello.foreign.structure import Nested, Structure, describe
from cello.foreign.trial import learn_form
from cello.nn.base import Cells, RecurrentLayer
from cello.nn.cells import equations_of, stock_parts
from cello.nn.options import MADE


class Recurrent(RecurrentLayer):
    """A layer, or layers, of a cell written in any PyTorch code.

    A cell is a :class:`cello.Cell`, or any ``nn.Module`` or function in the style of
    ``nn.LSTMCell``: ``(x, state) -> state`` or ``(x, state) -> (output, state)``, with x (B, F) and a
    state that is a tensor, a tuple, a named tuple or a nested tuple of tensors (B, ...). Where it
    returns the state alone, the output is the state's first tensor. The state of the layer is nested
    as the cell nests its own, each tensor (L*D, B, ...).

    What the state looks like is taken, in this order, from: the cell if it is a ``cello.Cell``;
    `state_size`; the `hx` of the first call; the cell's own default if it may be called without a
    state; a trial with a tensor and with tuples of up to four tensors of one width, or two of
    different widths: the cell's ``hidden_size``, or those of its weights, its buffers and its input.
    Two readings of what a cell returns are told apart by structure: the state that comes out must be
    like the one that went in. Where more than one state fits, `state_size` is asked for.

    Args:
        cell: one cell, for one layer of one direction; or, together with `input_size`, a class of cells
            or a function that makes one. It is called for each layer and direction, as
            ``cell(features)`` or ``cell(features, hidden_size)``, with F for layer 0 and the width of
            the layer below for the others.
        input_size: F, only for a class or function that makes cells; these read (B, F). Of cells that
            read (B, ...), such as images (B, channels, height, width), the sizes of one step; then `cell`
            is called with these, as a ``torch.Size``, in the place of F.
        hidden_size: handed on to `cell` as its second argument, if it is given; a list or tuple of L
            gives each layer its own. It is the first width that the trial of a state tries.
        num_layers: L; this and `batch_first`, `dropout`, `bidirectional`, `merge` and `reverse` are as in
            :class:`RNNBase`.
        batch_first: see there.
        dropout: see there.
        bidirectional: see there.
        merge: see there.
        reverse: see there.
        state_size: the width of the state; for a tuple, a nested or a named one, widths nested in the
            same way; a dict for one, or to name the parts of a tuple; a ``torch.Size`` in the place of a
            width for a state of several axes (in a dict a tuple will do).
        **options: handed on to `cell` as they are, such as ``bias=False``.

    Shape:
        See :meth:`RecurrentLayer.forward`.

    Raises:
        CellError: what was given is not a cell (a ``TypeError``); the message says which rule it
            breaks. One cell is tried at the first call, cells that are made here when they are made.
        ValueError: one cell with options that need several, or a value out of range.
        TypeError: an argument of the wrong type, or one that neither the layer nor `cell` takes.

    Example:
        >>> layer = Recurrent(nn.LSTMCell(3, 4))
        >>> output, (h_n, c_n) = layer(torch.randn(7, 2, 3))
        >>> output.shape, c_n.shape
        (torch.Size([7, 2, 4]), torch.Size([1, 2, 4]))
        >>> def leaky(x, h):
        ...     return 0.9 * h + 0.1 * x
        >>> output, h_n = Recurrent(leaky, state_size=3)(torch.ones(7, 2, 3))
        >>> deep = Recurrent(nn.GRUCell, 3, 5, num_layers=2, bidirectional=True)
        >>> deep(torch.randn(7, 2, 3))[0].shape
        torch.Size([7, 2, 10])
        >>> deep.extra_repr()
        'GRUCell(3, 5), num_layers=2, bidirectional=True'
        >>> layer = Recurrent(lambda f: nn.GRUCell(f, 2 * f), 3, num_layers=2)  # each twice as wide
        >>> layer(torch.randn(7, 2, 3))[0].shape
        torch.Size([7, 2, 12])
    """

    def __init__(
        self,
        cell: nn.Module | Callable[..., Any],
        input_size: int | Sequence[int] | None = None,
        hidden_size: Any = None,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: str = "concat",
        reverse: bool = False,
        state_size: StateSize | None = None,
        **options: Any,
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
        self.input_size = input_size
        self.hidden_size = tuple(hidden_size) if isinstance(hidden_size, list) else hidden_size
        self.state_size = state_size
        self._made_as: str | None = None
        self.cells = nn.ModuleDict()
        self._forms: dict[str, CellForm] = {}
        self._adapted = _Adapted()
        if input_size is None:
            self._take_cell(cell, options)
        else:
            self._make_cells(cell, input_size, options)
        vars(self)[MADE] = True

    def _is_known(self) -> bool:
        return bool(self._forms)

    def _input_axes(self) -> int | None:
        return len(self._forms["l0"].input_shape) if self._forms else None

    def _names(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: self.num_directions]

    def _take_cell(self, cell: nn.Module | Callable[..., Any], options: dict[str, Any]) -> None:
        if isinstance(cell, type):
            raise ValueError(
                f"cell is the class {cell.__name__}; give an instance of it, "
                f"Recurrent({cell.__name__}(28, 20)), or its sizes: Recurrent({cell.__name__}, 28, 20)"
            )
        if self.num_layers * self.num_directions > 1:
            raise ValueError(
                "one cell is one layer of one direction; for more give its class, or a function that "
                "makes a cell for an input size, and sizes: Recurrent(MyCell, 28, 20, num_layers=2)"
            )
        if self.hidden_size is not None or options:
            name = "hidden_size" if self.hidden_size is not None else next(iter(options))
            raise TypeError(
                f"Recurrent got an unexpected argument {name!r}: arguments of a cell are for a class or "
                "function that makes cells, together with input_size"
            )
        if not isinstance(cell, nn.Module) and _makes_cells(cell):
            raise ValueError(
                "cell takes one argument: if it makes cells, it needs input_size= to be called with; "
                "if it is a cell, it must take x and a state"
            )
        self.cells["l0"] = _as_module(cell, f"cell must be a module or a function, got {cell!r}")

    def _make_cells(
        self, factory: Callable[..., Any], input_size: int | Sequence[int], options: dict[str, Any]
    ) -> None:
        if isinstance(factory, nn.Module):
            raise ValueError(
                "input_size is for a class or function that makes cells; a cell goes without it"
            )
        features: int | torch.Size
        if isinstance(input_size, int):
            features = input_size
        elif (
            isinstance(input_size, tuple | list)
            and input_size
            and all(type(n) is int for n in input_size)
        ):
            features = torch.Size(input_size)
        else:
            given = (
                input_size if isinstance(input_size, tuple | list) else type(input_size).__name__
            )
            raise TypeError(
                "input_size should be of type int, or a tuple of ints for steps of several axes, "
                f"got: {given}"
            )
        if min(_shape_of(features)) <= 0:
            raise ValueError(f"input_size must be greater than zero, got {input_size}")
        if isinstance(self.hidden_size, tuple) and len(self.hidden_size) != self.num_layers:
            raise ValueError(
                f"hidden_size must hold one size for each of the {self.num_layers} layers, got "
                f"{len(self.hidden_size)}"
            )
        sizes = () if self.hidden_size is None else (self.hidden_size,)
        shown = ", ".join(
            [
                *map(repr, (features, *sizes)),
                *(f"{key}={value!r}" for key, value in options.items()),
            ]
        )
        try:
            inspect.signature(factory).bind(features, *sizes, **options)
        except TypeError as error:
            is_one_more = self.hidden_size is not None and "positional" in str(error)
            hint = "; the number of layers is num_layers=" if is_one_more else ""
            raise TypeError(
                f"with input_size, cell is called as cell({shown}) and must make a cell: {error}{hint}"
            ) from None
        except ValueError:  # some built-in functions have no signature
            pass
        if isinstance(factory, type):
            self._made_as = f"{factory.__name__}({shown})"
        for layer in range(self.num_layers):
            if isinstance(self.hidden_size, tuple):
                sizes = (self.hidden_size[layer],)
            for name in self._names(layer):
                cell = factory(features, *sizes, **options)
                module = _as_module(cell, f"cell({shown}) must return a cell, it returned {cell!r}")
                if any(module is other for other in self.cells.values()):
                    raise ValueError(
                        "cell returned the same module twice; it must make a new one at each call"
                    )
                self.cells[name] = module
                try:
                    self._forms[name] = self._learn_made(module, features, *sizes)
                except CellError as error:
                    if layer == 0:
                        raise
                    raise CellError(
                        f"in layer {layer}, which reads {_told(features)}: {error}"
                    ) from error.__cause__
                first = self._forms["l0"]
                if not self._forms[name].structure.same_as(first.structure):
                    raise CellError(
                        f"cell must make cells with states of one structure: the first has "
                        f"{first.structure}, {name} has {self._forms[name].structure}"
                    )
            self._hold_to_one_shape(layer)
            (shape, *_) = self._output_shapes_of(layer)
            features = shape[0] if isinstance(features, int) else torch.Size(shape)

    def _learn_made(
        self, module: nn.Module, features: int | torch.Size, width: int | None = None
    ) -> CellForm:
        """Find out the form of a cell, which may read complex numbers if it has no other weights."""
        measured = [p for p in module.parameters() if p.is_floating_point() or p.is_complex()]
        like = min(measured, key=Tensor.is_complex, default=torch.empty(0))

        def learn(dtype: torch.dtype) -> CellForm:
            x = like.new_empty(1, *_shape_of(features), dtype=dtype)
            return learn_form(module, x, state_size=self.state_size, width=width)

        try:
            return learn(like.dtype.to_real())
        except CellError:
            if like.is_complex():
                with suppress(CellError):
                    return learn(like.dtype)
            raise

    def _hold_to_one_shape(self, layer: int) -> None:
        """Refuse directions of a layer that cannot be put together.

        Raises:
            CellError: their states differ in shape, or their outputs in what `merge` needs to be equal.
        """
        first, *others = (self._forms[name] for name in self._names(layer))
        for second in others:
            axes = 1 if self.merge in ("concat", "none") else 0
            for what, a, b in (
                ("states", first.shapes, second.shapes),
                (
                    f"outputs, with merge={self.merge!r},",
                    first.output_shape[axes:],
                    second.output_shape[axes:],
                ),
            ):
                if a != b:
                    raise CellError(
                        f"cell must make cells with {what} of the same shape for the two directions of "
                        f"layer {layer}; got {a} and {b}"
                    )

    def _output_shapes_of(self, layer: int) -> tuple[tuple[int, ...], ...]:
        shapes = tuple(self._forms[name].output_shape for name in self._names(layer))
        if len(shapes) == 1 or (self.merge == "none" and layer == self.num_layers - 1):
            return shapes
        if self.merge in ("concat", "none"):
            return ((shapes[0][0] + shapes[1][0], *shapes[0][1:]),)
        return shapes[:1]

    def _prepare(self, x: Tensor, hx: Nested | None, *, packed: bool, batched: bool) -> None:
        features = tuple(x.shape[(1 if packed else 2 if batched else 1) :])
        if not self._forms:
            self._learn(x.new_empty(1, *features), hx, batched=batched)
        expected = self._forms["l0"].input_shape
        if features != expected:
            raise RuntimeError(f"input must have the features {expected}, got {tuple(x.shape)}")

    def _learn(self, x: Tensor, hx: Nested | None, *, batched: bool) -> None:
        """Find out the form of the one cell; an `hx` shows what its state looks like."""
        example = None
        if hx is not None:
            try:
                structure = Structure.of(hx)
            except TypeError as error:
                raise RuntimeError(f"hx: {error}") from None
            leaves = structure.flatten(hx)
            for leaf in leaves:
                if leaf.dim() < (2 if batched else 1) or len(leaf) != 1:
                    raise RuntimeError(
                        "each part of hx must be (L*D, B, ...), or (L*D, ...) without a batch, with "
                        f"L*D = 1; got {describe(hx)}"
                    )
            example = structure.unflatten([leaf[0] if batched else leaf for leaf in leaves])
        with (
            TRIAL_LOCK,
            observe(),
            torch.inference_mode(False),
            unobserved(),
        ):  # what the trial runs is no layer of this one
            if not self._forms:
                try:
                    self._forms["l0"] = learn_form(
                        self.cells["l0"], x, state_size=self.state_size, state=example
                    )
                except CellError as error:
                    if batched or x.is_floating_point():
                        raise
                    raise CellError(
                        f"{error}\nIntegers (T, B) are read as one sequence, (T, F): for one of them a "
                        "step give input.unsqueeze(-1), (T, B, 1), and read x[:, 0] in the cell."
                    ) from error.__cause__

    def _initial_state(
        self, cell: Cell, layer: int, direction: int, batch_size: int, like: Tensor
    ) -> State | None:
        state = super()._initial_state(cell, layer, direction, batch_size, like)
        if isinstance(cell, Adapted) or type(cell).initial_state is Cell.initial_state:
            return state
        expected = [(batch_size, *shape) for shape in cell.state_shapes.values()]
        is_state = isinstance(state, tuple) and all(isinstance(part, Tensor) for part in state)
        if not is_state or [tuple(part.shape) for part in state or ()] != expected:
            raise CellError(
                f"initial_state of {cell.label} must return a tuple of one tensor for each of "
                f"{', '.join(cell.state_names)}, of the shapes {expected}; got {describe(state)}"
            )
        return state

    def _cells(self) -> Cells:
        return [
            tuple(self._cell(name) for name in self._names(layer))
            for layer in range(self.num_layers)
        ]

    def _custom_cells(self) -> nn.Module:
        return self.cells

    def _cell(self, name: str) -> Cell:
        module, form = self.cells[name], self._forms[name]
        equations = equations_of(module)
        if equations is not None:
            return equations
        known = self._adapted.get(name)
        if not isinstance(known, Adapted) or known.cell is not module or known.form is not form:
            # Kept for the next call: what is known of a cell is known of the object.
            known = self._adapted[name] = adapt(module, form)
        return known

    def _made_of(self) -> list[Any] | None:
        made_of: list[Any] = []
        for name, module in self.cells.items():
            form = self._forms[name]
            if any(form.dtypes):  # a state that starts at integers
                return None
            made_of += (module, form, *(stock_parts(module) or ()))
        return made_of

    def _starts_at_zero(self) -> bool:
        return all(
            type(cell).initial_state is Cell.initial_state and "initial_state" not in vars(cell)
            if isinstance(cell, Cell)
            else not self._forms[name].makes_initial_state or stock_parts(cell) is not None
            for name, cell in self.cells.items()
        )

    def _structure(self) -> Structure:
        return self._forms["l0"].structure

    def extra_repr(self) -> str:
        parts = [self._made_as or _written(self.cells["l0"])]
        if "(" not in parts[0] and self.input_size is not None:
            parts.append(f"input_size={self.input_size}")
        return ", ".join(parts + self._changed_options())


def _shape_of(features: int | torch.Size) -> tuple[int, ...]:
    return (features,) if isinstance(features, int) else tuple(features)


def _told(features: int | torch.Size) -> str:
    return f"{features} features" if isinstance(features, int) else f"steps of {tuple(features)}"


def _written(cell: nn.Module) -> str:
    """A cell as its author may have written it, as far as that can be told."""
    if isinstance(cell, FunctionCell):
        return cell.extra_repr().strip("<>")  # of a lambda
    arguments = cell.extra_repr()
    if not arguments:
        sizes = [getattr(cell, name, None) for name in ("input_size", "hidden_size")]
        arguments = ", ".join(str(size) for size in sizes if type(size) is int)
    if not arguments or "\n" in arguments:
        return type(cell).__name__
    return f"{type(cell).__name__}({arguments})"


class _Adapted(dict[str, Cell]):
    """Cells as the engines see them; copies of a layer begin with none."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Adapted, ()


def _as_module(cell: Any, otherwise: str) -> nn.Module:
    if isinstance(cell, nn.RNNBase | RecurrentLayer):
        name = type(cell).__name__
        raise CellError(
            f"{name} is a layer already, which runs over whole sequences: use cello.nn.{name} itself. "
            "Recurrent takes the code of one step, such as nn.LSTMCell"
        )
    if isinstance(cell, Equations) and not all(
        isinstance(vars(cell)[name], Tensor | None) for name in cell.weights
    ):
        name = type(cell).__name__
        raise CellError(
            f"cells.{name} holds equations over given weights; the layer with weights is cello.nn.{name}"
        )
    if not callable(cell) or isinstance(cell, type):
        raise CellError(otherwise)
    return cell if isinstance(cell, nn.Module) else FunctionCell(cell)


def _makes_cells(function: Callable[..., Any]) -> bool:
    """Whether a function has one positional parameter, so that it cannot be a cell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not a function, or a built-in one without a signature
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    has_more = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    return len(positional) == 1 and not has_more
