"""The cells that a task can train: Cello's by name, torch's own layers, and any other one.

Whatever it is, :func:`make` returns layers that are called alike, and :func:`output_size` says how wide
their output is.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cello import nn as cello_nn
from cello.cells import ACTIVATIONS, Equations, PiecewiseLinear, resolve_activation
from cello.cells.activations import PIECEWISE
from cello.foreign.apart import apart
from cello.foreign.mistakes import tell
from cello.inspect import explain
from cello.nn import Recurrent, RecurrentLayer, RNNBase
from cello.tasks import own
from cello.tasks.errors import InputError
from cello.tasks.options import without_numpy
from cello.tasks.torch_layers import TorchLayer
from cello.tasks.whole import hold_whole

Layer = RecurrentLayer | TorchLayer
"""Recurrent layers of a task."""

SIZES = ("input_size", "hidden_size", "num_layers", "dropout", "bidirectional")
"""Arguments of a layer that options of their own decide."""

_ELSEWHERE = (*SIZES, "batch_first", "device", "dtype")
_OF_RECURRENT = ("state_size", "merge", "reverse")
_WIDTHS = ("units", "num_units", "output_size")
"""Names for the width of a cell, besides those with ``hidden`` in them."""


def known() -> dict[str, type[RNNBase] | type[nn.RNNBase]]:
    """Return the layers that have a name: all of :mod:`cello.nn` that have equations, and torch's own.

    Example:
        >>> known()["peephole-lstm"].__name__
        'PeepholeLSTM'
    """
    layers = [
        kind
        for kind in vars(cello_nn).values()
        if isinstance(kind, type) and issubclass(kind, RNNBase) and kind is not RNNBase
    ]
    layers.sort(key=lambda kind: -len(kind.equations.gates))
    return {_spelled(kind.__name__): kind for kind in layers} | TorchLayer.KINDS


def _spelled(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


def find(cell: Any) -> Any:
    """Return what a cell is: the name of one that has a name, or else a class or function.

    Args:
        cell: a name, of one's own ``package.module:Class`` or ``file.py:Class``, whose code is imported;
            or a class or function that makes cells.

    Raises:
        InputError: there is none, or it makes no cells.
    """
    if isinstance(cell, str):
        names = known()
        plain = {name.replace("-", ""): name for name in names}
        same = plain.get(re.sub("[-_]", "", cell).lower())
        if same is not None:
            return same
        if not re.search(r"[:./\\]", cell):
            close = get_close_matches(cell.lower(), names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(
                f"cell: {cell!r} is not one of {', '.join(names)}, nor one of your own, {own.HOW}{hint}"
            )
        name, cell = cell, own.load(cell)
        if not callable(cell):
            raise InputError(
                f"cell: {name} is {_article(type(cell).__name__)}, no class or function"
            )
    if isinstance(cell, type):  # of a layer that has a name
        named: dict[type, str] = {kind: name for name, kind in known().items()}
        named |= {k.equations: n for k, n in named.items() if issubclass(k, RNNBase)}
        if cell in named:
            return named[cell]
    if isinstance(cell, nn.Module):
        kind = type(cell).__name__
        raise InputError(
            f"cell: it is one {kind}; give the class {kind}, or a function that makes cells: a network "
            "has several"
        )
    if isinstance(cell, type) and issubclass(cell, nn.RNNBase):
        raise InputError(
            f"cell: {cell.__name__} is a layer, which runs over whole sequences; a cell computes one step"
        )
    if not callable(cell):
        raise InputError(
            f"cell: it is {_article(type(cell).__name__)}, not a name, class or function that makes cells"
        )
    return cell


def name_of(cell: Any) -> str:
    """Return the name of what :func:`find` returned; by it the cell is found again."""
    return cell if isinstance(cell, str) else own.name_of(cell)


def label_of(cell: Any) -> str:
    """Return a short name of what :func:`find` returned."""
    return cell if isinstance(cell, str) else own.label_of(cell)


def read_arguments(given: Any) -> dict[str, Any]:
    """Return arguments of a cell by name, in values that JSON has.

    Args:
        given: a mapping; or ``name=value`` each, with values as in Python or YAML.

    Raises:
        InputError: it is not that.

    Example:
        >>> read_arguments(["bias=no", "gate=hardsigmoid", "widths=[3, 4]"])
        {'bias': False, 'gate': 'hardsigmoid', 'widths': [3, 4]}
    """
    if isinstance(given, Mapping):
        pairs = [(key, value) for key, value in given.items()]
    elif isinstance(given, list | tuple):
        pairs = [_read_argument(text) for text in given]
    else:
        raise InputError(f"cell-args: {given!r} is no mapping of names to values")
    arguments: dict[str, Any] = {}
    for key, value in pairs:
        name = str(key).strip().replace("-", "_")
        if not name.isidentifier():
            raise InputError(f"cell-arg: {key!r} is no name of an argument")
        if name in arguments:
            raise InputError(f"cell-arg: {name} is given twice")
        arguments[name] = _plain(name, value)
    return arguments


def _read_argument(text: Any) -> tuple[str, Any]:
    name, equals, value = str(text).partition("=")
    if not equals:
        raise InputError(f"cell-arg: {text!r} is not name=value, such as bias=false")
    value = value.strip()
    if value.startswith(PIECEWISE):
        return name, value
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
    import yaml  # here: predictions do without

    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def _plain(name: str, value: Any) -> Any:
    """A value as JSON has it, for the model folder; a function by its name."""
    if isinstance(value, PiecewiseLinear):
        return value.text
    value = without_numpy(value)
    if callable(value):
        names = [key for key, function in ACTIVATIONS.items() if function is value]
        if not names:
            raise InputError(
                f"cell-arg: {name} is {value!r}, which a model folder cannot hold; give it in a function "
                "that makes the cells"
            )
        return names[0]
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"cell-arg: {name} is {value!r}; it must be a number, a text, a list or a mapping of these"
        ) from error


def checked(cell: Any, arguments: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
    """Refuse arguments that a cell does not take, or lacks.

    Args:
        cell: what :func:`find` returned.
        arguments: those of the cell, by name.
        functions: the activations that options name, ``None`` for the cell's own.

    Raises:
        InputError: it is that.
    """
    _Kind(cell).check(_joined(cell, arguments, functions))


def make(
    cell: Any,
    features: int,
    hidden: int,
    arguments: Mapping[str, Any],
    functions: Mapping[str, Any],
    *,
    device: str | None = None,
    **options: Any,
) -> Layer:
    """Make recurrent layers of a cell, time first.

    Args:
        cell: what :func:`find` returned.
        features: size of one step of the input.
        hidden: units, if the cell can be told.
        arguments: those of the cell, by name.
        functions: see :func:`checked`.
        device: where the weights are, for cells that have a name.
        **options: `num_layers`, `dropout` and `bidirectional`.

    Raises:
        InputError: the cell cannot be made of these.
    """
    kind, label = _Kind(cell), label_of(cell)
    keywords = _joined(cell, arguments, functions)
    kind.check(keywords)
    if device is not None and not kind.is_own:
        options["device"] = device
    try:
        layer = kind.make(features, hidden, keywords, options)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        if not kind.is_own or _is_of_cello(error):
            raise InputError(f"cell: {label}: {error}" if kind.is_own else str(error)) from error
        raise InputError(f"cell: {label}({features}, ...) raised {tell(error)}") from error
    except Exception as error:  # of the user's code
        raise InputError(f"cell: {label}({features}, ...) raised {tell(error)}") from error
    _unfold(layer)
    if not isinstance(cell, str):
        hold_whole(label, layer, lambda: kind.make(features, hidden, keywords, options))
    width = layer.output_size if isinstance(layer, TorchLayer) else layer._output_shapes()
    if not isinstance(width, int) and (len(width) > 1 or len(width[0]) > 1):
        raise InputError(
            f"cell: {label} must have one output (B, width); its rows have the shapes {width}"
        )
    if not isinstance(cell, str) and isinstance(layer, RecurrentLayer):
        _hold_dtype(label, layer, features)
    return layer


def _hold_dtype(label: str, layer: RecurrentLayer, features: int) -> None:
    """Refuse a cell whose output is of another dtype than the weights of what reads it.

    Truth values, such as spikes, become numbers where no second layer reads them first.

    Raises:
        InputError: it is; the message says what to return instead.
    """
    weights = next(layer.parameters(), torch.zeros(()))
    if weights.is_meta:
        return
    x, cell = torch.zeros(1, features, device=weights.device), layer._cells()[0][0]
    try:
        with torch.no_grad(), apart(layer, x.device):
            layer.eval()
            output, _ = cell(x, cell.initial_state(1, dtype=x.dtype, device=x.device))
    except Exception:  # the training says what is wrong, with the user's own input
        return
    if output.dtype == torch.bool and layer.num_layers == 1:
        layer.register_forward_hook(_as_numbers)
    elif output.dtype != x.dtype:
        kind = str(output.dtype).removeprefix("torch.")
        raise InputError(
            f"cell: the output of {label} is of dtype {kind}, and a linear layer is to read it: return "
            "output.to(x.dtype)"
        )


def _as_numbers(layer: nn.Module, given: Any, returned: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """The output of a layer as numbers."""
    output, state = returned
    return output.float(), state


def _unfold(layer: nn.Module) -> None:
    """Give buffers whose numbers share memory, as after ``expand``, memory that a file can be read into."""
    for module in layer.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or buffer.layout != torch.strided:
                continue
            sizes = zip(buffer.shape, buffer.stride(), strict=True)
            if any(size > 1 and stride == 0 for size, stride in sizes):
                module._buffers[name] = buffer.contiguous()


def output_size(layer: Layer) -> int:
    """Return how many numbers a step of a layer's output has, of all directions together."""
    if isinstance(layer, TorchLayer):
        return layer.output_size
    ((size,),) = layer._output_shapes()
    return size


def last_step(layer: Layer, output: Tensor, lengths: Tensor) -> Tensor:
    """Return the last output of each sequence, (B, width): that of the backward direction is at step 0.

    Args:
        layer: where the output is from.
        output: (T, B, width).
        lengths: the steps of each sequence, (B,).
    """
    rows = torch.arange(output.shape[1], device=output.device)
    last = output[(lengths.to(output.device) - 1).clamp(min=0), rows]
    if not layer.bidirectional or getattr(layer, "merge", "concat") != "concat":
        return output[0] if getattr(layer, "reverse", False) else last
    middle = output.shape[2] // 2
    return torch.cat([last[:, :middle], output[0, :, middle:]], 1)


def engines_of(model: nn.Module, options: Any) -> list[str]:
    """Return what there is to say about the recurrent layers of a model before it is trained.

    Which engine runs a cell of one's own, and why it is not the fastest; and for any cell, that it runs
    in a Python loop.

    Args:
        model: the network of a task.
        options: its options; the device is that of the training.
    """
    notes: list[str] = []
    cell = getattr(options, "cell", None)
    for layer in model.modules():
        features = getattr(layer, "input_size", None)
        if isinstance(layer, RecurrentLayer) and isinstance(features, int):
            notes += _engine_of(layer.to(options.device), features, callable(cell))
    if callable(cell) and notes and _Kind(cell).hidden is None:
        notes.append(
            f"the cell {label_of(cell)} has a width of its own; the option hidden is not used"
        )
    return list(dict.fromkeys(notes))


def _engine_of(layer: RecurrentLayer, features: int, is_own: bool) -> list[str]:
    x = torch.zeros(3, 2, features, device=next(layer.parameters(), torch.zeros(0)).device)
    plans = explain(layer, x).plans
    slow = [plan for plan in plans if plan.engine == "reference"]
    plan = slow[0] if slow else plans[0]
    reasons = [f"{engine}: {'; '.join(why)}" for engine, why in plan.reasons.items()]
    if slow:
        why = " ".join(" ".join(reasons).split())
        return [f"{plan.cells[0]} is not compiled and runs step by step in Python, slowly: {why}"]
    return [f"{plan.cells[0]} runs on the {plan.engine} engine"] if is_own else []


def _joined(
    cell: Any, arguments: Mapping[str, Any], functions: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a cell with its activations."""
    kind, joined = _Kind(cell), dict(arguments)
    for name, function in functions.items():
        if function is None:
            continue
        flag = name.replace("_", "-")
        if name in joined:
            raise InputError(f"{flag}: given twice, also as cell-arg {name}={joined[name]}")
        if kind.takes(name):
            joined[name] = function
        # Every model folder named both once, also those of cells that have no gates.
        elif (name, function) not in (("activation", "tanh"), ("gate_activation", "sigmoid")):
            is_gate = name == "gate_activation" and not kind.is_own
            missing = "gates" if is_gate else f"argument {name}"
            raise InputError(f"{flag}: the cell {label_of(cell)} has no {missing}")
    return joined


class _Kind:
    """What a cell is made with: its own arguments, apart from the sizes that options decide.

    Attributes:
        is_own: whether it is a cell of the user's, for :class:`cello.nn.Recurrent`.
    """

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.layer = known()[cell] if isinstance(cell, str) else _layer_class(cell)
        self.is_own = self.layer is None
        self.is_open = False
        self.parameters: dict[str, inspect.Parameter] = {}
        self.hidden: str | None = None
        self.features: str | None = None
        code = cell if self.layer is None else self.layer
        if self.layer is not None and issubclass(self.layer, nn.RNNBase):
            return  # their signature is open, but not what they take
        try:
            parameters = dict(inspect.signature(code).parameters)
        except (TypeError, ValueError):  # of a built-in function
            self.is_open = True
            return
        kinds = inspect.Parameter
        self.is_open = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
        stars = (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)
        for name in [n for n, p in parameters.items() if p.kind in stars]:
            has_more = parameters.pop(name).kind is kinds.VAR_POSITIONAL
            if has_more and len(parameters) < 2:
                self.hidden = ""  # by its place
        self.parameters = parameters
        if self.layer is None:
            self._find_sizes()

    def _find_sizes(self) -> None:
        """Find out which parameters take the size of the input and of the cell."""
        kinds = inspect.Parameter
        names = [n for n, p in self.parameters.items() if p.kind is not kinds.KEYWORD_ONLY]
        names = names or list(self.parameters)
        if not names and self.hidden is None:
            raise InputError(
                f"cell: {label_of(self.cell)} takes no arguments; it is called with the size of its "
                "input, as Mine(input_size, hidden_size)"
            )
        widths = [n for n in self.parameters if "hidden" in n or n in _WIDTHS]
        if len(names) > 1 and names[0] in widths and names[1] not in widths:
            self.features, self.hidden = names[1], names[0]  # the other way round
            return
        self.features = names[0] if names else None
        second = self.parameters[names[1]] if len(names) > 1 else None
        if second is not None and (second.default is kinds.empty or second.name in widths):
            self.hidden = second.name
        elif widths:
            self.hidden = widths[0]

    def takes(self, name: str) -> bool:
        """Return whether this is an argument of the cell."""
        return self.is_open or name in self.accepted()

    def accepted(self) -> list[str]:
        """Return the names of all arguments."""
        if self.is_own:
            first = self.features
            return [n for n in self.parameters if n != first] + [
                n for n in _OF_RECURRENT if n not in self.parameters
            ]
        assert self.layer is not None
        if issubclass(self.layer, nn.RNNBase):
            more = {nn.LSTM: ["proj_size"], nn.RNN: ["nonlinearity"]}.get(self.layer, [])
            return ["bias", *more]
        options = self.layer.equations.options
        has_projection = any(w.part == "projection" for w in self.layer.equations.weights.values())
        missing = {"activation", "gate_activation"} - {*options}
        missing |= set() if has_projection else {"proj_size"}
        return [n for n in self.parameters if n not in missing and n not in _ELSEWHERE]

    def check(self, arguments: Mapping[str, Any]) -> None:
        accepted = self.accepted()
        for name in arguments:
            if not self.is_own and name in SIZES:
                raise InputError(f"cell-arg: {name} has an option of its own")
            if self.takes(name):
                continue
            there = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            close = get_close_matches(name, accepted, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(
                f"cell-arg: {label_of(self.cell)} takes no argument {name!r}; {there}{hint}"
            )
        for name, parameter in self.parameters.items() if self.is_own else ():
            is_open = parameter.default is parameter.empty and name not in arguments
            if is_open and name not in (self.features, self.hidden):
                raise InputError(
                    f"cell-arg: {label_of(self.cell)} needs a value for {name}: --cell-arg {name}=..."
                )
        if arguments.get("merge") == "none":
            raise InputError("cell-arg: with merge=none the directions have outputs of their own")

    def make(
        self, features: int, hidden: int, arguments: dict[str, Any], options: dict[str, Any]
    ) -> Layer:
        if self.layer is not None and issubclass(self.layer, nn.RNNBase):
            return TorchLayer(self.layer, features, hidden, **arguments, **options)
        if self.layer is not None:
            return self.layer(features, hidden, **arguments, **options)
        values = {name: self._value(name, value) for name, value in arguments.items()}
        of_layer = {
            n: values.pop(n) for n in _OF_RECURRENT if n in values and n not in self.parameters
        }
        if isinstance(of_layer.get("state_size"), list):  # as JSON has a tuple
            of_layer["state_size"] = _tuples(of_layer["state_size"])
        hidden_size = None if self.hidden is None or self.hidden in values else hidden
        factory = self.cell
        names = [n for n, p in self.parameters.items() if p.kind is not p.KEYWORD_ONLY]
        if self.hidden and hidden_size is not None and names[1:2] != [self.hidden]:
            # Not where Recurrent hands it over.
            factory, hidden_size = partial(factory, **{self.hidden: hidden}), None
            if self.features is not None and names[:1] != [self.features]:
                factory = _by_name(factory, self.features)
        captured = inspect.signature(Recurrent.__init__).parameters
        bound = {n: values.pop(n) for n in list(values) if n in captured}
        if bound:
            factory = partial(factory, **bound)
        return Recurrent(factory, features, hidden_size, **of_layer, **options, **values)

    def _value(self, name: str, value: Any) -> Any:
        """A value as the cell takes it: in the place of an activation's name its function."""
        if not isinstance(value, str) or value.startswith(PIECEWISE):
            return resolve_activation(value, name) if isinstance(value, str) else value
        parameter = self.parameters.get(name)
        default = None if parameter is None else parameter.default
        is_function = callable(default) and default is not inspect.Parameter.empty
        is_named_so = "activation" in name and not isinstance(default, str)
        if not (is_function or is_named_so):
            return value
        if value not in ACTIVATIONS and is_function and "activation" not in name:
            raise InputError(
                f"cell-arg: {name}={value} is no activation; choose from {', '.join(ACTIVATIONS)}, "
                "piecewise(x:y, ...)"
            )
        return resolve_activation(value, name)


def _layer_class(cell: Any) -> type[RNNBase] | None:
    """The layer of a user's class that declares its equations, or is a layer of such."""
    if isinstance(cell, type) and issubclass(cell, RNNBase):
        return cell
    if isinstance(cell, type) and issubclass(cell, Equations):
        return type(cell.__name__, (RNNBase,), {"equations": cell, "__module__": cell.__module__})
    return None


def _by_name(factory: Callable[..., Any], features: str) -> Callable[[int], Any]:
    def make(size: int) -> Any:
        return factory(**{features: size})

    return make


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _is_of_cello(error: BaseException) -> bool:
    """Whether Cello raised an error itself, so that it says what is wrong with the cell."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__"))
    return module.partition(".")[0] == "cello"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
