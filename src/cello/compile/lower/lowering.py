"""A traced step as instructions: every tensor of the trace in turn, by the function for its operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from cello.compile.arithmetic import eq, maximum, replace, stop, where
from cello.compile.build import Builder
from cello.compile.constant import CONSTANT
from cello.compile.held import Held
from cello.compile.instructions import Instruction, Kind, Loop, Value
from cello.compile.integers import Integers, are_distinct, filled_with, is_integer, is_whole
from cello.compile.lower.activations import ACTIVATIONS
from cello.compile.lower.arguments import call, hold_first, refuse_others, result_of
from cello.compile.lower.axes import BATCH, DoesNotFit, axes_of
from cello.compile.lower.choices import (
    INFINITE,
    NAN,
    added_alike,
    chosen_alike,
    chosen_at,
    chosen_by_rows,
    first_place,
    gathered,
    looked_up,
    put_alike,
    put_at,
    put_by_rows,
    scattered,
    scattered_sum,
)
from cello.compile.lower.convolutions import Convolution, convolved
from cello.compile.lower.custom import CustomCall, hold_linear
from cello.compile.lower.dtypes import Dtypes
from cello.compile.lower.images import IMAGES
from cello.compile.lower.indexing import Chosen, Places, chosen_in_rows, known_places
from cello.compile.lower.linear_algebra import (
    LINEAR_ALGEBRA,
    linalg_solve_ex,
    solved_by_inverse,
)
from cello.compile.lower.normalise import NORMALISATIONS
from cello.compile.lower.order import ORDERS, Ranks
from cello.compile.lower.pointwise import POINTWISE
from cello.compile.lower.products import PRODUCTS, columns_of, last_of
from cello.compile.lower.reductions import REDUCTIONS
from cello.compile.lower.rows import Refused, Rows, full
from cello.compile.lower.sort import Sorting
from cello.compile.lower.views import VIEWS, put_in, squeeze, taken, unsqueeze
from cello.compile.node import (
    FACTORIES,
    Custom,
    Node,
    Trace,
    all_inputs,
    are_chosen,
    by_name,
    hold_the_same,
    operation,
    reads_shape_only,
)
from cello.compile.reasons import DEPENDS_ON_ROWS, CannotCompile
from cello.foreign.path import Path
from cello.foreign.scope import words

LOWERINGS: dict[str, Callable[..., Rows]] = {
    **VIEWS,
    **PRODUCTS,
    **REDUCTIONS,
    **NORMALISATIONS,
    **POINTWISE,
    **ACTIVATIONS,
    **ORDERS,
    **IMAGES,
    **LINEAR_ALGEBRA,
}
"""For each operation of torch the function that writes its instructions.

It is called as torch's is, with `Rows` in the place of tensors, and is told of torch's `Result` and of
`Places` if it has arguments of these names.
"""


@dataclass
class Lowered:
    """A step as instructions.

    Attributes:
        loop: the instructions. Its outputs are the output of the cell and, where the step has assumed
            anything, one number for each row: 0 where that holds, and 1 elsewhere.
        statics: for each static value, the tensor of the trace.
        beforehand: for each input, the tensor of the trace.
    """

    loop: Loop
    statics: list[Node]
    beforehand: list[Node]


class Lowering:
    """Makes instructions of one trace.

    Args:
        trace: the step.
        label: what messages call the cell.
        dtype: the dtype of the cell's state.
        compute: the dtype that the loop computes in.
        held: looks up numbers that the cell holds.
    """

    def __init__(
        self, trace: Trace, label: str, dtype: torch.dtype, compute: torch.dtype, held: Held
    ) -> None:
        self._trace, self._label, self._held = trace, label, held
        self._dtypes = Dtypes(trace, label, dtype, compute)
        self._sorting = Sorting(trace, label)
        self._build = Builder()
        self._statics: list[Node] = []
        self._static_values: list[Value] = []
        self._beforehand: list[Node] = []
        self._inputs: list[Value] = []
        self._lowered: dict[int, Rows] = {}
        self._has_functions = any(node.custom is not None for node in trace.nodes)
        self._made_places: dict[int, Rows] = {}
        self._known_places: dict[int, Places | None] = {}  # of an index
        self._ranks: dict[int, Ranks] = {}  # of the places of what is in order
        self._calls: dict[int, tuple[Node, CustomCall]] = {}  # of custom functions, with a result

    @property
    def integers(self) -> Integers:
        """The bounds of the step's integers."""
        return self._dtypes.integers

    def lower(self) -> Lowered:
        """Return the step as instructions.

        Raises:
            CannotCompile: an operation is not in the instruction set.
        """
        trace, states = self._trace, []
        for index, node in enumerate(trace.state):
            states.append(Value(Kind.STATE, prod(node.shape[1:]), index))
            self._lowered[id(node)] = self._whole(states[-1], node)
        results = [self._result(new) for new in (trace.output, *trace.new_state)]
        checks = self._checks()
        return Lowered(
            Loop(
                inputs=self._inputs,
                states=states,
                statics=self._static_values,
                body=self._body([*results, *checks]),
                outputs=[*results[:1], *checks],
                new_states=results[1:],
            ),
            self._statics,
            self._beforehand,
        )

    def _checks(self) -> list[Value]:
        """Whether a row is as assumed, if anything is: one number."""
        found: Rows | None = None
        for node, value, is_everywhere in self._trace.assumed:
            rows = self._get(node)
            with self._telling(node):
                if rows.has_batch and not node.shape:
                    raise Refused("mixes the rows of a batch in {op}{line}")
                features = [((size, stride),) for size, stride in rows.features]
                rows = rows.with_axes([(BATCH,), *features])
                if features:
                    reduction = "amin" if is_everywhere == value else "amax"
                    rows = rows.reduced(reduction, range(1, rows.rank), False)
                wrong = eq(stop(rows), 0.0) if value else stop(rows)
            found = wrong if found is None else maximum(found, wrong)
        if found is None:
            return []
        return [self._build.pointwise("copy", (1,), found.ref._replace(strides=(1,))).value]

    def _body(self, results: list[Value]) -> list[Instruction]:
        """The instructions of the step, without those of custom gradients."""
        body = self._build.body
        for node, called in self._calls.values():
            with self._telling(node):
                body = called.take(body)
        made = {instruction.out for instruction in body}
        read = {value for instruction in body for value in instruction.reads()} | {*results}
        if any(value.kind is Kind.COMPUTED and value not in made for value in read):
            raise CannotCompile(
                f"{self._label} computes with a gradient that the backward of a custom autograd.Function "
                "has left behind"
            )
        return body

    def _result(self, node: Node) -> Value:
        """The whole of a node as a value of its own, row by row."""
        rows = self._get(node).expanded(node.shape)
        if not rows.axes or rows.axes[0] != (BATCH,):
            raise CannotCompile(f"{self._label} returns a tensor without its batch axis first")
        self._dtypes.integers.check_result(node)
        width = prod(rows.block)
        flat = self._build.contiguous(rows.ref, rows.block)._replace(strides=(1,))
        if flat.value.kind is Kind.COMPUTED and flat.value.width == width and flat.offset == 0:
            return flat.value
        return self._build.pointwise("copy", (width,), flat).value

    def _get(self, node: Node) -> Rows:
        """The node as a view of a value."""
        stack = [node]
        while stack:  # no recursion: a step of many substeps is deep
            current = stack[-1]
            if id(current) in self._lowered:
                stack.pop()
                continue
            missing = [part for part in self._operands(current) if id(part) not in self._lowered]
            if missing:
                stack += missing
                continue
            self._lowered[id(current)] = self._detached(current, self._lower(current))
            stack.pop()
        return self._lowered[id(node)]

    def _operands(self, node: Node) -> list[Node]:
        """The nodes that must be lowered before this one."""
        if self._sorting.is_given(node) or self._sorting.is_computed_once(node):
            return []
        if reads_shape_only(node):
            return []
        if operation(node) in ("index", "index_put") and self._in_rows(node) is not None:
            indices = by_name(node)["indices"]
            return [part for part in node.inputs() if part is not indices[0]]
        if operation(node) in ("index", "index_put") and self._places_of(node) is not None:
            return [by_name(node)[name] for name in ("self", "values") if name in by_name(node)]
        if node.custom is not None:
            return self._begin(node, node.custom).reads()
        return list(node.inputs())

    def _begin(self, node: Node, custom: Custom) -> CustomCall:
        """Begin a call of a custom function with the gradients that it asks for."""
        if id(custom) not in self._calls:
            with self._telling(node):
                begun = CustomCall(custom, self._build, self._trace.rows)
                for asked, rows in zip(custom.asked, begun.asked(), strict=True):
                    if asked.source is not None:  # else it is zero
                        self._lowered[id(asked)] = rows
            self._calls[id(custom)] = node, begun
        return self._calls[id(custom)][1]

    def _detached(self, node: Node, rows: Rows) -> Rows:
        """The node without its gradient, where it has none: it was made under ``torch.no_grad``."""
        if not node.is_detached or self._sorting.is_computed_once(node):  # without one already
            return rows
        old = node.in_place_of
        return stop(rows) if old is None else replace(self._lowered[id(old)], rows)

    def _lower(self, node: Node) -> Rows:
        self._build.line = node.line
        if 0 in node.shape:
            raise CannotCompile(f"{self._label} makes a tensor without numbers{node.line}")
        if self._sorting.is_given(node):
            return self._input(node)
        if self._sorting.is_computed_once(node):
            return self._static(node)
        if node.custom is not None:
            assert node.index is not None
            with self._telling(node):
                return self._calls[id(node.custom)][1].results(self._get)[node.index]
        name = operation(node)
        if are_chosen(node.shape):
            return self._chosen_by_mask(node)
        if name == "arange" and node.shape[0] % self._trace.rows == 0:
            raise CannotCompile(DEPENDS_ON_ROWS.format(self._label, node.line))
        if name not in KNOWN:
            raise self._unknown(node)
        self._dtypes.check_made(node)
        with self._telling(node):
            if name in _OF_NODES:
                others = {key: value for key, value in node.kwargs.items() if key not in _BY_NAME}
                refuse_others(node, (), others)
                return _held_to(node.shape, _OF_NODES[name](self, node))
            args = [self._argument(a) for a in node.args]
            kwargs = {key: self._argument(a) for key, a in node.kwargs.items()}
            return _held_to(node.shape, call(LOWERINGS[name], node, args, kwargs, self._places))

    @contextmanager
    def _telling(self, node: Node) -> Iterator[None]:
        """Say why a node cannot be lowered, if that turns out.

        Raises:
            CannotCompile: it cannot.
        """
        name = operation(node) if node.custom is None else "a custom autograd.Function"
        try:
            yield
        except DoesNotFit:
            raise CannotCompile(
                f"{self._label} arranges batch and features in {name}{node.line} in a way that does not "
                "keep the rows of a batch apart"
            ) from None
        except Refused as refusal:
            told = refusal.told(name, node.line)
            raise CannotCompile(f"{self._label} {told}") if told else self._unknown(node) from None

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            return self._lowered[id(argument)]
        if isinstance(argument, list | tuple):
            return [self._argument(item) for item in argument]
        return argument

    def _unknown(self, node: Node) -> CannotCompile:
        return CannotCompile(
            f"{self._label} uses {operation(node)}{node.line}, which is not in the instruction set; "
            "pointwise functions, linear maps and convolutions with weights, and sums, means, variances, "
            "extrema, softmax and sorting along the features are"
        )

    # What the loop is given

    def _input(self, node: Node) -> Rows:
        self._hold_functions(node)
        if is_integer(node.dtype):
            raise CannotCompile(
                f"{self._label} computes with integers made from its input{node.line}; convert them "
                "with .float() or look them up in an embedding first"
            )
        if not node.shape or node.shape[0] != self._trace.rows:
            raise CannotCompile(
                f"{self._label} makes a tensor{node.line} that has not its batch axis first"
            )
        self._dtypes.check_given(node)
        value = Value(Kind.INPUT, prod(node.shape[1:]), len(self._inputs))
        self._inputs.append(value)
        self._beforehand.append(node)
        return self._whole(value, node)

    def _static(self, node: Node) -> Rows:
        self._hold_functions(node)
        self._dtypes.check_given(node)
        value = Value(Kind.STATIC, prod(node.shape), len(self._statics))
        self._statics.append(node)
        self._static_values.append(value)
        return self._whole(value, node)

    def _hold_functions(self, node: Node) -> None:
        """Check the custom functions in what torch computes."""
        if self._has_functions:
            with self._telling(node):
                hold_linear(node)

    def _whole(self, value: Value, node: Node) -> Rows:
        """A node whose numbers lie one after the other."""
        rows = self._trace.rows
        return Rows(value, 0, axes_of(node.shape, rows), self._build, rows)

    # Operations that need more than the numbers of their operands

    def _constant(self, node: Node) -> Rows:
        """A tensor of one number."""
        number = filled_with(node, operation(node))
        if isinstance(number, Node):
            return self._get(number).expanded(node.shape)
        number = self._dtypes.rounded(number, node)
        return full(self._build, self._trace.rows, number, node.shape)

    def _chosen(self, node: Node) -> Rows:
        """Features in another order, and as often as the index says."""
        given = by_name(node)
        indices, in_rows = given.get("indices"), self._in_rows(node)
        if in_rows is not None:
            x = self._lowered[id(given["self"])]
            return chosen_by_rows(x, *self._joined(x, in_rows))
        places = self._places_of(node)
        if places is not None:
            return chosen_at(self._lowered[id(given["self"])], places)
        if indices is None:
            dim, index = given["dim"], given["index"]
        else:
            chosen = [(dim, index) for dim, index in enumerate(indices) if index is not None]
            if len(chosen) != 1:
                raise Refused
            ((dim, index),) = chosen
        x = self._lowered[id(given["self"])]
        (dim,) = x.dims(dim)
        is_list = is_whole(index.dtype) and index.dtype.itemsize >= 4
        if is_list and dim == 0 and not self._sorting.is_static(index):
            return self._looked_up(given["self"], index, from_end=indices is not None)
        if not is_list or len(index.shape) != 1 or not self._sorting.is_static(index):
            raise Refused
        size, counts = x.shape[dim], indices is not None
        numbers = _written_out(index)
        if numbers and all(-size * counts <= number < size for number in numbers):
            return taken(x, dim, [number % size for number in numbers])
        # What lies outside, torch refuses at the call.
        columns = self._static(columns_of(size, index, self._dtypes.dtype, from_end=counts))
        return chosen_alike(x, dim, columns)

    def _put_along(self, node: Node) -> Rows:
        """Numbers put, or added, along an axis."""
        name, given = operation(node), by_name(node)
        source = given["value"] if name == "index_fill" else given["source"]
        if given.get("alpha", 1) != 1:
            raise Refused
        return self._put_alike(node, given["dim"], given["index"], source, adds=name == "index_add")

    def _put_alike(self, node: Node, dim: int, index: Node, values: Any, *, adds: bool) -> Rows:
        x = self._lowered[id(by_name(node)["self"])]
        (dim,) = x.dims(dim)
        is_list = index.dtype in (torch.int32, torch.int64) and len(index.shape) == 1
        if not is_list or not self._sorting.is_static(index) or is_whole(node.dtype):
            raise Refused
        shape = [*x.shape[:dim], index.shape[0], *x.shape[dim + 1 :]]
        values = self._argument(values)
        values = values.expanded(shape) if isinstance(values, Rows) else x.full(values, shape)
        size, numbers = x.shape[dim], _written_out(index)
        places = {number % size for number in numbers if -size <= number < size}
        if numbers and not adds and len(places) == len(numbers):
            return put_in(x, dim, [number % size for number in numbers], values)
        # What lies outside, torch refuses at the call.
        columns = columns_of(size, index, self._dtypes.dtype, from_end=True)
        if adds:
            return added_alike(x, dim, self._static(columns), values)
        both = self._static(columns), self._static(last_of(columns))
        return put_alike(x, dim, *both, values)

    def _chosen_by_mask(self, node: Node) -> Rows:
        """What a mask has chosen, or what is computed with it, in its old places; elsewhere is anything.

        Nothing else reads it but what puts numbers back by the same mask.
        """
        with self._telling(node):
            name = operation(node)
            if name == "index":
                x, mask = (self._lowered[id(part)] for part in node.inputs())
                # In the backward of a custom function, which is to be linear in it, nothing of a gradient.
                asked = any(part.source == "gradient" for part in all_inputs(node))
                return where(_of_first_axes(mask, x), x, 0.0 if asked else 1.0)
            others = [part for part in node.inputs() if not are_chosen(part.shape)]
            # Where nothing was chosen stands a one. What is made of it gets no gradient, which of NaN, or
            # times infinity, would be NaN: it would reach a tensor beside it.
            if name not in LOWERINGS or (others and not _stays_finite(node)):
                raise Refused("computes with what a mask has chosen in {op}{line}")
            self._dtypes.check_made(node)
            args = [self._argument(a) for a in node.args]
            kwargs = {key: self._argument(a) for key, a in node.kwargs.items()}
            return call(LOWERINGS[name], node, args, kwargs, self._places)

    def _extremum(self, node: Node) -> Rows:
        """The place of an extremum, or what is there."""
        name, given = operation(node), by_name(node)
        if given.get("dim") is None:
            raise Refused("mixes the rows of a batch in {op}{line}")
        x, dim = self._lowered[id(given["self"])], given["dim"]
        places = self._places(x.shape[x.dims(dim)[0]])
        found = first_place(x, dim, places, of_least=name in ("min", "argmin"))
        if name in ("max", "min") and node.index == 0:
            found = gathered(x, dim, found, places)
        return found if given["keepdim"] else squeeze(found, dim)

    def _ordered(self, node: Node) -> Rows:
        """A result of what puts numbers in order, or takes those of some ranks."""
        name, given = operation(node), by_name(node)
        x, dim = self._lowered[id(given["self"])], given.get("dim")
        if dim is None or (x.rank and BATCH in x.axes[x.dims(dim)[0]]):
            raise Refused("mixes the rows of a batch in {op}{line}")
        if not x.rank:
            raise Refused
        size = x.shape[x.dims(dim)[0]]
        pairs = prod(x.block) * size
        if pairs > _MOST_PAIRS:
            raise Refused(
                f"compares {pairs} pairs of numbers for each row in {{op}}{{line}}, for which torch takes "
                "less time"
            )
        places = self._places(size)
        is_down = given.get("descending", given.get("largest", False))
        ranks = Ranks(x, dim, places, is_down)
        if name in ("median", "nanmedian"):
            found = ranks.middle(given["keepdim"], skips_nan=name == "nanmedian")
        elif name == "kthvalue":
            found = ranks.select(places.part(0, given["k"] - 1, 1), given["keepdim"])
        else:
            found = ranks.select(places.part(0, 0, given.get("k", size)))
            if node.index == 1:
                self._ranks[id(node)] = ranks
        return found[node.index or 0]

    def _gather(self, node: Node) -> Rows:
        given = by_name(node)
        x, dim = self._lowered[id(given["self"])], given["dim"]
        index, places = self._index(x, dim, given["index"])
        ranks = self._ranks.get(id(given["index"]))
        if ranks is not None and ranks.is_along(x, dim):
            return ranks.gather(x, index.shape[dim])
        return gathered(x, dim, index, places)

    def _scatter(self, node: Node) -> Rows:
        given = by_name(node)
        x, dim = self._lowered[id(given["self"])], given["dim"]
        index, places = self._index(x, dim, given["index"])
        source = self._argument(given["src"] if "src" in given else given["value"])
        if operation(node) == "scatter_add":
            return scattered_sum(x, dim, index, source, places)
        ranks = self._ranks.get(id(given["index"]))
        is_whole_source = not isinstance(source, Rows) or source.shape == index.shape
        if ranks is not None and ranks.is_along(x, dim) and is_whole_source:
            return ranks.scatter(x, source, index.shape[dim])
        are_apart = are_distinct(given["index"], dim)
        return scattered(x, dim, index, source, places, are_apart=are_apart)

    def _nll_loss(self, node: Node) -> Rows:
        """The logarithm of the probability of one class of each row, with the other sign."""
        given = by_name(node)
        x, target, ignored = (
            self._lowered[id(given["self"])],
            given["target"],
            given["ignore_index"],
        )
        low, high = self._dtypes.integers.span(target)
        if node.index or given["reduction"] or given["weight"] is not None or x.rank != 2:
            raise Refused
        if low <= ignored <= high:
            raise Refused(f"uses {{op}}{{line}} with ignore_index={ignored}")
        index, places = self._index(x, 1, target)
        return -squeeze(gathered(x, 1, unsqueeze(index, 1), places), 1)

    def _embedding(self, node: Node) -> Rows:
        given = by_name(node)
        for name, usual in (("padding_idx", -1), ("scale_grad_by_freq", False), ("sparse", False)):
            if given[name] != usual:
                raise Refused(f"uses {{op}}{{line}} with {name}={given[name]}")
        return self._looked_up(given["weight"], given["indices"])

    def _convolution(self, node: Node) -> Rows:
        given = by_name(node)
        if not self._sorting.is_static(given["weight"]):
            raise Refused("convolves in {op}{line} with a kernel that is not the same for all rows")
        how = Convolution.of(given["input"], given)
        bias = None if given["bias"] is None else self._lowered[id(given["bias"])]
        image = self._lowered[id(given["input"])]

        def weight_of(channels: range) -> Rows:
            return self._static(how.arranged(given["weight"], channels))

        return convolved(image, weight_of, bias, how)

    def _solve(self, node: Node) -> Rows:
        given = by_name(node)
        a, b = given["A"], self._lowered[id(given["B"])]
        if len(a.shape) == 2 and self._sorting.is_static(a):
            hold_first(result_of(node))
            op = torch.ops.aten.linalg_inv.default
            inverse = Node(op, (a,), {}, None, a.shape, a.dtype)
            return solved_by_inverse(self._static(inverse), b, given["left"])
        args = [self._argument(argument) for argument in node.args]
        return call(linalg_solve_ex, node, args, node.kwargs, self._places)

    def _looked_up(self, table: Node, index: Node, *, from_end: bool = False) -> Rows:
        """Rows of a table: its finite numbers by a product, in which zero times infinity would be NaN."""
        if not self._sorting.is_static(table):
            raise Refused
        aten = torch.ops.aten

        def made(op: Any, *args: Any) -> Node:
            return Node(op, args, {}, None, table.shape, table.dtype)

        finite = made(aten.nan_to_num.default, table, 0.0, 0.0, 0.0)
        apart = made(aten.detach.default, table)
        rest = made(aten.sub.Tensor, apart, made(aten.nan_to_num.default, apart, 0.0, 0.0, 0.0))
        kinds = made(aten.nan_to_num.default, rest, NAN, INFINITE, -INFINITE)
        rows = self._static(finite)
        chosen = self._index(rows, 0, index, from_end=from_end)
        return looked_up(rows, self._static(kinds), *chosen)

    def _index(
        self, x: Rows, dim: int, index: Node, *, from_end: bool = False
    ) -> tuple[Rows, Rows]:
        """What chooses along an axis, and all places that there are.

        Args:
            x: what is chosen from.
            dim: the axis.
            index: what chooses.
            from_end: whether negative integers count from the end; else torch refuses them.

        Raises:
            Refused: it may lie outside, which torch would refuse.
        """
        size = x.shape[x.dims(dim)[0]]
        least = -size * from_end
        low, high = self._dtypes.integers.span(index)
        if low < least or high >= size:
            low, high = self._span_of_numbers(index)
        if low < least or high >= size:
            raise Refused(
                f"chooses by {{op}}{{line}} one of {size} with integers that are not known to lie within; "
                f"those of argmax, topk or sort are, and others after .clamp(0, {size - 1})"
            )
        chosen = self._lowered[id(index)]
        chosen = where(chosen < 0.0, chosen + float(size), chosen) if low < 0 else chosen
        return chosen, self._places(size)

    def _span_of_numbers(self, index: Node) -> tuple[float, float]:
        """The bounds of an index for which the numbers count that the cell holds.

        The program depends on these numbers then, and so does the reason why there is none.
        """

        def look_up(path: Path) -> Tensor | None:
            numbers = self._held.numbers(path)
            if numbers is not None:
                self._held.depend_on([path])
            return numbers

        return self._dtypes.integers.with_numbers(look_up).span(index)

    def _in_rows(self, node: Node) -> Chosen | None:
        """What every row chooses for itself by an index of tensors."""
        indices = by_name(node).get("indices")
        return None if indices is None else chosen_in_rows(indices, self._trace.rows)

    def _places_of(self, node: Node) -> Places | None:
        """What an index of several tensors, or one of several axes, chooses, if its numbers are known."""
        if id(node) not in self._known_places:
            self._known_places[id(node)] = self._places_by_numbers(node)
        return self._known_places[id(node)]

    def _places_by_numbers(self, node: Node) -> Places | None:
        given = by_name(node)
        indices = [index for index in given.get("indices") or () if index is not None]
        if not indices or (len(indices) == 1 and len(indices[0].shape) == 1):
            return None
        if not all(map(self._sorting.is_static, indices)):
            return None

        def values(index: Node) -> Tensor | None:
            return self._held.values(index, self._trace.rows)

        return known_places(given["indices"], given["self"].shape, values)

    def _joined(self, x: Rows, chosen: Chosen) -> tuple[Chosen, Rows | None, Rows | None]:
        """The indices of several axes as one of both together, and all places that these have."""
        index, size = None, 1
        for axis, node in zip(chosen.axes, chosen.indices, strict=True):
            one, _ = self._index(x, axis, node, from_end=True)
            one = one.with_axes(((),) * (chosen.rank - one.rank) + one.axes)
            if one.axes[0] not in ((), (BATCH,)) or any(BATCH in other for other in one.axes[1:]):
                raise Refused("mixes the rows of a batch in {op}{line}")
            index = one if index is None else index * float(x.shape[axis]) + one
            size *= x.shape[axis]
        return chosen, index, None if index is None else self._places(size)

    def _places(self, size: int) -> Rows:
        """The numbers from 0 on."""
        if size not in self._made_places:
            dtype = self._dtypes.compute  # that of the state may not count so far
            given = {"dtype": dtype, "device": torch.device("meta")}
            node = Node(torch.ops.aten.arange.default, (size,), given, None, (size,), dtype)
            self._made_places[size] = self._static(node)
        return self._made_places[size]

    def _put(self, node: Node) -> Rows:
        """A number in the places of a mask, or what each row puts at places of its own."""
        given, in_rows = by_name(node), self._in_rows(node)
        if in_rows is not None:
            x, values = (self._lowered[id(given[name])] for name in ("self", "values"))
            are_apart = len(in_rows.indices) == 1 and are_distinct(in_rows.indices[0], -1)
            joined = self._joined(x, in_rows)
            return put_by_rows(
                x,
                *joined,
                values,
                adds=given["accumulate"],
                are_apart=are_apart and in_rows.rank == 2,
            )
        places = self._places_of(node)
        if places is not None and not is_whole(node.dtype):
            x, values = (self._lowered[id(given[name])] for name in ("self", "values"))
            return put_at(x, places, values, adds=given["accumulate"])
        chosen = [(dim, index) for dim, index in enumerate(given["indices"]) if index is not None]
        if len(chosen) == 1 and chosen[0][0] > 0:
            return self._put_alike(node, *chosen[0], given["values"], adds=given["accumulate"])
        mask, values = given["indices"][0], given["values"]
        if len(given["indices"]) > 1 or mask is None or mask.dtype != torch.bool:
            raise Refused
        x, value = self._lowered[id(given["self"])], self._lowered[id(values)]
        if are_chosen(values.shape):
            if not _has_chosen(mask, values):
                raise Refused("puts what a mask has chosen in by another one in {op}{line}")
        elif len(values.shape) > x.rank - len(mask.shape) + 1 or value.has_batch:
            raise Refused
        elif len(values.shape) > x.rank - len(mask.shape):  # one for all that are chosen
            if value.axes[0]:
                raise Refused
            value = value.with_axes(value.axes[1:])
        new = x + value if given["accumulate"] else value
        return where(_of_first_axes(self._lowered[id(mask)], x), new, x)


def _has_chosen(mask: Node, chosen: Node) -> bool:
    """Whether it is this mask, or an equal one, that has chosen numbers."""
    made = all_inputs(chosen)
    first = next(n for n in made if operation(n) == "index" and n.shape[:1] == chosen.shape[:1])
    return hold_the_same(first.args[1][0], mask)


def _stays_finite(node: Node) -> bool:
    """Whether what is made of a one where a mask has not chosen is finite, and its derivatives are."""
    chosen = [part for part in all_inputs(node) if are_chosen(part.shape)]
    return all(operation(part) in _FINITE for part in chosen)


_FINITE = words("index add sub rsub mul neg abs tanh sigmoid relu clone detach alias _to_copy")


def _of_first_axes(mask: Rows, x: Rows) -> Rows:
    """A mask of the first axes of another tensor."""
    return mask.with_axes((*mask.axes, *((),) * (x.rank - mask.rank)))


def _held_to(shape: tuple[int, ...], rows: Rows) -> Rows:
    """Refuse what torch makes of another shape; a number may stand for as many as there are.

    Raises:
        Refused: it is of another shape.
    """
    pairs = zip(reversed(rows.shape), reversed(shape), strict=False)
    if rows.rank > len(shape) or any(size not in (1, wanted) for size, wanted in pairs):
        raise Refused("uses {op}{line} in a form that is not in the instruction set")
    return rows


_BY_NAME = ("dim", "descending", "stable", "left")
"""Arguments that torch hands on by name, and that are looked at."""

_MOST_PAIRS = 128 * 128
"""So many pairs of numbers are compared to put numbers in order."""


def _written_out(index: Node) -> list[int]:
    """The numbers of an index that the step makes of Python numbers; none of any other one."""
    while index.op is not None and operation(index) in ("detach", "lift_fresh"):
        index = index.args[0]
    return list(map(int, index.args[0])) if index.op is CONSTANT else []


_OF_NODES: dict[str, Callable[[Lowering, Node], Rows]] = {
    **dict.fromkeys(FACTORIES, Lowering._constant),
    "index": Lowering._chosen,
    "index_select": Lowering._chosen,
    "index_put": Lowering._put,
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), Lowering._put_along),
    **dict.fromkeys(("argmax", "argmin", "max", "min"), Lowering._extremum),
    **dict.fromkeys(("sort", "topk", "kthvalue", "median", "nanmedian"), Lowering._ordered),
    "gather": Lowering._gather,
    "scatter": Lowering._scatter,
    "scatter_add": Lowering._scatter,
    "nll_loss_forward": Lowering._nll_loss,
    "embedding": Lowering._embedding,
    "convolution": Lowering._convolution,
    "_linalg_solve_ex": Lowering._solve,
}

KNOWN = frozenset({*LOWERINGS, *_OF_NODES})
"""The operations of torch that can be written in the instruction set."""
