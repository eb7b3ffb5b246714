"""An engine whose forward loops ONNX Runtime runs, as exported; its backward loops are the toy engine's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from toy_engine import NumpyKernel, Toy

from cello.engines import Packing
from cello.onnx.scan import write_scan
from cello.onnx.writer import DTYPES

OPSET = 18
"""The lowest one that torch's exporter writes."""


@lru_cache(maxsize=64)
def session(
    program: str,
    shapes: tuple[tuple[tuple[int | None, ...], torch.dtype], ...],
    counts: tuple[int, ...],
    descending: bool,
    has_lengths: bool,
) -> onnxruntime.InferenceSession:
    """A model that is nothing but one scan."""
    given = [
        ir.Value(name=f"given{k}", shape=ir.Shape(shape), type=ir.TensorType(DTYPES[dtype]))
        for k, (shape, dtype) in enumerate(shapes)
    ]
    rest = iter(given)
    groups = [[next(rest) for _ in range(count)] for count in counts]
    whole = ir.TensorType(ir.DataType.INT64)
    lengths = ir.Value(name="lengths", shape=ir.Shape([None]), type=whole)
    rows = ir.Value(name="rows", shape=ir.Shape([]), type=whole)
    more = [lengths] if has_lengths else []
    nodes, found = write_scan("s", program, *groups, rows, descending, *(more or [None]))
    for value in found:
        value.type = ir.TensorType(DTYPES[shapes[-1][1]])
    graph = ir.Graph(
        [*given, rows, *more],
        found,
        nodes=nodes,
        name="scan",
        opset_imports={"": OPSET},
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # A fused product with a factor has that in float32, in a model in float64 as well.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


class OnnxKernel(NumpyKernel):
    def forward(self, steps, rows, batch_sizes, descending, inputs, statics, states, batch=None):
        size = len(states[0]) if batch is None else batch
        states = [state.detach() for state in states]
        flat = [state.reshape(size, -1) for state in states]
        lengths = packing = None
        if batch_sizes is not None:  # sequences in the order of their lengths
            lengths = (batch_sizes[:, None] > torch.arange(size)).sum(0)
            packing = Packing(lengths, steps, torch.device("cpu"))
            inputs = [packing.unpack(tensor.detach()) for tensor in inputs]
        given = [tensor.detach().contiguous() for tensor in (*inputs, *statics, *flat)]
        whole = {"rows": np.array(steps * size)}
        whole |= {} if lengths is None else {"lengths": lengths.numpy()}
        counts = len(inputs), len(statics), len(states)
        is_row = [True] * len(inputs) + [False] * len(statics) + [True] * len(states)
        shapes = tuple(
            ((None, *tensor.shape[1:]) if free else tuple(tensor.shape), tensor.dtype)
            for tensor, free in zip(given, is_row, strict=True)
        )
        run = session(self.text, shapes, counts, descending, lengths is not None)
        names = {node.name for node in run.get_inputs()}
        feed = {f"given{k}": tensor.numpy() for k, tensor in enumerate(given)}
        found = run.run(None, {k: v for k, v in (feed | whole).items() if k in names})
        tensors = [torch.from_numpy(np.array(array)) for array in found]
        several = len(self.widths)
        results, saved = tensors[:several], tensors[several + len(states) :]
        finals = [f.view(s.shape) for f, s in zip(tensors[several:], states, strict=False)]
        if packing is not None:
            results, saved = ([packing.pack(t) for t in group] for group in (results, saved))
        return None, results, finals, saved

    @staticmethod
    def run(calls: list[Any]) -> None:
        NumpyKernel.run([call for call in calls if call is not None])


class Onnx(Toy):
    name = "onnx"
    kernels = OnnxKernel
