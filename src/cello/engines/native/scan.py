"""One direction of one layer as a differentiable function of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cello.cells.contract import Cell
from cello.compile import Program, Wanted
from cello.engines.native.formula import gradients_in_torch
from cello.engines.native.kernel import Kernel
from cello.engines.native.operator import scan_backward_operator, scan_operator
from cello.engines.sequence import Layout

_PLAIN = {Tensor, torch.nn.Parameter}


def scan(
    program: Program,
    cell: Cell,
    layout: Layout,
    descending: bool,
    keep_states: bool,
    inputs: list[Tensor],
    statics: list[Tensor],
    states: list[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """Run all steps.

    Args:
        program: the compiled cell.
        cell: the cell itself, for second derivatives.
        layout: the rows of each step.
        descending: whether time runs from T - 1 to 0.
        keep_states: whether the states of all steps are wanted.
        inputs: (N, width) each, contiguous.
        statics: what is the same for all steps, contiguous.
        states: (B, width) each, contiguous.

    Returns:
        The output and, if they are kept, the states of all steps, (N, width) each; the final states.
    """
    tensors = (*inputs, *statics, *states)
    first, second = len(inputs), len(inputs) + len(statics)
    wanted = None
    if torch.is_grad_enabled():
        needs = tuple([tensor.requires_grad for tensor in tensors])
        if True in needs:
            wanted = Wanted(needs[:first], needs[first:second])
    kernel = Kernel.of(program, keep_states, wanted)
    if not have_memory(tensors):
        return scan_operator(kernel, program, layout, descending, inputs, statics, states)
    # In eager mode the operator would cost more, in torch's dispatcher, than a short scan itself.
    if wanted is None:
        results, finals, _ = kernel.forward(
            layout.steps,
            layout.rows,
            None if layout.is_dense else layout.sizes_tensor,
            descending,
            inputs,
            statics,
            states,
        )
        return results, finals
    found: tuple[Tensor, ...] = _Scan.apply(  # type: ignore[no-untyped-call]
        kernel, program, cell, layout, descending, (first, second), *tensors
    )
    count = len(kernel.widths)
    return list(found[:count]), list(found[count:])


def have_memory(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether these are the numbers themselves, and nothing is to see the operation that reads them."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg()):
            return False
    return True


def _is_transformed(gradients: tuple[Tensor | None, ...]) -> bool:
    """Whether these are many gradients seen as one, as in a Jacobian, or tensors of torch.func."""
    functorch = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None or any(
        gradient is not None and functorch.is_legacy_batchedtensor(gradient)
        for gradient in gradients
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        program: Program,
        cell: Cell,
        layout: Layout,
        descending: bool,
        borders: tuple[int, int],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        first, second = borders
        results, finals, saved = kernel.forward(
            layout.steps,
            layout.rows,
            layout.sizes_tensor,
            descending,
            tensors[:first],
            tensors[first:second],
            tensors[second:],
        )
        ctx.scan = kernel, program, cell, layout, descending, borders
        ctx.set_materialize_grads(False)
        kept = [r if is_read else None for r, is_read in zip(results, kernel.reads, strict=True)]
        ctx.save_for_backward(*tensors, *kept, *(saved or (None,)))
        return (*results, *finals)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        kernel, program, cell, layout, descending, (first, second) = ctx.scan
        *tensors, saved = ctx.saved_tensors
        count = len(kernel.reads)
        kept, tensors = tensors[-count:], tensors[:-count]
        groups = tensors[:first], tensors[first:second], tensors[second:]
        create_graph = torch.is_grad_enabled()
        if create_graph or _is_transformed(gradients):
            return (None,) * 6 + tuple(
                gradients_in_torch(
                    program,
                    cell,
                    layout.sizes,
                    descending,
                    groups,
                    ctx.needs_input_grad[6:],
                    gradients,
                    create_graph=create_graph,
                )
            )
        if not have_memory((*gradients, *tensors)):
            return (None,) * 6 + tuple(
                scan_backward_operator(
                    kernel.text,
                    kernel,
                    layout.sizes_tensor,
                    layout.rows,
                    descending,
                    gradients,
                    groups,
                    (*kept, saved),
                )
            )
        d_inputs, d_statics, d_states = kernel.backward(
            layout.steps,
            layout.rows,
            layout.sizes_tensor,
            descending,
            [None if g is None else g.contiguous() for g in gradients],
            *groups,
            kept,
            saved,
        )
        return (None,) * 6 + (*d_inputs, *d_statics, *d_states)
