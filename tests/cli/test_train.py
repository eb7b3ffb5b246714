from __future__ import annotations

import gzip
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cello.tasks.files import held

Cello = Callable[..., Any]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    return first.keys() == second.keys() and all((first[k] == second[k]).all() for k in first)


def test_toy_text_end_to_end(cello: Cello, toy_model: Path) -> None:
    report = json.loads((toy_model / "report.json").read_text())
    assert report["accuracy"] == 1.0
    assert sum(map(sum, report["confusion"])) == report["rows"] == 16
    assert report["labels"] == ["neg", "pos"]
    assert len(report["training"]["epochs"]) >= report["training"]["kept_epoch"]
    names = {path.name for path in toy_model.iterdir()}
    assert names == {
        "config.json", "options.yaml", "tokenizer.json", "model.safetensors", "report.json",
        "confusion.png", "history.csv", "curves.png",
    }  # fmt: skip
    assert (toy_model / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_digits_reach_97_percent(cello: Cello, tmp_path: Path) -> None:
    result = cello("train", "digits", "--out", tmp_path / "digits", "--device", "cpu")
    assert result.code == 0
    report = json.loads((tmp_path / "digits" / "report.json").read_text())
    assert report["rows"] == 360
    assert report["accuracy"] >= 0.97
    assert f"accuracy {report['accuracy']:.4f}" in result.out
    again = cello("evaluate", tmp_path / "digits", "digits", "--device", "cpu")
    assert f"accuracy {report['accuracy']:.4f}" in again.out


@pytest.mark.parametrize(
    "options",
    [
        ["--cell", "gru", "--pooling", "last", "--no-bidirectional"],
        ["--cell", "rnn", "--pooling", "mean", "--layers", "2"],
        ["--activation", "hardtanh", "--gate-activation", "hardsigmoid", "--pooling", "mean-max"],
        ["--tokenizer", "bpe", "--vocabulary", "60", "--max-length", "3", "--pooling", "max"],
    ],
)
def test_choices_of_model(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str], options: list[str]
) -> None:
    out = tmp_path / "run"
    assert cello("train", toy_csv, "--out", out, *small, *options).code == 0
    assert cello("predict", out, "a fine film").code == 0


def test_other_forms_of_the_same_rows_give_the_same_model(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    lines = toy_csv.read_text().splitlines()[1:]
    rows = [line.replace('"', "").split(",") for line in lines]
    with gzip.open(tmp_path / "toy.tsv.gz", "wt") as stream:
        stream.writelines(f"{label}\t{text}\n" for label, text in rows)
    (tmp_path / "toy.jsonl").write_text(
        "".join(json.dumps({"review": text, "y": label}) + "\n" for label, text in rows)
    )
    assert cello("train", toy_csv, "--out", tmp_path / "a", *small).code == 0
    columns = ["--text-column", "1", "--label-column", "0"]
    result = cello("train", tmp_path / "toy.tsv.gz", "--out", tmp_path / "b", *columns, *small)
    assert result.code == 0
    columns = ["--text-column", "review", "--label-column", "y"]
    result = cello("train", tmp_path / "toy.jsonl", "--out", tmp_path / "c", *columns, *small)
    assert result.code == 0
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "c")


def test_options_from_a_file(cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]) -> None:
    """The command line comes first; the record in the folder gives the same model again."""
    file = tmp_path / "options.yaml"
    file.write_text(
        "hidden: 8\nembedding: 8\nepochs: 9  # too many\ndevice: cpu\ncell: gru\n"
        "learning-rate: 4e-3  # to YAML a text\n"
    )
    one, again, other = tmp_path / "one", tmp_path / "again", tmp_path / "other"
    assert cello("train", toy_csv, "--out", one, "--options", file, "--epochs", "3").code == 0
    assert cello("train", toy_csv, "--out", other, *small, "--cell", "gru").code == 0
    assert cello("train", toy_csv, "--out", again, "--options", one / "options.yaml").code == 0
    assert same_weights(one, again)
    assert same_weights(one, other)
    assert len(json.loads((one / "report.json").read_text())["training"]["epochs"]) == 3
    config = json.loads((one / "config.json").read_text())["options"]
    assert (config["cell"], config["epochs"]) == ("gru", 3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        ("hidden: [8\n", "options.yaml, line 2: not YAML"),
        ("- hidden\n", "not a list of names with values"),
        ("hiden: 8\n", "options.yaml: 'hiden' is not an option"),
        ("hidden: many\n", "options.yaml: hidden: 'many' is not a whole number"),
        ("seed: 2024-13-45\n", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("hidden: 0\n", "options.yaml: hidden: 0 is not between 1 and 65,536"),
        ("max-length: 3\nmax_length: 4\n", "'max_length' is given twice"),
        ("? [hidden]\n: 3\n", "line 1: not YAML (found unhashable key)"),
        (b"\xff", "not UTF-8 at byte 0"),
        ("epochs: !!python/object:os.system [true]\n", "not YAML"),
    ],
)
def test_broken_options_file(
    cello: Cello, toy_csv: Path, tmp_path: Path, content: str | bytes | None, expected: str
) -> None:
    file = tmp_path / "options.yaml"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.write_text(content)
    arguments = ["train", toy_csv, "--out", tmp_path / "run", "--options", file]
    assert expected in cello(*arguments).complaint
    assert not (tmp_path / "run").exists()


def test_an_option_twice_in_a_file(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    options = tmp_path / "options.yaml"
    options.write_text("hidden: 3\n# text\nhidden: 4\n")
    result = cello("train", toy_csv, "--out", tmp_path / "run", "--options", options)
    assert result.complaint == f"cello: {options}, line 3: hidden is given twice"


def run_command(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # on a machine that does much else
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["cello", "torchrun"])
def test_two_processes_train_like_one(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str], launcher: str
) -> None:
    """Without dropout, whose numbers each process draws for itself; 129 rows: one is left over."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*small, "--dropout", "0", "--batch-size", "16", "--checkpoint-every", "3"]
    assert cello("train", toy_csv, "--out", one, *options).code == 0
    main = ["-m", "cello.cli.main", "train", toy_csv, "--out", two, *options, "--devices", "2"]
    if launcher == "torchrun":
        ports = ["--nproc-per-node", "2", "--standalone"]
        run_command("-m", "torch.distributed.run", *ports, *main)
    else:
        shown = run_command(*main)
        assert shown.count("epoch 3/3") == 1
        assert "Initializing" not in shown
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    for name in first:
        assert (first[name] - second[name]).abs().max() < 1e-5, name
    reports = [json.loads((f / "report.json").read_text()) for f in (one, two)]
    for a, b in zip(*(report["training"]["epochs"] for report in reports), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-5)
        assert a["valid_loss"] == pytest.approx(b["valid_loss"], abs=1e-5)
        assert a["valid_accuracy"] == b["valid_accuracy"]
    assert reports[0]["confusion"] == reports[1]["confusion"]
    assert not (two / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_pretrain(toy_csv: Path, tmp_path: Path, small: list[str]) -> None:
    """The layer that scores labels takes no part in it."""
    options = [*small, "--pretrain", "2", "--devices", "2", "--device", "cpu"]
    shown = run_command(
        "-m", "cello.cli.main", "train", toy_csv, "--out", tmp_path / "run", *options
    )
    assert shown.count("pretraining 2/2") == shown.count("epoch 3/3") == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_resume_needs_a_run_that_is_not_finished(cello: Cello, toy_model: Path) -> None:
    assert "finished" in cello("train", "--resume", toy_model).complaint
    assert "hidden" in cello("train", "--resume", toy_model, "--hidden", "9").complaint


def test_a_folder_with_a_model_is_refused(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    out = tmp_path / "run"
    assert cello("train", toy_csv, "--out", out, *small).code == 0
    before = (out / "model.safetensors").read_bytes()
    assert "--overwrite" in cello("train", toy_csv, "--out", out, *small).complaint
    assert (out / "model.safetensors").read_bytes() == before
    assert cello("train", toy_csv, "--out", out, *small, "--seed", "1", "--overwrite").code == 0
    assert (out / "model.safetensors").read_bytes() != before


def run_and_stop(arguments: list[str], how: signal.Signals) -> tuple[int, str]:
    """Start the command in a process of its own and stop it in the third or fourth epoch."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "cello.cli.main", *arguments],
        # A shell that starts the tests in the background lets all that they start ignore Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("epoch 3/"):
                break
        process.send_signal(how)
        _, rest = process.communicate(timeout=60)
    return process.returncode, "".join(seen) + rest


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_model(
    cello: Cello, toy_csv: Path, tmp_path: Path, how: signal.Signals
) -> None:
    # A learning rate this small improves in few epochs, so that early stopping is at work as well.
    options = ["--hidden", "16", "--embedding", "16", "--epochs", "300", "--patience", "12"]
    options += ["--batch-size", "4", "--device", "cpu", "--learning-rate", "0.0005"]
    options += ["--checkpoint-every", "10", "--average", "0.9"]  # of 33 steps an epoch
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    code, err = run_and_stop(["train", str(toy_csv), "--out", str(stopped), *options], how)
    if how is signal.SIGINT:
        assert code == 130
        last = err.strip().splitlines()[-1]
        assert last.startswith("interrupted after ")
        assert last.endswith(f"to continue: cello train --resume {stopped}")
        assert "Traceback" not in err
    else:
        assert code == -signal.SIGKILL
    assert not (stopped / "model.safetensors").exists()
    assert "--resume" in cello("predict", stopped, "text").complaint
    assert "--resume" in cello("train", toy_csv, "--out", stopped).complaint
    assert cello("train", "--resume", stopped).code == 0
    assert cello("train", toy_csv, "--out", whole, *options).code == 0
    assert same_weights(whole, stopped)
    reports = [json.loads((f / "report.json").read_text())["training"] for f in (whole, stopped)]
    first, second = (
        [(epoch["train_loss"], epoch["valid_loss"]) for epoch in report["epochs"]]
        for report in reports
    )
    assert first == second
    assert len(first) > 2
    assert not (stopped / "checkpoints").exists()


def test_interrupted_while_reading(
    cello: Cello, toy_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks.classify import Classifier

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Classifier, "job", interrupted)
    result = cello("train", toy_csv, "--out", tmp_path / "run")
    assert (result.code, result.out) == (130, "")
    assert result.err.strip() == "interrupted before training began; nothing was written"
    assert not (tmp_path / "run").exists()


def test_interrupted_in_the_last_evaluation(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks.classify import Classifier

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "evaluate", interrupted)
        result = cello("train", toy_csv, "--out", run, *small)
    assert result.code == 130
    last = result.err.splitlines()[-1]
    assert last == f"interrupted; to continue: cello train --resume {run}"
    assert cello("train", "--resume", run).code == 0
    assert cello("train", toy_csv, "--out", tmp_path / "whole", *small).code == 0
    assert same_weights(run, tmp_path / "whole")


@pytest.mark.parametrize(
    "where", ["cello.tasks.history.draw", "cello.tasks.folder.drop_checkpoints"]
)
def test_interrupted_while_the_last_files_are_written(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str], where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before the report it can be resumed; behind it, it is finished."""
    module, _, name = where.rpartition(".")
    once = iter([True])
    function = getattr(importlib.import_module(module), name)

    def interrupted(*args: Any) -> None:
        if (run / "model.safetensors").exists() and next(once, False):
            raise KeyboardInterrupt
        function(*args)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(where, interrupted)
        result = cello("train", toy_csv, "--out", run, *small)
    if name == "draw":
        assert result.code == 130
        assert cello("train", "--resume", run).code == 0
    else:
        assert result.code == 0
    assert next(once, None) is None
    assert (run / "curves.png").exists()
    assert (run / "report.json").exists()
    assert not (run / "checkpoints").exists()
    assert "nothing to resume" in cello("train", "--resume", run).complaint


def test_two_runs_do_not_share_a_folder(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    run = tmp_path / "run"
    command = ["train", toy_csv, "--out", run, *small, "--overwrite"]
    assert cello(*command).code == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    with held(run, "at work"):
        for arguments in (command, ["train", "--resume", run]):
            assert (
                f"{run}: another process is training a model there" in cello(*arguments).complaint
            )
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert cello(*command).code == 0


def test_changed_data_is_not_resumed(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    data = tmp_path / "data.csv"
    data.write_bytes(toy_csv.read_bytes())
    assert cello("train", data, "--out", tmp_path / "run", *small).code == 0
    (tmp_path / "run" / "report.json").unlink()
    data.write_bytes(toy_csv.read_bytes().replace(b"fine", b"good"))
    assert "changed" in cello("train", "--resume", tmp_path / "run").complaint


def test_a_damaged_checkpoint_is_one_line(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    run = tmp_path / "run"
    assert cello("train", toy_csv, "--out", run, *small).code == 0
    (run / "report.json").unlink()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    result = cello("train", "--resume", run)
    assert result.code == 2
    assert "not a whole checkpoint" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_without_the_extra_there_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['lightning'] = sys.modules['lightning.pytorch'] = None\n"
        "from cello.cli.main import main; sys.exit(main(['train', 'digits', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install '.[tasks]' in Cello's checkout" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_model_folder_is_read_and_written_without_the_training_loop() -> None:
    code = "import sys, cello.tasks.folder, cello.tasks.confusion; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_cello_takes_torch_only() -> None:
    code = (
        "import sys, cello; heavy = {'lightning', 'typer', 'sklearn', 'datasets', 'tokenizers', "
        "'safetensors', 'rich', 'matplotlib', 'torchmetrics'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
