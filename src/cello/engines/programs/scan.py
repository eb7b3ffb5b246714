"""The directions of one layer as differentiable functions of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cello.cells.contract import Cell
from cello.compile import Links, Program, Wanted
from cello.engines.programs.kernel import Kernel, lost
from cello.engines.programs.operator import Counts, scan_backward_operator, scan_operator
from cello.engines.programs.padded import divided
from cello.engines.programs.second import gradients_in_torch
from cello.engines.sequence import Layout

_PLAIN = {Tensor, torch.nn.Parameter}


class OneWay(NamedTuple):
    """What is to be computed in one direction.

    Attributes:
        program: the compiled cell.
        cell: the cell itself, for second derivatives.
        descending: whether time runs from T - 1 to 0.
        inputs: (N, width) each, contiguous.
        statics: what is the same for all steps, contiguous.
        states: (B, width) each, contiguous.
    """

    program: Program
    cell: Cell
    descending: bool
    inputs: list[Tensor]
    statics: list[Tensor]
    states: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [*self.inputs, *self.statics, *self.states]


Found = tuple[list[Tensor], list[Tensor]]
"""The output and, if they are kept, the states of all steps, (N, width) each; the final states."""


def scan(
    kind: type[Kernel[Any]], ways: list[OneWay], layout: Layout, keep_states: bool
) -> list[Found]:
    """Run all steps of one or two directions, at the same time where that takes less time.

    Args:
        kind: what runs them.
        ways: the directions.
        layout: the rows of each step.
        keep_states: whether the states of all steps are wanted.
    """
    kernels = [_kernel(kind, way, keep_states) for way in ways]
    if len(ways) > 1 and not _are_better_together(ways, kernels, layout):
        pairs = zip(ways, kernels, strict=True)
        return [_scan([way], [kernel], layout, keep_states)[0] for way, kernel in pairs]
    return _scan(ways, kernels, layout, keep_states)


def _kernel(kind: type[Kernel[Any]], way: OneWay, keep_states: bool) -> Kernel[Any]:
    wanted = None
    if torch.is_grad_enabled():
        inputs = tuple([tensor.requires_grad for tensor in way.inputs])
        statics = tuple([tensor.requires_grad for tensor in way.statics])
        if True in inputs or True in statics or any(s.requires_grad for s in way.states):
            wanted = Wanted(inputs, statics)
    return kind.of(way.program, keep_states, wanted)


def _are_better_together(ways: list[OneWay], kernels: list[Kernel[Any]], layout: Layout) -> bool:
    first, second = kernels
    return (
        first.loops.dtype == second.loops.dtype
        and first.is_differentiable == second.is_differentiable
        and have_memory(_tensors(ways))
        and first.is_better_together(layout)
    )


def _tensors(ways: list[OneWay]) -> list[Tensor]:
    return [tensor for way in ways for tensor in way.tensors]


def _scan(
    ways: list[OneWay], kernels: list[Kernel[Any]], layout: Layout, keep_states: bool
) -> list[Found]:
    tensors = _tensors(ways)
    if not have_memory(tensors):
        (way,) = ways
        return [
            scan_operator(
                *(kernels[0], way.program, layout, way.descending),
                *(way.inputs, way.statics, way.states),
            )
        ]
    for way in ways:
        hold_to_one_device(way.inputs, way.statics, way.states)
    # In eager mode the operator would cost more, in torch's dispatcher, than a short scan itself.
    if not kernels[0].is_differentiable:
        made = [
            kernel.forward(
                layout.steps,
                layout.rows,
                None if layout.is_dense else layout.sizes_tensor,
                way.descending,
                way.inputs,
                way.statics,
                way.states,
            )
            for way, kernel in zip(ways, kernels, strict=True)
        ]
        kernels[0].run([call for call, *_ in made])
        return [(results, finals) for _, results, finals, _ in made]
    recorded = tuple(
        [
            _Recorded(
                kernel,
                way.program,
                way.cell,
                keep_states,
                way.descending,
                Counts(len(way.inputs), len(way.statics), len(way.states)),
            )
            for way, kernel in zip(ways, kernels, strict=True)
        ]
    )
    found: tuple[Tensor, ...] = _Scan.apply(recorded, layout, *tensors)  # type: ignore[no-untyped-call]
    rest = iter(found)
    return [
        ([next(rest) for _ in kernel.widths], [next(rest) for _ in way.states])
        for way, kernel in zip(ways, kernels, strict=True)
    ]


def hold_to_one_device(*groups: Sequence[Tensor]) -> None:
    """Refuse tensors of several devices, before a kernel reads the memory of one as that of another.

    Args:
        groups: the inputs, the statics and the states.

    Raises:
        RuntimeError: they are on several devices.
    """
    device = groups[-1][0].device
    if any(tensor.device != device for group in groups for tensor in group):
        places = (
            f"{name} on {', '.join(dict.fromkeys(str(tensor.device) for tensor in group))}"
            for name, group in zip(("input", "weights", "state"), groups, strict=True)
            if group
        )
        raise RuntimeError(
            f"input, weights and state must be on one device, got {'; '.join(places)}"
        )


def have_memory(tensors: Iterable[Tensor | None]) -> bool:
    """Whether these are the numbers themselves, and nothing is to see the operation that reads them."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return False
    return True


def are_readable(tensors: Sequence[Tensor]) -> bool:
    """Whether their numbers can be looked at now, which no graph can."""
    is_recorded = any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing()
    is_unknown = torch.compiler.is_compiling() or any(t.is_meta for t in tensors)
    return not is_recorded and not is_unknown and have_memory(tensors)


def _is_transformed(gradients: tuple[Tensor | None, ...]) -> bool:
    """Whether these are many gradients seen as one, as in a Jacobian, or tensors of torch.func.

    Or they may have tangents of forward-mode differentiation.
    """
    functorch = torch._C._functorch
    return (
        functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or any(g is not None and functorch.is_legacy_batchedtensor(g) for g in gradients)
    )


class _Held(NamedTuple):
    """A tensor as the forward pass read it: ``.data = ...``, and so module.half(), changes it unseen.

    Attributes:
        alias: of a weight its memory, which outlives that; else ``None``.
        shape: its shape.
        dtype: its dtype.
        address: where it was, or 0 where autograd may keep a copy.
    """

    alias: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    address: int

    @staticmethod
    def of(tensor: Tensor, is_copied: bool) -> _Held:
        """Take note of a tensor, of which autograd may keep a copy."""
        alias = None
        is_weight = tensor.requires_grad or type(tensor) is torch.nn.Parameter
        if tensor.is_leaf and is_weight and not tensor.is_inference():
            alias = tensor.detach().requires_grad_(tensor.requires_grad)
        return _Held(alias, tensor.shape, tensor.dtype, 0 if is_copied else tensor.data_ptr())

    def tensor(self, saved: Tensor) -> Tensor:
        """The tensor with the numbers that it had.

        Args:
            saved: what autograd has kept of it.

        Raises:
            RuntimeError: these are gone.
        """
        tensor = saved if self.alias is None else self.alias
        is_same = (tensor.shape, tensor.dtype) == (self.shape, self.dtype)
        if not is_same or (self.alias is None and self.address not in (0, tensor.data_ptr())):
            raise RuntimeError(_CHANGED)
        first = tensor.storage_offset() * tensor.itemsize
        if tensor.untyped_storage().nbytes() < first + tensor.nbytes:
            raise lost(tensor)
        return tensor

    def in_graph(self, saved: Tensor) -> Tensor:
        """The tensor as autograd knows it, for a backward pass that is differentiated in turn.

        Raises:
            RuntimeError: it has other numbers now.
        """
        alias = self.alias
        if alias is not None and alias.data_ptr() != saved.data_ptr():
            is_same = (saved.shape, saved.dtype) == (self.shape, self.dtype)
            if not (
                is_same and torch.allclose(saved.detach(), alias.detach(), 0, 0, equal_nan=True)
            ):
                raise RuntimeError(_CHANGED)
        return saved


_CHANGED = (
    "a weight, input or state was given other numbers (.data = ..., module.half()) between the forward and "
    "the backward pass"
)


class _Recorded(NamedTuple):
    """What a node of the graph knows of one of its directions, and how to find its tensors."""

    kernel: Kernel[Any]
    program: Program
    cell: Cell
    keep_states: bool
    descending: bool
    counts: Counts

    def kernel_for(self, seeds: list[Tensor | None]) -> Kernel[Any]:
        """The kernel whose backward loop computes what the results with these gradients need."""
        used = tuple([seed is not None for seed in seeds])
        return self.kernel.of(self.program, self.keep_states, self.kernel.loops.wanted, used)

    @property
    def links(self) -> Links:
        """What autograd links the results to."""
        return self.program.links(self.keep_states)

    def as_linked(
        self,
        gradients: list[Tensor | None],
        tensors: Iterable[Iterable[Tensor]],
        seeds: Iterable[Tensor | None],
        needed: Iterable[bool],
        layout: Layout,
    ) -> list[Tensor | None]:
        """Gradients as torch gives them: zeros where a result is linked to a tensor, ``None`` elsewhere."""
        used = tuple([seed is not None for seed in seeds])
        linked = self.links.get_gradients(used, layout.steps, layout.is_dense)
        made = chain.from_iterable(tensors)
        for place, (tensor, is_linked, is_needed) in enumerate(
            zip(made, linked, needed, strict=True)
        ):
            if not is_linked:
                gradients[place] = None
            elif is_needed and gradients[place] is None:
                gradients[place] = torch.zeros_like(tensor)
        return gradients

    @property
    def results(self) -> int:
        """How many results a scan has: the output and, if they are kept, the states of all steps."""
        return len(self.kernel.reads)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recorded: tuple[_Recorded, ...], layout: Layout, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        made = []
        for way in recorded:
            inputs, statics, states = divided(rest, way.counts)
            call = way.kernel.forward(
                layout.steps,
                layout.rows,
                layout.sizes_tensor,
                way.descending,
                inputs,
                statics,
                states,
            )
            made.append(call)
        recorded[0].kernel.run([call for call, *_ in made])
        found: list[Tensor] = []
        kept: list[Tensor | None] = []
        needed = iter(ctx.needs_input_grad[2:])
        without: list[Tensor] = []
        for way, (_, results, finals, saved) in zip(recorded, made, strict=True):
            leaves = tuple(islice(needed, sum(way.counts)))
            have = way.links.have_gradients(leaves, layout.steps, layout.is_dense)
            without += [t for t, has in zip((*results, *finals), have, strict=True) if not has]
            found += [*results, *finals]
            reads = way.kernel.reads
            kept += [r if is_read else None for r, is_read in zip(results, reads, strict=True)]
            kept += saved or (None,)
        ctx.scan = recorded, layout
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*without)
        has_hooks = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        ctx.held = [_Held.of(tensor, has_hooks) for tensor in tensors]
        ctx.save_for_backward(*tensors, *kept)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        recorded, layout = ctx.scan
        all_saved = ctx.saved_tensors  # asked for once: a checkpoint allows no more
        seeds, rest, saved = iter(gradients), iter(ctx.needs_input_grad[2:]), iter(all_saved)
        needed = [list(islice(rest, sum(way.counts))) for way in recorded]
        originals = list(islice(saved, len(ctx.held)))
        tensors = [held.tensor(own) for held, own in zip(ctx.held, originals, strict=True)]
        create_graph = torch.is_grad_enabled()
        if create_graph:
            tensors = [held.in_graph(own) for held, own in zip(ctx.held, originals, strict=True)]
        rest = iter(tensors)
        groups = [divided(rest, way.counts) for way in recorded]
        # Of each direction the gradients of its results, and what was kept of the forward loop.
        own = [list(islice(seeds, way.results + way.counts.states)) for way in recorded]
        kept = [list(islice(saved, way.results + 1)) for way in recorded]
        if create_graph or _is_transformed(gradients):
            found = [
                gradients_in_torch(
                    way.program,
                    way.cell,
                    layout.sizes,
                    way.descending,
                    tensors,
                    needs,
                    seeds,
                    create_graph=create_graph,
                )
                for way, tensors, seeds, needs in zip(recorded, groups, own, needed, strict=True)
            ]
        elif not have_memory((*gradients, *all_saved)):
            found = [
                scan_backward_operator(
                    way.kernel.text,
                    way.kernel.loops,
                    layout.sizes_tensor,
                    layout.rows,
                    way.descending,
                    seeds,
                    tensors,
                    rows,
                )
                for way, tensors, seeds, rows in zip(recorded, groups, own, kept, strict=True)
            ]
        else:
            own = [[None if s is None else s.contiguous() for s in seeds] for seeds in own]
            kernels = [way.kernel_for(seeds) for way, seeds in zip(recorded, own, strict=True)]
            made = [
                kernel.backward(
                    layout.steps,
                    layout.rows,
                    layout.sizes_tensor,
                    way.descending,
                    seeds,
                    *tensors,
                    results,
                    saved_rows,
                )
                for kernel, way, tensors, seeds, (*results, saved_rows) in zip(
                    kernels, recorded, groups, own, kept, strict=True
                )
            ]
            kernels[0].run([call for call, _ in made])
            pairs = zip(kernels, made, strict=True)
            found = [kernel.in_their_dtypes(results) for kernel, (_, results) in pairs]
            found = [
                way.as_linked(gradients, tensors, seeds, needs, layout)
                for way, gradients, tensors, seeds, needs in zip(
                    recorded, found, groups, own, needed, strict=True
                )
            ]
        return None, None, *chain.from_iterable(found)
