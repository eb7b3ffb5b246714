"""A trained model as an ONNX file: its network, with names for what goes in and what comes out."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cello.tasks.errors import InputError
from cello.tasks.files import written_beside
from cello.tasks.torch_layers import TorchLayer

FACTS = "cello"
"""The name of what a file says of its model, in its metadata: JSON."""


@dataclass(frozen=True)
class Exportable:
    """What is to be exported.

    Attributes:
        network: takes and returns tensors only, the batch first.
        args: an example of what it takes.
        inputs: the names of these.
        axes: the names of axes that may have any size, as `dynamic_shapes` of ``torch.onnx.export``.
        outputs: the names of what it returns.
        facts: what else a program has to know that runs the file; the names of files are of those in the
            model folder.
    """

    network: nn.Module
    args: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    axes: tuple[Any, ...]
    outputs: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def write(model: Exportable, path: Path) -> int:
    """Write an ONNX file, which appears when it is complete; return its size in bytes.

    Raises:
        InputError: a package is missing, a step of the model's cell cannot be compiled, or the layers are
            torch's own.
    """
    from torch.onnx import OnnxExporterError

    from cello.engines import EngineError
    from cello.onnx import export

    if path.is_dir():
        raise InputError(f"out: {path} is a folder")
    for module in model.network.modules():
        if isinstance(module, TorchLayer):
            kind = type(module.layer).__name__
            raise InputError(
                f"export: torch's own {kind} does not take lengths in ONNX; train it with --cell "
                f"{kind.lower()}, which is the same network"
            )
    network = model.network
    if any(not tensor.is_cpu for tensor in chain(network.parameters(), network.buffers())):
        network = copy.deepcopy(network).cpu()
    try:
        program = export(
            network,
            tuple([one.cpu() for one in model.args]),
            input_names=list(model.inputs),
            output_names=list(model.outputs),
            dynamic_shapes=model.axes,
        )
    except (ModuleNotFoundError, EngineError) as error:
        raise InputError(f"export: {error}") from error
    except OnnxExporterError as error:
        said = str(error).rsplit("## Exception summary", 1)[-1].split("\n\n(Refer to", 1)[0]
        raise InputError(f"export: torch cannot export the network: {said.strip()}") from error
    program.model.metadata_props[FACTS] = json.dumps(model.facts, ensure_ascii=False)
    data: bytes = program.model_proto.SerializeToString()
    with written_beside(path) as stream:
        stream.write(data)
    return len(data)
