"""The network of forecasting.

Patches of a window go through recurrent layers; from the state after the last one, each patch of the
future is computed by one more step, all of them side by side, so that no error is carried from step
to step. Lin et al., "SegRNN: Segment Recurrent Neural Network for Long-Term Time Series
Forecasting", 2023, arXiv:2308.11200; columns that share one network: Nie et al., "A Time Series is
Worth 64 Words", 2023, arXiv:2211.14730.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cello.foreign.structure import Nested, Structure
from cello.tasks.cells import Layer, output_size
from cello.tasks.members import Members, first_of

FLOOR = 1e-2
"""What is added to a window's variance, so that one without change can be divided by it."""


class RecurrentForecaster(nn.Module):
    """Forecast all steps at once, the point forecast and quantiles of each.

    T is the steps of a window, H of the horizon, P of a patch, B the batch, F the columns read, Y
    the columns forecast, K the features of the calendar and of the series, N the columns known ahead, Q
    the outputs for a number: the point forecast first, then the quantiles.

    Args:
        recurrent: the layers, of an input of `width`, time first.
        width: the size of an embedded patch.
        window: T, at least one patch.
        horizon: H.
        patch: P.
        columns: F.
        targets: Y; the first ones of the columns.
        calendar: K; they are read at the first step of each patch.
        future: N; they are read at every step.
        outputs: Q.
        mixed: columns are read together; else each on its own, by the same weights, those that are
            not forecast not at all.
        normalize: ``last`` subtracts from a window its last number, ``window`` also divides it by its
            deviation, and the forecast is put back; ``none`` neither.
        linear: add a linear map from the window to the horizon, and the linear effect of the columns
            known ahead, which is taken out of a window first.
        dropout: before the last linear layer.

    Attributes:
        margins: how far each bound of an interval is moved outwards, (levels, H, Y), in what a window
            is divided by; see :meth:`cello.tasks.forecast.Forecaster.calibrate`.
        calibrated: the number of forecasts that they were measured on; -1: none were.

    Example:
        >>> from cello.nn import GRU
        >>> network = RecurrentForecaster(
        ...     GRU(16, 16), 16, window=48, horizon=24, patch=12, columns=3, targets=2
        ... )
        >>> none = torch.empty(48, 5, 0), torch.empty(24, 5, 0)
        >>> network(torch.randn(48, 5, 3), *none).shape
        torch.Size([24, 5, 2, 1])
    """

    def __init__(
        self,
        recurrent: Layer,
        width: int,
        *,
        window: int,
        horizon: int,
        patch: int,
        columns: int,
        targets: int,
        calendar: int = 0,
        future: int = 0,
        outputs: int = 1,
        mixed: bool = False,
        normalize: str = "last",
        linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.horizon, self.patch, self.targets = horizon, patch, targets
        self.outputs, self.mixed, self.normalize = outputs, mixed, normalize
        self.future = future
        self.patches = -(-horizon // patch)
        self.groups = 1 if mixed else targets  # what goes through the layers on its own
        self.recurrent = recurrent
        known = calendar + patch * future
        self.read = nn.Linear(patch * (columns if mixed else 1) + known, width)
        self.position = nn.Parameter(0.1 * torch.randn(self.patches, width))
        self.column = nn.Parameter(0.1 * torch.randn(self.groups, width))
        self.ahead = nn.Linear(known, width) if known else None
        self.dropout = nn.Dropout(dropout)
        self.write = nn.Linear(output_size(recurrent), patch * (targets if mixed else 1) * outputs)
        self.margins: Tensor
        self.calibrated: Tensor
        self.register_buffer("margins", torch.zeros(outputs // 2, horizon, targets))
        self.register_buffer("calibrated", torch.tensor(-1))
        self.linear = nn.Linear(window, horizon) if linear else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.effect = nn.Linear(future, targets, bias=False) if linear and future else None
        if self.effect is not None:
            nn.init.zeros_(self.effect.weight)

    def forward(self, past: Tensor, past_known: Tensor, future_known: Tensor) -> Tensor:
        """Forecast, (H, B, Y, Q).

        Args:
            past: (T, B, F).
            past_known: (T, B, K + N).
            future_known: (H, B, K + N).
        """
        Y = self.targets
        x = past if self.mixed else past[..., :Y]
        if self.effect is not None:
            plain = x[..., :Y] - self.effect(past_known[..., -self.future :])
            x = torch.cat([plain, x[..., Y:]], -1)
        shift, scale = self.level(x)
        x = (x - shift) / scale
        _, state = self.recurrent(self._patches(x, past_known))
        y: Tensor = self._decode(state, future_known)
        if self.linear is not None:
            straight = self.linear(x[..., :Y].movedim(0, -1)).movedim(-1, 0)
            y = y + straight[..., None]
        y = y * scale[..., :Y, None] + shift[..., :Y, None]
        if self.effect is not None:
            y = y + self.effect(future_known[..., -self.future :])[..., None]
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in (
            "margins",
            "calibrated",
        ):  # weights written before there were intervals' margins
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each window is shifted and divided by, (1, B, F)."""
        zero = torch.zeros_like(x[-1:])
        if self.normalize == "none":
            return zero, zero + 1
        if self.normalize == "last":
            return x[-1:], zero + 1
        return x[-1:], (x.var(0, correction=0, keepdim=True) + FLOOR).sqrt()

    def _patches(self, x: Tensor, known: Tensor) -> Tensor:
        """Cut windows into embedded patches, (T / P, B * groups, width)."""
        T, B, _ = x.shape
        n, P = T // self.patch, self.patch
        x = x[T - n * P :].view(n, P, B, self.groups, -1)
        x = x.permute(0, 2, 3, 4, 1).flatten(3)  # (n, B, groups, F / groups * P)
        features = self._features(known[T - n * P :])[:, :, None].expand(-1, -1, self.groups, -1)
        embedded: Tensor = self.read(torch.cat([x, features], -1)).relu()
        return embedded.flatten(1, 2)

    def _features(self, known: Tensor) -> Tensor:
        """Return what is known ahead of n whole patches, (n P, B, K + N), as (n, B, K + P N)."""
        P = self.patch
        K = known.shape[-1] - self.future
        first = known[::P, :, :K]
        if not self.future:
            return first
        each = known[..., K:].unflatten(0, (-1, P)).transpose(1, 2).flatten(2)
        return torch.cat([first, each], -1)

    def _decode(self, state: Nested, known: Tensor) -> Tensor:
        """Compute every patch of the future from the same state, (H, B, Y, Q)."""
        m, B, P = self.patches, known.shape[1], self.patch
        query = (self.position[:, None] + self.column)[:, None].expand(-1, B, -1, -1)
        if self.ahead is not None:
            whole = nn.functional.pad(known, (0, 0, 0, 0, 0, m * P - len(known)))
            query = query + self.ahead(self._features(whole))[:, :, None]

        def copied(h: Tensor) -> Tensor:  # (L * D, B * groups, ...), for each of m patches
            return h[:, None].expand(-1, m, *h.shape[1:]).flatten(1, 2)

        structure = Structure.of(state)
        many = structure.unflatten([copied(h) for h in structure.flatten(state)])
        output, _ = self.recurrent(query.flatten(0, 2)[None], many)
        y: Tensor = self.write(self.dropout(output[0]))
        y = y.view(m, B, self.targets, P, self.outputs).permute(0, 3, 1, 2, 4)
        return y.flatten(0, 1)[: self.horizon]


class Forecasters(Members):
    """Forecasters that learn side by side; the forecast is the mean of theirs, and so is each quantile."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the mean forecast, (H, B, Y, Q); see :class:`RecurrentForecaster`."""
        return super().forward(*inputs).mean(0)

    @property
    def margins(self) -> Tensor:
        """How far the bounds of the mean's intervals are moved; see :class:`RecurrentForecaster`."""
        margins: Tensor = first_of(self).margins
        return margins

    @property
    def calibrated(self) -> Tensor:
        """On how many windows the margins were measured."""
        calibrated: Tensor = first_of(self).calibrated
        return calibrated

    def level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each window is shifted and divided by, (1, B, F)."""
        level: tuple[Tensor, Tensor] = first_of(self).level(x)
        return level


class ExportedForecaster(nn.Module):
    """A forecaster as other programs use it: the batch first, numbers as they are, intervals.

    Args:
        model: the network.
        calendar: K', the features of the calendar.
        static: S, those of a series.
    """

    def __init__(
        self, model: RecurrentForecaster | Forecasters, calendar: int, static: int
    ) -> None:
        super().__init__()
        self.model, self.calendar, self.static = model, calendar, static

    def forward(
        self, past: Tensor, mean: Tensor, deviation: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """Return forecasts (B, H, Y) and, of models with intervals, bounds (B, H, Y, levels) of these.

        Args:
            past: (B, T, F + N), in double precision like what follows.
            mean: (B, F + N), what the columns of each series are scaled by.
            deviation: (B, F + N).
            *more: as far as the model reads them: the calendar (B, T + H, K'), the features of the series
                (B, S), the columns known ahead (B, H, N).
        """
        first: RecurrentForecaster = first_of(self.model)
        Y, T, N, rest = first.targets, past.shape[1], first.future, list(more)
        x = ((past - mean[:, None]) / deviation[:, None]).float().transpose(0, 1)
        past_known, future_known = [], []
        if self.calendar:
            calendar = rest.pop(0).transpose(0, 1).float()
            past_known.append(calendar[:T])
            future_known.append(calendar[T:])
        if self.static:
            static = rest.pop(0).float()
            past_known.append(static.expand(T, -1, -1))
            future_known.append(static.expand(first.horizon, -1, -1))
        if N:
            ahead = (rest.pop(0) - mean[:, None, -N:]) / deviation[:, None, -N:]
            x, known = x.split([x.shape[2] - N, N], 2)
            past_known.append(known)
            future_known.append(ahead.float().transpose(0, 1))
        B, H = past.shape[0], first.horizon
        none = [x.new_zeros(T, B, 0)], [x.new_zeros(H, B, 0)]
        found: Tensor = self.model(
            x, torch.cat(past_known or none[0], -1), torch.cat(future_known or none[1], -1)
        )
        scale, shift = deviation[:, None, :Y], mean[:, None, :Y]
        found = found.double().transpose(0, 1)  # (B, H, Y, Q)
        point = found[..., 0] * scale + shift
        levels = found.shape[-1] // 2
        if not levels:
            return (point,)
        quantiles = found[..., 1:].sort(-1).values
        lower, upper = quantiles[..., :levels].flip(-1), quantiles[..., levels:]
        _, unit = self.model.level(x[..., :Y])
        margins = self.model.margins.double().permute(1, 2, 0) * unit[0].double()[:, None, :, None]
        by = torch.maximum(margins, (lower - upper) / 2)
        lowest, highest = (lower - by).unbind(-1), (upper + by).unbind(-1)
        outer = [(lowest[0], highest[0])]
        for low, high in zip(lowest[1:], highest[1:], strict=True):  # those of rising levels
            outer.append((torch.minimum(outer[-1][0], low), torch.maximum(outer[-1][1], high)))
        bounds = (torch.stack(side, -1) for side in zip(*outer, strict=True))
        return point, *(side * scale[..., None] + shift[..., None] for side in bounds)


def pinball(forecast: Tensor, truth: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Return the pinball loss, which is least where the forecasts are the truth's quantiles.

    Koenker and Bassett, "Regression Quantiles", 1978.

    Args:
        forecast: (..., Q).
        truth: (...).
        quantiles: Q numbers between 0 and 1.

    Returns:
        (..., Q).

    Example:
        >>> pinball(torch.tensor([1.0, 1.0]), torch.tensor(3.0), [0.1, 0.9])
        tensor([0.2000, 1.8000])
    """
    q = forecast.new_tensor(quantiles)
    error = truth[..., None] - forecast
    return torch.maximum(q * error, (q - 1) * error)
