"""The gradients of a scan as torch computes them, step by step: for derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cello.compile import Program
from cello.compile.replay import in_rows, replay_steps


def gradients_in_torch(
    program: Program,
    cell: nn.Module,
    batch_sizes: Sequence[int],
    descending: bool,
    tensors: Sequence[Sequence[Tensor]],
    wanted: Sequence[bool],
    gradients: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """Return the gradients of a scan as functions, in the sense of autograd, of all that goes in.

    Args:
        program: the compiled cell.
        cell: where tensors are looked up that the loop does not use and the step names.
        batch_sizes: the rows of each step.
        descending: whether time runs backwards.
        tensors: the inputs, the statics and the initial states.
        wanted: for each of `tensors` in a row whether it gets a gradient.
        gradients: of all results and of the final states.
        create_graph: whether the result is differentiated in turn.
    """
    with torch.enable_grad():
        # Copies in the graph, so that the gradient of one is not also led on to another one that it
        # was computed from: a weight that the initial state depends on, say.
        inputs, statics, states = (
            [tensor.view_as(tensor) for tensor in group] for group in tensors
        )
        # In the dtypes of the step, as torch computes it; autograd casts the gradients back.
        rows = [
            (node, tensor.view(len(tensor), *node.shape[1:]).to(node.dtype))
            for node, tensor in zip(program.beforehand, inputs, strict=True)
        ]
        outputs, history, finals = replay_steps(
            program.trace,
            cell,
            [
                (node, tensor.to(node.dtype))
                for node, tensor in zip(program.statics, statics, strict=True)
            ],
            rows,
            [
                tensor.view(len(tensor), *node.shape[1:]).to(node.dtype)
                for tensor, node in zip(states, program.trace.state, strict=True)
            ],
            batch_sizes,
            descending,
        )
        if program.assumed:  # the check is the last of the results
            gradients = [*gradients[: -len(finals) - 1], *gradients[-len(finals) :]]
        results = [torch.cat(outputs)]
        if len(gradients) > 1 + len(finals):
            results += [torch.cat(parts) for parts in zip(*history, strict=True)]
        results += list(map(in_rows, finals))
        pairs = [
            (result, gradient.to(result.dtype))
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None and result.requires_grad
        ]
        asked = [
            tensor
            for tensor, is_wanted in zip((*inputs, *statics, *states), wanted, strict=True)
            if is_wanted
        ]
        if not pairs or not asked:
            return [None] * len(wanted)
        found = iter(
            torch.autograd.grad(
                [result for result, _ in pairs],
                asked,
                [gradient for _, gradient in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return [next(found) if is_wanted else None for is_wanted in wanted]
