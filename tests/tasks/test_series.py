from __future__ import annotations

import gzip
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cello.tasks.errors import InputError
from cello.tasks.forecast.answers import write_number
from cello.tasks.forecast.series import Series, read_all, stream
from cello.tasks.forecast.table import Table
from cello.tasks.forecast.times import FORMATS, Step, parse_times, split_time, write_times

HOUR, DAY = Step(microseconds=3600 * 10**6), Step(microseconds=86_400 * 10**6)


def table(text: str, **keywords: object) -> Table:
    return Table(text.splitlines(keepends=True), "data.csv", **keywords)  # type: ignore[arg-type]


def read(text: str, fill: bool = False, **keywords: object) -> tuple[list[Series], Step]:
    return read_all(table(text, **keywords), fill=fill)


def times(*texts: str) -> np.ndarray:
    return np.array(texts, dtype="datetime64[us]")


# Columns.


def test_a_wide_table() -> None:
    (series,), step = read("id,Date,x,note,y\na,2020-01-01,1,hm,-2e3\nb,2020-01-02,3,,4\n")
    assert step == DAY
    assert series.values.tolist() == [[1.0, -2000.0], [3.0, 4.0]]
    assert series.times.tolist() == [datetime(2020, 1, 1), datetime(2020, 1, 2)]
    assert series.lines.tolist() == [2, 3]


def test_columns_are_found_by_name_and_content() -> None:
    found = table("x,year,y\n1,1990,2\n1,1991,2\n").columns
    assert (found.time, found.values) == ("year", ("x", "y"))
    found = table("when,x\n2020-01-01,1\n").columns
    assert (found.time, found.values) == ("when", ("x",))
    found = table("when,x,y\n2020-01-01,,1\n2020-01-02,2,1\n").columns
    assert found.values == ("x", "y")
    with pytest.raises(
        InputError,
        match=r"no column of times found among x, y\. If .*, time-column names it .*; if none does, "
        "time-column row counts",
    ):
        table("x,y\n1,2\n")
    with pytest.raises(InputError, match="no column of numbers beside 'date'"):
        table("date,x\n2020-01-01,hm\n")


def test_columns_can_be_named() -> None:
    text = "date,shop,x,y\n2020-01-01,a,1,2\n2020-01-02,a,3,4\n"
    found = table(text, series="shop", values=["y"]).columns
    assert (found.time, found.series, found.values) == ("date", "shop", ("y",))
    with pytest.raises(InputError, match="no column 'z'; there are: date, shop, x, y"):
        table(text, values=["z"])
    with pytest.raises(InputError, match="several columns 'x'"):
        table("date,x,x\n2020-01-01,1,2\n", values=["x"])
    with pytest.raises(InputError, match="two columns of numbers have the same name"):
        table("date,x,x\n2020-01-01,1,2\n")
    with pytest.raises(InputError, match="one column is given two meanings"):
        table(text, time="date", series="date")


def test_a_long_table_holds_several_series_in_any_order() -> None:
    text = "date,shop,x\n2020-01-01,a,1\n2020-01-01,b,10\n2020-01-02,a,2\n2020-01-02,b,20\n"
    series, step = read(text, series="shop")
    assert [(one.name, one.values[:, 0].tolist()) for one in series] == [
        ("a", [1.0, 2.0]), ("b", [10.0, 20.0])
    ]  # fmt: skip
    assert step == DAY
    with pytest.raises(
        InputError, match=r"line 3: 2020-01-01 .* series-column is to name the column"
    ):
        read(text)


# What is wrong with a file.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.csv: the file is empty"),
        ("date,x\n", "data.csv: holds a header but no rows"),
        ("date,x\n2020-01-01,1\n2020-01-02\n", "data.csv, line 3: 1 column, not 2"),
        ('date,x\n2020-01-01,"1\n', "data.csv, line 2: unexpected end of data"),
        ("date,x\n2020-01-01,1\n2020-01-02,?0.2\n", r"line 3: x is '\?0.2', not a number"),
        ("date,x\n2020-01-01,1\n2020-01-02,inf\n", "line 3: x is 'inf', not a number that float32 holds"),
        ("date,x\n2020-01-01,1\n2020-01-02,1_0\n", "line 3: x is '1_0', not a number$"),
        ("date,x\n2020-01-01,1\n2020-01-02,\n", "line 3: x is missing; train with missing=forward"),
        ("date,x\n2020-01-01,1\n2020-01-02,NaN\n", "line 3: x is missing; train with missing=forward"),
        ("date,x\n2020-01-01,1\n", "one row is no series"),
        ("date,x\n2020-01-01,1\n2020-13-02,1\n", "line 3: the time '2020-13-02' is not of the form"),
        ("date,x\nyesterday,1\n", "line 2: the time 'yesterday' is not of a form that is known"),
        ("date,x\n2020-01-01,\"1,5\"\n", "no column of numbers beside 'date'; in line 2 x is '1,5'"),
        ("date,x\n9998-12-30,1\n9998-12-31,1\n9999-01-01,1\n", "line 4: 9999-01-01 is in the first or"),
        ("date,x\n0001-01-01T00:00:00+0500,1\n", r"line 2: the time '0001-.*' is not of a form"),
        (
            "date,x\n2020-01-01,1\n2020-01-02,1\n2020-01-02,1\n",
            "line 4: 2020-01-02 does not come after 2020-01-02 in line 3",
        ),
        (
            "date,x\n2020-01-01,1\n2020-01-02,1\n2020-01-04,1\n2020-01-05,1\n2020-01-09,1\n",
            r"line 4: a row is missing between 2020-01-02 and 2020-01-04, at steps of 1 day "
            r"\(2 such gaps in all\); train with missing=forward",
        ),
        (
            "date,x\n2020-01-01 00:00,1\n2020-01-01 01:00,1\n2020-01-01 02:00,1\n2020-01-01 02:30,1\n",
            "line 5: 2020-01-01 02:30 is not a whole number of steps of 1 hour after",
        ),
        (
            "date,x\n2020-01-01,1\n2020-02-01,1\n2020-03-02,1\n2020-04-01,1\n",
            "line 4: 2020-03-02 is not a whole number of steps of 1 month after 2020-01-01",
        ),
    ],
)  # fmt: skip
def test_wrong_files_get_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    text = b"date,x\n" + b"".join(b"2020-01-%02d,%d\n" % (i, i) for i in range(1, 31))
    packed = gzip.compress(text)
    (tmp_path / "cut.csv.gz").write_bytes(packed[:-12])
    with pytest.raises(InputError, match="not a whole gzip file"):
        read_all(Table.open(tmp_path / "cut.csv.gz"))
    (tmp_path / "bytes.csv").write_bytes(text + b"2020-01-31,\xff\n")
    with pytest.raises(InputError, match="line 32: not UTF-8"):
        read_all(Table.open(tmp_path / "bytes.csv"))
    (tmp_path / "mac.csv").write_bytes(text.replace(b"\n", b"\r"))
    with pytest.raises(InputError, match=r"mac.csv, line 1: it ends as on old Macs, by \\r$"):
        read_all(Table.open(tmp_path / "mac.csv"))
    with pytest.raises(InputError, match="no such file"):
        Table.open(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        Table.open(tmp_path)
    (tmp_path / "data.tsv.gz").write_bytes(gzip.compress(text.replace(b",", b"\t")))
    (series,), _ = read_all(Table.open(tmp_path / "data.tsv.gz"))
    assert series.values[:, 0].tolist() == list(range(1, 31))


# Gaps.


def test_missing_rows_and_numbers_are_filled_forward_where_asked() -> None:
    text = (
        "date,x,y\n2020-01-01,1,5\n2020-01-02,,6\n2020-01-05,2,\n2020-01-06,3,7\n2020-01-07,3,7\n"
    )
    (series,), _ = read(text, fill=True)
    assert series.values[:, 0].tolist() == [1, 1, 1, 1, 2, 3, 3]
    assert series.values[:, 1].tolist() == [5, 6, 6, 6, 6, 7, 7]
    assert np.all(np.diff(series.times) == np.timedelta64(1, "D"))
    assert series.lines.tolist() == [2, 3, 3, 3, 4, 5, 6]
    with pytest.raises(InputError, match="line 2: x is missing; there is none before to repeat"):
        read("date,x\n2020-01-01,\n2020-01-02,1\n2020-01-03,1\n", fill=True, values=["x"])


def test_missing_months_are_filled_forward() -> None:
    text = "month,x\n2019-11,1\n2019-12,2\n2020-02,4\n2020-03,5\n"
    (series,), step = read(text, fill=True)
    assert step == Step(months=1)
    assert series.values[:, 0].tolist() == [1, 2, 2, 4, 5]
    assert write_times(series.times, series.form)[2:4] == ["2020-01", "2020-02"]


# Date and time of day in two columns.


@pytest.mark.parametrize(
    "text",
    [
        "date,time,x\n2020-01-01,22:00,1\n2020-01-01,23:00,2\n2020-01-02,0:00,3\n",
        "time,date,x\n22:00:00,01.01.2020,1\n23:00:00,01.01.2020,2\n00:00:00,02.01.2020,3\n",
        "x,Date,Time\n1,1/13/2020,10:00 PM\n2,1/13/2020,11:00 PM\n3,1/14/2020,12:00 AM\n",
        "date,hour,x\n20200101,22,1\n20200101,23,2\n20200102,0,3\n",
        "日期,时间,x\n2020-01-01,22:00,1\n2020-01-01,23:00,2\n2020-01-02,00:00,3\n",
        "date,shop,time,x\n1 Jan 2020,a,22:00,1\n1 Jan 2020,a,23:00,2\n2 Jan 2020,a,00:00,3\n",
    ],
)
def test_dates_and_clocks_in_two_columns(text: str) -> None:
    ((one,), step) = read(text)
    assert (str(step), one.values.tolist()) == ("1 hour", [[1.0], [2.0], [3.0]])
    assert one.times[2] - one.times[0] == np.timedelta64(2, "h")
    written = [split_time(moment) for moment in write_times(one.times, one.form)]
    again = "a,b,x\n" + "".join(f"{d},{c},1\n" for d, c in written)
    ((other,), _) = read(again, time="a,b")
    assert other.times.tolist() == one.times.tolist()


def test_a_clock_beside_days_is_not_their_time() -> None:
    """The time of the day at which it was coldest: the dates rise by themselves."""
    text = "date,coldest,x\n2020-01-01,05:10,1\n2020-01-02,06:20,2\n2020-01-03,04:00,3\n"
    assert table(text).columns.time == "date"
    assert str(read(text)[1]) == "1 day"
    long = "date,shop,coldest,x\n2020-01-01,a,5:10,1\n2020-01-01,b,6:20,2\n2020-01-02,a,4:00,3\n"
    assert table(long, series="shop").columns.time == "date"
    full = "when,time,x\n2020-01-01 00:00,5:10,1\n2020-01-01 00:00,6:20,2\n"
    assert table(full, time="when").columns.time == "when"


def test_two_columns_by_name() -> None:
    text = "d,h,x\n2020-01-01,22,1\n2020-01-01,23,2\n2020-01-02,0,3\n"
    with pytest.raises(
        InputError, match=r"does not come after .* time-column takes both, as date,t"
    ):
        read(text)
    ((one,), step) = read(text, time="d,h")
    assert (str(step), one.form) == ("1 hour", "%Y-%m-%d %H")
    assert table(text, time="d, h").columns.values == ("x",)
    with pytest.raises(InputError, match="no column 'hour'; there are: d, h, x"):
        read(text, time="d,hour")
    with pytest.raises(InputError, match="one column is given two meanings"):
        read(text, time="d,d")
    with pytest.raises(InputError, match="one column is given two meanings"):
        read(text, time="d,h", values=["h"])
    quoted = '"d,h",x\n2020-01-01,1\n2020-01-02,2\n'
    assert str(read(quoted, time="d,h")[1]) == "1 day"


# Times.


@pytest.mark.parametrize(
    ("texts", "form", "first"),
    [
        (["2016-07-01 00:00:00", "2016-07-01 01:00:00"], "%Y-%m-%d %H:%M:%S", "2016-07-01"),
        (["1949-01", "1949-02"], "%Y-%m", "1949-01-01"),
        (["1949", "1950"], "%Y", "1949-01-01"),
        (["1/13/1981", "1/14/1981"], "%m/%d/%Y", "1981-01-13"),
        (["13/1/1981", "14/1/1981"], "%d/%m/%Y", "1981-01-13"),
        (["1/1/1981", "1/2/1981", "1/3/1981", "1/13/1981"], "%m/%d/%Y", "1981-01-01"),
        (["20200228", "20200229"], "%Y%m%d", "2020-02-28"),
        (["2020-01-01T00:00:00Z", "2020-01-01T01:00:00Z"], "%Y-%m-%dT%H:%M:%S%z", "2020-01-01"),
        (["2020-01-01T00", "2020-01-01T01"], "%Y-%m-%dT%H", "2020-01-01"),
        (["28.02.2020 10:00", "28.02.2020 10:30"], "%d.%m.%Y %H:%M", "2020-02-28T10:00"),
        (["Jan 2020", "Feb 2020"], "%b %Y", "2020-01-01"),
    ],
)
def test_forms_of_times(texts: list[str], form: str, first: str) -> None:
    found, found_form = parse_times(texts, range(2, 9), "data.csv")
    assert found_form == form
    assert found[0] == np.datetime64(first)


def test_an_offset_from_utc_is_taken_off() -> None:
    found, form = parse_times(
        ["2020-03-29T01:00+0100", "2020-03-29T03:00+0200"], [2, 3], "data.csv"
    )
    assert found.tolist() == [datetime(2020, 3, 29, 0), datetime(2020, 3, 29, 1)]
    assert write_times(found, form) == ["2020-03-29T00:00+0000", "2020-03-29T01:00+0000"]


def test_dates_of_two_meanings() -> None:
    # As month/day these are days, as day/month months: nothing tells which.
    texts = ["1/1/1981", "1/2/1981", "1/3/1981"]
    with pytest.raises(InputError, match=r"as %m/%d/%Y or as %d/%m/%Y; time-format says which"):
        parse_times(texts, [2, 3, 4], "data.csv")
    found, _ = parse_times(texts, [2, 3, 4], "data.csv", "%d/%m/%Y")
    assert Step.of(found) == Step(months=1)
    # Only one reading gives equal steps.
    texts = ["1/11/1981", "1/12/1981", "1/1/1982"]  # months, or days with a gap of a year
    assert parse_times(texts, [2, 3, 4], "data.csv")[1] == "%d/%m/%Y"
    texts = ["1/5/1981", "1/6/1981", "1/7/1981", "2/1/1981"]  # days with a gap, or not rising
    assert parse_times(texts, [2, 3, 4, 5], "data.csv")[1] == "%m/%d/%Y"


@given(
    st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9000, 1, 1)),
    st.sampled_from([form for form in FORMATS if "%z" not in form]),
)
def test_times_written_are_read_as_they_were(moment: datetime, form: str) -> None:
    text = moment.strftime(form)
    (found,), _ = parse_times([text], [2], "data.csv", form)
    assert write_times(np.array([found]), form) == [text]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.floats(1e-12, 1e12))
def test_numbers_written_are_read_as_the_same_float32(number: float, resolution: float) -> None:
    text = write_number(number, resolution)
    assert np.float32(float(text)) == np.float32(number)
    assert abs(float(text) - number) <= max(0.5 * resolution, 2e-16 * abs(number))


@pytest.mark.parametrize(
    ("number", "resolution", "text"),
    [
        (5.0, 1e-7, "5"),
        (1e9, 1e-7, "1000000000"),
        (1234567890.123, 1e-3, "1234567890.123"),
        (-49.98184204101562, 1e-6, "-49.981842"),
        (2.5e-9, 1e-16, "2.5e-09"),
        (0.0, 1.0, "0"),
    ],
)
def test_how_numbers_are_written(number: float, resolution: float, text: str) -> None:
    assert write_number(number, resolution) == text


# Steps.


@pytest.mark.parametrize(
    ("texts", "name", "season"),
    [
        (("2020-01-01T00:00", "2020-01-01T00:15", "2020-01-01T00:30"), "15 minutes", 96),
        (("2020-01-01T00:00", "2020-01-01T01:00"), "1 hour", 24),
        (("2020-02-28", "2020-02-29", "2020-03-01"), "1 day", 7),
        (("2020-01-01", "2020-01-08"), "1 week", 52),
        (("2019-12-01", "2020-01-01", "2020-02-01", "2020-03-01"), "1 month", 12),
        (("2020-01-31", "2020-02-29", "2020-03-31"), "1 month", 12),
        (("2020-01-01", "2020-04-01", "2020-07-01"), "3 months", 4),
        (("2019-01-01", "2020-01-01", "2021-01-01"), "1 year", 1),
        (("2020-01-01T00:00:00", "2020-01-01T00:00:07"), "7 seconds", 1),
    ],
)
def test_steps(texts: tuple[str, ...], name: str, season: int) -> None:
    moments = times(*texts)
    step = Step.of(moments)
    assert (str(step), step.season) == (name, season)
    assert step.count(moments).tolist() == list(range(len(texts)))
    later = step.after(moments[0], np.arange(len(texts)))
    assert later.tolist() == moments.tolist()


def test_months_of_other_lengths() -> None:
    last = times("2020-01-31T12:00")[0]
    assert Step(months=1).after(last, np.arange(1, 4)).tolist() == [
        datetime(2020, 2, 29, 12), datetime(2020, 3, 31, 12), datetime(2020, 4, 30, 12)
    ]  # fmt: skip
    last = times("2020-02-29")[0]
    assert Step(months=1, month_end=True).after(last, np.arange(1, 3)).tolist() == [
        datetime(2020, 3, 31), datetime(2020, 4, 30)
    ]  # fmt: skip


# Streaming.


def rows(name: str, first: int, last: int) -> str:
    return "".join(f"2020-01-{day:02d},{name},{day}\n" for day in range(first, last + 1))


def streamed(text: str, count: int = 3, fill: bool = False) -> list[Series]:
    found = table("date,shop,x\n" + text, series="shop")
    return list(stream(found, form="%Y-%m-%d", step=DAY, rows=count, fill=fill))


def test_the_last_rows_of_each_series_are_streamed() -> None:
    a, b = streamed(rows("a", 1, 30) + rows("b", 5, 6))
    assert (a.name, a.values[:, 0].tolist()) == ("a", [28, 29, 30])
    assert (b.name, b.values[:, 0].tolist()) == ("b", [5, 6])
    (a,) = streamed(rows("a", 1, 20) + rows("a", 23, 24), fill=True)
    assert a.values[:, 0].tolist() == [20, 23, 24]
    assert streamed(rows("a", 1, 1))[0].values.tolist() == [[1.0]]


@pytest.mark.parametrize("last", range(3, 40))
def test_numbers_are_repeated_from_rows_that_are_not_kept(last: int) -> None:
    """A number of every twelfth day only, however many rows are kept at a time."""
    lines = [
        f"{np.datetime64('2020-01-01') + day},{day},{day if day % 12 == 0 else ''}\n"
        for day in range(last)
    ]
    found = Table(["date,x,monthly\n", *lines], "data.csv")
    (one,) = stream(found, form="%Y-%m-%d", step=DAY, rows=3, fill=True)
    assert one.values.tolist() == [[day, day // 12 * 12] for day in range(last - 3, last)]


def test_a_series_is_given_out_before_the_next_is_read() -> None:
    def lines():  # type: ignore[no-untyped-def]
        yield "date,shop,x\n"
        for i in range(2000):
            yield f"2020-01-{i % 2 + 1:02d},{i // 2},1\n"
        raise AssertionError("read too far")

    found = Table(lines(), "data.csv", series="shop")
    first = next(stream(found, form="%Y-%m-%d", step=DAY, rows=2))
    assert first.name == "0"


def test_rows_sorted_by_time_are_not_taken_for_short_series() -> None:
    days = [rows(name, day, day) for day in (1, 2, 3) for name in "ab"]
    with pytest.raises(InputError, match="line 4: the rows of series 'a' are not together"):
        streamed("".join(days))
    found = streamed(rows("a", 1, 3) + rows("b", 1, 2) + rows("c", 1, 3))
    assert [len(one) for one in found] == [3, 2]


def test_what_cannot_be_streamed() -> None:
    with pytest.raises(InputError, match="line 5: the rows of series 'a' are not together"):
        streamed(rows("a", 1, 2) + rows("b", 1, 1) + rows("a", 3, 3))
    with pytest.raises(InputError, match="the rows are 2 days apart, not 1 day"):
        streamed("2020-01-01,a,1\n2020-01-03,a,1\n")
    with pytest.raises(InputError, match="line 4: series 'a', 2020-01-01 does not come after"):
        streamed(rows("a", 1, 2) + rows("a", 1, 1))


def test_a_history_may_write_times_in_another_form() -> None:
    (a,) = streamed("01.01.2020,a,1\n02.01.2020,a,1\n03.01.2020,a,1\n13.01.2020,a,1\n", fill=True)
    assert a.form == "%d.%m.%Y"
    assert a.times[-1] == np.datetime64("2020-01-13")


@pytest.mark.parametrize("name", ["", " ", "NaN"])
def test_a_row_without_the_name_of_its_series(name: str) -> None:
    text = f"date,shop,x\n2020-01-01,a,1\n2020-01-02,{name},2\n2020-01-03,a,3\n"
    with pytest.raises(InputError, match="line 3: shop, the name of the series, is missing"):
        read(text, series="shop")
