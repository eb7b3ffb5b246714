"""A scan as an operator of torch, for what sees operators only: torch.compile, torch.export, fake tensors.

``cello::scan`` runs all steps of one direction, ``cello::scan_backward`` all steps of its gradient. What
runs is written in their first argument (:mod:`cello.compile.text`), so that a graph that holds one can be
saved and run in another process, which needs to import cello and nothing else: on any device for which an
engine has registered its kernels.

With `lengths` the rows of both are those of a padded batch (T, B): what a graph knows of its sequences is
how many steps these have at most. The rows that count are packed when it runs (:mod:`.padded`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from cello.compile import Loops, Program, text
from cello.engines.programs.kernel import Kernel, contiguous
from cello.engines.programs.padded import Tensors, divided, scan_padded, scan_padded_backward
from cello.engines.programs.second import gradients_in_torch
from cello.engines.sequence import Layout

_programs: WeakValueDictionary[str, Program] = WeakValueDictionary()
"""The programs of this process, by what their kernels are written as; they know the step in torch."""

_kinds: dict[str, type[Kernel[Any]]] = {}
"""What runs the operators, by the type of device that it is registered for."""

_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
"""On a GPU an operator captures its steps itself, in memory that it keeps."""
_operators = torch.library.Library("cello", "DEF")
_operators.define(
    "scan(str program, Tensor[] inputs, Tensor[] statics, Tensor[] states, Tensor? batch_sizes, "
    "SymInt rows, bool descending, Tensor? lengths=None) -> Tensor[]",
    tags=_TAGS,
)
_operators.define(
    "scan_backward(str program, Tensor[] gradients, bool[] given, Tensor[] inputs, Tensor[] statics, "
    "Tensor[] states, Tensor[] kept, Tensor? batch_sizes, SymInt rows, bool descending, "
    "Tensor? lengths=None) -> Tensor[]",
    tags=_TAGS,
)


class Counts(NamedTuple):
    """How many tensors of each kind a direction has."""

    inputs: int
    statics: int
    states: int


class _Forward(NamedTuple):
    """The arguments of ``cello::scan`` in their order, or something of each."""

    program: Any
    inputs: Any
    statics: Any
    states: Any
    batch_sizes: Any
    rows: Any
    descending: Any
    lengths: Any = None


class _Backward(NamedTuple):
    """The same of ``cello::scan_backward``."""

    program: Any
    gradients: Any
    given: Any
    inputs: Any
    statics: Any
    states: Any
    kept: Any
    batch_sizes: Any
    rows: Any
    descending: Any
    lengths: Any = None


def scan_operator(
    kernel: Kernel[Any],
    program: Program,
    layout: Layout,
    descending: bool,
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
) -> tuple[Tensors, Tensors]:
    """Run a scan through the operator; return the output and the kept states, and the final states."""
    _programs[kernel.text] = program
    found: Tensors = torch.ops.cello.scan(
        *(kernel.text, inputs, statics, states),
        *(layout.sizes_tensor, layout.rows, descending, layout.lengths),
    )
    first, second = len(kernel.widths), len(kernel.widths) + len(states)
    return found[:first], found[first:second]


def scan_backward_operator(
    written: str,
    loops: Loops,
    batch_sizes: Tensor | None,
    rows: int,
    descending: bool,
    gradients: Sequence[Tensor | None],
    groups: Sequence[Sequence[Tensor]],
    kept: Sequence[Tensor | None],
    lengths: Tensor | None = None,
) -> list[Tensor | None]:
    """Return the gradients of the inputs, statics and states of a scan, through the operator.

    Args:
        written: what ran, as a text.
        loops: what ran.
        batch_sizes: (T,) the rows of each step, or ``None`` where all have as many.
        rows: N.
        descending: the direction of the forward loop.
        gradients: of the results and the final states; ``None`` for zero.
        groups: the inputs, the statics and the states.
        kept: those of the results that the backward loop reads, and what was saved.
        lengths: (B,) how many steps of each sequence count, or ``None`` if all do.
    """
    found = iter(
        torch.ops.cello.scan_backward(
            written,
            [gradient for gradient in gradients if gradient is not None],
            [gradient is not None for gradient in gradients],
            *map(list, groups),
            [tensor for tensor in kept if tensor is not None],
            batch_sizes,
            rows,
            descending,
            lengths,
        )
    )
    return [next(found) if is_wanted else None for is_wanted in loops.gets_gradient]


def register(kind: type[Kernel[Any]]) -> None:
    """Let the operators run on the devices of an engine's kernels as these."""
    for device_type in kind.device_types:
        _kinds[device_type] = kind
        key = device_type.upper()
        _operators.impl("scan", partial(_scan, device_type), key)
        _operators.impl("scan_backward", partial(_scan_backward, device_type), key)


def is_registered(kind: type[Kernel[Any]]) -> bool:
    """Whether these kernels are what the operators run on all their devices."""
    return all(_kinds.get(device_type) is kind for device_type in kind.device_types)


def _scan(
    device_type: str,
    program: str,
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
    batch_sizes: Tensor | None,
    rows: int,
    descending: bool,
    lengths: Tensor | None = None,
) -> Tensors:
    kernel = _kinds[device_type].read(program)
    if lengths is not None:
        run = partial(_scan, device_type, program)
        return scan_padded(kernel, run, inputs, statics, states, rows, descending, lengths)
    groups, batch_sizes = _checked(kernel, rows, (inputs, statics, states), batch_sizes)
    call, results, finals, saved = kernel.forward(
        _steps(batch_sizes, rows, states), rows, batch_sizes, descending, *groups
    )
    kernel.run([call])
    return [*results, *finals, *saved]


def _scan_fake(
    program: str,
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
    batch_sizes: Tensor | None,
    rows: int,
    descending: bool,
    lengths: Tensor | None = None,
) -> Tensors:
    streams, like = text.read(program).forward.streams, states[0]
    results = [like.new_empty((rows, width)) for width in streams.results]
    finals = [state.new_empty(state.shape) for state in states]
    return [*results, *finals, *(like.new_empty((rows, width)) for width in streams.saved if width)]


def _scan_backward(
    device_type: str,
    program: str,
    gradients: Tensors,
    given: list[bool],
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
    kept: Tensors,
    batch_sizes: Tensor | None,
    rows: int,
    descending: bool,
    lengths: Tensor | None = None,
) -> Tensors:
    kernel = _kinds[device_type].read(program)
    if lengths is not None:
        run = partial(_scan_backward, device_type, program)
        groups = (inputs, statics, states)
        return scan_padded_backward(
            kernel, run, gradients, given, groups, kept, rows, descending, lengths
        )
    groups, batch_sizes = _checked(kernel, rows, (inputs, statics, states), batch_sizes)
    present, read = iter(contiguous(gradients)), iter(contiguous(kept))
    seeds = [next(present) if is_given else None for is_given in given]
    results = [next(read) if is_read else None for is_read in kernel.reads]
    saved = next(read, None)
    kernel.check_gradients(rows, len(states[0]), seeds, results, saved)
    call, found = kernel.backward(
        _steps(batch_sizes, rows, states),
        rows,
        batch_sizes,
        descending,
        seeds,
        *groups,
        results,
        saved,
    )
    kernel.run([call])
    return [tensor for tensor in kernel.in_their_dtypes(found) if tensor is not None]


def _scan_backward_fake(
    program: str,
    gradients: Tensors,
    given: list[bool],
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
    kept: Tensors,
    batch_sizes: Tensor | None,
    rows: int,
    descending: bool,
    lengths: Tensor | None = None,
) -> Tensors:
    wanted = text.read(program).gets_gradient
    return [
        tensor.new_empty(tensor.shape)
        for tensor, is_wanted in zip((*inputs, *statics, *states), wanted, strict=True)
        if is_wanted
    ]


def _checked(
    kernel: Kernel[Any],
    rows: int,
    groups: tuple[Tensors, Tensors, Tensors],
    batch_sizes: Tensor | None,
) -> tuple[tuple[Tensors, Tensors, Tensors], Tensor | None]:
    """What an operator was given, as a kernel takes it."""
    inputs, statics, states = map(contiguous, groups)
    batch_sizes = None if batch_sizes is None else batch_sizes.contiguous()
    kernel.check(rows, inputs, statics, states, batch_sizes)
    return (inputs, statics, states), batch_sizes


def _steps(batch_sizes: Tensor | None, rows: int, states: Tensors) -> int:
    return rows // max(1, len(states[0])) if batch_sizes is None else len(batch_sizes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    given = _Forward(*inputs)
    reads = text.read(given.program).reads_results
    count = len(reads)
    kept = [r for r, is_read in zip(output[:count], reads, strict=True) if is_read]
    kept += output[count + len(given.states) :]
    ctx.set_materialize_grads(False)
    tensors = *given.inputs, *given.statics, *given.states, *kept
    ctx.save_for_backward(*tensors, given.batch_sizes, given.lengths)
    ctx.counts = len(given.inputs), len(given.statics), len(given.states), len(kept)
    ctx.options = given.program, given.rows, given.descending


def _split(ctx: Any) -> tuple[list[Tensors], Tensor | None, Tensor | None]:
    """What was saved, in its groups, the rows of each step, and the lengths."""
    *tensors, batch_sizes, lengths = ctx.saved_tensors
    return divided(tensors, ctx.counts), batch_sizes, lengths


def _scan_gradient(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    program, rows, descending = ctx.options
    loops = text.read(program)
    (inputs, statics, states, kept), batch_sizes, lengths = _split(ctx)
    needed = _Forward(*ctx.needs_input_grad)
    for needs, has in zip((needed.inputs, needed.statics), loops.wanted, strict=True):
        if any(need and not flag for need, flag in zip(needs, has, strict=True)):
            raise RuntimeError(
                "this scan was traced where a tensor did not need a gradient that needs one now; "
                "trace or export the model again with requires_grad as it is needed"
            )
    seeds = gradients[: len(loops.reads_results) + len(states)]  # what was saved gets none
    groups = inputs, statics, states
    found = scan_backward_operator(
        program, loops, batch_sizes, rows, descending, seeds, groups, kept, lengths
    )
    counts = Counts(len(inputs), len(statics), len(states))
    of_inputs, of_statics, of_states = divided(found, counts)
    gradient = _Forward(None, of_inputs, of_statics, of_states, None, None, None)
    return (
        gradient if lengths is not None else gradient[:-1]
    )  # torch leaves out a default at the end


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    had = _Backward(*inputs)
    ctx.set_materialize_grads(False)
    tensors = *had.gradients, *had.inputs, *had.statics, *had.states
    ctx.save_for_backward(*tensors, had.batch_sizes, had.lengths)
    ctx.counts = len(had.gradients), len(had.inputs), len(had.statics), len(had.states)
    ctx.options = had.program, had.given, had.rows, had.descending, len(had.kept)


def _scan_backward_gradient(ctx: Any, seeds: list[Tensor | None]) -> tuple[Any, ...]:
    """Second derivatives. What was kept depends on the inputs, whose gradients account for it."""
    written, given, rows, descending, kept = ctx.options
    program, wanted = _programs.get(written), text.read(written).gets_gradient
    groups, batch_sizes, lengths = _split(ctx)
    if lengths is not None:
        raise RuntimeError(
            "a graph has no second derivatives of a scan with lengths; take them from the layer itself"
        )
    if program is None:
        raise RuntimeError(
            "second derivatives of a scan need the cell that it was made from, which an exported model "
            "does not hold; take them from the layer itself"
        )
    create_graph = torch.is_grad_enabled()
    _, _, _, (state, *_) = groups
    layout = (
        Layout(rows // len(state), len(state))
        if batch_sizes is None
        else Layout.of(tuple(batch_sizes.tolist()))
    )
    with torch.enable_grad():
        # As in gradients_in_torch: none of these must lead on to another one.
        gradients, inputs, statics, states = (
            [
                (t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_())
                for t in group
            ]
            for group in groups
        )
        present = iter(gradients)
        first = gradients_in_torch(
            program,
            nn.Module(),
            layout.sizes,
            descending,
            (inputs, statics, states),
            wanted,
            [next(present) if is_given else None for is_given in given],
            create_graph=True,
        )
        results = [r for r, is_wanted in zip(first, wanted, strict=True) if is_wanted]
        pairs = [
            (result, seed)
            for result, seed in zip(results, seeds, strict=True)
            if result is not None and seed is not None and result.requires_grad
        ]
        everything = [*gradients, *inputs, *statics, *states]
        found = (
            torch.autograd.grad(
                [result for result, _ in pairs],
                everything,
                [seed for _, seed in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
            if pairs
            else (None,) * len(everything)
        )
    of_gradients, of_inputs, of_statics, of_states = divided(found, ctx.counts)
    none = [None] * kept
    gradient = _Backward(
        None, of_gradients, None, of_inputs, of_statics, of_states, none, None, None, None
    )
    return tuple(gradient[:-1])  # as above


torch.library.register_fake("cello::scan", _scan_fake, lib=_operators)
torch.library.register_fake("cello::scan_backward", _scan_backward_fake, lib=_operators)
torch.library.register_autograd("cello::scan", _scan_gradient, setup_context=_save, lib=_operators)
torch.library.register_autograd(
    "cello::scan_backward", _scan_backward_gradient, setup_context=_save_backward, lib=_operators
)
