"""More cells of users, tutorials and papers, written apart from those of `foreign_cells`.

The same format, so that the same tests run over both, with a few words more about each cell (see `More`).
`UNCOMPILABLE` holds cells that no compiler of one step should take, each with the line to point at.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Tuple  # noqa: UP035

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.utils.prune
from foreign_cells import Foreign, Size
from torch import Tensor
from torch.nn import Parameter, init
from torch.nn.utils import parametrizations

import cello

VOCABULARY = 11
"""How many symbols a cell knows that reads integers."""


@dataclass(frozen=True)
class More(Foreign):
    """A cell, and what its author knows about it.

    Attributes:
        own_start: called without a state it starts from something else than zeros.
        reads_symbols: x is (B, 1) integers below `VOCABULARY`.
        draws: it draws random numbers in training; in evaluation it does not.
        changes_in_training: a buffer changes at each step of training; in evaluation it does not.
        even: the width must be even.
        at_least: the smallest width.
        copies: torch can copy it deeply.
        pickles: Python can pickle it.
        frozen: some of its parameters take no gradient.
        stacks: a second one can read its output, in any dtype.
        jumps: it rounds or compares, so that a difference in the last bit may become a large one.
        ambiguous: at which input sizes and widths Recurrent must be told `state_size`; the answer
            is `needs_size` where this is not given. A width of one may always need it.
        doubt: why a compiler may leave it to the Python loop; empty where it has no excuse.
    """

    own_start: bool = False
    reads_symbols: bool = False
    draws: bool = False
    changes_in_training: bool = False
    even: bool = False
    at_least: int = 1
    copies: bool = True
    pickles: bool = True
    frozen: bool = False
    stacks: bool = True
    jumps: bool = False
    ambiguous: Callable[[int, int], bool] | None = None
    doubt: str = ""

    def asks(self, f: int, h: int) -> bool:
        """Whether Recurrent must be told `state_size`, for an input size and a width."""
        return self.needs_size if self.ambiguous is None else self.ambiguous(f, h)

    def example(self, f: int, T: int, B: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """A sequence (T, B, ...) to read."""
        generator = torch.Generator().manual_seed(3)
        if self.reads_symbols:
            return torch.randint(0, VOCABULARY, (T, B, 1), generator=generator)
        return torch.randn(T, B, f, generator=generator, dtype=dtype)


@dataclass(frozen=True)
class Uncompilable(Foreign):
    """A cell that is to be left to the Python loop, or refused.

    Attributes:
        reason: what stands in the way, in one word.
        line: the text of the source line that a message should point at.
        refused: it breaks a rule of cells, so that it runs nowhere.
    """

    reason: str = ""
    line: str = ""
    refused: bool = False


MORE_CELLS: dict[str, More] = {}
UNCOMPILABLE: dict[str, Uncompilable] = {}


def one(f: int, h: int) -> Any:
    return h


def two(f: int, h: int) -> Any:
    return (h, h)


def more(
    state: Callable[[int, int], Any] = one,
    output: bool = False,
    needs_size: bool = False,
    **known: Any,
) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        assert make.__name__ not in MORE_CELLS
        MORE_CELLS[make.__name__] = More(make, state, output, needs_size, **known)
        return make

    return add


def uncompilable(
    reason: str,
    line: str,
    state: Callable[[int, int], Any] = one,
    output: bool = False,
    refused: bool = False,
) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        assert make.__name__ not in UNCOMPILABLE
        UNCOMPILABLE[make.__name__] = Uncompilable(
            make, state, output, reason=reason, line=line, refused=refused
        )
        return make

    return add


# LSTMs


def hard_sigmoid(x):
    return torch.clamp(0.2 * x + 0.5, 0.0, 1.0)


@more(two, output=True)
class KerasLikeLSTM(nn.Module):
    """Every weight by name; the hard sigmoid of old Keras."""

    def __init__(self, input_dim, units, use_bias=True):
        super().__init__()
        self.units = units
        self.W_xi = nn.Parameter(torch.Tensor(input_dim, units))
        self.W_hi = nn.Parameter(torch.Tensor(units, units))
        self.b_i = nn.Parameter(torch.zeros(units))
        self.W_xf = nn.Parameter(torch.Tensor(input_dim, units))
        self.W_hf = nn.Parameter(torch.Tensor(units, units))
        self.b_f = nn.Parameter(torch.ones(units))
        self.W_xc = nn.Parameter(torch.Tensor(input_dim, units))
        self.W_hc = nn.Parameter(torch.Tensor(units, units))
        self.b_c = nn.Parameter(torch.zeros(units))
        self.W_xo = nn.Parameter(torch.Tensor(input_dim, units))
        self.W_ho = nn.Parameter(torch.Tensor(units, units))
        self.b_o = nn.Parameter(torch.zeros(units))
        for name, p in self.named_parameters():
            if name.startswith("W_x"):
                nn.init.xavier_uniform_(p)
            elif name.startswith("W_h"):
                nn.init.orthogonal_(p)

    def forward(self, x, states):
        h_tm1, c_tm1 = states
        i = hard_sigmoid(x @ self.W_xi + h_tm1 @ self.W_hi + self.b_i)
        f = hard_sigmoid(x @ self.W_xf + h_tm1 @ self.W_hf + self.b_f)
        c_tilde = torch.tanh(x @ self.W_xc + h_tm1 @ self.W_hc + self.b_c)
        c = f * c_tm1 + i * c_tilde
        o = hard_sigmoid(x @ self.W_xo + h_tm1 @ self.W_ho + self.b_o)
        h = o * torch.tanh(c)
        return h, (h, c)


@more(two)
class TransposedMatmulLSTM(nn.Module):
    """Weights in a dictionary, `torch.matmul` with `.t()`; the state comes back as a list."""

    GATES = ("input", "forget", "cell", "output")

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        std = 1.0 / math.sqrt(H)
        self.W = nn.ParameterDict({g: nn.Parameter(torch.randn(H, D) * std) for g in self.GATES})
        self.U = nn.ParameterDict({g: nn.Parameter(torch.randn(H, H) * std) for g in self.GATES})
        self.b = nn.ParameterDict({g: nn.Parameter(torch.zeros(1, H)) for g in self.GATES})

    def forward(self, x_t: Tensor, prev):
        h_prev, c_prev = prev
        a = {}
        for g in self.GATES:
            a[g] = (
                torch.matmul(x_t, self.W[g].t()) + torch.matmul(h_prev, self.U[g].t()) + self.b[g]
            )
        c_t = a["forget"].sigmoid() * c_prev + a["input"].sigmoid() * a["cell"].tanh()
        h_t = a["output"].sigmoid() * c_t.tanh()
        return [h_t, c_t]


@more(two)
class ViewGatesLSTM(nn.Module):
    """One product, its result seen as (B, 4, H) and indexed."""

    def __init__(self, nin, nhid, forget_bias=1.0):
        super(ViewGatesLSTM, self).__init__()  # noqa: UP008
        self.nhid = nhid
        self.forget_bias = forget_bias
        self.proj = nn.Linear(nin + nhid, nhid * 4)

    def forward(self, inp, hc):
        h, c = hc
        bsz = inp.size(0)
        z = self.proj(torch.cat([inp, h], dim=1)).view(bsz, 4, self.nhid)
        c = c * torch.sigmoid(z[:, 0] + self.forget_bias) + torch.sigmoid(z[:, 1]) * torch.tanh(
            z[:, 2]
        )
        h = torch.tanh(c) * torch.sigmoid(z[:, 3])
        return h, c


@more(two)
class InterleavedGatesLSTM(nn.Module):
    """The gates of one unit lie side by side: (B, H, 4), unbound along the last axis."""

    def __init__(self, i, h):
        super().__init__()
        self.wx = nn.Linear(i, 4 * h)
        self.wh = nn.Linear(h, 4 * h, bias=False)

    def forward(self, x, state):
        (h, c) = state
        ifgo = (self.wx(x) + self.wh(h)).reshape(*h.shape, 4)
        i, f, g, o = ifgo.unbind(dim=-1)
        c = torch.addcmul(i.sigmoid() * g.tanh(), f.sigmoid(), c)
        return o.sigmoid() * c.tanh(), c


@more(two)
class SlicedGatesLSTM(nn.Module):
    """One sigmoid over three gates, slices, and `+=` on what was just made."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.hidden_size = hidden_size
        self.i2h = nn.Linear(input_size, 4 * hidden_size)
        self.h2h = nn.Linear(hidden_size, 4 * hidden_size)

    def forward(self, x, hidden):
        h, c = hidden
        H = self.hidden_size
        preact = self.i2h(x)
        preact += self.h2h(h)
        gates = preact[:, : 3 * H].sigmoid()
        g_t = preact[:, 3 * H :].tanh()
        i_t = gates[:, :H]
        f_t = gates[:, H : 2 * H]
        o_t = gates[:, -H:]
        c_t = torch.mul(c, f_t) + torch.mul(i_t, g_t)
        h_t = torch.mul(o_t, c_t.tanh())
        return h_t, c_t


@more(two)
class EinsumPeepholeLSTM(nn.Module):
    """Coupled input and forget gates, diagonal peepholes, every product an einsum."""

    def __init__(self, n, m):
        super().__init__()
        self.Wx = Parameter(torch.randn(3, m, n) * n**-0.5)
        self.Wh = Parameter(torch.randn(3, m, m) * m**-0.5)
        self.p = Parameter(torch.randn(2, m) * 0.1)
        self.bias = Parameter(torch.zeros(3, m))

    def forward(self, x, hc):
        h, c = hc
        a = torch.einsum("gmn,bn->bgm", self.Wx, x) + torch.einsum("bk,gmk->bgm", h, self.Wh)
        a = a + self.bias
        f = torch.sigmoid(a[:, 0, :] + torch.einsum("bm,m->bm", c, self.p[0]))
        c = f * c + (1.0 - f) * torch.tanh(a[:, 1, :])
        o = torch.sigmoid(a[:, 2, :] + self.p[1] * c)
        return o * torch.tanh(c), c


@more(two)
class GateNormLSTM(nn.Module):
    """A layer norm for each gate, and one for the memory."""

    def __init__(self, input_size, hidden_size, eps=1e-5):
        super().__init__()
        self.hidden_size = hidden_size
        self.w_x = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.w_h = nn.Linear(hidden_size, 4 * hidden_size, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(hidden_size, eps=eps) for _ in range(4)])
        self.norm_c = nn.LayerNorm(hidden_size, eps=eps)
        init.constant_(self.norms[1].bias, 1.0)

    def forward(self, x, state):
        h, c = state
        gates = torch.split(self.w_x(x) + self.w_h(h), self.hidden_size, dim=-1)
        i, f, g, o = (norm(gate) for norm, gate in zip(self.norms, gates))  # noqa: B905
        c_new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h_new = torch.sigmoid(o) * torch.tanh(self.norm_c(c_new))
        return h_new, c_new


def normalise(t, gain, shift, eps=1e-6):
    mu = t.mean(-1, keepdim=True)
    var = ((t - mu) ** 2).mean(-1, keepdim=True)
    return gain * (t - mu) / torch.sqrt(var + eps) + shift


@more(two)
class HandNormLSTM(nn.Module):
    """A layer norm written out, with mean and variance."""

    def __init__(self, i, h):
        super().__init__()
        self.W = Parameter(torch.randn(i, 4 * h) / math.sqrt(i))
        self.U = Parameter(torch.randn(h, 4 * h) / math.sqrt(h))
        self.gain = nn.ParameterList([Parameter(torch.ones(s)) for s in (4 * h, 4 * h, h)])
        self.shift = nn.ParameterList([Parameter(torch.zeros(s)) for s in (4 * h, 4 * h, h)])

    def forward(self, x, state):
        h, c = state
        a = normalise(x.mm(self.W), self.gain[0], self.shift[0])
        b = normalise(h.mm(self.U), self.gain[1], self.shift[1])
        i, f, o, g = torch.chunk(a + b, 4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(normalise(c, self.gain[2], self.shift[2])), c


class RMS(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@more(two)
class RMSNormLSTM(nn.Module):
    """torch's RMS norm over all gates, one's own on the memory."""

    def __init__(self, d_in, d_model):
        super().__init__()
        self.in_proj = nn.Linear(d_in, 4 * d_model, bias=False)
        self.rec_proj = nn.Linear(d_model, 4 * d_model, bias=False)
        self.norm = nn.RMSNorm(4 * d_model, eps=1e-6)
        self.memory_norm = RMS(d_model)

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.norm(self.in_proj(x) + self.rec_proj(h)).chunk(4, dim=-1)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.silu(g)
        return F.sigmoid(o) * self.memory_norm(c), c


@more(two, at_least=2)
class GroupNormLSTM(nn.Module):
    """A group norm over the features, one group for each gate."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, 4 * h, bias=False)
        self.gn = nn.GroupNorm(num_groups=4, num_channels=4 * h)

    def forward(self, x, s):
        i, f, g, o = self.gn(self.lin(torch.cat((x, s[0]), dim=1))).chunk(4, dim=1)
        c = f.sigmoid() * s[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


@more(lambda f, h: (h, h + 3), output=True)
class MemoryFirstLSTMP(nn.Module):
    """Projection and peepholes, both clipped; the memory comes first in the state."""

    def __init__(self, in_features, cell_size, cell_clip=3.0, proj_clip=1.5):
        super().__init__()
        proj = cell_size + 3
        self.kernel = nn.Linear(in_features + proj, 4 * cell_size)
        self.w_f_diag = nn.Parameter(torch.empty(cell_size).uniform_(-0.2, 0.2))
        self.w_i_diag = nn.Parameter(torch.empty(cell_size).uniform_(-0.2, 0.2))
        self.w_o_diag = nn.Parameter(torch.empty(cell_size).uniform_(-0.2, 0.2))
        self.concat_w_proj = nn.Linear(cell_size, proj, bias=False)
        self.cell_clip, self.proj_clip = cell_clip, proj_clip

    def forward(self, inputs, state):
        c_prev, m_prev = state
        i, j, f, o = self.kernel(torch.cat([inputs, m_prev], 1)).chunk(4, 1)
        c = torch.sigmoid(f + 1.0 + self.w_f_diag * c_prev) * c_prev
        c = c + torch.sigmoid(i + self.w_i_diag * c_prev) * torch.tanh(j)
        if self.cell_clip is not None:
            c = c.clamp(-self.cell_clip, self.cell_clip)
        m = torch.sigmoid(o + self.w_o_diag * c) * torch.tanh(c)
        m = self.concat_w_proj(m)
        if self.proj_clip is not None:
            m = torch.clip(m, min=-self.proj_clip, max=self.proj_clip)
        return m, (c, m)


@more(two, output=True)
class HighwayLSTM(nn.Module):
    """A carry gate lets the input pass by; the highway is not a part of the state."""

    def __init__(self, i, h):
        super().__init__()
        self.ih = nn.Linear(i, 5 * h)
        self.hh = nn.Linear(h, 5 * h, bias=False)
        self.lin_x = nn.Linear(i, h, bias=False)

    def forward(self, x, state):
        h, c = state
        i, f, g, o, r = (self.ih(x) + self.hh(h)).chunk(5, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        carry = torch.sigmoid(r)
        return carry * h + (1 - carry) * self.lin_x(x), (h, c)


@more(two)
class ChronoLSTM(nn.Module):
    """Forget biases drawn for the time scales (Tallec and Ollivier, 2018); `torch.addmm`."""

    def __init__(self, i, h, t_max=20):
        super().__init__()
        self.weight_ih = Parameter(torch.randn(4 * h, i) * 0.3)
        self.weight_hh = Parameter(torch.randn(4 * h, h) * 0.3)
        self.bias = Parameter(torch.zeros(4 * h))
        with torch.no_grad():
            self.bias[h : 2 * h] = torch.log(torch.empty(h).uniform_(1, t_max - 1))
            self.bias[:h] = -self.bias[h : 2 * h]

    def forward(self, x: Tensor, state: Tuple[Tensor, Tensor]) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        h, c = state
        gates = torch.addmm(self.bias, x, self.weight_ih.T)
        gates = torch.addmm(gates, h, self.weight_hh.T, alpha=1.0)
        i, f, g, o = torch.chunk(gates, chunks=4, dim=1)
        c = torch.sigmoid(f).mul(c).add(torch.sigmoid(i).mul(torch.tanh(g)))
        return torch.sigmoid(o).mul(torch.tanh(c)), c


def cumax(t, dim=-1):
    return torch.cumsum(F.softmax(t, dim=dim), dim=dim)


@more(two)
class OrderedNeurons(nn.Module):
    """ON-LSTM, Shen et al., 2019: master gates by the cumulative sum of a softmax."""

    def __init__(self, i, h):
        super().__init__()
        self.hidden_size = h
        self.ih = nn.Linear(i, 6 * h)
        self.hh = nn.Linear(h, 6 * h, bias=False)

    def forward(self, x, state):
        h, c = state
        mf, mi, o, g, i, f = (self.ih(x) + self.hh(h)).chunk(6, 1)
        mf, mi = cumax(mf), 1 - cumax(mi)
        overlap = mf * mi
        f = torch.sigmoid(f) * overlap + (mf - overlap)
        i = torch.sigmoid(i) * overlap + (mi - overlap)
        c = f * c + i * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@more(two)
class OrderedNeuronsByMatrix(nn.Module):
    """The same sums as a product with a triangle of ones, in chunks of one unit."""

    def __init__(self, i, h):
        super().__init__()
        self.master = nn.Linear(i + h, 2 * h)
        self.gates = nn.Linear(i + h, 4 * h)
        self.register_buffer("triangle", torch.triu(torch.ones(h, h)))

    def forward(self, x, state):
        h, c = state
        xh = torch.cat([x, h], 1)
        mf, mi = self.master(xh).chunk(2, 1)
        mf = torch.softmax(mf, 1) @ self.triangle
        mi = torch.softmax(mi, 1) @ self.triangle.t()
        o, g, i, f = self.gates(xh).chunk(4, 1)
        both = mf * mi
        c = (f.sigmoid() * both + mf - both) * c + (i.sigmoid() * both + mi - both) * g.tanh()
        return o.sigmoid() * c.tanh(), c


@more(lambda f, h: (h, h, h, h), output=True, even=True)
class HeadwiseSLSTM(nn.Module):
    """sLSTM with exponential gates, a stabiliser, and recurrent weights in blocks, one for each head."""

    def __init__(self, d, units, num_heads=2):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, units // num_heads
        self.W = nn.Linear(d, 4 * units)
        self.R = nn.Parameter(torch.randn(4, num_heads, self.head_dim, self.head_dim) * 0.3)
        self.out_norm = nn.GroupNorm(num_heads, units)

    def forward(self, x, state):
        y, c, n, m = state
        B = x.shape[0]
        heads = y.view(B, self.num_heads, self.head_dim)
        R = torch.stack([torch.einsum("bhd,hde->bhe", heads, r) for r in self.R], dim=1)
        zt, it, ft, ot = (self.W(x).view(B, 4, -1) + R.flatten(2)).unbind(1)
        log_f = -F.softplus(-ft)
        m_new = torch.max(log_f + m, it)
        i_gate, f_gate = torch.exp(it - m_new), torch.exp(log_f + m - m_new)
        c = f_gate * c + i_gate * torch.tanh(zt)
        n = f_gate * n + i_gate
        y = torch.sigmoid(ot) * (c / torch.clamp_min(n, 1e-6))
        return self.out_norm(y), (y, c, n, m_new)


@more(two)
class SubLSTM(nn.Module):
    """Costa et al., 2017: gates subtract."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, 4 * h), nn.Linear(h, 4 * h)

    def forward(self, x, state):
        h, c = state
        i, o, z, f = torch.sigmoid(self.x(x) + self.h(h)).chunk(4, 1)
        c = c * f + z - i
        return torch.sigmoid(c) - o, c


@more(two)
class MogrifierLSTM(nn.Module):
    """Melis et al., 2020: input and state gate each other in rounds before the step."""

    def __init__(self, input_size, hidden_size, rounds=4):
        super().__init__()
        self.rounds = rounds
        self.q = nn.ModuleList(
            [nn.Linear(hidden_size, input_size) for _ in range((rounds + 1) // 2)]
        )
        self.r = nn.ModuleList([nn.Linear(input_size, hidden_size) for _ in range(rounds // 2)])
        self.lstm = nn.LSTMCell(input_size, hidden_size)

    def mogrify(self, x, h):
        for k in range(1, self.rounds + 1):
            if k % 2 == 1:
                x = 2 * torch.sigmoid(self.q[k // 2](h)) * x
            else:
                h = 2 * torch.sigmoid(self.r[k // 2 - 1](x)) * h
        return x, h

    def forward(self, x, states):
        ht, ct = states
        x, ht = self.mogrify(x, ht)
        return self.lstm(x, (ht, ct))


@more(two, jumps=True)
class RoundedMemoryLSTM(nn.Module):
    """The memory on a grid of sixteenths; the gradient goes straight through."""

    def __init__(self, i, h, bits=4):
        super().__init__()
        self.lin = nn.Linear(i + h, 4 * h)
        self.levels = 2**bits

    def quantize(self, v):
        q = torch.round(v * self.levels) / self.levels
        return v + (q - v).detach()

    def forward(self, x, hc):
        h, c = hc
        i, f, g, o = self.lin(torch.cat([x, h], 1)).tensor_split(4, 1)
        c = self.quantize(F.hardsigmoid(f) * c + F.hardsigmoid(i) * F.hardtanh(g))
        return F.hardsigmoid(o) * c, c


@more(two, draws=True)
class DropoutLSTM(nn.Module):
    """Dropout on the input, on the recurrent path and on the candidate (Semeniuta et al., 2016)."""

    def __init__(self, i, h, p=0.3):
        super().__init__()
        self.drop = nn.Dropout(p)
        self.p = p
        self.xs, self.hs = nn.Linear(i, 4 * h), nn.Linear(h, 4 * h)

    def forward(self, x, state):
        h, c = state
        z = self.xs(self.drop(x)) + self.hs(F.dropout(h, 0.2, self.training))
        i, f, g, o = z.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * F.dropout(g.tanh(), p=self.p, training=self.training)
        return o.sigmoid() * c.tanh(), c


@more(lambda f, h: (h, h, h // 2 + 1, h // 2 + 1), needs_size=True)
class HyperLSTM(nn.Module):
    """Ha et al., 2017: a small LSTM scales the rows of the large one's weights."""

    def __init__(self, i, h, z=3):
        super().__init__()
        small = h // 2 + 1
        self.hyper = nn.LSTMCell(h + i, small)
        self.z_h = nn.Linear(small, 4 * z)
        self.z_x = nn.Linear(small, 4 * z)
        self.d_h = nn.ModuleList([nn.Linear(z, h, bias=False) for _ in range(4)])
        self.d_x = nn.ModuleList([nn.Linear(z, h, bias=False) for _ in range(4)])
        self.w_h = nn.ParameterList([nn.Parameter(torch.randn(h, h) / 3) for _ in range(4)])
        self.w_x = nn.ParameterList([nn.Parameter(torch.randn(h, i) / 3) for _ in range(4)])
        self.norm = nn.ModuleList([nn.LayerNorm(h) for _ in range(4)])

    def forward(self, x, state):
        h, c, h_hat, c_hat = state
        h_hat, c_hat = self.hyper(torch.cat((h, x), dim=-1), (h_hat, c_hat))
        z_h, z_x = self.z_h(h_hat).chunk(4, dim=-1), self.z_x(h_hat).chunk(4, dim=-1)
        ifgo = []
        for k in range(4):
            y = self.d_h[k](z_h[k]) * torch.einsum("ij,bj->bi", self.w_h[k], h)
            y = y + self.d_x[k](z_x[k]) * torch.einsum("ij,bj->bi", self.w_x[k], x)
            ifgo.append(self.norm[k](y))
        i, f, g, o = ifgo
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c, h_hat, c_hat


@more(two, draws=True)
class WeightDropLSTM(nn.Module):
    """AWD-LSTM, Merity et al., 2018: dropout on the recurrent weights, here anew at each step."""

    def __init__(self, ninp, nhid, wdrop=0.4):
        super().__init__()
        self.wdrop = wdrop
        self.i2h = nn.Linear(ninp, 4 * nhid)
        self.weight_hh_raw = nn.Parameter(torch.randn(4 * nhid, nhid) * 0.2)

    def forward(self, x, hidden):
        raw_w = self.weight_hh_raw
        w = F.dropout(raw_w, p=self.wdrop, training=self.training)
        i, f, g, o = (self.i2h(x) + F.linear(hidden[0], w)).chunk(4, dim=-1)
        cy = torch.sigmoid(f) * hidden[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cy), cy


@more(two)
class JoinedAtEachStep(nn.Module):
    """Four weights kept apart and joined whenever they are used; biases stacked."""

    def __init__(self, i, h):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(h, i + h) * 0.2) for _ in range(4))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(h)) for _ in range(4))

    def forward(self, x, state):
        h, c = state
        W = torch.cat(list(self.weights), dim=0)
        b = torch.stack([bias + 0.1 for bias in self.biases]).flatten()
        z = F.linear(torch.cat([x, h], dim=1), W, b).unflatten(1, (4, -1))
        i, f, o = torch.sigmoid(z[:, :3]).unbind(1)
        c = f * c + i * z[:, 3].tanh()
        return o * c.tanh(), c


class DropoutWrapper(nn.Module):
    def __init__(self, cell, p):
        super().__init__()
        self.cell, self.drop = cell, nn.Dropout(p)

    def forward(self, x, state):
        output, state = self.cell(x, state)
        return self.drop(output), state


class ResidualWrapper(nn.Module):
    def __init__(self, cell, skip):
        super().__init__()
        self.cell, self.skip = cell, skip

    def forward(self, x, state):
        output, state = self.cell(x, state)
        return output + self.skip(x), state


class WithOutput(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, state):
        state = self.cell(x, state)
        return state[0], state


@more(two, output=True, draws=True)
def WrappedCells(f, h):  # noqa: N802
    """Wrappers around wrappers around torch's cell, as in older TensorFlow."""
    skip = nn.Identity() if f == h else nn.Linear(f, h)
    return ResidualWrapper(DropoutWrapper(WithOutput(nn.LSTMCell(f, h)), 0.2), skip)


# gated units with one state


@more()
class ClassicGRU(nn.Module):
    """Cho et al., 2014, with U after the reset; six matrices and `torch.mm`."""

    def __init__(self, n_in, n_out):
        super().__init__()
        shapes = [("W", (n_in, n_out)), ("U", (n_out, n_out)), ("b", (n_out,))]
        for gate in ("z", "r", "h"):
            for kind, shape in shapes:
                value = torch.zeros(shape) if kind == "b" else torch.randn(shape) * 0.4
                self.register_parameter(f"{kind}_{gate}", nn.Parameter(value))

    def forward(self, x_t, h_tm1):
        z = torch.sigmoid(torch.mm(x_t, self.W_z) + torch.mm(h_tm1, self.U_z) + self.b_z)
        r = torch.sigmoid(torch.mm(x_t, self.W_r) + torch.mm(h_tm1, self.U_r) + self.b_r)
        can_h = torch.tanh(torch.mm(x_t, self.W_h) + torch.mm(r * h_tm1, self.U_h) + self.b_h)
        return z * h_tm1 + (torch.ones_like(z) - z) * can_h


@more()
class ColumnGRU(nn.Module):
    """Vectors are columns, as on paper: W @ x, so everything is transposed on the way in and out."""

    def __init__(self, d, k):
        super().__init__()
        self.Wz, self.Wr, self.Wn = (Parameter(torch.randn(k, d) * 0.3) for _ in range(3))
        self.Uz, self.Ur, self.Un = (Parameter(torch.randn(k, k) * 0.3) for _ in range(3))
        self.bz, self.br, self.bn = (Parameter(torch.zeros(k, 1)) for _ in range(3))

    def forward(self, x, h):
        x, h = x.t(), h.t()
        z = torch.sigmoid(self.Wz @ x + self.Uz @ h + self.bz)
        r = torch.sigmoid(self.Wr @ x + self.Ur @ h + self.br)
        n = torch.tanh(self.Wn @ x + self.Un @ (r * h) + self.bn)
        return ((1 - z) * h + z * n).t()


@more()
class HardMGU(nn.Module):
    """A minimal gated unit without a sigmoid or tanh, by `torch.lerp`."""

    def __init__(self, i, h):
        super().__init__()
        self.forget = nn.Sequential(nn.Linear(i + h, h), nn.Hardsigmoid())
        self.candidate = nn.Sequential(nn.Linear(i + h, h), nn.Hardtanh(-2.0, 2.0))

    def forward(self, x, h):
        f = self.forget(torch.cat([x, h], dim=-1))
        return torch.lerp(h, self.candidate(torch.cat([x, f * h], dim=-1)), f)


@more()
class AddcmulUGRNN(nn.Module):
    """An update gate RNN with the fused helpers of torch, and torch functions called with keywords."""

    def __init__(self, input_size, hidden_size, bias_start=1.0):
        super().__init__()
        self.weight = Parameter(torch.randn(2 * hidden_size, input_size + hidden_size) * 0.2)
        self.register_buffer("start", torch.full((hidden_size,), bias_start))

    def forward(self, input, hidden):
        pre = F.linear(torch.cat(tensors=[input, hidden], dim=1), weight=self.weight)
        g_act, c_act = torch.split(pre, pre.size(1) // 2, dim=1)
        g = torch.sigmoid(g_act.add(self.start))
        c = F.tanh(c_act)
        return torch.addcmul(c, g, torch.sub(hidden, c), value=1)


@more()
class LightGRU(nn.Module):
    """Li-GRU with a layer norm in the place of the batch norm, and a choice of activation by name."""

    ACTS = {"relu": nn.ReLU(), "leaky": nn.LeakyReLU(0.1), "relu6": nn.ReLU6()}  # noqa: RUF012

    def __init__(self, i, h, act="relu6"):
        super().__init__()
        self.act = self.ACTS[act]
        self.w, self.u = nn.Linear(i, 2 * h, bias=False), nn.Linear(h, 2 * h, bias=False)
        self.norm = nn.LayerNorm(2 * h, elementwise_affine=False)

    def forward(self, x, h):
        at, zt = torch.chunk(self.norm(self.w(x)) + self.u(h), 2, dim=-1)
        zt = torch.sigmoid(zt)
        return zt * h + (1 - zt) * self.act(at)


@more()
class ThreeWayGate(nn.Module):
    """Keep, add or replace: a softmax over three choices for each unit."""

    def __init__(self, i, h):
        super().__init__()
        self.choice = nn.Linear(i + h, 3 * h)
        self.new = nn.Linear(i + h, h)

    def forward(self, x, h):
        xh = torch.cat([x, h], -1)
        w = F.softmax(self.choice(xh).view(len(x), -1, 3), dim=2)
        n = torch.tanh(self.new(xh))
        options = torch.stack([h, h + n, n], dim=2)
        return (w * options).sum(dim=2)


@more()
class Bistable(nn.Module):
    """BRC, Vecoven et al., 2021: each unit sees itself alone."""

    def __init__(self, i, h):
        super().__init__()
        self.U_a, self.U_c, self.U = nn.Linear(i, h), nn.Linear(i, h), nn.Linear(i, h)
        self.w_a, self.w_c = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))

    def forward(self, x, h):
        a = 1.0 + torch.tanh(self.U_a(x) + self.w_a * h)
        c = torch.sigmoid(self.U_c(x) + self.w_c * h)
        return c * h + (1.0 - c) * torch.tanh(self.U(x) + a * h)


@more()
class NeuromodulatedBistable(Bistable):
    """nBRC: the gates see all units."""

    def __init__(self, i, h):
        super().__init__(i, h)
        self.w_a = nn.Parameter(torch.randn(h, h) / h)
        self.w_c = nn.Parameter(torch.randn(h, h) / h)

    def forward(self, x, h):
        a = 1.0 + torch.tanh(self.U_a(x) + h.matmul(self.w_a))
        c = torch.sigmoid(self.U_c(x) + h.matmul(self.w_c))
        return torch.lerp(torch.tanh(self.U(x) + a * h), h, c)


@more(even=True)
class BlockDiagonalGRU(nn.Module):
    """The recurrent weights in blocks, multiplied by `torch.bmm` with the blocks in front."""

    def __init__(self, i, h, blocks=2):
        super().__init__()
        self.blocks, self.size = blocks, h // blocks
        self.ih = nn.Linear(i, 3 * h)
        self.hh = Parameter(torch.randn(blocks, self.size, 3 * self.size) / math.sqrt(self.size))

    def forward(self, x, h):
        B = h.size(0)
        parts = h.view(B, self.blocks, self.size).transpose(0, 1)
        rec = torch.bmm(parts, self.hh).transpose(0, 1)
        rec = rec.view(B, self.blocks, 3, self.size).permute(2, 0, 1, 3).reshape(3, B, -1)
        ir, iz, in_ = self.ih(x).chunk(3, dim=1)
        r, z = torch.sigmoid(ir + rec[0]), torch.sigmoid(iz + rec[1])
        n = torch.tanh(in_ + r * rec[2])
        return n + z * (h - n)


@more(draws=True)
class ZoneoutGRU(nn.Module):
    """Zoneout written with a dropout of the change."""

    def __init__(self, i, h, zoneout=0.25):
        super().__init__()
        self.cell, self.zoneout = nn.GRUCell(i, h), zoneout

    def forward(self, x, h):
        change = self.cell(x, h) - h
        return h + F.dropout(change, self.zoneout, training=self.training) * (1 - self.zoneout)


@more()
class UnitSphereGRU(nn.Module):
    """The state lies on the unit sphere."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.GRUCell(i, h)

    def forward(self, x, h):
        return F.normalize(self.cell(x, h) + 1e-2, p=2, dim=-1)


@more()
class CosineGate(nn.Module):
    """How much is taken over depends on the angle between state and candidate."""

    def __init__(self, i, h):
        super().__init__()
        self.new = nn.Linear(i + h, h)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, x, h):
        n = torch.tanh(self.new(torch.cat([x, h], 1)))
        z = torch.sigmoid(self.scale * F.cosine_similarity(n, h, dim=1, eps=1e-6) + self.bias)
        z = z.unsqueeze(1)
        return z * n + (1 - z) * h


@more()
class SharedHighway(nn.Module):
    """A recurrent highway whose micro-steps share one matrix and differ in their biases."""

    def __init__(self, input_size, hidden_size, recurrence_depth=5):
        super().__init__()
        self.L = recurrence_depth
        self.inp_H = nn.Linear(input_size, hidden_size)
        self.inp_T = nn.Linear(input_size, hidden_size)
        self.R_H = nn.Linear(hidden_size, hidden_size, bias=False)
        self.R_T = nn.Linear(hidden_size, hidden_size, bias=False)
        self.b_T = nn.Parameter(torch.full((recurrence_depth, hidden_size), -1.0))

    def forward(self, x, s):
        for micro in range(self.L):
            h, t = self.R_H(s), self.R_T(s) + self.b_T[micro]
            if micro == 0:
                h, t = h + self.inp_H(x), t + self.inp_T(x)
            t = torch.sigmoid(t)
            s = torch.tanh(h) * t + s * (1 - t)
        return s


class Gate(nn.Module):
    """A small module of its own, with its activation handed in."""

    def __init__(self, x_dim, h_dim, activation=torch.sigmoid):
        super().__init__()
        self.from_x = nn.Linear(x_dim, h_dim)
        self.from_h = nn.Linear(h_dim, h_dim, bias=False)
        self.activation = activation

    def forward(self, x, h):
        return self.activation(self.from_x(x) + self.from_h(h))


@more()
class ModularGRU(nn.Module):
    def __init__(self, x_dim, h_dim):
        super().__init__()
        self.gates = nn.ModuleDict(
            {
                "r": Gate(x_dim, h_dim),
                "z": Gate(x_dim, h_dim),
                "n": Gate(x_dim, h_dim, activation=torch.tanh),
            }
        )

    def forward(self, x, h):
        reset = self.gates["r"](x, h)
        update = self.gates["z"](x, h)
        new = self.gates["n"](x, reset * h)
        return update * h + (1.0 - update) * new


@more()
class MLPGate(nn.Module):
    """Two layers in the gate, with named parts and a relu in place."""

    def __init__(self, i, h, inner=7):
        super().__init__()
        self.gate = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(i + h, inner),
                norm=nn.LayerNorm(inner),
                act=nn.ReLU(inplace=True),
                fc2=nn.Linear(inner, h),
                out=nn.Sigmoid(),
            )
        )
        self.new = nn.Sequential(nn.Linear(i + h, 13), nn.SiLU(), nn.Linear(13, h), nn.Tanh())

    def forward(self, x, h):
        xh = torch.cat([x, h], dim=1)
        g = self.gate(xh)
        return g * self.new(xh) + (1 - g) * h


@more()
class MixtureOfExperts(nn.Module):
    """Every row has its own mixture of four transitions."""

    def __init__(self, i, h, experts=4):
        super().__init__()
        self.router = nn.Linear(i + h, experts)
        self.experts = nn.Parameter(torch.randn(experts, h, i + h) * 0.3)

    def forward(self, x, h):
        xh = torch.cat([x, h], dim=-1)
        weights = self.router(xh).softmax(dim=-1)
        outs = torch.einsum("koi,bi->bko", self.experts, xh)
        return torch.tanh((weights.unsqueeze(-1) * outs).sum(1))


@more()
class GLUCell(nn.Module):
    """A gated linear unit from state to state, with a residual connection."""

    def __init__(self, i, h):
        super().__init__()
        self.pre = nn.LayerNorm(i + h)
        self.up = nn.Linear(i + h, 2 * h)
        self.down = nn.Linear(h, h)

    def forward(self, x, h):
        return 0.5 * h + self.down(F.glu(self.up(self.pre(torch.cat([x, h], -1))), dim=-1))


@more()
class GRUODE(nn.Module):
    """De Brouwer et al., 2019: the GRU as the right side of an ODE, by Euler's method."""

    def __init__(self, i, h, dt=0.2, steps=3):
        super().__init__()
        self.cell_r, self.cell_z = nn.Linear(i + h, h), nn.Linear(i + h, h)
        self.cell_n = nn.Linear(i + h, h)
        self.dt, self.steps = dt, steps

    def derivative(self, x, h):
        xh = torch.cat([x, h], 1)
        r, z = torch.sigmoid(self.cell_r(xh)), torch.sigmoid(self.cell_z(xh))
        n = torch.tanh(self.cell_n(torch.cat([x, r * h], 1)))
        return (1 - z) * (n - h)

    def forward(self, x, h):
        for _ in range(self.steps):
            h = h + self.dt * self.derivative(x, h)
        return h


@more()
class InPlaceGRU(nn.Module):
    """In-place operations, all on what the step itself has made."""

    def __init__(self, i, h):
        super().__init__()
        self.x2h = nn.Linear(i, 3 * h, bias=True)
        self.h2h = nn.Linear(h, 3 * h, bias=True)

    def forward(self, x, hidden):
        i_r, i_i, i_n = self.x2h(x).chunk(3, 1)
        h_r, h_i, h_n = self.h2h(hidden).chunk(3, 1)
        resetgate = (i_r + h_r).sigmoid_()
        inputgate = (i_i + h_i).sigmoid_()
        newgate = (resetgate * h_n).add_(i_n).tanh_()
        hy = hidden - newgate
        hy = hy * inputgate
        hy += newgate
        return hy


@more(at_least=2)
class FillsLocalTensor(nn.Module):
    """Two halves with different rules, written into one fresh tensor."""

    def __init__(self, i, h):
        super().__init__()
        self.k = h // 2
        self.fast, self.slow = nn.Linear(i + h, h // 2), nn.Linear(i + h, h - h // 2)

    def forward(self, x, h):
        xh = torch.cat([x, h], 1)
        out = torch.zeros_like(h)
        out[:, : self.k] = torch.tanh(self.fast(xh))
        out[:, self.k :] = 0.9 * h[:, self.k :] + 0.1 * torch.tanh(self.slow(xh))
        return out


@more(jumps=True)
class MaskedAssignment(nn.Module):
    """Small values are set to zero in a copy, by a boolean index."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        new = 0.5 * h + torch.tanh(self.lin(torch.cat([x, h], 1)))
        out = new.clone()
        out[out.abs() < 0.1] = 0.0
        return out


# simple and linear recurrences


@more()
class LowRankFastRNN(nn.Module):
    """FastRNN: weights of low rank, two scalars that pass through a sigmoid."""

    def __init__(self, input_size, hidden_size, rank=2):
        super().__init__()
        self.W1 = nn.Parameter(0.3 * torch.randn(input_size, rank))
        self.W2 = nn.Parameter(0.3 * torch.randn(rank, hidden_size))
        self.U1 = nn.Parameter(0.3 * torch.randn(hidden_size, rank))
        self.U2 = nn.Parameter(0.3 * torch.randn(rank, hidden_size))
        self.bias = nn.Parameter(torch.ones([1, hidden_size]))
        self.alpha = nn.Parameter(-3.0 * torch.ones([1, 1]))
        self.beta = nn.Parameter(3.0 * torch.ones([1, 1]))

    def forward(self, input, state):
        wComp = torch.matmul(torch.matmul(input, self.W1), self.W2)
        uComp = torch.matmul(state, self.U1 @ self.U2)
        c = torch.tanh(wComp + uComp + self.bias)
        return torch.sigmoid(self.beta) * state + torch.sigmoid(self.alpha) * c


@more()
class CayleyRNN(nn.Module):
    """An orthogonal matrix by Cayley's transform of a parameter (scoRNN); modReLU."""

    def __init__(self, i, h):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(h, h) * 0.2)
        self.inp = nn.Linear(i, h, bias=False)
        self.b = nn.Parameter(torch.randn(h) * 0.1)
        signs = torch.ones(h)
        signs[: h // 2] = -1
        self.register_buffer("D", torch.diag(signs))

    def forward(self, x, h):
        A = torch.triu(self.raw, 1)
        A = A - A.transpose(0, 1)
        eye = torch.eye(A.shape[0], dtype=A.dtype, device=A.device)
        W = torch.linalg.solve(eye + A, eye - A) @ self.D
        z = self.inp(x) + h @ W.T
        return torch.sign(z) * torch.relu(torch.abs(z) + self.b)


@more()
class ExpRNN(nn.Module):
    """Lezcano-Casado and Martinez-Rubio, 2019: the exponential of a skew matrix."""

    def __init__(self, i, h):
        super().__init__()
        self.A = nn.Parameter(torch.randn(h, h) * 0.3)
        self.input_kernel = nn.Linear(i, h)

    @property
    def orthogonal(self):
        return torch.matrix_exp(self.A.tril(-1) - self.A.tril(-1).mT)

    def forward(self, x, h):
        return F.leaky_relu(self.input_kernel(x) + F.linear(h, self.orthogonal), 0.2)


@more()
class LipschitzRNN(nn.Module):
    """Erichson et al., 2021: symmetric and skew parts in a given proportion."""

    def __init__(self, i, h, beta=0.75, gamma_A=0.001, gamma_W=0.001, eps=0.1):
        super().__init__()
        self.E = nn.Linear(i, h)
        self.M_A, self.M_W = nn.Parameter(torch.randn(h, h)), nn.Parameter(torch.randn(h, h))
        self.register_buffer("I", torch.eye(h))
        self.beta, self.gamma_A, self.gamma_W, self.eps = beta, gamma_A, gamma_W, eps

    def _build(self, M, gamma):
        MT = M.transpose(1, 0)
        return (1 - self.beta) * (M + MT) + self.beta * (M - MT) - gamma * self.I

    def forward(self, x, h):
        A, W = self._build(self.M_A, self.gamma_A), self._build(self.M_W, self.gamma_W)
        return h + self.eps * (h @ A) + self.eps * torch.tanh(h @ W + self.E(x))


@more(two)
class UnICORNN(nn.Module):
    """Rusch and Mishra, 2021: independent oscillators with their own step sizes."""

    def __init__(self, ninp, nhid, alpha=1.0, dt=0.3):
        super().__init__()
        self.weight_hh = nn.Parameter(torch.rand(nhid))
        self.c_ = nn.Parameter(torch.rand(nhid) * 0.2 - 0.1)
        self.inp = nn.Linear(ninp, nhid)
        self.alpha, self.dt = alpha, dt

    def forward(self, x, state):
        hy, hz = state
        dt = self.dt * torch.sigmoid(self.c_)
        hz = hz - dt * (torch.tanh(hy * self.weight_hh + self.inp(x)) + self.alpha * hy)
        hy = hy + dt * hz
        return hy, hz


@more(two)
class DampedOscillators(nn.Module):
    """coRNN with learned constants, the step size as a third argument."""

    def __init__(self, i, h):
        super().__init__()
        self.i2h = nn.Linear(i, h)
        self.y2h, self.z2h = nn.Linear(h, h, bias=False), nn.Linear(h, h, bias=False)
        self.log_gamma, self.log_eps = nn.Parameter(torch.zeros(h)), nn.Parameter(torch.zeros(()))

    def forward(self, x, state, dt: float = 0.1):
        y, z = state
        force = torch.tanh(self.i2h(x) + self.y2h(y) + self.z2h(z))
        z = z + dt * (force - self.log_gamma.exp() * y - self.log_eps.exp() * z)
        y = y + dt * z
        return y, z


@more(lambda f, h: (h, h))
class LEMByHand(nn.Module):
    """Long expressive memory in the notation of its paper, with one step size for all."""

    def __init__(self, ninp, nhid, dt=0.7):
        super().__init__()
        self.dt = dt
        self.inp2hid = nn.Linear(ninp, 4 * nhid)
        self.hid2hid = nn.Linear(nhid, 3 * nhid)
        self.transform_z = nn.Linear(nhid, nhid)

    def forward(self, x, hs):
        y, z = hs
        i_dt1, i_dt2, i_z, i_y = self.inp2hid(x).chunk(4, 1)
        h_dt1, h_dt2, h_y = self.hid2hid(y).chunk(3, 1)
        ms_dt_bar = self.dt * torch.sigmoid(i_dt1 + h_dt1)
        ms_dt = self.dt * torch.sigmoid(i_dt2 + h_dt2)
        z = torch.addcmul((1.0 - ms_dt) * z, ms_dt, torch.tanh(i_y + h_y))
        y = torch.addcmul((1.0 - ms_dt_bar) * y, ms_dt_bar, torch.tanh(self.transform_z(z) + i_z))
        return y, z


@more(changes_in_training=True, pickles=False)
class SpectralNormRNN(nn.Module):
    """The recurrent weight has spectral norm one; in training its power iteration goes on."""

    def __init__(self, i, h):
        super().__init__()
        self.x = nn.Linear(i, h)
        self.h = parametrizations.spectral_norm(nn.Linear(h, h, bias=False))

    def forward(self, x, h):
        return torch.tanh(self.x(x) + self.h(h))


@more(pickles=False)
class OrthogonalLinear(nn.Module):
    """torch's own orthogonal parametrization."""

    def __init__(self, i, h):
        super().__init__()
        self.x = nn.Linear(i, h)
        self.h = parametrizations.orthogonal(nn.Linear(h, h, bias=False), orthogonal_map="cayley")

    def forward(self, x, h):
        return torch.relu(self.x(x) + self.h(h))


@more(changes_in_training=True, copies=False)
class SpectralNormByHook(nn.Module):
    """The spectral norm of older torch: a hook sets the weight, a plain attribute, at each call."""

    def __init__(self, i, h):
        super().__init__()
        self.x = nn.Linear(i, h)
        self.h = nn.utils.spectral_norm(nn.Linear(h, h))

    def forward(self, x, h):
        return torch.tanh(self.x(x) + self.h(h))


@more(copies=False)
class PrunedGRU(nn.Module):
    """A third of the recurrent weights are pruned: a mask, and a hook that applies it."""

    def __init__(self, i, h):
        super().__init__()
        self.ih, self.hh = nn.Linear(i, 3 * h), nn.Linear(h, 3 * h)
        nn.utils.prune.random_unstructured(self.hh, name="weight", amount=0.3)

    def forward(self, x, h):
        xr, xz, xn = self.ih(x).chunk(3, 1)
        hr, hz, hn = self.hh(h).chunk(3, 1)
        z = torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h


@more(two, pickles=False)
class WeightNormLSTM(nn.Module):
    """Weight norm on the linear maps within."""

    def __init__(self, i, h):
        super().__init__()
        self.ih = parametrizations.weight_norm(nn.Linear(i, 4 * h))
        self.hh = parametrizations.weight_norm(nn.Linear(h, 4 * h), dim=None)

    def forward(self, x, state):
        h, c = state
        gates = self.ih(x) + self.hh(h)
        i, f, g, o = gates.chunk(4, 1)
        c = c * f.sigmoid() + i.sigmoid() * g.tanh()
        return c.tanh() * o.sigmoid(), c


@more(two)
class ResidualIndRNN(nn.Module):
    """Two independently recurrent layers with a shortcut; the recurrent weights are held in a range."""

    def __init__(self, i, h, u_max=1.1):
        super().__init__()
        self.w1, self.w2 = nn.Linear(i, h), nn.Linear(h, h)
        self.u1, self.u2 = nn.Parameter(torch.randn(h)), nn.Parameter(torch.randn(h))
        self.u_max = u_max

    def forward(self, x, state):
        a, b = state
        a = F.relu(self.w1(x) + a * torch.clamp(self.u1, -self.u_max, self.u_max))
        b = F.relu(self.w2(a) + b * torch.clamp(self.u2, -self.u_max, self.u_max)) + 0.1 * a
        return a, b


@more(output=True)
class ScaledSRU(nn.Module):
    """SRU in its second version, with a scale on the highway; weights in one parameter, by view."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.n_out = n_out
        self.weight = nn.Parameter(torch.randn(n_in, n_out * 4) / math.sqrt(n_in))
        self.weight_c = nn.Parameter(torch.randn(n_out * 2) * 0.3)
        self.bias = nn.Parameter(torch.zeros(n_out * 2))
        self.scale = (1 + math.exp(1.5) * 2) ** 0.5

    def forward(self, x, c):
        u = x.mm(self.weight).view(x.size(0), self.n_out, 4)
        forget_wc, reset_wc = self.weight_c.view(2, self.n_out)
        forget_bias, reset_bias = self.bias.view(2, self.n_out)
        forget = (u[..., 1] + c * forget_wc + forget_bias).sigmoid()
        reset = (u[..., 2] + c * reset_wc + reset_bias).sigmoid()
        c = u[..., 0] + (c - u[..., 0]) * forget
        return (c.tanh() - u[..., 3] * self.scale) * reset + u[..., 3] * self.scale, c


@more()
class MinGRU(nn.Module):
    """Feng et al., 2024: the gates do not see the state, so nothing is multiplied in the loop."""

    def __init__(self, i, h):
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(i, 2 * h, bias=False)

    @staticmethod
    def g(v):
        return torch.where(v >= 0, v + 0.5, v.sigmoid())

    def forward(self, x, prev):
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
        gate = gate.sigmoid()
        return torch.lerp(prev, self.g(hidden), gate)


@more(two, output=True)
class DiagonalSSM(nn.Module):
    """A linear recurrent unit (Orvieto et al., 2023), its complex numbers by hand."""

    def __init__(self, i, h):
        super().__init__()
        self.nu_log = nn.Parameter(torch.log(-torch.log(torch.rand(h) * 0.5 + 0.4)))
        self.theta = nn.Parameter(torch.rand(h) * math.pi)
        self.B_re, self.B_im = nn.Linear(i, h, bias=False), nn.Linear(i, h, bias=False)
        self.C_re, self.C_im = nn.Linear(h, h, bias=False), nn.Linear(h, h, bias=False)
        self.D = nn.Linear(i, h, bias=False)

    def forward(self, u, state):
        re, im = state
        r = torch.exp(-torch.exp(self.nu_log))
        cos, sin = r * torch.cos(self.theta), r * torch.sin(self.theta)
        gamma = torch.sqrt(1 - r**2)
        re, im = (
            cos * re - sin * im + gamma * self.B_re(u),
            sin * re + cos * im + gamma * self.B_im(u),
        )
        return self.C_re(re) - self.C_im(im) + self.D(u), (re, im)


@more(lambda f, h: Size([h, 2]), output=True, needs_size=True)
class ComplexSSM(nn.Module):
    """The same with complex tensors within, the state as pairs of reals."""

    def __init__(self, i, h):
        super().__init__()
        self.log_r, self.theta = nn.Parameter(torch.rand(h)), nn.Parameter(torch.rand(h) * 3)
        self.B = nn.Linear(i, 2 * h)

    def forward(self, u, state):
        z = torch.view_as_complex(state.contiguous())
        lam = torch.polar(torch.exp(-self.log_r), self.theta)
        z = lam * z + torch.complex(*self.B(u).chunk(2, -1))
        return z.real, torch.view_as_real(z)


@more(lambda f, h: Size([h, 4]), output=True, needs_size=True)
class SelectiveSSM(nn.Module):
    """One step of a selective state space model (Gu and Dao, 2023)."""

    def __init__(self, d_input, d_inner, d_state=4, dt_rank=2):
        super().__init__()
        self.d_state, self.dt_rank = d_state, dt_rank
        self.in_proj = nn.Linear(d_input, d_inner * 2, bias=False)
        self.x_proj = nn.Linear(d_inner, dt_rank + d_state * 2, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner, bias=True)
        A = torch.arange(1, d_state + 1).float().repeat(d_inner, 1)
        self.A_log = nn.Parameter(torch.log(A))
        self.D = nn.Parameter(torch.ones(d_inner))

    def forward(self, hidden_states, ssm_state):
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)
        x = F.silu(x)
        x_db = self.x_proj(x)
        dt, B, C = torch.split(x_db, [self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(F.linear(dt, self.dt_proj.weight) + self.dt_proj.bias.to(dtype=dt.dtype))
        A = -torch.exp(self.A_log)
        dA = torch.exp(torch.einsum("bd,dn->bdn", dt, A))
        dB = torch.einsum("bd,bn->bdn", dt, B)
        ssm_state = ssm_state * dA + x.unsqueeze(-1) * dB
        y = torch.einsum("bdn,bn->bd", ssm_state, C)
        y = (y + self.D * x) * F.silu(z)
        return y, ssm_state


@more(lambda f, h: (f, h, h, h), output=True, needs_size=True, ambiguous=lambda f, h: f != h)
class WKV(nn.Module):
    """A step in the style of RWKV: the last input, a numerator, a denominator and their exponent."""

    def __init__(self, i, h):
        super().__init__()
        self.time_mix_k = nn.Parameter(torch.rand(i))
        self.time_mix_v = nn.Parameter(torch.rand(i))
        self.time_mix_r = nn.Parameter(torch.rand(i))
        self.time_decay, self.time_first = (
            nn.Parameter(torch.randn(h)),
            nn.Parameter(torch.randn(h)),
        )
        self.key, self.value = nn.Linear(i, h, bias=False), nn.Linear(i, h, bias=False)
        self.receptance, self.out = nn.Linear(i, h, bias=False), nn.Linear(h, i, bias=False)

    def forward(self, x, state):
        last, num, den, top = state
        k = self.key(x * self.time_mix_k + last * (1 - self.time_mix_k))
        v = self.value(x * self.time_mix_v + last * (1 - self.time_mix_v))
        r = torch.sigmoid(self.receptance(x * self.time_mix_r + last * (1 - self.time_mix_r)))
        ww = self.time_first + k
        q = torch.maximum(top, ww)
        e1, e2 = torch.exp(top - q), torch.exp(ww - q)
        wkv = (e1 * num + e2 * v) / (e1 * den + e2)
        ww = top - torch.exp(self.time_decay)
        q = torch.maximum(ww, k)
        e1, e2 = torch.exp(ww - q), torch.exp(k - q)
        return self.out(r * wkv), (x, e1 * num + e2 * v, e1 * den + e2, q)


@more(lambda f, h: Size([2, h // 2, h // 2]), output=True, needs_size=True, even=True)
class Retention(nn.Module):
    """Sun et al., 2023: a matrix for each head, with a fixed decay; norm over each head."""

    def __init__(self, i, h, heads=2):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(i, h, bias=False) for _ in range(3))
        self.g, self.o = nn.Linear(i, h), nn.Linear(h, h)
        self.norm = nn.GroupNorm(heads, h, affine=False)
        decay = 1 - 2 ** (-1 - torch.arange(heads, dtype=torch.float))
        self.register_buffer("decay", decay.view(1, heads, 1, 1))

    def split(self, t):
        return t.view(t.shape[0], self.heads, -1)

    def forward(self, x, S):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        S = self.decay * S + k.unsqueeze(-1) * v.unsqueeze(-2)
        y = torch.einsum("bhk,bhkv->bhv", q * k.size(-1) ** -0.5, S).flatten(1)
        return self.o(F.silu(self.g(x)) * self.norm(y)), S


@more(lambda f, h: Size([h, h]), output=True, needs_size=True)
class DeltaRule(nn.Module):
    """Schlag et al., 2021: fast weights that are corrected where they were wrong."""

    def __init__(self, i, h):
        super().__init__()
        self.slow = nn.Linear(i, 3 * h + 1, bias=False)
        self.h = h

    def forward(self, x, W):
        q, k, v, beta = self.slow(x).split([self.h, self.h, self.h, 1], dim=1)
        k, q = F.softmax(k, dim=1), F.softmax(q, dim=1)
        v_old = torch.bmm(W, k.unsqueeze(2)).squeeze(2)
        W = W + torch.bmm((torch.sigmoid(beta) * (v - v_old)).unsqueeze(2), k.unsqueeze(1))
        return torch.bmm(W, q.unsqueeze(2)).squeeze(2), W


@more(lambda f, h: (Size([h, h]), h), output=True, needs_size=True)
class LinearAttention(nn.Module):
    """Katharopoulos et al., 2020, as a recurrence: a matrix and its normaliser."""

    def __init__(self, i, h):
        super().__init__()
        self.to_qkv = nn.Linear(i, 3 * h)

    def forward(self, x, memory):
        S, Z = memory
        q, k, v = self.to_qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        S = S + k[:, :, None] * v[:, None, :]
        Z = Z + k
        out = (q[:, None, :] @ S).squeeze(1) / (torch.sum(q * Z, dim=-1, keepdim=True) + 1e-6)
        return out, (S, Z)


@more(lambda f, h: Size([3, h]), output=True, needs_size=True)
class SlotMemory(nn.Module):
    """Attention over three slots: read by a softmax, write back gated."""

    def __init__(self, i, h, slots=3):
        super().__init__()
        self.query, self.erase, self.write = (
            nn.Linear(i, h),
            nn.Linear(2 * h, h),
            nn.Linear(2 * h, h),
        )
        self.keys = nn.Parameter(torch.randn(slots, h))

    def forward(self, x, M):
        q = self.query(x)
        scores = torch.einsum("bsd,bd->bs", M + self.keys, q) / math.sqrt(q.size(-1))
        a = torch.softmax(scores, dim=-1)
        read = (a.unsqueeze(-1) * M).sum(dim=1)
        both = torch.cat([q, read], dim=-1)
        e, w = torch.sigmoid(self.erase(both)), torch.tanh(self.write(both))
        M = M * (1 - a.unsqueeze(2) * e.unsqueeze(1)) + a.unsqueeze(2) * w.unsqueeze(1)
        return read, M


@more(lambda f, h: 4 * h, needs_size=True)
class EntityNetwork(nn.Module):
    """Henaff et al., 2017: four slots in one flat state, normalised after each write."""

    def __init__(self, i, d, blocks=4):
        super().__init__()
        self.blocks, self.d = blocks, d
        self.encode = nn.Linear(i, d)
        self.U, self.V, self.W = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.keys = nn.Parameter(torch.randn(blocks, d) * 0.1)
        self.act = nn.PReLU(init=0.1)

    def forward(self, x, state):
        h = state.view(-1, self.blocks, self.d)
        s = self.encode(x).unsqueeze(1)
        gate = torch.sigmoid((s * h).sum(-1) + (s * self.keys).sum(-1)).unsqueeze(-1)
        candidate = self.act(self.U(h) + self.V(self.keys) + self.W(s))
        h = h + gate * candidate
        h = h / (h.norm(dim=-1, keepdim=True) + 1e-8)
        return h.view(x.size(0), -1)


@more(
    lambda f, h: Size([3, h]),
    output=True,
    needs_size=True,
    even=True,
)
class RelationalMemory(nn.Module):
    """Santoro et al., 2018, in small: slots attend to each other and to the input."""

    def __init__(self, i, h, heads=2):
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.gate = nn.Linear(i, h), nn.Linear(h, 3 * h), nn.Linear(2 * h, h)

    def forward(self, x, M):
        B, S, D = M.shape
        tokens = torch.cat([M, self.embed(x).unsqueeze(1)], dim=1)
        qkv = self.qkv(tokens).view(B, S + 1, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        new = F.scaled_dot_product_attention(q[:, :, :-1], k, v)
        new = new.transpose(1, 2).reshape(B, S, D)
        g = torch.sigmoid(self.gate(torch.cat([M, new], dim=-1)))
        M = g * M + (1 - g) * torch.tanh(new)
        return M.mean(dim=1), M


@more()
class MaskedReservoir(nn.Module):
    """An echo state network with sparse fixed weights, biased, nothing learned but the leak."""

    def __init__(self, i, h, density=0.5, radius=0.8):
        super().__init__()
        self.register_buffer("Win", torch.rand(h, i) - 0.5)
        self.register_buffer("W", torch.randn(h, h))
        self.register_buffer("mask", (torch.rand(h, h) < density).to(torch.uint8))
        self.register_buffer("bias", torch.rand(h) * 0.1)
        self.register_buffer("radius", torch.tensor(radius))
        self.leak = nn.Parameter(torch.tensor(0.3))

    def forward(self, u, r):
        W = self.W * self.mask * self.radius / self.W.shape[0] ** 0.5
        return torch.lerp(r, torch.tanh(u @ self.Win.T + r @ W.T + self.bias), self.leak)


@more()
class ManyProducts(nn.Module):
    """The same kind of product in ten spellings."""

    def __init__(self, i, h):
        super().__init__()
        self.ws = nn.ParameterList(nn.Parameter(torch.randn(h, h) * 0.1) for _ in range(8))
        self.vs = nn.ParameterList(nn.Parameter(torch.randn(i, h) * 0.1) for _ in range(2))
        self.b = nn.Parameter(torch.zeros(h))

    def forward(self, x, h):
        w, B = self.ws, len(h)
        z = x.matmul(self.vs[0]) + torch.einsum("...i,io->...o", x, self.vs[1])
        z = z + h @ w[0] + h.mm(w[1].t()) + (w[2] @ h.unsqueeze(-1)).squeeze(-1)
        z = torch.addmm(z, h, w[3], beta=0.5, alpha=2.0)
        column, batch = h.unsqueeze(2), w[4].expand(B, -1, -1)
        z = torch.baddbmm(z.unsqueeze(2), batch, column).squeeze(2)
        z = z + (h[:, None, :] * w[5]).sum(-1) + torch.tensordot(h, w[6], dims=1)
        return torch.tanh(z + F.linear(h, w[7], self.b) + torch.mv(w[0], self.b).expand_as(z))


@more()
class TriangularRNN(nn.Module):
    """Blocks see only slower blocks; a product of a mask and a sum of static matrices."""

    def __init__(self, i, h):
        super().__init__()
        self.W = nn.Linear(i, h)
        self.R = nn.Parameter(torch.randn(h, h) * 0.3)
        self.diagonal = nn.Parameter(torch.rand(h))

    def forward(self, x, h):
        R = torch.tril(self.R, diagonal=-1) + torch.diag(torch.tanh(self.diagonal))
        return F.softsign(self.W(x) + torch.tensordot(h, R, dims=([1], [1])))


@more()
class SecondOrderRNN(nn.Module):
    """Giles et al., 1992: every pair of input and unit has a weight."""

    def __init__(self, i, h):
        super().__init__()
        self.W = nn.Parameter(torch.randn(h, h, i) / math.sqrt(h * i))
        self.b = nn.Parameter(torch.zeros(h))

    def forward(self, x, h):
        return torch.sigmoid(torch.einsum("kji,bj,bi->bk", self.W, h, x) + self.b)


@more()
class BilinearCell(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.mix = nn.Bilinear(i, h, h)
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)

    def forward(self, x, h):
        return torch.tanh(self.mix(x, h) + self.x(x) + self.h(h))


@more()
class MultiplicativeIntegration(nn.Module):
    """Wu et al., 2016: alpha * Wx * Uh + beta1 * Uh + beta2 * Wx + b."""

    def __init__(self, i, h):
        super().__init__()
        self.W, self.U = nn.Linear(i, h, bias=False), nn.Linear(h, h, bias=False)
        self.alpha, self.beta1, self.beta2 = (nn.Parameter(torch.ones(h)) for _ in range(3))
        self.b = nn.Parameter(torch.zeros(h))

    def forward(self, x, h):
        Wx, Uh = self.W(x), self.U(h)
        return (self.alpha * Wx * Uh + self.beta1 * Uh + self.beta2 * Wx + self.b).tanh()


@more(lambda f, h: 13, output=True)
class OddWidths(nn.Module):
    """Seven and thirteen units, whatever was asked for, by `@` with a column."""

    def __init__(self, i, h):
        super().__init__()
        self.hidden_size = 13
        self.squeeze = nn.Parameter(torch.randn(7, i + 13) * 0.3)
        self.spread = nn.Parameter(torch.randn(13, 7) * 0.3)
        self.read = nn.Linear(13, h)

    def forward(self, x, h):
        column = torch.cat([x, h], dim=1).unsqueeze(-1)
        h = torch.tanh(self.spread @ torch.relu(self.squeeze @ column)).squeeze(-1)
        return self.read(h), h


@more(lambda f, h: 1, output=True)
class OneUnit(nn.Module):
    """A state of one number, which scales all of the input."""

    def __init__(self, i, h):
        super().__init__()
        self.score, self.value = nn.Linear(i, 1), nn.Linear(i, h)
        self.decay = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x, level):
        level = level * self.decay.sigmoid() + F.softplus(self.score(x))
        return self.value(x) * level / (1 + level), level


# activations


@more()
class SmoothActivations(nn.Module):
    """Every part of the state with another smooth activation."""

    def __init__(self, i, h):
        super().__init__()
        smooth = [nn.ELU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Mish()]
        smooth.extend([nn.Softplus(2.0), nn.LogSigmoid(), nn.Softsign(), nn.SELU(), nn.CELU(0.7)])
        self.acts = nn.ModuleList(smooth).append(nn.Tanhshrink())
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)
        self.mix = nn.Parameter(torch.randn(len(self.acts), h) * 0.3)

    def forward(self, x, h):
        pre = self.x(x) + self.h(h)
        total = 0
        for act, weight in zip(self.acts, self.mix):  # noqa: B905
            total = total + weight * act(pre)
        return torch.tanh(total)


@more(doubt="rrelu writes its noise")
class PiecewiseActivations(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)
        self.prelu_one, self.prelu_each = nn.PReLU(), nn.PReLU(h)
        self.shrink = nn.ModuleList(
            [nn.Hardshrink(0.1), nn.Softshrink(0.1), nn.Threshold(0.1, -0.2)]
        )

    def forward(self, x, h):
        a = self.x(x) + self.h(h)
        b = self.prelu_one(a) + self.prelu_each(-a) + F.leaky_relu(a, negative_slope=0.2)
        for layer in self.shrink:
            b = b + 0.3 * layer(a)
        b = b + F.relu6(a) + F.hardswish(a) + F.hardsigmoid(a) + F.hardtanh(a, -0.5, 0.5)
        return F.rrelu(b, training=False).clamp(max=2.0)


@more()
class OddFunctions(nn.Module):
    """sin as in SIREN, signed roots, powers, reciprocals, logarithms and exponentials."""

    def __init__(self, i, h, omega=30.0):
        super().__init__()
        self.omega = omega
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)

    def forward(self, x, h):
        z = self.x(x) + self.h(h)
        wave = torch.sin(self.omega * z) + torch.cos(z) * z.square()
        root = torch.sign(z) * (z.abs() + 1e-4).sqrt()
        bell = torch.exp(-z.pow(2)) + (1 + z**2).reciprocal() + 1 / (2 + z.cosh())
        logs = torch.log1p(z.abs()) + torch.atan(z) + torch.erf(z) - torch.expm1(-z.abs())
        more = torch.log2(2 + z.abs()) + 2 ** (-z.abs()) + torch.asinh(z) + z.sigmoid().logit()
        return torch.tanh(wave + root + bell + logs + 0.1 * more) * torch.rsqrt(1 + h * h)


@more(jumps=True)
class RoundingFunctions(nn.Module):
    """floor, frac, remainder, trunc: steps within a step."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        z = 3 * self.lin(torch.cat([x, h], 1))
        w = torch.frac(z) + 0.1 * torch.floor(z) - 0.05 * z.ceil() + z % 0.7 - torch.fmod(z, 0.4)
        return w - 0.1 * torch.trunc(z) + 0.01 * torch.div(z, 0.5, rounding_mode="floor")


@more()
class MaxoutRNN(nn.Module):
    """The largest of three linear maps; `max` for one half of it and `amax` for the other."""

    def __init__(self, i, h, pieces=3):
        super().__init__()
        self.pieces = pieces
        self.w, self.u = nn.Linear(i, h * pieces), nn.Linear(h, h * pieces)

    def forward(self, x, h):
        z = (self.w(x) + self.u(h)).view(h.size(0), -1, self.pieces)
        top, _ = z.max(dim=2)
        return torch.tanh(0.5 * top + 0.5 * z.amax(-1) - 0.2 * z.min(-1).values)


@more()
class RowStatistics(nn.Module):
    """Means, deviations, norms and extremes of each row set its gain."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h, bias=False)
        self.gain = nn.Linear(6, h)

    def forward(self, x, h):
        z = self.x(x) + self.h(h)
        s = torch.stack(
            [
                z.mean(1),
                z.var(dim=1, unbiased=False),
                z.std(1, correction=0) if z.size(1) > 1 else z[:, 0],
                torch.linalg.vector_norm(z, dim=1),
                torch.logsumexp(z, dim=1),
                z.amax(1) - z.amin(1),
            ],
            dim=1,
        )
        return torch.tanh(z * torch.sigmoid(self.gain(s)))


@more(jumps=True)
class WinnersTakeMost(nn.Module):
    """Only units near the largest stay; comparisons with the maximum of the row."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)

    def forward(self, x, h):
        a = F.softplus(self.x(x) + self.h(h))
        keep = a >= 0.7 * a.max(dim=-1, keepdim=True).values
        return torch.masked_fill(a, ~keep, 0.0) + 0.1 * h * keep.logical_not()


# neurons, filters and equations of motion


@more(output=True, stacks=False, jumps=True)
class SpikingNeurons(nn.Module):
    """Leaky integrate and fire; a hard reset by `torch.where`; spikes are the output."""

    def __init__(self, i, h, beta=0.9, threshold=1.0):
        super().__init__()
        self.fc = nn.Linear(i, h)
        self.beta, self.threshold = beta, threshold
        nn.init.uniform_(self.fc.weight, 0, 1)

    def forward(self, x, mem):
        mem = self.beta * mem + self.fc(x)
        spk = (mem > self.threshold).float()
        mem = torch.where(spk > 0, 0.0, mem)
        return spk, mem


@more(lambda f, h: (h, h, h), output=True, jumps=True)
class AdaptiveThreshold(nn.Module):
    """Bellec et al., 2018: the threshold rises with each spike; spikes with a surrogate slope."""

    def __init__(self, n_in, n_rec, tau_m=20.0, tau_a=200.0):
        super().__init__()
        self.w_in = nn.Parameter(torch.rand(n_in, n_rec))
        self.w_rec = nn.Parameter(torch.randn(n_rec, n_rec) / math.sqrt(n_rec))
        self.register_buffer("eye", torch.eye(n_rec, dtype=torch.bool))
        self.alpha, self.rho, self.b0, self.beta = (
            math.exp(-1 / tau_m),
            math.exp(-1 / tau_a),
            0.5,
            1.8,
        )

    def spike(self, u):
        hard = (u > 0).to(u.dtype)
        soft = 0.3 * torch.clamp(1 - u.abs(), min=0.0) * u
        return hard.detach() + soft - soft.detach()

    def forward(self, x, state):
        v, a, z = state
        w_rec = self.w_rec.masked_fill(self.eye, 0)
        a = self.rho * a + (1 - self.rho) * z
        A = self.b0 + self.beta * a
        v = self.alpha * v + x @ self.w_in + z @ w_rec - z.detach() * A
        z = self.spike((v - A) / A)
        return z, (v, a, z)


@more(two, output=True, jumps=True)
class RefractoryNeurons(nn.Module):
    """After a spike a unit is silent for two steps: a countdown in the state, boolean algebra."""

    def __init__(self, i, h):
        super().__init__()
        self.w = nn.Linear(i, h)

    def forward(self, x, state):
        v, wait = state
        ready = wait < 1
        v = torch.where(ready, 0.8 * v + self.w(x).abs(), v * 0)
        fired = (v > 0.6) & ready
        wait = torch.where(fired, torch.full_like(wait, 2.0), (wait - 1).clamp(min=0))
        return fired.type_as(x) * v, (torch.where(fired, v - 0.6, v), wait)


@more(two, jumps=True)
class Izhikevich(nn.Module):
    """Izhikevich, 2003: a polynomial in the potential, two half steps, a reset."""

    def __init__(self, i, h, a=0.02, b=0.2, c=-65.0, d=8.0):
        super().__init__()
        self.current = nn.Linear(i, h)
        self.a, self.b, self.c, self.d = a, b, c, d

    def forward(self, x, state):
        v, u = state
        I = 10 * self.current(x)  # noqa: E741
        for _ in range(2):
            v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + I)
        u = u + self.a * (self.b * v - u)
        spiked = v >= 30
        return torch.where(spiked, self.c, v), torch.where(spiked, u + self.d, u)


@more(two)
class FitzHughNagumo(nn.Module):
    """Coupled through weights, ten small Euler steps, cubes by pow."""

    def __init__(self, i, h):
        super().__init__()
        self.drive, self.couple = nn.Linear(i, h), nn.Linear(h, h, bias=False)
        self.tau = nn.Parameter(torch.tensor(12.5))

    def forward(self, x, vw):
        v, w = vw
        current = self.drive(x)
        for _ in range(10):
            dv = v - v.pow(3) / 3 - w + current + 0.1 * self.couple(v)
            dw = (v + 0.7 - 0.8 * w) / self.tau
            v, w = v + 0.05 * dv, w + 0.05 * dw
        return v, w


def rk4(f, y, dt):
    k1 = f(y)
    k2 = f(y + dt / 2 * k1)
    k3 = f(y + dt / 2 * k2)
    k4 = f(y + dt * k3)
    return y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@more()
class ODERNN(nn.Module):
    """Rubanova et al., 2019: the state flows by a network (RK4, two steps), then a GRU reads."""

    def __init__(self, i, h):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(h, 7), nn.Tanh(), nn.Linear(7, h))
        self.update = nn.GRUCell(i, h)

    def forward(self, x, h):
        for _ in range(2):
            h = rk4(self.field, h, 0.5)
        return self.update(x, h)


@more()
class SynapticCircuit(nn.Module):
    """A liquid time-constant circuit with a synapse between each two units, and a fixed wiring."""

    def __init__(self, i, h, unfolds=3):
        super().__init__()
        self.unfolds = unfolds
        self.w, self.mu, self.sigma = (nn.Parameter(torch.rand(h, h)) for _ in range(3))
        self.erev = nn.Parameter(torch.randint(0, 2, (h, h)).float() * 2 - 1)
        self.gleak, self.vleak, self.cm = (nn.Parameter(torch.rand(h) + 0.2) for _ in range(3))
        self.sensory = nn.Linear(i, h)
        self.register_buffer("wiring", (torch.rand(h, h) > 0.3).float())

    def forward(self, inputs, v_pre):
        sensory = self.sensory(inputs)
        cm_t = F.softplus(self.cm) * self.unfolds
        for _ in range(self.unfolds):
            w_act = F.softplus(self.w) * torch.sigmoid(self.sigma * (v_pre.unsqueeze(-1) - self.mu))
            w_act = w_act * self.wiring
            w_num = torch.sum(w_act * self.erev, dim=1) + sensory
            w_den = torch.sum(w_act, dim=1)
            num = cm_t * v_pre + F.softplus(self.gleak) * self.vleak + w_num
            den = cm_t + F.softplus(self.gleak) + w_den
            v_pre = num / (den + 1e-8)
        return v_pre


@more(lambda f, h: (f, f), output=True, ambiguous=lambda f, h: f == 1)
class KalmanFilter(nn.Module):
    """One scalar filter for each feature: a mean and a variance, noise through softplus."""

    def __init__(self, f, _):
        super().__init__()
        self.q, self.r = nn.Parameter(torch.zeros(f)), nn.Parameter(torch.zeros(f))

    def forward(self, z, belief):
        mean, var = belief
        var = var + F.softplus(self.q)
        gain = var / (var + F.softplus(self.r) + 1e-6)
        mean = mean + gain * (z - mean)
        return mean, (mean, (1 - gain) * var)


@more(lambda f, h: Size([f, 3]), output=True, needs_size=True)
class FilterBank(nn.Module):
    """Three averages of each feature, each with a learned rate; all side by side."""

    def __init__(self, f, _):
        super().__init__()
        self.log_tau = nn.Parameter(torch.linspace(0, 2, 3).repeat(f, 1))

    def forward(self, x, s):
        a = torch.exp(-1 / F.softplus(self.log_tau))
        s = a * s + (1 - a) * x[..., None]
        return torch.cat([x, s.flatten(1)], dim=1), s


@more(lambda f, h: (f, f, h), output=True, needs_size=True, ambiguous=lambda f, h: f != h)
class RunningNorm(nn.Module):
    """Statistics of the input so far, kept without a gradient, in front of a tanh layer."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, state):
        mean, var, h = state
        with torch.no_grad():
            delta = x - mean
            mean = mean + 0.1 * delta
            var = 0.9 * var + 0.1 * delta * (x - mean)
        h = torch.tanh(self.lin(torch.cat([(x - mean) / (var + 1e-3).sqrt(), h], 1)))
        return h, (mean, var, h)


@more()
class Triangles(nn.Module):
    """Triangles, diagonals and windows of the pairs of units; a loss as a feature."""

    def __init__(self, i, h):
        super().__init__()
        self.x, self.w = nn.Linear(i, h), nn.Parameter(torch.randn(h, h) / h)

    def forward(self, x, h):
        z = self.x(x)
        pairs = h[:, :, None] * z[:, None] * self.w
        low = pairs.tril().sum(1) + pairs.triu(1).sum(2) + pairs.diagonal(dim1=1, dim2=2)
        low = low + (torch.diag_embed(z) * self.w).sum(1)
        near = F.pad(h, (1, 1)).unfold(1, 3, 1).sum(2)
        size = F.huber_loss(h, z, reduction="none") + h.norm(3, dim=1, keepdim=True)
        z = low + near - 0.1 * size
        z[:, ::2] *= 0.5
        return torch.tanh(z)


@more(output=True, draws=True)
class StochasticState(nn.Module):
    """A latent variable, sampled by torch.distributions at each step of training."""

    def __init__(self, i, h):
        super().__init__()
        self.prior, self.cell = nn.Linear(h, 2 * h), nn.GRUCell(i + h, h)

    def forward(self, x, h):
        mu, log_sigma = self.prior(h).chunk(2, -1)
        sigma = F.softplus(log_sigma) + 1e-3
        latent = torch.distributions.Normal(mu, sigma)
        z = latent.rsample() if self.training else latent.mean
        return z, self.cell(torch.cat([x, z], 1), h)


@more()
class ForwardAlgorithm(nn.Module):
    """A hidden Markov model in logarithms: log-sum-exp over the states before."""

    def __init__(self, i, h):
        super().__init__()
        self.transition = nn.Parameter(torch.randn(h, h))
        self.emission = nn.Linear(i, h)

    def forward(self, x, log_alpha):
        log_A = F.log_softmax(self.transition, dim=1)
        log_b = F.log_softmax(self.emission(x), dim=-1)
        return torch.logsumexp(log_alpha.unsqueeze(2) + log_A.unsqueeze(0), dim=1) + log_b


@more()
class ViterbiScores(nn.Module):
    """The best score into each state, by `max` over the states before; kept from growing."""

    def __init__(self, i, h):
        super().__init__()
        self.trans = nn.Parameter(torch.randn(h, h) * 0.5)
        self.emit = nn.Linear(i, h)

    def forward(self, x, score):
        best, _ = (score[:, :, None] + self.trans[None]).max(dim=1)
        score = best + self.emit(x)
        return score - score.max(dim=1, keepdim=True)[0]


@more()
class BeliefUpdate(nn.Module):
    """Bayes' rule with a stochastic matrix that is a softmax of a parameter."""

    def __init__(self, i, h):
        super().__init__()
        self.T = nn.Parameter(torch.randn(h, h))
        self.likelihood = nn.Sequential(nn.Linear(i, h), nn.Softmax(dim=-1))

    def forward(self, x, b):
        b = (b + 1e-3) @ self.T.softmax(-1) * self.likelihood(x)
        return b / b.sum(-1, keepdim=True)


@more(lambda f, h: f, pickles=False, ambiguous=lambda f, h: f == 1)
def RatedFunction(f, h):  # noqa: N802
    """A function with its constants bound by functools."""

    def smooth(x, h, *, rate):
        return h + rate * (x - h).clamp(-1, 1)

    return functools.partial(smooth, rate=0.3)


@more(lambda f, h: (f, f, f), output=True, pickles=False, ambiguous=lambda f, h: f == 1)
def ControllerFunction(f, h):  # noqa: N802
    """A PID controller: the state is the integral, the last error and the last command."""
    kp, ki, kd = 0.6, 0.1, 0.05

    def pid(x, state):
        integral, last, command = state
        error = x - command
        integral = torch.clamp(integral + error, -5, 5)
        command = command + kp * error + ki * integral + kd * (error - last)
        return command, (integral, error, command)

    return pid


@more(lambda f, h: 2 * h + 1, needs_size=True, pickles=False)
def ClosureFunction(f, h):  # noqa: N802
    """A function over tensors from around it, none of them a parameter."""
    generator, h = torch.Generator().manual_seed(5), 2 * h + 1
    W = torch.randn(f, h, generator=generator, dtype=torch.float64)
    U = torch.randn(h, h, generator=generator, dtype=torch.float64) / h

    def step(x, h):
        return torch.tanh(x @ W.to(x.dtype) + h @ U.to(h.dtype))

    return step


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, slope):
        ctx.save_for_backward(v)
        ctx.slope = slope
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * v.abs()) ** 2, None


@more(output=True, jumps=True)
class SurrogateSpikes(nn.Module):
    """A gradient of one's own (SuperSpike)."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)

    def forward(self, x, v):
        v = 0.9 * v + self.lin(x)
        spikes = Surrogate.apply(v - 1.0, 10.0)
        return spikes, v - spikes.detach()


class Rounded(torch.autograd.Function):
    """Eight levels between -1 and 1, with the gradient of a hard tanh."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        out = x.clamp(-1, 1)
        out.mul_(4).round_().div_(4)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        given = grad.clone()
        given[x.abs() > 1] = 0
        return given


@more(jumps=True)
class QuantizedUnits(nn.Module):
    """Weights and states of few bits, trained through them (straight-through gradients)."""

    def __init__(self, i, h):
        super().__init__()
        self.gate, self.new = nn.Linear(i + h, h), nn.Linear(i + h, h)

    def forward(self, x, h):
        both = torch.cat([x, Rounded.apply(h)], 1)
        z = F.linear(both, Rounded.apply(self.gate.weight), self.gate.bias).sigmoid()
        new = F.linear(both, Rounded.apply(self.new.weight), self.new.bias).tanh()
        return (1 - z) * h + z * new


# symbols


@more(reads_symbols=True)
class EmbeddingGRU(nn.Module):
    """Looks its input up."""

    def __init__(self, _, h):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 7)
        self.gru = nn.GRUCell(7, h)

    def forward(self, tokens, h):
        return self.gru(self.embedding(tokens.squeeze(-1)), h)


@more(two, output=True, reads_symbols=True)
class DecoderStep(nn.Module):
    """Embedding, LSTM cell and the scores of the next symbol, as in many decoders."""

    def __init__(self, _, hidden_dim):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, hidden_dim, padding_idx=0)
        self.rnn = nn.LSTMCell(hidden_dim, hidden_dim)
        self.fc_out = nn.Linear(hidden_dim * 2, VOCABULARY)

    def forward(self, token, hidden):
        e = self.embed(token[:, 0])
        h, c = self.rnn(e, hidden)
        return F.log_softmax(self.fc_out(torch.cat((e, h), dim=-1)), dim=-1), (h, c)


@more(reads_symbols=True)
class OneHotRNN(nn.Module):
    """One-hot vectors, as in the smallest of tutorials."""

    def __init__(self, _, h):
        super().__init__()
        self.Wxh = nn.Parameter(torch.randn(VOCABULARY, h) * 0.3)
        self.Whh = nn.Parameter(torch.randn(h, h) * 0.3)
        self.bh = nn.Parameter(torch.zeros(h))

    def forward(self, x, h):
        xs = F.one_hot(x.squeeze(1), VOCABULARY).to(h.dtype)
        return torch.tanh(xs @ self.Wxh + h @ self.Whh + self.bh)


@more(reads_symbols=True)
class MatrixPerSymbol(nn.Module):
    """Every symbol has its own transition: a table of matrices, indexed by the input."""

    def __init__(self, _, h):
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, h, h) / h)
        self.bias = nn.Parameter(torch.randn(VOCABULARY, h))

    def forward(self, x, h):
        k = x[:, 0]
        return torch.tanh(torch.bmm(h.unsqueeze(1), self.table[k]).squeeze(1) + self.bias[k])


# other states, other outputs


@more(lambda f, h: (h, h), output=True)
class FastAndSlow(cello.Cell):
    """On Cello's own contract, with named states."""

    def __init__(self, i, h):
        super().__init__()
        self.width = h
        self.x, self.h = nn.Linear(i, h), nn.Linear(2 * h, h)
        self.rate = nn.Parameter(torch.full((h,), -2.0))

    @property
    def state_sizes(self):
        return {"fast": self.width, "slow": self.width}

    def forward(self, x, state):
        fast, slow = state
        fast = torch.tanh(self.x(x) + self.h(torch.cat([fast, slow], 1)))
        slow = slow + self.rate.sigmoid() * (fast - slow)
        return fast - slow, (fast, slow)


@more(lambda f, h: (h, h), output=True, own_start=True)
class ContractLSTM(cello.Cell):
    """The same, with a learned initial state."""

    def __init__(self, i, h):
        super().__init__()
        self.state_sizes_ = {"h": h, "c": h}
        self.lin = nn.Linear(i + h, 4 * h)
        self.h0, self.c0 = nn.Parameter(torch.randn(h) * 0.1), nn.Parameter(torch.randn(h) * 0.1)

    @property
    def state_sizes(self):
        return self.state_sizes_

    def initial_state(self, batch_size, *, dtype, device):
        return tuple(p.to(dtype).expand(batch_size, -1) for p in (self.h0, self.c0))

    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.lin(torch.cat([x, h], -1)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, (h, c)


@more(lambda f, h: (Size([3, h]), 1), output=True)
class ContractRing(cello.Cell):
    """The last three states in a ring, and a level of width one."""

    def __init__(self, i, h):
        super().__init__()
        self.h = h
        self.lin, self.level = nn.Linear(i + 3 * h, h), nn.Linear(h, 1)

    @property
    def state_sizes(self):
        return {"ring": (3, self.h), "level": 1}

    def forward(self, x, state):
        ring, level = state
        new = torch.tanh(self.lin(torch.cat([x, ring.flatten(1)], 1)))
        ring = torch.cat([new.unsqueeze(1), ring[:, :-1]], dim=1)
        level = 0.9 * level + 0.1 * torch.sigmoid(self.level(new))
        return new * level, (ring, level)


class Pair(NamedTuple):
    h: Any
    c: Any


class MachineState(NamedTuple):
    controller: Any
    read: Any
    memory: Any


@more(lambda f, h: MachineState(Pair(h, h), 5, Size([4, 5])), output=True, needs_size=True)
class NeuralTuringMachine(nn.Module):
    """Graves et al., 2014, addressed by content alone; named tuples within named tuples."""

    def __init__(self, i, h, slots=4, width=5):
        super().__init__()
        self.width = width
        self.controller = nn.LSTMCell(i + width, h)
        self.head = nn.Linear(h, 3 * width + 1)
        self.bias = nn.Parameter(torch.randn(slots, width) * 0.2)

    def forward(self, x, state):
        pair = self.controller(torch.cat([x, state.read], 1), tuple(state.controller))
        pair = Pair(*pair)
        key, erase, add, beta = self.head(pair.h).split([self.width] * 3 + [1], dim=1)
        memory = state.memory + self.bias
        similarity = F.cosine_similarity(memory, key.unsqueeze(1), dim=-1, eps=1e-4)
        w = F.softmax(F.softplus(beta) * similarity, dim=1)
        read = torch.matmul(w.unsqueeze(1), memory).squeeze(1)
        memory = memory * (1 - w[:, :, None] * erase.sigmoid()[:, None, :])
        memory = memory + w[:, :, None] * add.tanh()[:, None, :] - self.bias
        return torch.cat([pair.h, read], 1), MachineState(pair, read, memory)


@more(two)
class OptionalStateLSTM(nn.Module):
    """Zeros of its own where there is no state; helper methods; annotations of the old kind."""

    def __init__(self, input_sz: int, hidden_sz: int):
        super().__init__()
        self.input_sz = input_sz
        self.hidden_size = hidden_sz
        self.weight_ih = Parameter(torch.randn(input_sz, hidden_sz * 4) * 0.3)
        self.weight_hh = Parameter(torch.randn(hidden_sz, hidden_sz * 4) * 0.3)
        self.bias = Parameter(torch.zeros(hidden_sz * 4))

    def init_hidden(self, x: Tensor):
        shape = (x.size(0), self.hidden_size)
        return (
            torch.zeros(*shape, dtype=x.dtype, device=x.device),
            torch.zeros(*shape, dtype=x.dtype, device=x.device),
        )

    def forward(self, x: Tensor, init_states: Optional[Tuple[Tensor, Tensor]] = None):  # noqa: UP006, UP045
        h_t, c_t = self.init_hidden(x) if init_states is None else init_states
        HS = self.hidden_size
        gates = x @ self.weight_ih + h_t @ self.weight_hh + self.bias
        i_t, f_t, g_t, o_t = (
            torch.sigmoid(gates[:, :HS]),
            torch.sigmoid(gates[:, HS : HS * 2]),
            torch.tanh(gates[:, HS * 2 : HS * 3]),
            torch.sigmoid(gates[:, HS * 3 :]),
        )
        c_t = f_t * c_t + i_t * g_t
        h_t = o_t * torch.tanh(c_t)
        return h_t, c_t


@more(lambda f, h: (h, 4), output=True)
class CarriedContext(nn.Module):
    """The second part of the state goes through untouched, as a condition of the sequence."""

    def __init__(self, i, h):
        super().__init__()
        self.cell = nn.GRUCell(i + 4, h)

    def forward(self, x, state):
        h, context = state
        h = self.cell(torch.cat([x, context], dim=1), h)
        return h, (h, context)


@more(two)
class OldStateOutput(nn.Module):
    """An Elman and a Jordan network in one: the second part of the state is the first, a step late."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + 2 * h, h)

    def forward(self, x, state):
        h, before = state
        return torch.tanh(self.lin(torch.cat([x, h, before], 1))), h


@more()
class DetachedGate(nn.Module):
    """The gate sees the state, but no gradient goes through it."""

    def __init__(self, i, h):
        super().__init__()
        self.gate, self.new = nn.Linear(i + h, h), nn.Linear(i + h, h)

    def forward(self, x, h):
        z = torch.sigmoid(self.gate(torch.cat([x, h.detach()], 1)))
        return z * torch.tanh(self.new(torch.cat([x, h], 1))) + (1 - z) * h


@more(frozen=True)
class FrozenHalf(nn.Module):
    """A part of the weights takes no gradient; one scalar is a plain attribute, one a tensor of int."""

    def __init__(self, i, h):
        super().__init__()
        self.frozen = nn.Linear(i, h).requires_grad_(False)
        self.rec = nn.Linear(h, h)
        self.gain = 0.5
        self.register_buffer("times", torch.tensor(2))

    def forward(self, x, h):
        return torch.tanh(self.frozen(x) * self.times + self.gain * self.rec(h))


@more(doubt="casts within the step", jumps=True)
class UpcastNorm(nn.Module):
    """The norm is always computed in single precision, as in code for large models."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.weight = nn.Linear(i + h, h), nn.Parameter(torch.ones(h))

    def forward(self, x, h):
        z = self.lin(torch.cat([x, h], -1))
        z32 = z.to(torch.float32)
        z32 = z32 * torch.rsqrt(z32.pow(2).mean(-1, keepdim=True) + 1e-6)
        return torch.tanh(self.weight * z32.type_as(z))


@more(lambda f, h: (h, 1), output=True, needs_size=True)
class TickingBlocks(nn.Module):
    """A clockwork RNN that counts its steps in a part of its state, of width one."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.rec = nn.Linear(i, h), nn.Linear(h, h)
        self.register_buffer("periods", (2.0 ** (torch.arange(h) % 3)).unsqueeze(0))

    def forward(self, x, state):
        h, t = state
        active = (t % self.periods) < 0.5
        h = torch.where(active, torch.tanh(self.lin(x) + self.rec(h)), h)
        return h, (h, torch.round(t) + 1)


@more()
class ColumnByColumn(nn.Module):
    """Later groups of units see the new values of earlier ones; a list that is joined at the end."""

    def __init__(self, i, h):
        super().__init__()
        sizes = [h - 2 * (h // 3), h // 3, h // 3]
        self.sizes = [s for s in sizes if s > 0]
        before = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        self.nets = nn.ModuleList(
            nn.Linear(i + h + b, s) for b, s in zip(before, self.sizes, strict=True)
        )

    def forward(self, x, h):
        new = []
        for net in self.nets:
            new.append(torch.tanh(net(torch.cat([x, h, *new], dim=1))))
        return torch.cat(new, 1)


@more(at_least=2)
class Shuffled(nn.Module):
    """Units move about: roll, flip, a fixed permutation, halves exchanged; no weights in the loop."""

    def __init__(self, i, h):
        super().__init__()
        self.inp = nn.Linear(i, h)
        self.register_buffer("perm", torch.randperm(h))
        self.scale = nn.Parameter(torch.rand(h))

    def forward(self, x, h):
        k = h.size(1) // 2
        swapped = torch.cat([h[:, k:], h[:, :k]], 1)
        moved = torch.roll(h, shifts=1, dims=1) + h.flip(-1) + h[:, self.perm] + swapped
        return torch.tanh(self.inp(x) + 0.25 * self.scale * moved)


@more(lambda f, h: (h, (h, h)), output=True, needs_size=True)
class DeepStack(nn.Module):
    """A residual stack of different cells that share their norm, as one cell; a nested state."""

    def __init__(self, i, h):
        super().__init__()
        self.inp = nn.Linear(i, h)
        self.first, self.second = nn.RNNCell(h, h), nn.LSTMCell(h, h)
        self.norm = nn.LayerNorm(h)
        self.head = nn.Sequential(nn.Linear(h, 2 * h), nn.GELU(), nn.Linear(2 * h, 5))

    def forward(self, x, state):
        a, (b, c) = state
        y = self.inp(x)
        a = self.first(self.norm(y), a)
        y = y + a
        b, c = self.second(self.norm(y), (b, c))
        return self.head(y + b), (a, (b, c))


@more()
class CumulativeSum(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)

    def forward(self, x, h):
        total = torch.cumsum(h, dim=1)
        return torch.tanh(self.lin(x) + 0.1 * total)


# not to be compiled


@more()
class ChecksItsNumbers(nn.Module):
    """Assertions, and a branch that is seldom taken."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        z = self.lin(torch.cat([x, h], 1))
        assert torch.isfinite(z).all(), "the step has diverged"
        if z.abs().max() > 1e3:
            z = z.clamp(-1e3, 1e3)
        return torch.tanh(z) * (1.0 if (h == h).any() else 0.0)


@more()
class FourierMixing(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)
        self.filter = nn.Parameter(torch.rand(h // 2 + 1))

    def forward(self, x, h):
        spectrum = torch.fft.rfft(h, norm="ortho")
        h = torch.fft.irfft(spectrum * self.filter, n=h.shape[-1], norm="ortho")
        return torch.tanh(self.lin(x) + h)


@more()
class ImplicitEuler(nn.Module):
    """The matrix to solve with depends on the state; the rest of the units are not stiff."""

    def __init__(self, i, h):
        super().__init__()
        n = min(h, 4)
        self.lin, self.W = nn.Linear(i, h), nn.Parameter(torch.randn(n, n) * 0.1)

    def forward(self, x, h):
        n = len(self.W)
        A = torch.eye(n, dtype=h.dtype) + 0.1 * self.W * torch.tanh(h[:, :n]).unsqueeze(1)
        rhs = h + 0.1 * self.lin(x)
        stiff = torch.linalg.solve(A, rhs[:, :n].unsqueeze(-1)).squeeze(-1)
        return torch.cat([stiff, torch.tanh(rhs[:, n:])], 1)


@more()
class SortsItsState(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.x, self.h = nn.Linear(i, h), nn.Linear(h, h)

    def forward(self, x, h):
        ranked, _ = torch.sort(h, dim=-1, descending=True)
        return torch.tanh(self.x(x) + self.h(ranked))


@more(jumps=True)
class KeepsTheLargest(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        h = torch.tanh(self.lin(torch.cat([x, h], 1)))
        k = (h.size(1) + 1) // 2
        threshold = h.topk(k, dim=1).values[:, -1:]
        return torch.where(h >= threshold, h, 0.0)


@more()
class StickBreaking(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)

    def forward(self, x, h):
        remaining = (1 - torch.sigmoid(h)).cumprod(-1)
        return self.lin(x) + remaining * h


@uncompilable("attribute", "self.t += 1")
class CountsItsSteps(nn.Module):
    """What a step does depends on how often the cell was called."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)
        self.t = 0

    def forward(self, x, h):
        self.t += 1
        rate = 1.0 / self.t
        return h + rate * (torch.tanh(self.lin(torch.cat([x, h], 1))) - h)


@uncompilable("attribute", "self.history.append(h.detach())")
class RemembersItsStates(nn.Module):
    """A list that grows with each step, to be looked at later."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)
        self.history = []

    def forward(self, x, h):
        self.history.append(h.detach())
        return torch.tanh(self.lin(torch.cat([x, h], 1)))


@uncompilable("buffer", "self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))")
class WritesABuffer(nn.Module):
    """Hebbian-like statistics in a buffer, at each step, in evaluation too."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)
        self.register_buffer("mean", torch.zeros(h))

    def forward(self, x, h):
        self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return torch.tanh(self.lin(torch.cat([x, h - self.mean.clone()], 1)))


@more()
class ConvolvesItsState(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i, h)
        self.kernel = nn.Parameter(torch.randn(2, 1, 3) * 0.3)

    def forward(self, x, h):
        near = F.conv1d(h.unsqueeze(1), self.kernel, padding=1)
        return torch.tanh(self.lin(x) + near.mean(1))


@uncompilable(
    "integers",
    "index = (torch.sigmoid(self.point(h)) * h.size(1)).long().clamp(max=h.size(1) - 1)",
)
class FollowsPointers(nn.Module):
    """Which unit is read is computed from the state."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.point = nn.Linear(i + h, h), nn.Linear(h, h)

    def forward(self, x, h):
        index = (torch.sigmoid(self.point(h)) * h.size(1)).long().clamp(max=h.size(1) - 1)
        moved = torch.gather(h, 1, index)
        return torch.tanh(self.lin(torch.cat([x, moved], 1)))


@more(jumps=True)
class LooksUpItsState(nn.Module):
    """Vector quantisation: the nearest row of a codebook, by argmin."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)
        self.codebook = nn.Parameter(torch.randn(5, h))

    def forward(self, x, h):
        code = torch.cdist(h, self.codebook).argmin(dim=-1)
        row = self.codebook[code]
        return torch.tanh(self.lin(torch.cat([x, h + (row - h).detach()], 1)))


@uncompilable("nonzero", "rows, units = torch.nonzero(h > 0, as_tuple=True)", refused=True)
class FindsActiveUnits(nn.Module):
    """The number of active units sets a shape."""

    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        rows, units = torch.nonzero(h > 0, as_tuple=True)
        h = h.index_put((rows, units), h[rows, units] * 0.5)
        return torch.tanh(self.lin(torch.cat([x, h], 1)))


@uncompilable("random", "spikes = torch.poisson(F.softplus(self.rate(h)))", output=True)
class PoissonSpikes(nn.Module):
    """Numbers of spikes, drawn at rates that depend on the state."""

    def __init__(self, i, h):
        super().__init__()
        self.rate, self.cell = nn.Linear(h, h), nn.GRUCell(i + h, h)

    def forward(self, x, h):
        spikes = torch.poisson(F.softplus(self.rate(h)))
        return spikes, self.cell(torch.cat([x, spikes], 1), h)


@uncompilable(
    "random",
    "action = torch.distributions.Categorical(logits=self.policy(h)).sample()",
    refused=True,
)
class SampledAction(nn.Module):
    """A choice that is sampled; torch checks the logits on the way, which is a branch."""

    def __init__(self, i, h):
        super().__init__()
        self.policy, self.cell = nn.Linear(h, 4), nn.GRUCell(i + 4, h)

    def forward(self, x, h):
        action = torch.distributions.Categorical(logits=self.policy(h)).sample()
        return self.cell(torch.cat([x, F.one_hot(action, 4).to(x.dtype)], dim=1), h)


@uncompilable("item", "norm = h.norm().item()", refused=True)
class ScalesByItem(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        norm = h.norm().item()
        return torch.tanh(self.lin(torch.cat([x, h / max(norm, 1.0)], 1)))


@uncompilable("numpy", "erf = np.tanh(h.detach().cpu().numpy())", refused=True)
class GoesThroughNumpy(nn.Module):
    def __init__(self, i, h):
        super().__init__()
        self.lin = nn.Linear(i + h, h)

    def forward(self, x, h):
        erf = np.tanh(h.detach().cpu().numpy())
        h = h + torch.from_numpy(erf).to(h)
        return torch.tanh(self.lin(torch.cat([x, h], 1)))


@more()
class LayerWithin(nn.Module):
    """A whole recurrent layer within each step, over the units as a sequence."""

    def __init__(self, i, h):
        super().__init__()
        self.inner, self.lin = nn.LSTM(1, 4, batch_first=True), nn.Linear(i + 4, h)

    def forward(self, x, h):
        seq = h.unsqueeze(-1)
        _, (hn, _) = self.inner(seq)
        return torch.tanh(self.lin(torch.cat([x, hn[-1]], 1)))


@more()
class DiffusionGRU(nn.Module):
    """DCRNN's unit (Li et al., 2018) over a graph, which mixes nodes with the batch behind the features."""

    def __init__(self, i, h):
        super().__init__()
        self.lift = nn.Linear(i, h)
        self.register_buffer("walk", torch.rand(h, h).softmax(-1))
        self.gates = nn.Parameter(torch.randn(2 * 3, 2) * 0.5)
        self.new = nn.Parameter(torch.randn(2 * 3, 1) * 0.5)

    def diffused(self, x, h, weight):
        nodes = h.size(1)
        near = torch.stack([x, h], 2).permute(1, 2, 0).reshape(nodes, -1)
        steps = near.unsqueeze(0)
        once = torch.mm(self.walk, near)
        steps = torch.cat([steps, once.unsqueeze(0)], 0)
        twice = 2 * torch.mm(self.walk, once) - near
        steps = torch.cat([steps, twice.unsqueeze(0)], 0)
        steps = steps.reshape(3, nodes, 2, x.size(0)).permute(3, 1, 2, 0)
        return (steps.reshape(-1, 6) @ weight).reshape(x.size(0), nodes, -1)

    def forward(self, x, h):
        x = self.lift(x)
        r, u = self.diffused(x, h, self.gates).sigmoid().unbind(-1)
        c = torch.tanh(self.diffused(x, r * h, self.new).squeeze(-1))
        return u * h + (1 - u) * c


@more()
class MaskedAttention(nn.Module):
    """An attention decoder (as in Stanford's CS224n), which writes into the scores past their gradient."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.project = nn.Linear(i + h, h), nn.Linear(h, h, bias=False)
        self.register_buffer("memory", torch.randn(5, h))
        self.register_buffer("padding", torch.tensor([0, 0, 0, 1, 1]))

    def forward(self, x, h):
        keys = self.memory.expand(x.size(0), -1, -1)
        scores = torch.bmm(keys, self.project(h).unsqueeze(2)).squeeze(2)
        scores.data.masked_fill_(self.padding.bool(), -float("inf"))
        context = torch.bmm(F.softmax(scores, dim=1).unsqueeze(1), keys).squeeze(1)
        return torch.tanh(self.lin(torch.cat([x, h], 1)) + context)


@more()
class MessagesAlongEdges(nn.Module):
    """A gated graph network (Li et al., 2016) whose edges are buffers."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.update = nn.Linear(i, h), nn.Linear(2, 1)
        ring = torch.arange(h)
        self.register_buffer("source", torch.cat([ring, ring]))
        self.register_buffer("target", torch.cat([ring.roll(1), ring.roll(-1)]))

    def forward(self, x, h):
        index = self.target.unsqueeze(0).expand(h.size(0), -1)
        received = torch.zeros_like(h).scatter_add(1, index, h[:, self.source])
        mixed = self.update(torch.stack([h, received], 2)).squeeze(2)
        return torch.tanh(self.lin(x) + mixed)


@more()
class CovarianceOfNoise(nn.Module):
    """The factor of a covariance, as filters write it: a triangle with a positive diagonal, of a vector."""

    def __init__(self, i, h):
        super().__init__()
        self.lin, self.factor = nn.Linear(i + h, h), nn.Linear(h, 6)

    def forward(self, x, h):
        lower = torch.zeros(x.size(0), 3, 3, dtype=x.dtype)
        rows, columns = torch.tril_indices(3, 3)
        lower[:, rows, columns] = self.factor(h)
        diagonal = torch.arange(3)
        lower[:, diagonal, diagonal] = F.softplus(lower[:, diagonal, diagonal])
        covariance = lower @ lower.transpose(1, 2)
        covariance.diagonal(dim1=-2, dim2=-1).add_(1e-3)
        return torch.tanh(self.lin(torch.cat([x, h], 1)) + covariance.sum((1, 2))[:, None])
