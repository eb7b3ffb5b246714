"""What torch.compile sees of a layer: one function of tensors.

Its frontend, dynamo, would look into the layer's Python, cells and all. It is told not to: what it
writes into its graph is a call of :func:`run_in_graph`, which runs the layer's own code on the tensors
that the graph gives it. The stage after dynamo traces through that and meets one operator for each
direction, and whatever torch operations are around it. Where a layer would not run on an engine with an
operator, :func:`names_in_graph` says so and the layer is left out of the graph, rather than have its loop
over time unrolled into it.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from cello.cells.contract import CellError
from cello.engines import latest_settings, observe
from cello.foreign.adapt import Adapted, begins_at_zero, known_to_begin_at_zero
from cello.foreign.generators import Generators
from cello.foreign.kinds import are_settings

LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Every layer by its id: a graph holds numbers and tensors, no modules."""


_PLAIN = (bool, int, float, str)  # torch 2.9's dynamo knows no bool | int


class _Inside(nn.Module):
    """A layer without its hooks, which whoever calls the layer runs."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer._run(*args)


def _run(layer: Any, tensors: dict[str, Tensor], *args: Any) -> Any:
    given = {f"layer.{name}": tensor for name, tensor in tensors.items()}
    return torch.func.functional_call(_Inside(layer), given, args)


def is_symbolic(input: Any) -> bool:
    """Whether an input is what torch.fx traces a model with, in the place of a tensor."""
    return "torch.fx" in sys.modules and isinstance(input, torch.fx.Proxy)


def leaf_of(module: nn.Module, input: Any, *others: Any) -> Any:
    """Put a call of a module into a graph of torch.fx as one node, as it does with torch's own modules.

    Args:
        module: a layer or a cell.
        input: what the tracer gave for its input.
        *others: further arguments, up to the last one that is not ``None`` or ``False``.
    """
    tracer = input.tracer
    while others and (others[-1] is None or others[-1] is False):
        others = others[:-1]
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (input, *others), {})


def names_in_graph(
    number: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    keep: Any,
    has_state: bool,
    has_lengths: bool,
) -> tuple[tuple[str, ...], bool] | None:
    """Say whether a layer can be in a graph. Called while dynamo traces, its result is a constant.

    Args:
        number: the id of the layer.
        dtype: the dtype of the input.
        shape: a shape that the input may have.
        keep: `return_states`.
        has_state: whether there is an initial state.
        has_lengths: whether the sequences have lengths.

    Returns:
        The names of the states of all steps, as far as they are kept, and whether cells that make their
        own initial state begin at zeros; or ``None`` if it cannot.
    """
    torch.compiler.allow_in_graph(run_in_graph)
    layer = LAYERS[number]
    if has_state and not layer._is_known():
        return None
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    like = next(layer.parameters(), torch.empty(0))
    x = torch.zeros(shape, dtype=dtype, device=like.device)
    lengths = [2, 0] if has_lengths and not has_state else None
    with observe() as seen, torch.no_grad(), Generators(x.device):
        try:
            result = _run(layer, buffers, x, None, lengths, keep)
        except CellError:
            if has_lengths:
                return None  # nobody knows the state of a sequence of length 0
            raise
    if not all(choice.engine.has_operator for _, choice in seen):
        return None
    if any(choice.engine.outside(scan) for scan, choice in seen):
        return None  # the graph would keep what it is now, and not see it change
    own = [
        (d.cell, scan) for scan, _ in seen for d in scan.directions if isinstance(d.cell, Adapted)
    ]
    makes = [(cell, scan) for cell, scan in own if cell.form.makes_initial_state]
    begins = all(begins_at_zero(cell, scan.sequence.data) for cell, scan in makes)
    return tuple(result[2]) if len(result) == 3 else (), begins


names_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
# This is what torch.compiler.assume_constant_result does, which would import torch._dynamo, for a second.


def run_in_graph(
    number: int,
    settings: list[Any],
    keep: Any,
    tensors: list[Tensor],
    x: Tensor,
    leaves: list[Any] | None,
    lengths: Tensor | None,
    at_zero: bool,
) -> tuple[list[Tensor], list[Any], list[Any]]:
    """Run a layer on the tensors that a graph gives it.

    Args:
        number: the id of the layer.
        settings: unused; passed so that Dynamo traces again when one of them changes.
        keep: `return_states`.
        tensors: its parameters and buffers.
        x: the input.
        leaves: the tensors of the initial state, or ``None``.
        lengths: how many steps of each sequence count, or ``None`` if all do.
        at_zero: whether cells that make their own initial state begin at zeros.

    Returns:
        The outputs, the tensors of the state, and the states of all steps.
    """
    layer = LAYERS[number]
    # The features of an input may be symbolic, though :func:`names_in_graph` was told them.
    batch = x.shape[: min(2, x.dim() - 1)]
    x = x.reshape(*batch, *map(int, x.shape[len(batch) :]))
    structure = layer._structure()
    names = [name for name, _ in layer_tensors(layer)]
    hx = None if leaves is None else structure.unflatten(leaves)
    given = dict(zip(names, tensors, strict=True))
    with known_to_begin_at_zero(layer.modules() if at_zero else ()):
        output, state, *states = _run(layer, given, x, hx, lengths, keep)
    outputs = list(output) if isinstance(output, tuple) else [output]
    return outputs, list(structure.flatten(state)), [*states[0].values()] if states else []


def settings_of(layer: nn.Module) -> list[bool | int | float | str]:
    """What a graph depends on beside tensors: plain attributes of a layer and its cells, and the engine.

    Dynamo traces anew when one that it read here has changed.
    """
    settings: list[bool | int | float | str] = [latest_settings()]
    for module, names in zip(layer.modules(), setting_names(id(layer)), strict=True):
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float):
                settings.append(float(value))
            elif isinstance(value, _PLAIN):
                settings.append(value)
            elif isinstance(value, (tuple, list)):  # torch 2.9's dynamo knows no tuple | list
                settings += value
    return settings


def setting_names(number: int) -> tuple[tuple[str, ...], ...]:
    """The names of such attributes of each module of a layer; to dynamo a constant."""
    return tuple(
        tuple(name for name, value in vars(module).items() if _is_setting(name, value))
        for module in LAYERS[number].modules()
    )


def _is_setting(name: str, value: Any) -> bool:
    return (
        isinstance(value, _PLAIN)
        or are_settings(value)
        or (callable(value) and not isinstance(value, nn.Module) and not name.startswith("_"))
    )


setting_names._dynamo_marked_constant = True  # type: ignore[attr-defined]


def layer_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a layer."""
    return [*layer.named_parameters(), *layer.named_buffers()]
