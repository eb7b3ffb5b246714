"""The operations that random cells are drawn from, as text.

``{0}`` and ``{1}`` are operands. Beside each are a bound of its result, given those of its operands, and
where it has a kink or a jump: expressions that are zero there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Unary(NamedTuple):
    code: str
    bound: Callable[[float], float]
    kinks: tuple[str, ...] = ()


def same(b: float) -> float:
    return b


def at(number: float) -> Callable[[float], float]:
    return lambda b: number


def growing(b: float) -> float:
    return 20 + b


WHOLE = "{0} - {0}.round()"
HALVES = "{0} - {0}.floor() - 0.5"

UNARY = [
    Unary("torch.tanh({0})", at(1)),
    Unary("torch.sigmoid({0})", at(1)),
    Unary("{0}.sin()", at(1)),
    Unary("{0}.cos()", at(1)),
    Unary("-{0}", same),
    Unary("1 - {0}", lambda b: 1 + b),
    Unary("{0} * 0.7 + 0.1", same),
    Unary("torch.exp(-{0}.square())", at(1)),
    Unary("torch.expm1(0.5 * {0})", lambda b: 8),
    Unary("torch.log({0} * {0} + 0.5)", lambda b: 4),
    Unary("torch.log1p({0} * {0})", lambda b: 4),
    Unary("torch.log2({0} * {0} + 0.5)", lambda b: 6),
    Unary("torch.log10({0} * {0} + 0.5)", lambda b: 2),
    Unary("torch.exp2(-{0} * {0})", at(1)),
    Unary("torch.sqrt({0} * {0} + 0.3)", lambda b: 1 + b),
    Unary("torch.rsqrt({0} * {0} + 0.3)", at(2)),
    Unary("torch.reciprocal({0} * {0} + 0.5)", at(2)),
    Unary("torch.erf({0})", at(1)),
    Unary("torch.atan({0})", at(2)),
    Unary("torch.asinh({0})", same),
    Unary("torch.asin(0.9 * torch.tanh({0}))", at(2)),
    Unary("torch.acos(0.9 * torch.tanh({0}))", at(3)),
    Unary("torch.atanh(0.8 * torch.tanh({0}))", at(2)),
    Unary("torch.sinh(0.5 * {0})", at(4)),
    Unary("torch.cosh(0.5 * {0})", at(4)),
    Unary("torch.tan(0.3 * {0})", at(3)),
    Unary("{0}.square()", lambda b: b * b),
    Unary("{0} ** 3", lambda b: b**3),
    Unary("({0} * {0} + 0.4) ** 1.3", lambda b: 60),
    Unary("torch.pow(1.5, {0})", at(8)),
    Unary("F.silu({0})", same),
    Unary("F.gelu({0})", same),
    Unary("F.gelu({0}, approximate='tanh')", same),
    Unary("F.softplus({0})", lambda b: 1 + b),
    Unary("F.softplus({0}, 2.0, 5.0)", lambda b: 1 + b, ("{0} - 2.5",)),
    Unary("F.mish({0})", same),
    Unary("F.logsigmoid({0})", lambda b: 1 + b, ("{0}",)),
    Unary("F.softsign({0})", at(1), ("{0}",)),
    Unary("F.tanhshrink({0})", same),
    Unary("torch.logit(0.9 * torch.sigmoid({0}) + 0.05)", at(4)),
    Unary("torch.erfc({0})", at(2)),
    Unary("torch.special.ndtr({0})", at(1)),
    Unary("torch.acosh({0} * {0} + 1.2)", at(4)),
    Unary("torch.sinc(0.2 * {0} + 1)", at(1)),
    Unary("torch.nan_to_num({0}, 0.5)", same),
    Unary("torch.deg2rad({0})", same),
    Unary("torch.xlogy({0}, {0} * {0} + 0.5)", lambda b: 4 * b),
    Unary("{0}.detach() + {0}", lambda b: 2 * b),
    Unary("{0} + 0.5 * {0}.detach()", lambda b: 2 * b),
    Unary("torch.lerp({0}, -{0}, 0.3)", same),
    Unary("torch.relu({0})", same, ("{0}",)),
    Unary("{0}.abs()", same, ("{0}",)),
    Unary("F.relu6({0})", same, ("{0}", "{0} - 6")),
    Unary("F.elu({0}, 0.7)", same, ("{0}",)),
    Unary("F.celu({0}, 0.5)", same, ("{0}",)),
    Unary("F.selu({0})", lambda b: 2 * b, ("{0}",)),
    Unary("F.leaky_relu({0}, 0.2)", same, ("{0}",)),
    Unary("F.threshold({0}, 0.2, -0.3)", same, ("{0} - 0.2",)),
    Unary("F.hardtanh({0})", at(1), ("{0} - 1", "{0} + 1")),
    Unary("F.hardsigmoid({0})", at(1), ("{0} - 3", "{0} + 3")),
    Unary("F.hardswish({0})", same, ("{0} - 3", "{0} + 3")),
    Unary("F.softshrink({0}, 0.3)", same, ("{0} - 0.3", "{0} + 0.3")),
    Unary("F.hardshrink({0}, 0.3)", same, ("{0} - 0.3", "{0} + 0.3")),
    Unary("{0}.clamp(-0.5, 0.8)", at(1), ("{0} + 0.5", "{0} - 0.8")),
    Unary("{0}.clamp_min(-0.2)", same, ("{0} + 0.2",)),
    Unary("torch.sign({0}) * 0.5", at(1), ("{0}",)),
    Unary("torch.floor({0})", growing, (WHOLE,)),
    Unary("torch.ceil({0})", growing, (WHOLE,)),
    Unary("torch.trunc({0})", same, (WHOLE,)),
    Unary("torch.frac({0})", at(1), (WHOLE,)),
    Unary("torch.round({0})", growing, (HALVES,)),
    Unary("torch.remainder({0}, 0.7)", at(1), ("{0} / 0.7 - ({0} / 0.7).round()",)),
    Unary("torch.fmod({0}, 0.7)", at(1), ("{0} / 0.7 - ({0} / 0.7).round()",)),
    Unary("torch.round({0}, decimals=1)", growing, ("{0} * 10 - ({0} * 10).floor() - 0.5",)),
    Unary(
        "torch.div({0}, 0.7, rounding_mode='floor')", growing, ("{0} / 0.7 - ({0} / 0.7).round()",)
    ),
    Unary("torch.where({0} > 0, 2, -1).to({0}.dtype)", at(2), ("{0}",)),
    Unary("(~({0} > 0).long()).to({0}.dtype)", at(2), ("{0}",)),
    Unary("({0} > 0).cumsum(-1).clamp(0, 3).to({0}.dtype)", at(3), ("{0}",)),
    Unary("(({0} > 0).to(torch.uint8) * 3 + 1).to({0}.dtype)", at(4), ("{0}",)),
    Unary("({0} > 0).any(-1, keepdim=True) * {0}", same, ("{0}",)),
    Unary("torch.isfinite({0}) * {0}", same),
    Unary("({0} > 0.1).to({0}.dtype)", at(1), ("{0} - 0.1",)),
    Unary("(~({0} > 0.1)).to({0}.dtype)", at(1), ("{0} - 0.1",)),
    Unary("{0}.masked_fill({0} < -0.3, 0.25)", same, ("{0} + 0.3",)),
    Unary("torch.where({0} > 0, {0}, 0.1)", same, ("{0}",)),
]


class Binary(NamedTuple):
    code: str
    bound: Callable[[float, float], float]
    kinks: tuple[str, ...] = ()


def larger(a: float, b: float) -> float:
    return max(a, b)


BINARY = [
    Binary("{0} + {1}", lambda a, b: a + b),
    Binary("{0} - {1}", lambda a, b: a + b),
    Binary("{0} * {1}", lambda a, b: a * b),
    Binary("{0} * {1} + {0}", lambda a, b: a * b + a),
    Binary("{0} / ({1} * {1} + 0.5)", lambda a, b: 2 * a),
    Binary(
        "(({0}.unsqueeze(-1) * {1}.unsqueeze(-2)).mT + {1}.unsqueeze(-2)).mean(-1) + 0 * ({0} * {1})",
        lambda a, b: a * b + b,
    ),
    Binary(
        "(({0}.unsqueeze(-1) * {1}.unsqueeze(-2)).mT * {1}.unsqueeze(-2)).mean(-2) + 0 * ({0} * {1})",
        lambda a, b: a * b * b,
    ),
    Binary(
        "({0}.unsqueeze(-2) + ({0}.unsqueeze(-1) @ {1}.unsqueeze(-2)).mT).mean(-2) + 0 * ({0} * {1})",
        lambda a, b: a * b + a,
    ),
    Binary("torch.sigmoid({0}) * {1}", lambda a, b: b),
    Binary("torch.lerp({0}, {1}, torch.sigmoid({0}))", larger),
    Binary("torch.addcmul({0}, {0}, {1}, value=0.7)", lambda a, b: a + a * b),
    Binary("torch.addcdiv({0}, {1}, {1} * {1} + 0.5, value=0.7)", lambda a, b: a + 2),
    Binary("torch.add({0}, {1}, alpha=0.3)", lambda a, b: a + b),
    Binary("torch.logaddexp({0}, {1})", lambda a, b: 1 + max(a, b), ("{0} - {1}",)),
    Binary("torch.pow({0} * {0} + 0.5, {1} * 0.5)", lambda a, b: 300),
    Binary("torch.maximum({0}, {1})", larger, ("{0} - {1}",)),
    Binary("torch.minimum({0}, {1})", larger, ("{0} - {1}",)),
    Binary("torch.where({0} > {1}, {0}, {1} * 0.5)", larger, ("{0} - {1}",)),
    Binary("{0}.masked_fill({1} > 0, -0.2)", larger, ("{1}",)),
    Binary("torch.clamp({0}, min={1})", larger, ("{0} - {1}",)),
    Binary(
        "torch.clamp({0}, min={1} - 0.1, max={1} + 0.2)",
        lambda a, b: a + b + 1,
        ("{0} - {1} + 0.1", "{0} - {1} - 0.2"),
    ),
    Binary("(({0} > 0) & ({1} > 0)).to({0}.dtype)", lambda a, b: 1, ("{0}", "{1}")),
    Binary("(({0} > 0) | ({1} > 0)).to({0}.dtype)", lambda a, b: 1, ("{0}", "{1}")),
    Binary("(({0} > 0) ^ ({1} > 0)).to({0}.dtype)", lambda a, b: 1, ("{0}", "{1}")),
    Binary("torch.logical_and({0} > 0, {1} < 0.2) * {1}", lambda a, b: b, ("{0}", "{1} - 0.2")),
    Binary("({0} <= {1}) * {0}", lambda a, b: a, ("{0} - {1}",)),
    Binary(
        "torch.fmod({0}, {1} * {1} + 0.5)",
        lambda a, b: a,
        ("{0} / ({1} * {1} + 0.5) - ({0} / ({1} * {1} + 0.5)).round()",),
    ),
    Binary(
        "torch.remainder({0}, {1} * {1} + 0.5)",
        lambda a, b: b * b + 1,
        ("{0} / ({1} * {1} + 0.5) - ({0} / ({1} * {1} + 0.5)).round()",),
    ),
    Binary("torch.atan2({0}, {1} * {1} + 0.3)", lambda a, b: 2),
    Binary("torch.hypot({0}, {1} + 5)", lambda a, b: a + b + 5),
    Binary("torch.logaddexp2({0}, {1})", lambda a, b: 1 + max(a, b), ("{0} - {1}",)),
    Binary("torch.fmax({0}, {1})", larger, ("{0} - {1}",)),
    Binary("torch.ldexp({0}, {1} * 0.5)", lambda a, b: 4 * a),
    Binary("torch.xlogy({0}, {1} * {1} + 0.5)", lambda a, b: 3 * a),
    Binary("(({0} > 0) + ({1} > 0)) * {0}", lambda a, b: a, ("{0}", "{1}")),
    Binary("(({0} > 0).long() - ({1} > 0).int()) * {1}", lambda a, b: b, ("{0}", "{1}")),
    Binary("F.glu(torch.cat([{0}, {1}], 1), -1)", lambda a, b: a),
]


class Row(NamedTuple):
    """An operation along a row, `same` as wide or one number wide."""

    code: str
    is_whole: bool
    bound: Callable[[float, int], float]
    kinks: tuple[str, ...] = ()
    least: int = 1


ROWS = [
    Row("{0}.mean(-1, keepdim=True)", False, lambda b, w: b),
    Row("{0}.sum(1, keepdim=True)", False, lambda b, w: b * w),
    Row("{0}.sum(1)[:, None] * 0.5", False, lambda b, w: b * w),
    Row("{0}.var(-1, keepdim=True)", False, lambda b, w: 2 * b * b, least=2),
    Row("({0}.var(-1, keepdim=True, correction=0) + 0.1).sqrt()", False, lambda b, w: 1 + b),
    Row("torch.logsumexp({0}, -1, keepdim=True)", False, lambda b, w: b + 5),
    Row("({0}.square().sum(-1, keepdim=True) + 0.2).sqrt()", False, lambda b, w: b * w + 1),
    Row("{0}.amax(-1, keepdim=True)", False, lambda b, w: b, ("gap({0})",)),
    Row("{0}.amin(1, keepdim=True)", False, lambda b, w: b, ("gap(-{0})",)),
    Row("{0}.max(-1, keepdim=True)[0]", False, lambda b, w: b, ("gap({0})",)),
    Row("{0}.min(-1)[0][:, None]", False, lambda b, w: b, ("gap(-{0})",)),
    Row("{0}.norm(1, dim=-1, keepdim=True)", False, lambda b, w: b * w, ("{0}",)),
    Row("({0} > 0).sum(-1, keepdim=True).to({0}.dtype) * 0.1", False, lambda b, w: w, ("{0}",)),
    Row("({0} > 0).to({0}.dtype).mean(-1, keepdim=True)", False, lambda b, w: 1, ("{0}",)),
    Row("torch.softmax({0}, -1)", True, lambda b, w: 1),
    Row("F.log_softmax({0}, -1)", True, lambda b, w: 2 * b + 5),
    Row("{0} - {0}.mean(1, keepdim=True)", True, lambda b, w: 2 * b),
    Row("{0} / ({0}.square().sum(-1, keepdim=True) + 0.3)", True, lambda b, w: 2),
    Row("torch.cumsum({0}, -1)", True, lambda b, w: b * w),
    Row("F.layer_norm({0}, {0}.shape[-1:], eps=0.1)", True, lambda b, w: w),
    Row("F.rms_norm({0}, {0}.shape[-1:], eps=0.1)", True, lambda b, w: w),
    Row("{0}.flip(1)", True, lambda b, w: b),
    Row("torch.roll({0}, 1, 1)", True, lambda b, w: b),
    Row("{0}.clone()", True, lambda b, w: b),
]
