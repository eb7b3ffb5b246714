"""Cells of the literature and of everyday code, as outsiders write them: plain PyTorch, no Cello.

Styles are mixed on purpose: how weights are kept, how the state is taken apart, what is returned and
what the attributes are called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Tuple  # noqa: UP035

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

Size = torch.Size


@dataclass(frozen=True)
class Foreign:
    """A cell, and what its author knows about it.

    Attributes:
        make: input size and width -> the cell.
        state: input size and width -> the widths of its state, nested as its own.
        returns_output: whether it returns (output, state).
        needs_size: whether Recurrent must be told `state_size`.
    """

    make: Callable[[int, int], Any]
    state: Callable[[int, int], Any]
    returns_output: bool = False
    needs_size: bool = False


CELLS: dict[str, Foreign] = {}


def one(f: int, h: int) -> Any:
    return h


def two(f: int, h: int) -> Any:
    return (h, h)


def three(f: int, h: int) -> Any:
    return (h, h, h)


def foreign(
    state: Callable[[int, int], Any] = one, output: bool = False, needs_size: bool = False
) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        CELLS[make.__name__] = Foreign(make, state, output, needs_size)
        return make

    return add


def reset(module: nn.Module, width: int) -> None:
    bound = 1 / math.sqrt(width)
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound)


# torch's own


@foreign(two)
def TorchLSTM(f, h):  # noqa: N802
    return nn.LSTMCell(f, h)


@foreign()
def TorchGRU(f, h):  # noqa: N802
    return nn.GRUCell(f, h)


@foreign()
def TorchRNN(f, h):  # noqa: N802
    return nn.RNNCell(f, h, nonlinearity="relu")


# LSTMs


@foreign(two)
class TutorialLSTM(nn.Module):
    """Eight weights and four biases, as in many tutorials."""

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        for gate in "ifgo":
            setattr(self, f"W_x{gate}", nn.Parameter(torch.empty(hidden_size, input_size)))
            setattr(self, f"W_h{gate}", nn.Parameter(torch.empty(hidden_size, hidden_size)))
            setattr(self, f"b_{gate}", nn.Parameter(torch.empty(hidden_size)))
        self.init_weights()

    def init_weights(self):
        stdv = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            weight.data.uniform_(-stdv, stdv)

    def forward(self, x: Tensor, state: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        h, c = state
        i = torch.sigmoid(F.linear(x, self.W_xi, self.b_i) + F.linear(h, self.W_hi))
        f = torch.sigmoid(F.linear(x, self.W_xf, self.b_f) + F.linear(h, self.W_hf))
        g = torch.tanh(F.linear(x, self.W_xg, self.b_g) + F.linear(h, self.W_hg))
        o = torch.sigmoid(F.linear(x, self.W_xo, self.b_o) + F.linear(h, self.W_ho))
        c = f * c + i * g
        return o * torch.tanh(c), c


@foreign(two, output=True)
class EightLinears(nn.Module):
    def __init__(self, n_in, n_hidden):
        super().__init__()
        self.xi, self.hi = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)
        self.xf, self.hf = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)
        self.xg, self.hg = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)
        self.xo, self.ho = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)

    def forward(self, x, state):
        h, c = state[0], state[1]
        i = (self.xi(x) + self.hi(h)).sigmoid()
        f = (self.xf(x) + self.hf(h)).sigmoid()
        g = (self.xg(x) + self.hg(h)).tanh()
        o = (self.xo(x) + self.ho(h)).sigmoid()
        c_new = f * c + i * g
        h_new = o * c_new.tanh()
        return h_new, (h_new, c_new)


@foreign(two)
class HardLSTM(nn.Module):
    """Piecewise-linear gates, as for chips; optional state."""

    def __init__(self, input_dim, hidden_dim):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.gates = nn.Linear(input_dim + hidden_dim, 4 * hidden_dim)

    def forward(self, x, hx=None):
        if hx is None:
            hx = (x.new_zeros(x.size(0), self.hidden_dim), x.new_zeros(x.size(0), self.hidden_dim))
        h, c = hx
        i, f, g, o = torch.split(self.gates(torch.cat((x, h), 1)), self.hidden_dim, dim=1)
        c = F.hardsigmoid(f) * c + F.hardsigmoid(i) * F.hardtanh(g)
        h = F.hardsigmoid(o) * F.hardtanh(c)
        return h, c


@foreign(two)
class PeepholeLSTM(nn.Module):
    def __init__(self, d, units):
        super().__init__()
        self.units = units
        self.kernel = nn.Parameter(torch.randn(d, 4 * units) * 0.3)
        self.recurrent = nn.Parameter(torch.randn(units, 4 * units) * 0.3)
        self.peep = nn.ParameterList([nn.Parameter(torch.randn(units)) for _ in range(3)])

    def forward(self, inputs, states):
        h, c = states
        z = inputs @ self.kernel + h @ self.recurrent
        zi, zf, zc, zo = z.chunk(4, -1)
        i = torch.sigmoid(zi + self.peep[0] * c)
        f = torch.sigmoid(zf + self.peep[1] * c)
        c = f * c + i * torch.tanh(zc)
        o = torch.sigmoid(zo + self.peep[2] * c)
        return [o * torch.tanh(c), c]


@foreign(two)
class CoupledGateLSTM(nn.Module):
    """Greff et al., 2017: i = 1 - f."""

    def __init__(self, i, h):
        super().__init__()
        self.W = nn.Parameter(torch.randn(3, h, i) / 2)
        self.U = nn.Parameter(torch.randn(3, h, h) / 2)

    def forward(self, x, state):
        h, c = state
        f, g, o = torch.einsum("ghi,bi->gbh", self.W, x) + torch.einsum("ghk,bk->gbh", self.U, h)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@foreign(two)
class LayerNormLSTM(nn.Module):
    """Ba et al., 2016."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.ih = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.hh = nn.Linear(hidden_size, 4 * hidden_size)
        self.ln_x, self.ln_h = nn.LayerNorm(4 * hidden_size), nn.LayerNorm(4 * hidden_size)
        self.ln_c = nn.LayerNorm(hidden_size)

    def forward(self, x, state):
        h, c = state
        i, f, o, g = (self.ln_x(self.ih(x)) + self.ln_h(self.hh(h))).chunk(4, 1)
        c = torch.sigmoid(f + 1.0) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.ln_c(c)), c


@foreign(two)
class MultiplicativeLSTM(nn.Module):
    """Krause et al., 2016."""

    def __init__(self, i, h):
        super().__init__()
        self.mx, self.mh = nn.Linear(i, h, bias=False), nn.Linear(h, h, bias=False)
        self.gx, self.gm = nn.Linear(i, 4 * h), nn.Linear(h, 4 * h)

    def forward(self, x, state):
        h, c = state
        m = self.mx(x) * self.mh(h)
        g, i, o, f = torch.tensor_split(self.gx(x) + self.gm(m), 4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return (c * o.sigmoid()).tanh(), c


@foreign(lambda f, h: (h // 2 + 1, h))
class ProjectedLSTM(nn.Module):
    """Sak et al., 2014; the two parts of the state differ in width."""

    def __init__(self, i, h):
        super().__init__()
        p = h // 2 + 1
        self.x2g, self.h2g = nn.Linear(i, 4 * h), nn.Linear(p, 4 * h)
        self.project = nn.Linear(h, p, bias=False)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = (self.x2g(x) + self.h2g(h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return self.project(o.sigmoid() * c.tanh()), c


@foreign(three)
class NestedLSTM(nn.Module):
    """Moniz and Krueger, 2017: the memory is an LSTM itself."""

    def __init__(self, i, h):
        super().__init__()
        self.outer = nn.Linear(i + h, 4 * h)
        self.inner = nn.Linear(2 * h, 4 * h)

    def forward(self, x, state):
        h, c, cc = state
        i, f, o, g = self.outer(torch.cat([x, h], dim=-1)).chunk(4, dim=-1)
        inner_x, inner_h = i.sigmoid() * g.tanh(), f.sigmoid() * c
        ii, ff, oo, gg = self.inner(torch.cat([inner_x, inner_h], -1)).chunk(4, dim=-1)
        cc = ff.sigmoid() * cc + ii.sigmoid() * gg.tanh()
        c = oo.sigmoid() * cc.tanh()
        return o.sigmoid() * c.tanh(), c, cc


@foreign(two)
class WMCLSTM(nn.Module):
    """Landi et al., 2021: the gates see the memory through weights."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, 4 * h)
        self.mi, self.mf, self.mo = (nn.Linear(h, h, bias=False) for _ in range(3))

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.lin(torch.hstack([x, h])).chunk(4, 1)
        i, f = (i + self.mi(c).tanh()).sigmoid(), (f + self.mf(c).tanh()).sigmoid()
        c = f * c + i * g.tanh()
        return (o + self.mo(c).tanh()).sigmoid() * c.tanh(), c


@foreign(two)
class PhasedLSTM(nn.Module):
    """Neil et al., 2016, with the time as the last feature of the input."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.LSTMCell(i - 1, h)
        self.tau = nn.Parameter(torch.rand(h) * 3 + 1)
        self.s = nn.Parameter(torch.rand(h))

    def forward(self, xt, state):
        x, t = xt[:, :-1], xt[:, -1:]
        h, c = state
        phi = torch.remainder(t - self.s, self.tau) / self.tau
        k = torch.where(phi < 0.25, 4 * phi, torch.where(phi < 0.5, 2 - 4 * phi, 0.001 * phi))
        h_new, c_new = self.cell(x, (h, c))
        return k * h_new + (1 - k) * h, k * c_new + (1 - k) * c


@foreign(two)
class TimeAwareLSTM(nn.Module):
    """T-LSTM, Baytas et al., 2017: old memory fades with the elapsed time."""

    def __init__(self, i, h):
        super().__init__()
        self.short = nn.Linear(h, h)
        self.cell = nn.LSTMCell(i - 1, h)

    def forward(self, x, hc):
        dt = x[..., -1:].abs()
        h, c = hc
        short = torch.tanh(self.short(c))
        c = c - short + short / torch.log(math.e + dt)
        return self.cell(x[..., :-1], (h, c))


@foreign(two)
class Janet(nn.Module):
    """Van der Westhuizen and Lasenby, 2018: the forget gate alone."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, 2 * h), nn.Linear(h, 2 * h, bias=False)

    def forward(self, x, state):
        h, c = state
        s, g = torch.chunk(self.x(x) + self.h(h), 2, dim=1)
        c = torch.sigmoid(s) * c + (1 - torch.sigmoid(s - 1)) * torch.tanh(g)
        return c, c


class LSTMState(NamedTuple):
    hidden: Any
    memory: Any


@foreign(lambda f, h: LSTMState(h, h))
class NamedStateLSTM(nn.Module):
    """Returns a named tuple; takes any pair."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.LSTMCell(i, h)

    def forward(self, x: Tensor, state: LSTMState) -> LSTMState:
        return LSTMState(*self.cell(x, tuple(state)))


@foreign(lambda f, h: LSTMState(h, h), output=True, needs_size=True)
class ReadsNamesLSTM(nn.Module):
    """Needs a named tuple."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.LSTMCell(i, h)

    def forward(self, x, state):
        h, c = self.cell(x, (state.hidden, state.memory))
        return h * 2, LSTMState(hidden=h, memory=c)


# gated units with one state


@foreign()
class ResetBeforeGRU(nn.Module):
    """The GRU of Cho et al., 2014, in its first version: r before the product."""

    def __init__(self, i, h):
        super().__init__()
        self.rz = nn.Linear(i + h, 2 * h)
        self.n = nn.Linear(i + h, h)

    def forward(self, x, h):
        r, z = torch.sigmoid(self.rz(torch.cat([x, h], 1))).chunk(2, 1)
        n = torch.tanh(self.n(torch.cat([x, r * h], 1)))
        return torch.lerp(n, h, z)


@foreign()
class LayerNormGRU(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.randn(3 * hidden_size, input_size) / 3)
        self.weight_hh = nn.Parameter(torch.randn(3 * hidden_size, hidden_size) / 3)
        self.norms = nn.ModuleDict({k: nn.LayerNorm(hidden_size) for k in ("r", "z", "n")})

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        xr, xz, xn = (x @ self.weight_ih.t()).chunk(3, -1)
        hr, hz, hn = (h @ self.weight_hh.t()).chunk(3, -1)
        r = torch.sigmoid(self.norms["r"](xr + hr))
        z = torch.sigmoid(self.norms["z"](xz + hz))
        return (1 - z) * torch.tanh(self.norms["n"](xn + r * hn)) + z * h


@foreign()
class MinimalGatedUnit(nn.Module):
    """MGU, Zhou et al., 2016."""

    def __init__(self, i, h):
        super().__init__()
        self.f, self.n = nn.Linear(i + h, h), nn.Linear(i + h, h)

    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], -1)))
        return (1 - f) * h + f * torch.tanh(self.n(torch.cat([x, f * h], -1)))


@foreign()
class MGU2(nn.Module):
    """Heck and Salem, 2017: the gate sees the state only."""

    def __init__(self, i, h):
        super().__init__()
        self.U_f = nn.Parameter(torch.randn(h, h) / 2)
        self.W, self.U, self.b = (
            nn.Parameter(torch.randn(*shape) / 2) for shape in ((i, h), (h, h), (h,))
        )

    def forward(self, x, h):
        f = torch.sigmoid(torch.mm(h, self.U_f))
        n = torch.tanh(torch.addmm(self.b, x, self.W) + torch.mm(f * h, self.U))
        return (1 - f) * h + f * n


@foreign()
class MGU3(nn.Module):
    """Heck and Salem, 2017: the gate is a constant."""

    def __init__(self, i, h):
        super().__init__()
        self.b_f = nn.Parameter(torch.randn(h))
        self.x2n, self.h2n = nn.Linear(i, h), nn.Linear(h, h, bias=False)

    def forward(self, x, h):
        f = self.b_f.sigmoid()
        return (1 - f) * h + f * (self.x2n(x) + self.h2n(f * h)).tanh()


@foreign()
class LiGRU(nn.Module):
    """Ravanelli et al., 2018: no reset gate, relu, batch norm on the input."""

    def __init__(self, i, h):
        super().__init__()
        self.w, self.u = nn.Linear(i, 2 * h, bias=False), nn.Linear(h, 2 * h, bias=False)
        self.bn = nn.BatchNorm1d(2 * h)

    def forward(self, x, h):
        a, z = (self.bn(self.w(x)) + self.u(h)).chunk(2, 1)
        z = torch.sigmoid(z)
        return z * h + (1 - z) * F.relu(a)


@foreign()
class FastGRNN(nn.Module):
    """Kusupati et al., 2018: one pair of weights for gate and candidate."""

    def __init__(self, i, h):
        super().__init__()
        self.W, self.U = nn.Linear(i, h, bias=False), nn.Linear(h, h, bias=False)
        self.b_z, self.b_h = nn.Parameter(torch.ones(1, h)), nn.Parameter(torch.ones(1, h))
        self.zeta, self.nu = nn.Parameter(torch.ones(1, 1)), nn.Parameter(-4 * torch.ones(1, 1))

    def forward(self, x, h):
        pre = self.W(x) + self.U(h)
        z = torch.sigmoid(pre + self.b_z)
        c = torch.tanh(pre + self.b_h)
        return z * h + (torch.sigmoid(self.zeta) * (1 - z) + torch.sigmoid(self.nu)) * c


@foreign()
class UGRNN(nn.Module):
    """Collins et al., 2017."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, 2 * h)

    def forward(self, x, h):
        c, g = self.lin(torch.cat([x, h], -1)).split(h.shape[-1], -1)
        g = torch.sigmoid(g + 1)
        return g * h + (1 - g) * torch.tanh(c)


@foreign(output=True)
class IntersectionRNN(nn.Module):
    """+RNN, Collins et al., 2017: an output gate across depth; here x is as wide as wanted."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, 2 * i + 2 * h)
        self.sizes = (i, i, h, h)

    def forward(self, x, h):
        y, gy, n, gh = self.lin(torch.cat([x, h], -1)).split(self.sizes, -1)
        gy, gh = torch.sigmoid(gy + 1), torch.sigmoid(gh + 1)
        return gy * x + (1 - gy) * torch.relu(y), gh * h + (1 - gh) * torch.tanh(n)


class _Mut(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.xz, self.xr, self.xh = (nn.Linear(i, h) for _ in range(3))
        self.hz, self.hr, self.hh = (nn.Linear(h, h, bias=False) for _ in range(3))
        self.lift = nn.Linear(i, h, bias=False)


@foreign()
class MUT1(_Mut):
    """Jozefowicz et al., 2015."""

    def forward(self, x, h):
        z = torch.sigmoid(self.xz(x))
        r = torch.sigmoid(self.xr(x) + self.hr(h))
        return torch.tanh(self.hh(r * h) + torch.tanh(self.lift(x))) * z + h * (1 - z)


@foreign()
class MUT2(_Mut):
    def forward(self, x, h):
        z = torch.sigmoid(self.xz(x) + self.hz(h))
        r = torch.sigmoid(self.lift(x) + self.hr(h))
        return torch.tanh(self.hh(r * h) + self.xh(x)) * z + h * (1 - z)


@foreign()
class MUT3(_Mut):
    def forward(self, x, h):
        z = torch.sigmoid(self.xz(x) + self.hz(torch.tanh(h)))
        r = torch.sigmoid(self.xr(x) + self.hr(h))
        return torch.tanh(self.hh(r * h) + self.xh(x)) * z + h * (1 - z)


@foreign()
class ATR(nn.Module):
    """Zhang et al., 2018: twin gates by addition and subtraction."""

    def __init__(self, i, h):
        super().__init__()
        self.p, self.q = nn.Linear(i, h), nn.Linear(h, h, bias=False)

    def forward(self, x, h):
        p, q = self.p(x), self.q(h)
        return torch.sigmoid(p + q) * p + torch.sigmoid(p - q) * h


@foreign()
class SGRU(nn.Module):
    """A single gate, as in SGRU and DSGU (Heck, 2017): multiplied into the candidate."""

    def __init__(self, i, h):
        super().__init__()
        self.gate, self.new = nn.Linear(h, h), nn.Linear(i, h)
        self.g = nn.Linear(h, h, bias=False)

    def forward(self, x, h):
        z_g = torch.tanh(self.g(self.new(x) * h))
        z = torch.sigmoid(self.gate(z_g) + h)
        return (1 - z) * h + z * z_g + 0.1 * torch.tanh(self.new(x))


@foreign()
class STAR(nn.Module):
    """Turkoglu et al., 2019."""

    def __init__(self, i, h):
        super().__init__()
        self.z, self.kx, self.kh = nn.Linear(i, h), nn.Linear(i, h), nn.Linear(h, h)

    def forward(self, x, h):
        k = torch.sigmoid(self.kx(x) + self.kh(h))
        return torch.tanh((1 - k) * h + k * torch.tanh(self.z(x)))


@foreign()
class ChaosFree(nn.Module):
    """CFN, Laurent and von Brecht, 2016."""

    def __init__(self, i, h):
        super().__init__()
        self.W, self.V, self.U = nn.Linear(i, h), nn.Linear(i, 2 * h), nn.Linear(h, 2 * h)

    def forward(self, x, h):
        theta, eta = torch.sigmoid(self.V(x) + self.U(h)).view(len(x), 2, -1).unbind(1)
        return theta * h.tanh() + eta * self.W(x).tanh()


@foreign()
class MultiplicativeRNN(nn.Module):
    """Sutskever et al., 2011."""

    def __init__(self, i, h):
        super().__init__()
        m = h + 1
        self.mx, self.mh = nn.Linear(i, m, bias=False), nn.Linear(h, m, bias=False)
        self.x, self.m = nn.Linear(i, h), nn.Linear(m, h, bias=False)

    def forward(self, x, h):
        return torch.tanh(self.x(x) + self.m(self.mx(x) * self.mh(h)))


@foreign()
class RecurrentHighway(nn.Module):
    """RHN, Zilly et al., 2017, three steps deep."""

    def __init__(self, i, h, depth=3):
        super().__init__()
        self.x = nn.Linear(i, 2 * h, bias=False)
        self.layers = nn.ModuleList([nn.Linear(h, 2 * h) for _ in range(depth)])

    def forward(self, x, s):
        for k, layer in enumerate(self.layers):
            a = layer(s) if k else layer(s) + self.x(x)
            n, t = a.chunk(2, dim=1)
            t = torch.sigmoid(t - 2)
            s = torch.tanh(n) * t + s * (1 - t)
        return s


@foreign(lambda f, h: (h, h))
class NASCell(nn.Module):
    """Zoph and Le, 2017."""

    def __init__(self, i, h):
        super().__init__()
        self.xm, self.hm = nn.Linear(i, 8 * h), nn.Linear(h, 8 * h, bias=False)

    def forward(self, x, state):
        h, c = state
        a, b = self.xm(x).chunk(8, 1), self.hm(h).chunk(8, 1)
        l1 = [
            torch.sigmoid(a[0] + b[0]), torch.relu(a[1] + b[1]), torch.sigmoid(a[2] + b[2]),
            torch.relu(a[3] * b[3]), torch.tanh(a[4] + b[4]), torch.sigmoid(a[5] + b[5]),
            torch.tanh(a[6] + b[6]), torch.sigmoid(a[7] + b[7]),
        ]  # fmt: skip
        l2 = [torch.tanh(l1[0] * l1[1]), torch.tanh(l1[2] + l1[3])]
        l2 += [torch.tanh(l1[4] * l1[5]), torch.sigmoid(l1[6] + l1[7])]
        c = torch.tanh(l2[0] + c) * l2[1]
        return torch.tanh(c * torch.tanh(l2[2] + l2[3])), c


# simple and linear recurrences


@foreign()
class Vanilla(nn.Module):
    def __init__(self, n_inputs, n_hidden):
        super().__init__()
        self.Wx = nn.Parameter(torch.randn(n_inputs, n_hidden))
        self.Wh = nn.Parameter(torch.randn(n_hidden, n_hidden))
        self.b = nn.Parameter(torch.zeros(n_hidden))

    def forward(self, x, h):
        return torch.tanh(x.matmul(self.Wx) + h.matmul(self.Wh) + self.b)


@foreign(output=True)
class CharRNN(nn.Module):
    """The cell of a well-known tutorial: the output is not the state."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.i2h = nn.Linear(input_size + hidden_size, hidden_size)
        self.i2o = nn.Linear(input_size + hidden_size, hidden_size + 2)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, input, hidden):
        combined = torch.cat((input, hidden), 1)
        return self.softmax(self.i2o(combined)), self.i2h(combined)


@foreign()
class IRNN(nn.Module):
    """Le et al., 2015."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h, bias=False)
        nn.init.eye_(self.h.weight)

    def forward(self, x, h: Optional[Tensor] = None):  # noqa: UP045
        pre = self.x(x)
        return F.relu(pre if h is None else pre + self.h(h))


@foreign()
class IndRNN(nn.Module):
    """Li et al., 2018."""

    def __init__(self, i, h):
        super().__init__()
        self.w, self.u = nn.Linear(i, h), nn.Parameter(torch.rand(h))

    def forward(self, x, h):
        return F.relu(self.w(x) + self.u * h)


@foreign(output=True)
class SRU(nn.Module):
    """Lei et al., 2018; a matrix for the highway since x and h differ in width."""

    def __init__(self, i, h):
        super().__init__()
        self.w = nn.Linear(i, 4 * h)
        self.v = nn.Parameter(torch.randn(2, h))

    def forward(self, x, c):
        f, r, n, skip = self.w(x).chunk(4, -1)
        f_gate = torch.sigmoid(f + self.v[0] * c)
        r = torch.sigmoid(r + self.v[1] * c)
        c = f_gate * c + (1 - f_gate) * n
        return r * c + (1 - r) * skip, c


@foreign(lambda f, h: (h, f), output=True)
class QRNN(nn.Module):
    """Bradbury et al., 2017: a convolution over two steps, so the last input is a part of the state."""

    def __init__(self, i, h):
        super().__init__()
        self.now, self.before = nn.Linear(i, 3 * h), nn.Linear(i, 3 * h, bias=False)

    def forward(self, x, state):
        c, last = state
        z, f, o = (self.now(x) + self.before(last)).chunk(3, 1)
        c = f.sigmoid() * c + (1 - f.sigmoid()) * z.tanh()
        return o.sigmoid() * c, (c, x)


@foreign(two)
class SCRN(nn.Module):
    """Mikolov et al., 2015: a slow and a fast state."""

    def __init__(self, i, h):
        super().__init__()
        self.B, self.A = nn.Linear(i, h, bias=False), nn.Linear(i, h, bias=False)
        self.P, self.R = nn.Linear(h, h, bias=False), nn.Linear(h, h, bias=False)

    def forward(self, x, state):
        fast, slow = state
        slow = 0.05 * self.B(x) + 0.95 * slow
        return torch.sigmoid(self.P(slow) + self.A(x) + self.R(fast)), slow


@foreign()
class RAN(nn.Module):
    """Recurrent additive network, Lee et al., 2017 (the memory alone)."""

    def __init__(self, i, h):
        super().__init__()
        self.content = nn.Linear(i, h, bias=False)
        self.gates = nn.Linear(i + h, 2 * h)

    def forward(self, x, c):
        i, f = torch.sigmoid(self.gates(torch.cat([x, torch.tanh(c)], 1))).chunk(2, 1)
        return i * self.content(x) + f * c


@foreign()
class AntisymmetricRNN(nn.Module):
    """Chang et al., 2019."""

    def __init__(self, i, h):
        super().__init__()
        self.V, self.W = nn.Linear(i, h), nn.Parameter(torch.randn(h, h))
        self.register_buffer("eye", torch.eye(h))

    def forward(self, x, h):
        M = self.W - self.W.T - 0.01 * self.eye
        return h + 0.1 * torch.tanh(F.linear(h, M) + self.V(x))


@foreign(two)
class CoRNN(nn.Module):
    """Coupled oscillators, Rusch and Mishra, 2021."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + 2 * h, h)

    def forward(self, x, yz):
        y, z = yz
        z = z + 0.05 * (torch.tanh(self.lin(torch.cat((x, y, z), 1))) - 1.5 * y - 0.7 * z)
        return y + 0.05 * z, z


@foreign(two)
class LEM(nn.Module):
    """Long expressive memory, Rusch et al., 2022."""

    def __init__(self, i, h):
        super().__init__()
        self.inp, self.hid = nn.Linear(i, 4 * h), nn.Linear(h, 3 * h)
        self.z = nn.Linear(h, h)

    def forward(self, x, state):
        y, z = state
        i1, i2, i3, i4 = self.inp(x).chunk(4, 1)
        h1, h2, h3 = self.hid(y).chunk(3, 1)
        dt1, dt2 = torch.sigmoid(i1 + h1), torch.sigmoid(i2 + h2)
        z = (1 - dt1) * z + dt1 * torch.tanh(i3 + h3)
        y = (1 - dt2) * y + dt2 * torch.tanh(self.z(z) + i4)
        return y, z


@foreign()
class LiquidTimeConstant(nn.Module):
    """LTC, Hasani et al., 2021: a few steps of a fused solver."""

    def __init__(self, i, h):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(i + h, h), nn.Sigmoid())
        self.A, self.tau = nn.Parameter(torch.randn(h)), nn.Parameter(torch.rand(h) + 0.5)

    def forward(self, x, h):
        for _ in range(3):
            f = self.f(torch.cat([x, h], 1))
            h = (h + 0.3 * f * self.A) / (1 + 0.3 * (1 / self.tau + f))
        return h


@foreign()
class ClosedFormContinuous(nn.Module):
    """CfC, Hasani et al., 2022, with the time as the last feature."""

    def __init__(self, i, units):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(i - 1 + units, 7), nn.Tanh(), nn.Dropout(0.0))
        self.heads = nn.ModuleList(nn.Linear(7, units) for _ in range(4))

    def forward(self, x, h):
        x, t = x[:, :-1], x[:, -1:]
        f1, f2, a, b = (head(self.backbone(torch.cat([x, h], 1))) for head in self.heads)
        gate = torch.sigmoid(a * t + b)
        return f1.tanh() * (1 - gate) + gate * f2.tanh()


@foreign()
class RotationGRU(nn.Module):
    """GORU-like (Jing et al., 2019): pairs of units are rotated, then gated; modReLU."""

    def __init__(self, i, h):
        super().__init__()
        self.angle = nn.Parameter(torch.randn(h // 2))
        self.x, self.z = nn.Linear(i, h), nn.Linear(i + h, h)
        self.bias = nn.Parameter(torch.rand(h))

    def forward(self, x, h):
        a, b = h[:, 0::2], h[:, 1::2]
        cos, sin = self.angle.cos(), self.angle.sin()
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(1)
        pre = turned + self.x(x)
        z = torch.sigmoid(self.z(torch.cat([x, h], 1)))
        return z * h + (1 - z) * torch.sign(pre) * F.relu(pre.abs() + self.bias)


@foreign()
class Clockwork(nn.Module):
    """Koutnik et al., 2014: blocks with their own rhythm, by masks of the input's last feature."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.rec = nn.Linear(i, h), nn.Linear(h, h)
        self.register_buffer("period", 2.0 ** (torch.arange(h) % 3))

    def forward(self, x, h):
        due = torch.remainder((x[:, -1:] * 4).floor(), self.period) == 0
        return torch.where(due, torch.tanh(self.lin(x) + self.rec(h)), h)


@foreign()
class EchoState(nn.Module):
    """A reservoir of buffers; only the read-in gain is learned."""

    def __init__(self, i, h):
        super().__init__()
        self.register_buffer("w_in", torch.randn(h, i))
        self.register_buffer("w", 0.9 * torch.linalg.qr(torch.randn(h, h))[0])
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x, h):
        return 0.7 * h + 0.3 * torch.tanh(self.gain * F.linear(x, self.w_in) + F.linear(h, self.w))


@foreign(lambda f, h: f)
def LeakyFunction(f, h):  # noqa: N802
    def leaky(x, h):
        return 0.9 * h + 0.1 * x

    return leaky


@foreign(lambda f, h: (f, f))
def MomentumFunction(f, h):  # noqa: N802
    def momentum(x, state):
        ema, velocity = state
        velocity = 0.8 * velocity + 0.2 * (x - ema)
        return ema + velocity, velocity

    return momentum


@foreign(lambda f, h: f)
class LearnedAverage(nn.Module):
    def __init__(self, features, _):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(features))

    def forward(self, x, mean):
        a = self.alpha.sigmoid()
        return a * mean + (1 - a) * x


# other states, other outputs


@foreign(lambda f, h: (h, 1), output=True, needs_size=True)
class CountingCell(nn.Module):
    """A running mean with a counter: nothing says how wide the counter is."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)

    def forward(self, x, state):
        mean, n = state
        n = n + 1
        mean = mean + (self.lin(x).tanh() - mean) / n
        return mean, (mean, n)


@foreign(lambda f, h: (h, Size([h, h])), output=True, needs_size=True)
class FastWeights(nn.Module):
    """Ba et al., 2016: a matrix as a part of the state."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h, self.norm = nn.Linear(i, h), nn.Linear(h, h), nn.LayerNorm(h)

    def forward(self, x, state):
        h, A = state
        A = 0.95 * A + 0.5 * torch.bmm(h.unsqueeze(2), h.unsqueeze(1))
        pre = self.x(x) + self.h(h)
        h = torch.tanh(self.norm(pre + torch.einsum("bij,bj->bi", A, torch.tanh(pre))))
        return h, (h, A)


@foreign(lambda f, h: (h, (h, h)), output=True, needs_size=True)
class StackedInside(nn.Module):
    """Two cells in one: a nested state."""

    def __init__(self, i, h):
        super().__init__()
        self.below, self.above = nn.GRUCell(i, h), nn.LSTMCell(h, h)

    def forward(self, x, state):
        low, high = state
        low = self.below(x, low)
        high = self.above(low, high)
        return high[0] + low, (low, high)


@foreign(lambda f, h: (h, (h, h)), output=True)
class StackedInsideOptional(StackedInside):
    """The same, with a first state of its own: nothing needs to be said."""

    def forward(self, x, state=None):
        return super().forward(x, state if state is not None else (None, None))


@foreign(lambda f, h: [h, h, h, h], output=True)
class FourStates(nn.Module):
    """An sLSTM-like cell (Beck et al., 2024) with normaliser and stabiliser, the state a list."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, 4 * h)

    def forward(self, x, state):
        h, c, n, m = state
        z, i, f, o = self.lin(torch.cat([x, h], -1)).chunk(4, -1)
        m_new = torch.maximum(F.logsigmoid(f) + m, i)
        i, f = torch.exp(i - m_new), torch.exp(F.logsigmoid(f) + m - m_new)
        c, n = f * c + i * z.tanh(), f * n + i
        h = o.sigmoid() * c / n.clamp(min=1e-2)
        return h, [h, c, n, m_new]


@foreign()
class LearnedStart(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.cell, self.h0 = nn.GRUCell(i, h), nn.Parameter(torch.randn(1, h))

    def forward(self, x, state=None):
        if state is None:
            state = self.h0.expand(x.shape[0], -1)
        return self.cell(x, state)


@foreign(two)
class ZoneoutLSTM(nn.Module):
    """Krueger et al., 2017; in evaluation the expectation of the mask."""

    def __init__(self, i, h, p=0.2):
        super().__init__()
        self.cell, self.p = nn.LSTMCell(i, h), p

    def keep(self, old, new):
        if self.training:
            return torch.where(torch.rand_like(old) < self.p, old, new)
        return self.p * old + (1 - self.p) * new

    def forward(self, x, state):
        new = self.cell(x, state)
        return tuple(self.keep(a, b) for a, b in zip(state, new))  # noqa: B905


@foreign(output=True)
class ResidualCell(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.cell, self.skip = nn.GRUCell(i, h), nn.Linear(i, h, bias=False)

    def forward(self, x, h):
        h = self.cell(x, h)
        return h + self.skip(x), h


@foreign()
class MemoryAttention(nn.Module):
    """A GRU that attends over a fixed memory."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.GRUCell(i + h, h)
        self.memory = nn.Parameter(torch.randn(6, h))

    def forward(self, x, h):
        weights = torch.softmax(h @ self.memory.T / math.sqrt(self.memory.shape[1]), dim=-1)
        return self.cell(torch.cat([x, weights @ self.memory], 1), h)


@foreign()
class DeepTransition(nn.Module):
    """Pascanu et al., 2014: a small network from state to state."""

    def __init__(self, i, h):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(i + h, 9),
            nn.LayerNorm(9),
            nn.GELU(),
            nn.Dropout(0.0),
            nn.Linear(9, h),
            nn.Tanh(),
        )

    def forward(self, x, h):
        return self.net(torch.cat([x, h], dim=-1))


@foreign()
def NormalizedWeights(f, h):  # noqa: N802
    """A parametrized weight inside."""
    cell = Vanilla(f, h)
    return nn.utils.parametrizations.weight_norm(cell, "Wh")


@foreign(lambda f, h: h + 2, output=True)
class WideStateNarrowOutput(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.mix = nn.Linear(i + h + 2, h + 2)
        self.read = nn.Linear(h + 2, h - 1)

    def forward(self, x, s):
        s = torch.tanh(self.mix(torch.cat([x, s], 1)))
        return self.read(s), s
