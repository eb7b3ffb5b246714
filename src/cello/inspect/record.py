"""Records every state and every named value of every step of a recurrent layer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cello.cells.contract import Cell, Equations, State
from cello.compile.describe import free_name
from cello.engines import Direction, DirectionResult, Engine, Scan, Sequence, engine
from cello.engines.reference import Reference
from cello.foreign.undo import Undo
from cello.inspect.capture import Captured, CellCode, Value, captured
from cello.inspect.recording import Recording, Recordings, Rows, Values, data_of
from cello.nn.base import RecurrentLayer
from cello.nn.forms import Form, Lengths

Steps = list[dict[str, Tensor]]
"""For each step, in the order of reading, the value of each name."""

Places = dict[str, tuple["Direction", "_Watched"]]
"""Directions and their watched cells by place, such as ``"l0_reverse"``."""


@overload
def record(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    gradients: bool = False,
    of: Callable[[Any, Any], Tensor] | None = None,
) -> Recording: ...
@overload
def record(
    layer: RecurrentLayer, *, gradients: bool = False
) -> AbstractContextManager[Recordings]: ...
def record(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence | None = None,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    gradients: bool = False,
    of: Callable[[Any, Any], Tensor] | None = None,
) -> Recording | AbstractContextManager[Recordings]:
    """Run `layer` in a Python loop and record every state and every named value of every step.

    Without an input the result is for a ``with`` statement: every call of the layer inside it, wherever
    in a model, is recorded: ``with cello.record(model.lstm) as calls: model(x)``. These calls are the
    model's own. They run in the Python loop, with the same results up to rounding.

    The names are the local variables in the code of the cell: the gates i, f, g and o for
    ``cello.nn.LSTM``, r, z and n for ``GRU``, and the names in your own code for your own cell. If a step
    assigns a name several times, the last value has the plain name, and the earlier values have the names
    ``i#1``, ``i#2``, ...; in an LSTM ``i#1`` is the gate before its sigmoid. The parts of the state have
    their own names and are the states *after* the step. ``input`` is the input of the step, and ``output``
    its output if that is not the first part of the state; they are ``input#0`` and ``output#0`` where a
    part of the state has such a name. Variables in a method of the cell or in a submodule
    have the name of the method or the path of the submodule as a prefix: ``gate.x``. For code that runs
    below Python (a scripted function) only the states are recorded. A tensor counts as a value if its first
    axis is as long as the batch, so also one that is made of weights alone and happens to have that length.

    With an input, the layer, its buffers and its gradients do not change. Dropout draws the same numbers
    as a normal call, but the random generators do not advance.

    Args:
        layer: any layer of :mod:`cello.nn`.
        input: an input of the layer; leave it out in a ``with`` statement.
        hx: an initial state, as for the layer.
        lengths: as for the layer.
        gradients: also take the gradient of a loss with respect to each value. In a ``with`` statement
            the loss is whatever the statement calls ``backward()`` on, and the gradients are there when
            the statement ends; values that need no gradient in the model have none.
        of: the loss, a function from the results of the layer, ``(output, state)``, to a scalar. By
            default the loss is the sum of the last layer's first state after the last step (`h_n`), in
            both directions; of its real part, if it is complex.

    Returns:
        A :class:`Recording`; in a ``with`` statement :class:`Recordings`, one for each call.

    Raises:
        TypeError: `layer` is not a layer of Cello, or `hx`, `lengths` or `of` is given without an input.
        ValueError: `of` without `gradients`, or it does not return a scalar that depends on the layer; or
            no ``backward()`` in a ``with`` statement with `gradients` has reached the layer.
        RuntimeError: the layer is recorded already.

    Example:
        >>> import torch, cello
        >>> lstm, x = cello.nn.LSTM(3, 4), torch.randn(7, 2, 3)
        >>> recording = cello.record(lstm, x, gradients=True)
        >>> f, c = recording["f"], recording["c"]
        >>> f.shape
        torch.Size([7, 2, 4])
        >>> i, g = recording["i"], recording["g"]
        >>> torch.allclose(c[1:], f[1:] * c[:-1] + i[1:] * g[1:])
        True
        >>> recording.gradients["c"].shape, recording.reach("c").shape
        (torch.Size([7, 2, 4]), torch.Size([7, 2]))

        Inside a model:

        >>> with cello.record(lstm) as calls:
        ...     output, _ = lstm(x)
        >>> torch.allclose(calls[0]["h"], output)
        True
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer must be a layer of cello.nn, got {type(layer).__name__}")
    if input is None:
        for name, given in (("hx", hx), ("lengths", lengths), ("of", of)):
            if given is not None:
                raise TypeError(
                    f"{name} needs an input; in a with statement the model's calls have it"
                )
        return _during(layer, gradients)
    if of is not None and not gradients:
        raise ValueError("of: the loss needs gradients=True")
    recorder = _Recorder(gradients)
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        Undo(layer._custom_cells(), data_of(input).device),
    ):
        data = data_of(input).detach().clone()
        if gradients and (data.is_floating_point() or data.is_complex()):
            data.requires_grad_()  # so that every step has a gradient, also if weights are frozen
        x = input._replace(data=data) if isinstance(input, PackedSequence) else data
        form, _ = layer._form(x, hx, lengths)
        with engine(recorder, segment=0):
            returned = layer(x, hx, lengths=lengths)
        recording = _made(layer, recorder, form, returned, data_of(input).device)
        if gradients:
            loss = _last_state(layer, returned[1]) if of is None else of(*returned)
            slopes = _gradients(loss, [watch for _, watch in recorder.places().values()])
            recording.gradients = Values(_in_form(recorder.places(), slopes, form))
    return recording


@contextmanager
def _during(layer: RecurrentLayer, gradients: bool) -> Iterator[Recordings]:
    """Record every call of a layer inside a ``with`` statement; see :func:`record`."""
    if "forward" in vars(layer):
        raise RuntimeError(
            f"layer: this {type(layer).__name__} is recorded already, or its forward was replaced"
        )
    recordings = Recordings(f"{type(layer).__name__}({layer.extra_repr()})")
    calls: list[tuple[Recording, Places, list[list[_Slopes]], Form]] = []
    forward = layer.forward

    def recorded(
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Lengths | None = None,
        **options: Any,
    ) -> Any:
        recorder = _Recorder(gradients)
        form, _ = layer._form(input, hx, lengths)
        with engine(recorder, segment=0):
            returned = forward(input, hx, lengths=lengths, **options)
        with torch.inference_mode(False), torch.no_grad():
            recording = _made(layer, recorder, form, returned, data_of(input).device)
        recordings._recordings.append(recording)
        if gradients:
            places = recorder.places()
            slopes = [[_Slopes(step) for step in w.tensors] for _, w in places.values()]
            for _, watch in places.values():
                watch.tensors.clear()  # their graph ends with the model's
            calls.append((recording, places, slopes, form))
        return returned

    if "torch._dynamo" in sys.modules:  # slow to import; a compiled model calls this in Python
        recorded = torch.compiler.disable(recorded)
    layer.forward = recorded  # type: ignore[method-assign]
    layer._is_recorded = True
    try:
        yield recordings
    finally:
        del layer.forward, layer._is_recorded
    if not gradients:
        return
    if not any(step.found for _, _, watched, _ in calls for steps in watched for step in steps):
        raise ValueError(
            "gradients=True: no backward() inside the with statement has reached the layer"
        )
    for recording, places, watched, form in calls:
        slopes = [[step.slopes() for step in steps] for steps in watched]
        recording.gradients = Values(_in_form(places, slopes, form))


def _made(
    layer: RecurrentLayer, recorder: _Recorder, form: Form, returned: Any, device: torch.device
) -> Recording:
    """Return the recording of a call, without gradients."""
    places = recorder.places()
    rows = 0 if form.sequence is None else len(form.sequence.data)
    return Recording(
        _in_form(places, [watch.kept for _, watch in places.values()], form),
        title=f"{type(layer).__name__}({layer.extra_repr()})",
        output=_detached(returned[0]),
        state=_detached(returned[1]),
        gradients=None,
        state_names=layer._cells()[0][0].state_names,
        reverse={place: direction.reverse for place, (direction, _) in places.items()},
        gates={
            place: tuple(gate.name for gate in direction.cell.gates)
            if isinstance(direction.cell, Equations)
            else ()
            for place, (direction, _) in places.items()
        },
        batch_first=layer.batch_first,
        mask=form.rows(torch.ones(rows, 1, device=device)),
    )


class _Slopes:
    """The gradients of the values of a step, added up as backward passes find them.

    Args:
        step: the values by name, in the graph of autograd.
    """

    def __init__(self, step: dict[str, Tensor]) -> None:
        self.found: dict[str, Tensor] = {}
        self._empty: dict[str, Tensor] = {}
        for name, tensor in step.items():
            if tensor.requires_grad:
                self._empty[name] = torch.zeros_like(tensor).detach()
                tensor.register_hook(partial(self._add, name))

    def _add(self, name: str, slope: Tensor) -> None:
        slope = slope.detach()
        self.found[name] = self.found[name] + slope if name in self.found else slope.clone()

    def slopes(self) -> dict[str, Tensor]:
        """Return the gradient of each value that can have one; zero where none has come."""
        return {**self._empty, **self.found}


class _Recorder(Engine):
    """The Python loop over watched cells."""

    name = "record"
    is_fused = False

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.seen: list[tuple[Scan, list[_Watched]]] = []

    def why_not(self, scan: Scan) -> list[str]:
        return []

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        watched = [_Watched(direction.cell, self.gradients) for direction in scan.directions]
        self.seen.append((scan, watched))
        directions = zip(scan.directions, watched, strict=True)
        return Reference().run(
            scan._replace(directions=tuple(d._replace(cell=watch) for d, watch in directions))
        )

    def places(self) -> Places:
        """Return the directions of all layers by place."""
        return {
            f"l{layer}{'_reverse' if number else ''}": pair
            for layer, (scan, watched) in enumerate(self.seen)
            for number, pair in enumerate(zip(scan.directions, watched, strict=True))
        }


class _Watched(Cell):
    """A cell that records the values of its steps.

    Attributes:
        kept: for each step, copies of the values of each name.
        tensors: for each step, the tensors themselves, in the graph of autograd.
    """

    def __init__(self, cell: Cell, gradients: bool) -> None:
        super().__init__()
        code = CellCode(cell)
        kept: Steps = []
        tensors: Steps = []
        self.borrow(cell=cell, code=code, gradients=gradients, kept=kept, tensors=tensors)

    cell: Cell
    code: CellCode
    gradients: bool
    kept: Steps
    tensors: Steps

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def state_sizes(self) -> Mapping[str, int | tuple[int, ...]]:
        return self.cell.state_sizes

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        with engine("reference"), captured(self.code) as found:  # also for layers inside the cell
            output, new = self.cell(x, state)
        given = (x, *(state or ()), *self.cell.parameters(), *self.cell.buffers())
        states = dict(zip(self.state_names, new, strict=False))
        own = {free_name("input", states): x, **states}
        if not new or output is not new[0]:
            own[free_name("output", states)] = output
        values = _named(found, own, given, len(x))
        self.kept.append({name: value.copy for name, value in values.items()})
        if self.gradients:
            self.tensors.append({k: v.tensor for k, v in values.items() if v.is_current})
        return output, new


def _named(
    found: Captured, own: dict[str, Tensor], given: tuple[Tensor, ...], rows: int
) -> dict[str, Value]:
    """Give each value of a step its name.

    Args:
        found: the values of the names in the cell's code.
        own: the input, the state after the step and the output, which already have names.
        given: tensors that the step did not compute; they are not recorded.
        rows: the number of rows of the step; a tensor with another one is not recorded.
    """
    left_out = {id(tensor) for tensor in given}
    last: dict[str, Value] = {}
    earlier: dict[str, Value] = {}
    for name, values in found.items():
        versions = [
            value
            for value in values
            if value.tensor.dim() > 0
            and len(value.tensor) == rows
            and id(value.tensor) not in left_out
        ]
        if name not in own and versions:
            last[name] = versions.pop()
        elif versions and versions[-1].tensor is own.get(name):
            versions.pop()
        earlier |= {f"{name}#{k}": value for k, value in enumerate(versions, 1)}
    return {**last, **{name: Value.of(tensor) for name, tensor in own.items()}, **earlier}


def _join(steps: Steps, sequence: Sequence, reverse: bool) -> dict[str, Tensor]:
    """Join the values of all steps to (N, ...) each, in the order of the input rows."""
    joined = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        present = [step[name] for step in steps if name in step]
        like = present[0]
        if any(part.shape[1:] != like.shape[1:] or part.dtype != like.dtype for part in present):
            continue  # values that differ in shape from step to step cannot be joined
        empty = float("nan") if like.is_floating_point() or like.is_complex() else 0
        rows = torch.cat(
            [
                step[name] if name in step else like.new_full((size, *like.shape[1:]), empty)
                for step, size in zip(steps, sequence.batch_sizes, strict=True)
            ]
        )
        joined[name] = sequence.reverse_rows(rows) if reverse else rows
    return joined


def _in_form(places: Places, steps: list[Steps], form: Form) -> dict[str, dict[str, Rows]]:
    """Convert the values of each place to the caller's form."""
    found: dict[str, dict[str, Rows]] = {}
    for (place, (direction, _)), own in zip(places.items(), steps, strict=True):
        assert form.sequence is not None  # otherwise nothing has run
        rows = _join(own, form.sequence, direction.reverse)
        found[place] = {name: form.rows(part) for name, part in rows.items()}
    return found


def _last_state(layer: RecurrentLayer, state: Any) -> Tensor:
    """Return the sum of the last layer's first state after the last step, in both directions.

    Raises:
        ValueError: nothing of the layer can have a gradient.
    """
    first = layer._structure().flatten(state)[0]
    last = first[-layer.num_directions :] if isinstance(first, Tensor) else first[-1]
    if not last.requires_grad:
        raise ValueError(
            "gradients=True: the last state depends on nothing that can have a gradient; expected weights "
            "that are not frozen, or an input of floating-point numbers, and a sequence with a step"
        )
    return last.real.sum()  # of numbers that are not complex this is all


def _gradients(loss: Any, watched: list[_Watched]) -> list[Steps]:
    """Return the gradient of `loss` with respect to every value that has one.

    Raises:
        ValueError: `loss` is not a real scalar, or no value of the layer has a gradient.
    """
    expected = "the loss must be a real scalar tensor that depends on the layer's values, got"
    if not isinstance(loss, Tensor):
        raise ValueError(f"{expected} {type(loss).__name__}")
    if loss.numel() != 1 or loss.is_complex():
        kind = "a complex tensor" if loss.is_complex() else "a tensor"
        raise ValueError(f"{expected} {kind} {tuple(loss.shape)}")
    tensors = [
        tensor
        for watch in watched
        for step in watch.tensors
        for tensor in step.values()
        if tensor.requires_grad
    ]
    found: tuple[Tensor | None, ...] = ()
    if loss.requires_grad and tensors:
        found = torch.autograd.grad(loss.sum(), tensors, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise ValueError(f"{expected} one that depends on none of them")
    left = iter(found)
    return [
        [
            {
                name: _or_zero(next(left), tensor)
                for name, tensor in step.items()
                if tensor.requires_grad
            }
            for step in watch.tensors
        ]
        for watch in watched
    ]


def _or_zero(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if gradient is None else gradient


def _detached(nested: Any) -> Any:
    """Return an output or a state with the same structure, detached from its graph."""
    if isinstance(nested, Tensor):
        return nested.detach()
    if isinstance(nested, PackedSequence):
        return nested._replace(data=nested.data.detach())
    items = [_detached(item) for item in nested]
    return type(nested)(*items) if hasattr(nested, "_fields") else type(nested)(items)
