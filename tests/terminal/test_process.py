"""Standard streams as shells and daemons leave them, closed, full, with nobody at the other end; and signals."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands  # noqa: F401  (so that a forked process has all imported)
import pytest
from runkit import TINY, fox

from hnet_cli.checkpoints.find import newest
from hnet_cli.cli.app import main
from hnet_cli.terminal import process
from hnet_cli.terminal.process import Terminated, catch_signals, terminable

ROOT = Path(__file__).parents[2]
STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    fox(tmp_path).rename(tmp_path / "file.txt")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hnet(line, **streams):
    """The exit code of `hnet LINE` in a process with other standard streams: a path, "closed", or "reader gone"."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        for number, (name, mode) in enumerate(STREAMS.items()):
            where = streams.get(name, os.devnull)
            reader, descriptor = os.pipe() if where == "reader gone" else (None, None)
            if reader is not None:
                os.close(reader)
            elif where != "closed":
                descriptor = os.open(where, os.O_RDWR)
            os.close(number)
            if descriptor is not None:
                os.dup2(descriptor, number)
            setattr(sys, name, None if where == "closed" else open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        sys.argv = ["hnet", *line.split()]
        main()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


@pytest.mark.slow
def test_what_cannot_be_said_ends_no_work(folder):
    """Messages go to a full disk, or to a reader that is gone."""
    assert hnet("prepare file.txt --out x", stderr="/dev/full") == 0
    assert (
        hnet("train --preset tiny.yaml --data x --run y --device cpu", stderr="reader gone", stdout="reader gone") == 0
    )
    assert newest(folder / "y").is_dir()
    assert hnet("prepare nowhere --out z", stderr="/dev/full") == 3
    assert hnet("presets nano", stdout="/dev/full") == 74  # data are not messages
    assert hnet("presets nano", stdout="reader gone") == 0  # `| head`


@pytest.mark.parametrize(
    ("line", "closed", "code"),
    [
        ("presets nano", ["stdout"], 0),
        ("prepare -", ["stdin"], 3),
        ("prepare file.txt --out x", ["stdout", "stderr"], 0),
        ("presets nano", ["stdin", "stdout", "stderr"], 0),
    ],
)
def test_closed_streams_are_as_empty_ones(folder, line, closed, code):
    assert hnet(line, **dict.fromkeys(closed, "closed")) == code


def test_a_shell_may_close_them_all(folder):
    command = shlex.join([sys.executable, "-m", "hnet_cli", "presets", "nano"])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(f"({command}; echo $? >code) <&- >&- 2>&-", shell=True, env=environment, timeout=120)
    assert (done.returncode, Path("code").read_text()) == (0, "0\n")


def test_signals_ask_for_a_stop_and_are_as_before_afterwards():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        handlers = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        with catch_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert (stop.signal, stop.count) == ("", 0)
            signal.raise_signal(signal.SIGTERM)
            assert (stop.signal, stop.count) == ("SIGTERM", 0)
            signal.raise_signal(signal.SIGINT)
            assert (stop.signal, stop.count) == ("SIGINT", 1)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert handlers == {name: signal.getsignal(name) for name in handlers}
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, interrupted)


def test_a_signal_that_ends_a_command_raises_and_the_next_are_ignored():
    """Ignored ones stay ignored."""
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    cleaned = []

    def command():
        with terminable():
            os.kill(os.getpid(), signal.SIGHUP)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned.append(True)

    try:
        with pytest.raises(Terminated, match="ended by SIGTERM"):
            command()
        assert cleaned
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_sent_twice_is_one_wish(name, monkeypatch):
    """The block within, as training has it, comes first; however fast it ends, its exit code is that of a stop."""
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)
    monkeypatch.setattr(process, "CLEANING", 0.5)
    reached = []

    def command():
        with terminable():
            with catch_signals() as stop:
                os.kill(os.getpid(), number)
            assert stop.signal == name
            os.kill(os.getpid(), number)
            reached.append(True)
            time.sleep(0.6)
            os.kill(os.getpid(), number)

    try:
        with pytest.raises(Terminated, match=f"ended by {name}"):
            command()
        assert reached
    finally:
        signal.signal(number, before)


def test_a_signal_waits_for_an_import(tmp_path, monkeypatch):
    """An exception in the midst of one may pass through C++, or leave half of a module."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nwhole = True\n"
    )

    def command():
        with terminable():
            import slow_module  # type: ignore[import-not-found]

            assert slow_module.whole
            for _ in range(200):
                time.sleep(0.05)

    try:
        with pytest.raises(Terminated, match="ended by SIGTERM"):
            command()
        assert sys.modules.pop("slow_module").whole
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_whose_exception_gets_lost_is_not_the_last(monkeypatch):
    monkeypatch.setattr(process, "CLEANING", 0.0)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def command():
        with terminable():
            with contextlib.suppress(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with pytest.raises(Terminated):
            command()
    finally:
        signal.signal(signal.SIGTERM, before)
