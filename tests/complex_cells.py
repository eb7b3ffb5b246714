"""Cells whose step computes with complex numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cello.compile.complex_numbers import FUNCTIONS

F, H = 3, 4
Step = Callable[["Holder", Tensor, Tensor], Any]


class Holder(nn.Module):
    """A cell with complex and real weights, and a step that reads them."""

    def __init__(self, step: Step, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.step = step
        size, turn = torch.rand(2, H, dtype=dtype)
        self.a = nn.Parameter(torch.polar(size, 6 * turn))
        self.log_a = nn.Parameter(torch.complex(-size, turn))
        self.B = nn.Parameter(torch.randn(H, F, dtype=dtype.to_complex()))
        self.W = nn.Parameter(0.4 * torch.randn(H, H, dtype=dtype.to_complex()))
        self.real = nn.Linear(F, H, dtype=dtype)
        self.bias = nn.Parameter(torch.rand(H, dtype=dtype))

    def forward(self, x: Tensor, z: Tensor) -> Any:
        return self.step(self, x, z)


def lru(c: Holder, x: Tensor, z: Tensor) -> Any:
    """A linear recurrent unit (Orvieto et al., 2023)."""
    size = torch.sqrt(1 - c.a.abs().clamp(max=0.99) ** 2)
    z = c.a * z + size * (x.to(z.dtype) @ c.B.mT)
    return (z @ c.W).real + c.real(x), z


def unitary(c: Holder, x: Tensor, z: Tensor) -> Any:
    """A unitary RNN (Arjovsky et al., 2016): turns, a reflection, Fourier transforms, modReLU."""
    v = c.W[0]
    z = torch.fft.fft(torch.polar(torch.ones_like(c.bias), c.bias) * z, norm="ortho")
    z = z - 2 * (z @ v.conj())[:, None] * v / v.abs().square().sum()
    z = torch.fft.ifft(z.flip(-1) * c.a, norm="ortho") + x.to(z.dtype) @ c.B.T
    size = z.abs()
    z = torch.relu(size + c.bias - 0.5) * z / (size + 1e-3)
    return torch.view_as_real(z).flatten(1), z


def resonator(c: Holder, x: Tensor, z: Tensor) -> Any:
    """A resonate-and-fire neuron (Izhikevich, 2001), whose drive is real."""
    z = torch.exp(c.log_a * 0.1) * z + c.real(x)
    spike = (z.imag > 0.3).to(x.dtype)
    return spike + z.real, torch.where(spike > 0, z * 0.5, z)


def arithmetic(c: Holder, x: Tensor, z: Tensor) -> Any:
    u = c.real(x)
    z = (
        (1 - z) * 0.3j
        + 2 / (z + 3)
        - u * z / (u + 4)
        + (z + c.a) / (1 + 2j)
        + (-z).conj() / (c.a + 2)
    )
    z = torch.add(z, u, alpha=1).sub(1j) * c.W[1, 2] + z * torch.tensor(0.2 - 0.1j)
    return z, z / (1 + z.abs())


def views(c: Holder, x: Tensor, z: Tensor) -> Any:
    left, right = z.chunk(2, -1)
    z = torch.cat([right.flip(-1), left, c.real(x)], -1)[:, 1:-3]
    z = torch.stack([z, z.roll(1, -1) * 1j], 1).mean(1) + torch.zeros_like(z)
    z = torch.where(x[:, :1] > 0, z, 0.5j) + z.masked_fill(c.real(x) > 0.2, 1.0)
    z = z.view(-1, 2, 2).transpose(1, 2).reshape(-1, H)[:, [3, 1, 0, 2]] + z.cumsum(-1) * 0.1
    return z.sum(-1, keepdim=True), 0.4 * z


def written_into(c: Holder, x: Tensor, z: Tensor) -> Any:
    y = z.clone()
    y[:, 0] = 0.5j
    y.real.mul_(0.5)
    y[..., 1].imag = x[:, 0]
    return y.abs(), 0.5 * y + c.a


def from_pairs(c: Holder, x: Tensor, z: Tensor) -> Any:
    """The state is real; the complex numbers are made within."""
    w = torch.view_as_complex(z.view(-1, 2, 2).contiguous())
    w = torch.complex(w.imag, c.real(x)[:, :2]) * c.a[:2] + torch.polar(w.abs(), w.angle() * 0.5)
    return w.angle(), 0.5 * torch.view_as_real(w).flatten(1)


def products(c: Holder, x: Tensor, z: Tensor) -> Any:
    z = torch.nn.functional.linear(z, c.W, c.a) + torch.einsum("bi,ij->bj", z, c.W.conj())
    outer = z[:, :, None] * z[:, None].conj()  # (B, H, H)
    z = torch.bmm(outer, z[:, :, None])[..., 0] + z @ c.W.mH + c.real(x)
    return (c.W @ z.mT).mT, z / (1 + z.abs())


def transforms(c: Holder, x: Tensor, z: Tensor) -> Any:
    half = torch.fft.rfft(z.real + c.real(x))
    z = torch.fft.fft2(z.view(-1, 2, 2)).flatten(1) * 0.3 + torch.fft.irfft(half * c.a[:3], H)
    odd = torch.fft.irfft(half, 5, norm="forward") + torch.fft.fft(
        z[:, :3], norm="forward"
    ).abs().sum(-1, True)
    return odd + torch.fft.irfft(half, 5, norm="ortho"), 0.5 * z


def broadcast(c: Holder, x: Tensor, z: Tensor) -> Any:
    """One part comes from a smaller tensor than the other one."""
    u = c.real(x)
    w = (u + z[:, :1]).flip(-1) + (u + z[:, :1]).sum(-1, True) + (u - z[:, :1]).cumsum(-1)
    w = w + torch.complex(u, u[:, :1]).sum(-1, True) + torch.complex(c.bias, u) + (u + c.a)
    w = w + (u[:, :1] * 1j + z.real).sum(-1, True) + (z.mean(-1, True) + torch.zeros_like(z))
    w = w + (u[:, :, None] + z[:, None]).sum(-1) + ((u - z[:, :1]) @ c.W) + (c.a - u).abs()
    return torch.cat([u + z[:, :1], z], -1), torch.fft.fft(u + c.a[:1]) * 0.1 + 0.1 * w


def without_gradient(c: Holder, x: Tensor, z: Tensor) -> Any:
    """A weight that is read under no_grad first, and an operation there at the end."""
    with torch.no_grad():
        scale = (c.a * z).abs() + (z @ c.W).abs()
    z = c.a * z + (z @ c.W) * 0.3 + c.real(x)
    with torch.no_grad():
        size = z.abs()
    return size + z.real * scale, 0.3 * z


def numbers(c: Holder, x: Tensor, z: Tensor) -> Any:
    """Numbers of Python of all kinds beside complex ones."""
    u = c.real(x)
    mask = u > 0.3
    w = z.masked_fill(mask, 1) + z.masked_fill(~mask, True) + torch.where(mask, z, 2)
    w = w + torch.nn.functional.pad(z, (1, 0), value=1)[:, :H] * torch.tensor(
        [1j, 2, 3, 4 - 1j], dtype=z.dtype
    )
    w = w + u / (2 - 1j * u) + z / (3 - 1j * u) + z / (u * 1j + 2j) + torch.add(z, u, alpha=2)
    w = w + torch.addcmul(z, c.a, z) + torch.addcdiv(z, c.a, z + 5) + z * 0
    w[mask] = 0.5j
    there = ((z.imag.round() * 1j).bool().to(x.dtype)) + (~z.to(torch.bool)).to(x.dtype)
    return z.conj().imag + there, 0.2 * w


def _filled(z: Tensor) -> Tensor:
    return torch.where(z.isnan() | z.isinf(), 0.1j, z) + z.isfinite()


def one_each(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda c, x, z: (function(0.7 * z + c.real(x) + 0.1j), 0.3 * z + c.a)


STEPS: dict[str, Step] = (
    {
        f.__name__: f
        for f in (lru, unitary, resonator, arithmetic, views, written_into, products, transforms)
    }
    | {f.__name__: f for f in (broadcast, without_gradient, numbers)}
    | {
        name: one_each(function)
        for name, function in {
            **{name: getattr(torch, name) for name in FUNCTIONS if hasattr(torch, name)},
            "abs": torch.abs,
            "angle": torch.angle,
            "norm": lambda z: torch.linalg.vector_norm(z, dim=-1, keepdim=True),
            "cube": lambda z: z**3,
            "inverse square": lambda z: z**-2,
            "root": lambda z: z**0.5,
            "equal": lambda z: torch.where(z == z.conj(), z, 2 * z),
            "not a number": lambda z: _filled(torch.where(z.real > 0.4, torch.nan, z)),
            "infinite": lambda z: _filled(torch.where(z.imag > 0.4, torch.inf, z)),
            "detached": lambda z: z * z.detach(),
        }.items()
    }
)
