"""Cells that put numbers in order, or take those of some ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

H = 6
Step = Callable[["Holder", Tensor, Tensor], Tensor]


class Holder(nn.Module):
    """A cell with weights, and a step that reads them."""

    def __init__(self, step: Step):
        super().__init__()
        self.step, self.mix = step, nn.Linear(H, H)
        self.experts = nn.Parameter(torch.randn(H, H, H) / H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self, x, h)


def winners(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """Only the two largest units stay active."""
    u = torch.tanh(c.mix(h) + x)
    return u * torch.zeros_like(u).scatter(-1, u.topk(2).indices, 1.0)


def above_the_kth(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    u = torch.tanh(c.mix(h) + x)
    least = u.topk(3, sorted=False).values.amin(-1, keepdim=True)
    return torch.where(u >= least, u, 0.1 * u)


def two_experts(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """A mixture of the two best of several experts, with weights that add up to one."""
    scores, chosen = c.mix(x + h).topk(2)
    gates = torch.zeros_like(h).scatter(-1, chosen, scores.softmax(-1))
    return torch.tanh(torch.einsum("be,eij,bj->bi", gates, c.experts, x + h))


def sparse_attention(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    scores = c.mix(x + h)
    least = scores.topk(3).values[:, -1:]
    return torch.tanh(scores.masked_fill(scores < least, -torch.inf).softmax(-1) * h + x)


def usage(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """The allocation of a differentiable neural computer (Graves et al., 2016)."""
    free, order = torch.sort(torch.sigmoid(c.mix(x + h)))
    before = torch.cumprod(torch.cat([torch.ones_like(free[:, :1]), free[:, :-1]], -1), -1)
    return torch.zeros_like(h).scatter(-1, order, (1 - free) * before) + 0.5 * h * h.tanh()


def both_ways(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    up, at = (x + h).sort(dim=-1)
    down, other = c.mix(h).sort(dim=-1, descending=True, stable=True)
    return torch.tanh(0.5 * up * down + 0.1 * at.to(x.dtype) - 0.1 * other.to(x.dtype))


def ranks(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    return torch.tanh(h + x * (x + h).argsort(-1).argsort(-1).to(x.dtype) / H)


def middle(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    value, place = (x + h).median(-1, keepdim=True)
    return torch.tanh(x + h - value + 0.1 * place.to(x.dtype) + (x - h).kthvalue(2).values[:, None])


def other_axes(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    a = (x + h).view(-1, 2, 3)
    b = a.topk(1, dim=1).values + a.sort(dim=1).values * a.median(dim=2, keepdim=True).values
    return torch.tanh(b.flatten(1) - a.sort(1, descending=True).indices.flatten(1).to(x.dtype))


def not_numbers(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """NaN is larger than any number, also than infinity."""
    u = torch.where(x > 0.3, float("nan"), torch.where(h > 0.2, torch.inf, x + h))
    up, at = u.sort(stable=True)
    down, other = u.sort(stable=True, descending=True)
    some = u.nanmedian(-1).values[:, None] + u.median(-1).values[:, None]
    all_ = torch.stack([up, down, at.to(x.dtype), other.to(x.dtype), some.expand_as(up)])
    return torch.tanh(x - h + 0.1 * all_.nan_to_num(7.0, 3.0, -3.0).sum(0))


def running(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    u = x + h
    most, at = u.cummax(-1)
    least, other = u.cummin(-1)
    joined = torch.cumprod(u, -1) + torch.logcumsumexp(u, -1) + u.prod(-1, keepdim=True)
    return torch.tanh(most - least + 0.1 * (at - other).to(x.dtype) + 0.3 * joined)


def ends(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    low, high = torch.aminmax(x + h, dim=-1, keepdim=True)
    odd = (x + h).view(-1, 2, 3).prod(-1).prod(1, keepdim=True)
    return torch.tanh((x - low) / (high - low) + odd)


def distances(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    u = torch.tanh(x + h)
    near = torch.cdist(u[:, None], c.mix.weight[None])[:, 0] + torch.cdist(u, c.experts[0], p=1.0)
    slots = u.view(-1, 3, 2)
    far = torch.cdist(slots, slots, p=torch.inf).sum(-1) + torch.cdist(slots, slots).sum(-1)
    return torch.tanh(x - near + far.repeat(1, 2))


def many_strides(c: Holder, x: Tensor, h: Tensor) -> Tensor:
    """Axes that do not step through memory as one."""
    u = torch.tanh(c.mix(h) + x)
    turned = u.view(-1, 2, 3).transpose(1, 2).flatten(1)
    twice = u.repeat(1, 2)
    spread = u[:, :3, None].expand(-1, -1, 2).flatten(1) + 0.01 * x
    place = torch.cat([x, h], -1).argmax(-1, keepdim=True)
    put = torch.zeros_like(u).scatter(-1, u.argsort(-1)[:, 1:4].flip(-1), turned[:, :3])
    a = (
        turned.sort(-1).values
        + twice.gather(-1, place)
        + spread.sort(dim=-1, stable=True).values
        + put
    )
    b = torch.zeros_like(u).scatter_add(-1, u.topk(3).indices, turned[:, ::2])
    return torch.tanh(a + turned.median(-1, True).values * b + turned.cummax(-1).values)


STEPS: dict[str, Step] = {
    f.__name__: f
    for f in (
        winners,
        above_the_kth,
        two_experts,
        sparse_attention,
        usage,
        both_ways,
        ranks,
        middle,
    )
} | {f.__name__: f for f in (other_axes, not_numbers, running, ends, distances, many_strides)}
