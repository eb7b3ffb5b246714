"""Spiking neurons of other packages, as their users would give them to cello.Recurrent."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from packages.case import UNSEEN, Case, stepwise
from torch import Tensor, nn

# snnTorch


class Given(nn.Module):
    """A neuron of snnTorch with several states, each an argument of its own."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        spike, *state = self.neuron(x, *state)
        return spike, tuple(state)


class Recurring(Given):
    """A neuron of snnTorch whose spikes are a part of its state."""

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        state = self.neuron(x, *state)
        return state[0], tuple(state)


def snntorch() -> Iterator[Case]:
    package = importlib.import_module("snntorch")
    surrogate = importlib.import_module("snntorch.surrogate")

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        neuron = cell.neuron if isinstance(cell, Given) else cell
        state = neuron.reset_mem()

        def step(row: Tensor, state: Any) -> tuple[Tensor, Any]:
            new = neuron(row, *([state] if isinstance(state, Tensor) else state))
            return new[0], new if isinstance(cell, Recurring) else new[1:]

        return stepwise(step, x, state)

    # Their spikes are float32, whatever their input is.
    single: dict[str, Any] = {"dtype": torch.float32, "tolerance": 1e-5}

    def case(name: str, make: Callable[[int, int], nn.Module], count: int = 1, **more: Any) -> Case:
        shown = f"{name}({more.pop('shown', '')})"
        adapter = Recurring if name.startswith("R") else Given
        given = {"adapter": True, "state_size": lambda f, h: (h,) * count} if count > 1 else {}
        return Case(
            "snntorch",
            shown,
            (lambda f, h: adapter(make(f, h))) if count > 1 else make,
            run,
            **{"widens": False, "spikes": True, "scale": 1.5, **single, **given, **more},
        )

    def leaky(**options: Any) -> Callable[[int, int], nn.Module]:
        return lambda f, h: package.Leaky(beta=0.9, **options)

    yield case("Leaky", leaky())
    for reset in ("zero", "none"):
        yield case("Leaky", leaky(reset_mechanism=reset), shown=f"reset_mechanism={reset!r}")
    yield case("Leaky", leaky(reset_delay=False), shown="reset_delay=False")
    yield case(
        "Leaky", leaky(learn_beta=True, learn_threshold=True), shown="learn_beta, learn_threshold"
    )
    for name in [
        "fast_sigmoid",
        "sigmoid",
        "straight_through_estimator",
        "triangular",
        "heaviside",
    ]:
        yield case(
            "Leaky",
            leaky(spike_grad=getattr(surrogate, name)()),
            shown=f"spike_grad={name}",
        )
    yield case("Lapicque", lambda f, h: package.Lapicque(beta=0.9), scale=8.0)
    yield case("Synaptic", lambda f, h: package.Synaptic(alpha=0.8, beta=0.9, learn_beta=True), 2)
    yield case("Alpha", lambda f, h: package.Alpha(alpha=0.9, beta=0.8), 3, scale=4.0)
    yield case("RLeaky", lambda f, h: package.RLeaky(beta=0.9, linear_features=f), 2)
    yield case(
        "RLeaky",
        lambda f, h: package.RLeaky(beta=0.9, all_to_all=False, V=0.5),
        2,
        shown="all_to_all=False",
    )
    yield case(
        "RSynaptic",
        lambda f, h: package.RSynaptic(alpha=0.8, beta=0.9, linear_features=f),
        3,
    )

    def slstm(f: int, h: int) -> nn.Module:
        return package.SLSTM(f, h, threshold=0.1)

    yield case("SLSTM", slstm, 2, widens=True)


# Norse: cells (x, state) -> (output, state), their states named tuples


def norse() -> Iterator[Case]:
    package = importlib.import_module("norse.torch")
    izhikevich = importlib.import_module("norse.torch.functional.izhikevich")

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        return package.Lift(cell)(x)

    common: dict[str, Any] = {"tolerance": 1e-5}  # its states begin in float32
    alone = (
        "LIFCell LIFBoxCell LIFAdExCell LIFAdExRefracCell LIFExCell LIFRefracCell IAFCell LSNNCell"
    )
    for name in alone.split():
        yield Case(
            "norse",
            name,
            lambda f, h, name=name: getattr(package, name)(),
            run,
            widens=False,
            spikes=True,
            scale=20.0,
            **common,
        )
    for name in ("LICell", "LIBoxCell"):
        make = getattr(package, name)
        yield Case("norse", name, lambda f, h, make=make: make(), run, widens=False, **common)
    yield Case("norse", "LILinearCell", package.LILinearCell, run, **common)
    for name in [
        "LIF",
        "LIFAdEx",
        "LIFAdExRefrac",
        "LIFEx",
        "LIFRefrac",
        "LSNN",
        "LIFMC",
        "LIFMCRefrac",
    ]:
        yield Case(
            "norse",
            f"{name}RecurrentCell",
            getattr(package, f"{name}RecurrentCell"),
            run,
            spikes=True,
            scale=20.0,
            **common,
        )
    yield Case(
        "norse",
        "IzhikevichCell",
        lambda f, h: package.IzhikevichCell(izhikevich.tonic_spiking),
        run,
        widens=False,
        scale=5.0,
        **common,
    )


# SpikingJelly: stateful modules, with a form whose state is explicit


class Explicit(nn.Module):
    """A neuron of SpikingJelly by its step with explicit states."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        (spike,), state = self.node.single_step_functional_forward((x,), state)
        return spike, state


class Assigned(nn.Module):
    """A neuron of SpikingJelly whose memory is set from the state, and read back."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.node.v = v
        return self.node(x), self.node.v


def spikingjelly() -> Iterator[Case]:
    neuron = importlib.import_module("spikingjelly.activation_based.neuron")
    rnn = importlib.import_module("spikingjelly.activation_based.rnn")
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        node = cell.node
        node.reset()
        node.step_mode = "m"
        output = node(x)
        node.step_mode = "s"
        return output, tuple(node._memories.values())

    def case(name: str, wrap: type[nn.Module] = Explicit, count: int = 1, **options: Any) -> Case:
        shown = ", ".join(
            f"{key}={type(value).__name__ if isinstance(value, nn.Module) else value}"
            for key, value in options.items()
        )
        one = wrap is Assigned
        return Case(
            "spikingjelly",
            f"{name}({shown})" + (" by its attribute" if one else ""),
            lambda f, h: wrap(getattr(neuron, name)(**options)),
            run,
            lambda f, h: h if one else (h,) * count,
            adapter=True,
            widens=False,
            spikes=True,
            scale=2.0,
        )

    yield case("IFNode")
    yield case("LIFNode")
    yield case("LIFNode", Assigned)
    yield case("LIFNode", v_reset=None)
    yield case("LIFNode", detach_reset=True, decay_input=False)
    for name in ["ATan", "PiecewiseQuadratic", "SoftSign", "Erf", "SuperSpike", "LeakyKReLU"]:
        yield case("LIFNode", surrogate_function=getattr(surrogate, name)())
    yield case("ParametricLIFNode")
    yield case("KLIFNode")
    yield case("ComplementaryLIFNode", count=2)

    def loop(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        def step(row: Tensor, state: Any) -> tuple[Tensor, Any]:
            state = cell(row, state)
            return state[0] if isinstance(state, tuple) else state, state

        return stepwise(step, x, None)

    for name in ("SpikingLSTMCell", "SpikingVanillaRNNCell", "SpikingGRUCell"):
        yield Case(
            "spikingjelly",
            name,
            getattr(rnn, name),
            loop,
            reason=UNSEEN if name == "SpikingLSTMCell" else None,
            spikes=name != "SpikingGRUCell",
        )
