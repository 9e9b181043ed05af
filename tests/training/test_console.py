"""The console: plain lines where there is no terminal, everything in run.log, silence on other processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_finetune.training import RunConsole, console


def test_console__says_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Long lines are not wrapped, and brackets are text rather than markup."""
    long = "photos/[bold]" + "x" * 300
    RunConsole().say("weights  loaded", long)
    assert capsys.readouterr().out == f"weights  loaded\n{long}\n"


def test_console__run_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said after `log_to` is in run.log too, each line with its time and zone."""
    speaker = RunConsole()
    speaker.say("before")
    speaker.log_to(tmp_path / "run.log")
    speaker.say("one", "two")
    speaker.say("three")
    assert capsys.readouterr().out == "before\none\ntwo\nthree\n"
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two", "three"]
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ")
    assert all(stamp.match(line) for line in lines)


def test_console__other_processes_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A console that is not enabled prints nothing, logs nothing and shows no progress."""
    silent = RunConsole(enabled=False)
    silent.log_to(tmp_path / "run.log")
    silent.say("one")
    with silent.progress(num_steps=2, done=0) as bar:
        bar.update(2, {"loss": "0.5"})
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run.log").exists()


def test_progress__plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody sees a bar, the last step is told in one plain line, and not every step before it."""
    with RunConsole().progress(num_steps=50, done=0) as bar:
        for step in range(1, 51):
            bar.update(step, {"loss": "0.5", "lr": "1e-03"})
    assert capsys.readouterr().out == "step 50/50  loss 0.5  lr 1e-03  0 s left\n"


def test_progress__plain_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them a line comes every so many seconds, with the time left counted from where the run went on."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with RunConsole().progress(num_steps=100, done=40) as bar:
        for step in range(41, 71):
            now += 1.0
            bar.update(step, {"loss": "0.5"})
    assert capsys.readouterr().out.splitlines() == [
        "step 55/100  loss 0.5  45 s left",
        "step 70/100  loss 0.5  30 s left",
    ]


def test_progress__bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there is one bar with steps and figures; a resumed run's begins where it goes on."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    with RunConsole().progress(num_steps=50, done=40) as bar:
        for step in range(41, 46):
            bar.update(step, {"loss": "0.5", "lr": "1e-03"})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "training" in shown
    assert "45/50" in shown
    assert "loss 0.5  lr 1e-03" in shown
    assert "s left" not in shown
