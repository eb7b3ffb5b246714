"""How many threads a command takes, and how they wait: on machines that are made up, and on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cello.cli import threads
from cello.cli.options import using
from cello.inspect import measure
from cello.tasks import trainer
from cello.tasks.errors import Interrupted
from tests.cli.conftest import Cello


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V1 = "12:cpuset:/\n4:cpu,cpuacct:/pod/box\n3:memory:/pod/box\n1:name=systemd:/\n"
V2 = "0::/pod/box\n"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (V2, {"pod/box/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"pod/box/cpu.max": "max 100000\n"}, None),
        # A group cannot use more than those above it.
        (V2, {"pod/box/cpu.max": "400000 100000\n", "pod/cpu.max": "20000 10000\n"}, 2.0),
        (V2, {"pod/box/cpu.max": "max 100000\n", "cpu.max": "300000 100000\n"}, 3.0),
        # In a container the groups of the host are not there, and its own is the root.
        (V2, {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        (V1, {"cpu,cpuacct/pod/box/cpu.cfs_quota_us": "250000\n",
              "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        # A mixed machine: the group of version 2 is elsewhere, and the one of version 1 has the quota.
        (V1 + V2, {"unified/pod/box/cgroup.procs": "", "cpu/cpu.cfs_quota_us": "100000\n",
                   "cpu/cpu.cfs_period_us": "100000\n"}, 1.0),
        # Files of another controller do not count.
        ("3:memory:/\n", {"cpu/cpu.cfs_quota_us": "1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quota(tmp_path: Path, groups: str, files: dict[str, str], expected: float | None) -> None:
    write(tmp_path, {"cgroup": groups})
    write(tmp_path / "fs", files)
    assert threads.quota(tmp_path / "cgroup", tmp_path / "fs") == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert threads.quota(tmp_path / "nothing", tmp_path) is None


@pytest.mark.parametrize(
    ("most", "processors", "quota", "others", "processes", "expected"),
    [
        (8, 8, None, 0.0, 1, 8),
        (8, 8, None, 0.3, 1, 8),
        (8, 8, None, 2.1, 1, 6),
        (2, 2, None, 1.0, 1, 1),
        (2, 2, None, 2.0, 1, 1),  # never none
        (8, 16, None, 8.0, 1, 8),  # torch takes one of the two threads of a core
        (64, 64, 2.0, 50.0, 1, 2),  # a container on a busy machine
        (64, 64, 1.5, 0.0, 1, 2),  # half of the time two threads run
        (4, 4, 0.5, 0.0, 1, 1),
        (8, 8, None, 0.0, 4, 2),
        (2, 2, None, 0.0, 4, 1),
        (1, 64, None, 0.0, 1, 1),
    ],
)
def test_fitting(
    most: int, processors: int, quota: float | None, others: float, processes: int, expected: int
) -> None:
    assert threads.fitting(most, processors, quota, others, processes) == expected


STAT = """cpu  999999 0 0 0 0 0 0 0 0 0
cpu0 {0} 10 20 5000 70 3 4 5 0 0
cpu1 {1} 0 0 5000 0 0 0 0 100 0
cpu10 77777 0 0 0 0 0 0 0 0 0
intr 12345 0 0
"""


def test_use_of_the_processors(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    tick = os.sysconf("SC_CLK_TCK")
    stat.write_text(STAT.format(100, 200))
    both = threads.Use.now({0, 1}, stat)
    assert both is not None
    assert both.all * tick == pytest.approx(100 + 10 + 20 + 3 + 4 + 5 + 200)
    one = threads.Use.now([1], stat)
    assert one is not None
    assert one.all * tick == pytest.approx(200)
    assert threads.Use.now({0}, tmp_path / "nothing") is None
    stat.write_text("cpu0 many\n")
    assert threads.Use.now({0}, stat) is None


def test_others_are_what_is_not_ours() -> None:
    begin = threads.Use(clock=10.0, all=100.0, own=3.0)
    assert begin.others(threads.Use(12.0, 104.0, 5.0)) == pytest.approx(1.0)
    assert begin.others(threads.Use(12.0, 102.0, 5.5)) == 0.0  # two clocks, which differ a little


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine with eight processors, whose neighbours take what a test says."""
    for name in threads.COUNTS:
        monkeypatch.delenv(name, raising=False)
    facts = {"others": 0.0}
    monkeypatch.setattr(threads, "_affinity", lambda: range(8))
    monkeypatch.setattr(threads, "quota", lambda: facts.get("quota"))
    monkeypatch.setattr(threads, "SHORTEST", 0.0)
    monkeypatch.setattr(threads, "_since", threads.Use(0.0, 0.0, 0.0))
    monkeypatch.setattr(
        threads.Use, "now", classmethod(lambda cls, _: cls(10.0, 10 * (facts["others"] + 1), 10.0))
    )
    return facts


def test_free_processors(machine: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.free(8) == 8
    machine["others"] = 3.0
    assert threads.free(8) == 5
    assert threads.free(8, processes=2) == 2
    machine["quota"] = 1.2
    assert threads.free(8) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads.free(7, processes=2) == 7


def test_a_number_that_is_given_comes_first(
    machine: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    machine["others"] = 20.0
    with using(0):
        assert torch.get_num_threads() == 1
    with using(3):
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("MKL_NUM_THREADS", "1")
    with using(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", threads.WAITS)
def test_what_the_user_said_on_waiting_stays(name: str) -> None:
    environment = {name: "x"}
    assert not threads.wait_asleep(environment)
    assert environment == {name: "x"}


def test_waiting_threads_sleep_otherwise() -> None:
    environment = {"OMP_NUM_THREADS": "4"}
    assert threads.wait_asleep(environment)
    assert environment == {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "PASSIVE"}
    assert not threads.wait_asleep(environment)  # a process that was started anew goes on


PROBE = """
import json, os, sys
from cello.cli import main, threads
def run(arguments):
    import torch
    print(json.dumps([os.environ.get("OMP_WAIT_POLICY"), sys.argv[1:], sys.stdin.read()]))
    return 0
import cello.cli.app
cello.cli.app.run = run
sys.exit(main.main())
"""


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_a_command_waits_asleep_from_its_first_line_on(given: str | None) -> None:
    """The variable is there when torch is loaded, and words and input of the command are kept."""
    environment = {k: v for k, v in os.environ.items() if k not in threads.WAITS}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, "train", "a b", "--out", "ö"],
        env=environment, input="text", capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert json.loads(done.stdout) == [given or "PASSIVE", ["train", "a b", "--out", "ö"], "text"]


def test_the_file_needs_no_torch() -> None:
    """It is to run before torch is loaded."""
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('t', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); sys.modules['t'] = module;"
        "spec.loader.exec_module(module); print('torch' in sys.modules, module.free(1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, threads.__file__],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "1"]


@pytest.mark.parametrize(
    ("words", "others", "expected", "said"),
    [
        (["--threads", "1"], 0.0, 1, False),
        ([], 0.0, 2, False),
        ([], 7.0, 1, True),
        (["--threads", "2"], 7.0, 2, False),
    ],
)
def test_a_run_keeps_its_number_of_threads(
    cello: Cello,
    toy_csv: Path,
    tmp_path: Path,
    small: list[str],
    machine: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    others: float,
    expected: int,
    said: bool,
) -> None:
    """It is chosen when training begins, written down, and the same when the run is resumed."""
    seen = []

    def fit(*arguments: Any, **keywords: Any) -> Any:
        seen.append(torch.get_num_threads())
        raise Interrupted("interrupted")

    machine["others"] = others
    monkeypatch.setattr(trainer, "fit", fit)
    with measure.threads(2):
        begun = cello("train", toy_csv, "--out", tmp_path / "run", *small, *words)
        machine["others"] = 7.0 - others
        resumed = cello("train", "--resume", tmp_path / "run")
        assert torch.get_num_threads() == 2
    assert (begun.code, resumed.code) == (130, 130)
    assert seen == [expected, expected]
    assert ("computing with 1 of 2 threads" in begun.err) == said
