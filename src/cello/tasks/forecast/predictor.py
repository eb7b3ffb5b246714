"""Forecasters: from histories to what follows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cello.tasks.batches import Examples, answerable
from cello.tasks.errors import InputError, check_count
from cello.tasks.exported import Exportable
from cello.tasks.folder import Assets
from cello.tasks.forecast import conformal
from cello.tasks.forecast.answers import Forecast, told
from cello.tasks.forecast.backtest import Backtest
from cello.tasks.forecast.data import (
    SCALES,
    Facts,
    Stretch,
    completed,
    facts_of,
    fingerprint,
    learnt,
    open_table,
    read_scales,
    scales_of,
    split,
    written_scales,
)
from cello.tasks.forecast.history import History
from cello.tasks.forecast.judged import example, extent
from cello.tasks.forecast.memory import is_table
from cello.tasks.forecast.network import (
    ExportedForecaster,
    Forecasters,
    RecurrentForecaster,
    pinball,
)
from cello.tasks.forecast.options import Options, words
from cello.tasks.forecast.report import (
    MODEL,
    NAIVE,
    SEASONAL,
    Errors,
    ForecastReport,
    Intervals,
    figures,
)
from cello.tasks.forecast.rolling import rolling
from cello.tasks.forecast.series import Series, read_all, stream
from cello.tasks.forecast.static import STATIC, Static
from cello.tasks.forecast.table import Columns, Table
from cello.tasks.forecast.times import Step, check_zone, write_times
from cello.tasks.forecast.windows import (
    CYCLES,
    PARTS,
    Batch,
    Frame,
    Scale,
    Windows,
    cycles,
    too_short,
)  # fmt: skip
from cello.tasks.members import each
from cello.tasks.tables import decode_lines, listed
from cello.tasks.task import Data, Predictor, Request


class Forecaster(Predictor[Stretch, ForecastReport, Options]):
    """A network with all it needs to go from histories to forecasts; see :func:`load`."""

    name: ClassVar[str] = "forecast"
    options: ClassVar[type[Options]] = Options
    report: ClassVar[type[ForecastReport]] = ForecastReport
    facts: ClassVar[type[Any]] = Facts
    model: RecurrentForecaster | Forecasters

    @classmethod
    def read(cls, source: Any, options: Options) -> Data[Stretch]:
        table = open_table(source, options)
        series, step = read_all(table, form=options.time_format, fill=options.missing == "forward")
        parts = split(series, step, options)
        train, valid, test = (
            Stretch(series, step, table.columns, [ranges[i] for ranges in parts])
            for i in range(len(PARTS))
        )
        digest = fingerprint(table.columns, parts, series)
        notes = []
        if table.left_out:
            texts = listed(f"{name} ({text!r})" for name, text in table.left_out.items())
            notes.append(f"columns that are not read, as they hold no numbers: {texts}")
        return Data(table.source, "series", train, valid, test, digest, notes=notes)

    @classmethod
    def describe(
        cls, data: Data[Stretch], options: Options
    ) -> tuple[Options, dict[str, Any], Assets]:
        stretch = data.train
        columns, step = stretch.columns.values, stretch.step
        targets = words(options.target) or list(stretch.columns.read)
        for target in targets:
            if target not in columns:
                raise InputError(
                    f"target: {target!r} is not one of the columns read: {', '.join(columns)}"
                )
        options = completed(options, stretch, targets)
        for name, part in (("valid-rows", data.valid), ("test-rows", data.test)):
            most, horizon = max(map(len, part.rows)), options.horizon
            if horizon is not None and most < horizon:
                raise InputError(f"{name}: {most:,} rows, too few for a horizon of {horizon} steps")
        times = max((one.times[rows.start : rows.stop] for one, rows in learnt(stretch)), key=len)
        inputs = [column for column in columns if column not in targets]  # the future ones last
        named = cycles(step, times) if options.calendar else []
        order = [columns.index(name) for name in (*targets, *inputs)]
        assets = written_scales(scales_of(stretch, order))
        if stretch.columns.static:
            assets[STATIC] = Static.of(stretch.columns.static, stretch.series).written()
        return options, facts_of(stretch, targets, named), assets

    def build(self, assets: Assets) -> nn.Module:
        options, facts = self._options, self.config.facts
        self.targets: list[str] = facts["targets"]
        future, static = (
            tuple(words(names)) for names in (options.future_columns, options.static_columns)
        )
        values = (*self.targets, *facts["inputs"], *future)
        self.columns = Columns(facts["time"], facts["series"], values, future, static)
        self.step = Step(**facts["step"])
        self.cycles: list[str] = facts["cycles"]
        if not self.step.is_positive or not set(self.cycles) <= CYCLES.keys():
            raise InputError("step or cycles are not as they should be")
        self.scales = read_scales(assets[SCALES], len(self.columns.values))
        self.static = Static.read(assets[STATIC]) if static else None
        sizes = [options.window, options.horizon, options.season, options.patch]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes) or options.mixed == "auto" or known[3] > known[0]:
            raise InputError("the options leave open what the data decides")
        self.window, self.horizon, self.season, patch = known

        def make() -> RecurrentForecaster:
            return RecurrentForecaster(
                options.layer(options.hidden),
                options.hidden,
                window=self.window,
                horizon=self.horizon,
                patch=patch,
                columns=len(self.columns.read),
                targets=len(self.targets),
                calendar=2 * len(self.cycles) + (0 if self.static is None else self.static.width),
                future=len(future),
                outputs=1 + len(options.quantiles),
                mixed=options.mixed == "yes",
                normalize=options.normalize,
                linear=options.linear,
                dropout=options.dropout,
            )

        return Forecasters.of(make, options.members)

    def job(self, data: Data[Stretch]) -> Any:
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        from cello.tasks.trainer import Job

        self._judged(data.test)  # what could not be is refused now, not when training is done
        squared = self._options.loss == "mse"
        train, valid = (self.windows(part, self.window) for part in (data.train, data.valid))
        return Job(
            model=self.model,
            loss=self._loss,
            judge=self._judge,
            metric=MeanSquaredError() if squared else MeanAbsoluteError(),
            metric_name="MSE" if squared else "MAE",
            higher_is_better=False,
            train=Examples(train, [self.window] * len(train)),
            valid=Examples(valid, [self.window] * len(valid)),
            collate=train.collate,
        )

    def windows(self, part: Stretch, least: int) -> Windows:
        """Return the windows that forecast rows of a part, with `least` rows before them."""
        missing = set(self.columns.values) - set(part.columns.values)
        if missing:
            raise InputError(f"{part.series[0].source}: no column {missing.pop()!r}")
        order = [part.columns.values.index(column) for column in self.columns.values]
        series = [replace(one, values=one.values[:, order]) for one in part.series]
        # An unknown series is scaled by what is known of it before its first forecast.
        known = [max(rows.start, least) for rows in part.rows]
        scales = [self._scale(one, rows) for one, rows in zip(series, known, strict=True)]
        frame = self._frame(series, scales)
        return Windows.of(frame, part.rows, self.window, self.horizon, len(self.targets), least)

    def _frame(self, series: Sequence[Series], scales: Sequence[Scale]) -> Frame:
        static = None if self.static is None else self.static.encode(series)
        return Frame(series, scales, self.cycles, len(self.columns.future), static)

    def _judged(self, part: Stretch) -> Windows:
        """Return the windows of a part on which forecasts are judged, the naive ones too."""
        windows = self.windows(part, max(self.window, self.season))
        if not len(windows):
            longest = max(part.series, key=len)
            needed = max(self.window, self.season) + self.horizon
            error = too_short(
                longest, needed, f"one forecast of {self.horizon} steps from its past"
            )
            if self.season > self.window:
                error = InputError(f"{error}, as a season has {self.season:,}")
            raise error
        return windows

    def _scale(self, series: Series, rows: int | None = None) -> Scale:
        """Return a series' scale: of its training part or, where it was in none, of its first rows."""
        known = self.scales.get(series.name) or self.scales.get(_other_name(series.name))
        if known is not None:
            return known
        future = len(self.columns.future)
        first = next(iter(self.scales.values()))
        own = Scale.of(series.values[:rows])
        return own.ending(Scale(*(part[-future:] for part in first))) if future else own

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        # Of each network by itself: the mean could be right where none of them is.
        losses = [self._loss_of(self._forecast(one, batch), batch)[0] for one in each(self.model)]
        return torch.stack(losses).mean(), batch.future.numel()

    def _forecast(self, model: nn.Module, batch: Batch) -> Tensor:
        forecast: Tensor = model(batch.past, batch.past_known, batch.future_known)
        return forecast.float()

    def _loss_of(self, forecast: Tensor, batch: Batch) -> tuple[Tensor, int]:
        point, truth = forecast[..., 0], batch.future
        squared = self._options.loss == "mse"
        loss = ((point - truth) ** 2 if squared else (point - truth).abs()).sum()
        quantiles = self._options.quantiles
        if quantiles:
            loss = loss + pinball(forecast[..., 1:], truth, quantiles).mean(-1).sum()
        return loss, truth.numel()

    def _judge(self, metric: Any, batch: Batch) -> tuple[Tensor, int]:
        forecast = self._forecast(self.model, batch)
        metric.update(forecast[..., 0].flatten(), batch.future.flatten())
        return self._loss_of(forecast, batch)

    @torch.inference_mode()
    def outputs(
        self, past: Tensor, past_known: Tensor, future_known: Tensor
    ) -> NDArray[np.float64]:
        """Return point forecasts and quantiles, scaled, (H, B, Y, 1 + quantiles), of scaled windows."""
        self.model.eval()
        inputs = (past, past_known, future_known)
        outputs = self.model(*(x.to(self.device) for x in inputs)).cpu().double().numpy()
        outputs[..., 1:].sort(-1)  # quantiles that cross: Chernozhukov et al., 2010
        margins = self.model.margins.cpu().double().numpy().transpose(1, 2, 0)[:, None]
        conformal.widen(*conformal.bounds(outputs), margins * self._unit(past))
        found: NDArray[np.float64] = outputs
        return found

    def _unit(self, past: Tensor) -> NDArray[np.float64]:
        """Return what margins of windows are measured in, (B, Y, 1): what each is divided by."""
        _, scale = self.model.level(past[..., : len(self.targets)])
        unit: NDArray[np.float64] = scale[0, :, :, None].double().numpy()
        return unit

    def calibrate(self, part: Stretch) -> None:
        """Measure how far the bounds of the intervals must be moved to hold their share of the truth.

        For each step and column by itself, in what a window is divided by; see
        :mod:`cello.tasks.forecast.conformal`.

        Args:
            part: the validation rows.
        """
        windows = self.windows(part, self.window)
        levels = self._options.intervals
        self.model.margins.zero_()
        self.model.calibrated.fill_(len(windows))
        scores = [np.zeros((self.horizon, 0, len(self.targets), len(levels)))]
        for starts in windows.batches(self._options.batch_size):
            batch = windows.collate(starts.tolist())
            lower, upper = conformal.bounds(self.outputs(*batch[:3]))
            truth = batch.future.double().numpy()[..., None]
            scores.append(np.maximum(lower - truth, truth - upper) / self._unit(batch.past))
        found = conformal.margins(np.concatenate(scores, 1), levels)
        self.model.margins.copy_(torch.from_numpy(found))

    def lacks(self) -> dict[float, str]:
        """Return why intervals do not promise their level, of those that do not."""
        found = {k: conformal.lack(k, int(self.model.calibrated)) for k in self._options.intervals}
        return {level: reason for level, reason in found.items() if reason}

    def evaluate(
        self, part: Any, data: str = "data", batch_size: int | None = None
    ) -> ForecastReport:
        """Compare forecasts with the truth, and with simple forecasts.

        Args:
            part: the rows to forecast; each is, as long as the horizon reaches. A path or data in memory,
                as for :meth:`train`, of which the test set is taken if it is the run's own data; or a part
                of :meth:`read`.
            data: what they are, for the eye.
            batch_size: windows computed at a time.

        Raises:
            InputError: the rows are too few for one forecast.
        """
        if not isinstance(part, Stretch):
            return self.evaluate_source(part, None, 64 if batch_size is None else batch_size)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        start = time.perf_counter()
        windows = self._judged(part)
        frame, Y = windows.frame, len(self.targets)
        errors = {name: Errors(self.horizon, Y) for name in (MODEL, NAIVE, SEASONAL)}
        intervals = Intervals(self._options.intervals, self.horizon, Y)
        deviations = np.stack([scale.deviation[:Y] for scale in frame.scales])
        values = frame.values.numpy()[:, :Y]
        for starts in windows.batches(batch_size or 64):
            batch = windows.collate(starts.tolist())
            outputs = self.outputs(*batch[:3])
            truth = batch.future.double().numpy()
            deviation = deviations[frame.series_of(starts)]
            known = {
                MODEL: outputs[..., 0],
                NAIVE: values[starts - 1],
                SEASONAL: values[windows.season_before(starts, self.season)],
            }
            for name, forecast in known.items():
                errors[name].add(forecast - truth, deviation)
            intervals.add(truth, *conformal.bounds(outputs))
        return ForecastReport(
            data=data,
            seconds=time.perf_counter() - start,
            windows=len(windows),
            **extent(windows),
            horizon=self.horizon,
            window=self.window,
            season=self.season,
            intervals=intervals.figures(self.targets, self.lacks()),
            example=example(self, windows),
            **figures(errors, self.targets),
        )

    def backtest(
        self,
        data: Any,
        horizon: int | None = None,
        stride: int = 1,
        *,
        part: str | None = None,
        batch_size: int = 64,
        **changes: Any,
    ) -> Backtest:
        """Make every forecast that the model would have made, and put it beside what came.

        The origin moves through the data by `stride` rows, and each forecast is made from the rows before
        it. The model is not trained again. Every origin has the whole horizon of the model after it.

        Args:
            data: as in training: a file, a DataFrame, an array.
            horizon: how many steps of each forecast are compared; all unless given.
            stride: rows from origin to origin.
            part: ``all``; or ``train``, ``valid`` or ``test``, as the model's own options split the data:
                the rows that are forecast. By default the test set of the data that the model was
                trained on, and all rows of any other data.
            batch_size: forecasts computed at a time.
            **changes: options that say how to read, where they differ from the model's own.

        Raises:
            InputError: the data cannot be read, or is too short; or an argument is not allowed.
        """
        H = self.horizon if horizon is None else horizon
        for name, value in (("horizon", H), ("stride", stride), ("batch_size", batch_size)):
            check_count(name, value)
        if self.horizon < H:
            raise InputError(f"horizon: {H}; expected 1 to {self.horizon}, the steps of the model")
        stretch, part = self._part(data, part, self.changed(changes))
        return rolling(
            self,
            self._judged(stretch),
            data=f"{stretch.series[0].source}, {part} rows",
            horizon=H,
            stride=stride,
            batch_size=batch_size,
        )

    def evaluate_source(
        self, source: Any, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> ForecastReport:
        options = self.changed(changes)
        stretch, part = self._part(source, part, options)
        return self.evaluate(stretch, f"{stretch.series[0].source}, {part} rows", batch_size)

    def _part(self, source: Any, part: str | None, options: Options) -> tuple[Stretch, str]:
        """Return a part of data, and its name: the test part of the run's own, all of any other."""
        part = part or ("test" if self._is_own(source, options) else "all")
        if part not in ("all", *PARTS):
            raise InputError(f"part: {part!r} is not one of all, {', '.join(PARTS)}")
        table = open_table(source, options, self.columns)
        series, step = read_all(
            table, form=options.time_format, step=self.step, fill=options.missing == "forward"
        )
        first = series[0]
        written = write_times(first.times[:1], first.form)[0]
        check_zone(first.form, self.config.facts["form"], f"{first.source}: {written!r}")
        if part == "all":
            rows = [range(len(one)) for one in series]
        else:
            rows = [ranges[PARTS.index(part)] for ranges in split(series, step, options)]
        return Stretch(series, step, table.columns, rows), part

    def _is_own(self, source: Any, options: Options) -> bool:
        """Return whether data is the run's: the same rows wherever they are, or its file with more rows."""
        own = self.config.data
        try:
            data = self.read(source, options)
        except InputError:  # whatever it is, the run did not learn from it
            return False
        if data.fingerprint == own.get("fingerprint"):
            return True
        is_named = isinstance(source, str | Path) and own.get("source") is not None
        if not is_named or Path(source).resolve() != Path(str(own["source"])).resolve():
            return False
        known: int = sum(own.get(self.unit, {}).values())
        return sum(data.sizes().values()) >= known

    @overload
    def predict(self, history: Series, *, batch_size: int = 64) -> Forecast: ...
    @overload
    def predict(self, history: Any, *, batch_size: int = 64) -> list[Forecast]: ...
    def predict(self, history: Series | Any, *, batch_size: int = 64) -> Forecast | list[Forecast]:
        """Forecast what follows one series, or each series of a history.

        Args:
            history: a table in the form of the training data: a file, a DataFrame, an array; or one
                series or some, whose columns are those of the model, :attr:`columns`, in this order.
                Where columns are known ahead, a table has further rows that hold only them, for all
                steps of the forecast, and a series has them as its `future`.
            batch_size: how many series are computed at a time.

        Returns:
            For one series its forecast, for anything else a list of one for each series, in order.

        Raises:
            InputError: a series is too short or not whole.
        """
        if isinstance(history, Series):
            return next(self.predict_stream([history], batch_size=batch_size))
        return list(self.predict_stream(history, batch_size=batch_size))

    def predict_stream(self, history: Any, *, batch_size: int = 64) -> Iterator[Forecast]:
        """Forecast what follows each series of a history, however many there are.

        Args:
            history: as in :meth:`predict`; read as it is answered.
            batch_size: how many series are read before their forecasts are given out.

        Yields:
            One forecast for each series, in order.

        Raises:
            InputError: a series is too short or not whole; those before it are answered first.
        """
        if isinstance(history, str | Path) or is_table(history):
            table = open_table(history, self._options, self.columns)
            return self._predict(self._histories(table), batch_size)
        if not isinstance(history, Iterable):
            kind = type(history).__name__
            raise InputError(f"history: {kind} is not a table, a Series or a list of Series")
        return self._predict(history, batch_size)

    def _predict(self, histories: Iterable[Series], batch_size: int) -> Iterator[Forecast]:
        check = History(self.columns, self.step, self.window, self.horizon).check
        for batch in answerable(map(check, histories), batch_size):
            yield from self._follow(batch)

    def _follow(self, histories: Sequence[Series]) -> Iterator[Forecast]:
        """Forecast a batch of series, each from its last rows."""
        T, H, Y = self.window, self.horizon, len(self.targets)
        frames = []
        for one in histories:
            future = self.step.after(one.times[-1], np.arange(1, H + 1))
            unknown = np.zeros((H, one.values.shape[1]))
            if one.future is not None and self.columns.future:
                unknown[:, -len(self.columns.future) :] = one.future[:H]
            times = np.concatenate([one.times[-T:], future])
            values = np.concatenate([one.values[-T:], unknown])
            lines = np.zeros(T + H, np.int64)
            frames.append(replace(one, times=times, values=values, lines=lines))
        # An unknown series is scaled by what the network reads: of a table no other rows are kept.
        scales = [self._scale(replace(one, values=one.values[-T:])) for one in histories]
        frame = self._frame(frames, scales)
        windows = Windows(frame, T + (T + H) * np.arange(len(frames)), T, H, Y)
        outputs = self.outputs(*windows.collate(windows.starts.tolist())[:3])
        deviations = np.stack([scale.deviation[:Y] for scale in scales])[..., None]
        means = np.stack([scale.mean[:Y] for scale in scales])[..., None]
        outputs = outputs * deviations + means
        lower, upper = conformal.bounds(outputs)
        resolutions = deviations[..., 0] * np.finfo(np.float32).epsneg
        for i, one in enumerate(frames):
            yield Forecast(
                one.name,
                tuple(self.targets),
                one.times[T:],
                outputs[:, i, :, 0],
                {
                    level: (lower[:, i, :, k], upper[:, i, :, k])
                    for k, level in enumerate(self._options.intervals)
                },
                write_times(one.times[T:], one.form),
                resolutions[i],
                one.form,
                self.columns.time,
                one.values[:T, :Y],
                one.times[:T],
            )

    def exportable(self) -> Exportable:
        columns, T, H = len(self.columns.values), self.window, self.horizon
        calendar, static = 2 * len(self.cycles), 0 if self.static is None else self.static.width
        sizes = {"past": (T, columns), "mean": (columns,), "deviation": (columns,)}
        more = {
            "calendar": (T + H, calendar),
            "static": (static,),
            "future": (H, len(self.columns.future)),
        }
        more = {name: shape for name, shape in more.items() if shape[-1]}
        args = [
            torch.ones(2, *shape, dtype=torch.float64, device=self.device)
            for shape in (*sizes.values(), *more.values())
        ]
        batch = {0: "batch"}
        levels = self._options.intervals
        return Exportable(
            ExportedForecaster(self.model, calendar, static),
            tuple(args),
            (*sizes, *more),
            (*(batch for _ in sizes), *([tuple([batch for _ in more])] if more else [])),
            ("forecast", *(("lower", "upper") if levels else ())),
            {
                "task": self.name,
                "columns": list(self.columns.values),
                "targets": self.targets,
                "future": list(self.columns.future),
                "static": [] if self.static is None else json.loads(self.static.written()),
                "window": T,
                "horizon": H,
                "step": self.config.facts["step"],
                "cycles": self.cycles,
                "levels": levels,
                "series": {
                    name: {"mean": scale.mean.tolist(), "deviation": scale.deviation.tolist()}
                    for name, scale in self.scales.items()
                },
            },
        )

    def _histories(self, table: Table) -> Iterator[Series]:
        """Return the last rows of each series of a table."""
        return stream(
            table,
            form=self.config.facts["form"],
            step=self.step,
            rows=self.window,
            ahead=self.horizon if self.columns.future else 0,
            fill=self._options.missing == "forward",
        )

    def answer(self, request: Request) -> Iterator[str]:
        if request.texts:
            raise InputError("a forecaster takes a table: --file history.csv")
        options = request.changed(self._options)
        if request.file is not None:
            table = open_table(request.file, options, self.columns)
        else:
            lines = decode_lines(request.stream, "stdin", options.encoding)
            table = Table(lines, "stdin", delimiter=options.delimiter, **self.columns.named)
        forecasts = self._predict(self._histories(table), request.batch_size)
        levels = self._options.intervals
        yield from told(forecasts, self.columns, levels, as_json=request.json)
        request.notes.extend(f"{100 * k:g}% interval: {why}" for k, why in self.lacks().items())


def _other_name(name: str) -> str:
    """Return 1.0 for 1, and 1 for 1.0: pandas makes the one of the other where a name is missing."""
    whole = name.removesuffix(".0")
    if not whole.isdecimal():
        return name
    return f"{name}.0" if whole == name else whole


train, resume, load = Forecaster.train, Forecaster.resume, Forecaster.load
