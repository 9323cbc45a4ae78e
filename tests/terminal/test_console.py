"""Numbers for people, and text from data that stays text."""

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import hnet_cli
from hnet_cli.terminal import console


@pytest.mark.parametrize(
    ("function", "number", "shown"),
    [
        (console.size, 0, "0 bytes"),
        (console.size, 999, "999 bytes"),
        (console.size, 1500, "1.5 kB"),
        (console.size, 250_000_000, "250 MB"),
        (console.size, 5e12, "5000 GB"),
        (console.count, 7, "7"),
        (console.count, 1_900_000, "1.9M"),
        (console.count, 679_405_312, "679M"),
        (console.count, 1_603_492_224, "1.60G"),
        (console.duration, 0.2, "0 s"),
        (console.duration, 99, "99 s"),
        (console.duration, 125, "2 min 05 s"),
        (console.duration, 7500, "2 h 05 min"),
        (console.duration, 400_000, "5 days"),
    ],
)
def test_numbers_for_people(function, number, shown):
    assert function(number) == shown


@pytest.mark.parametrize(
    "text", ["[red]x[/]", "[/]", "a[bold", "\x1b[31mx", "\x07\x9b\u202e", "\\[x]", "C:\\", "exp:x:1"]
)
def test_what_comes_from_data_is_shown_as_it_stands(text):
    out = io.StringIO()
    options = {"file": out, "force_terminal": True, "color_system": None, "soft_wrap": True}
    console.make_console(**options).print(f"[bold]{console.literal(text)}[/]")
    shown = out.getvalue().rstrip("\n")
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_as_they_stand(terminal, capsys, monkeypatch):
    shown, name = io.StringIO(), "my[/run]:x:\x1b[31m"
    made = console.make_console(file=shown, force_terminal=terminal, color_system=None, width=120)
    monkeypatch.setattr(console, "console", made)
    monkeypatch.setattr(console.Task, "EVERY", 0.0)
    monkeypatch.setattr(console, "_verbosity", 0)
    with console.progress(name, total=4) as task:
        task.update(1, note=name)
        if task.bar:
            task.bar.refresh()
    text = shown.getvalue() + capsys.readouterr().err
    assert text.count("my[/run]:x:\\x1b[31m") >= 2


def test_no_name_becomes_an_emoji(capfd, monkeypatch):
    """In a message, a table with a title, its header and cells, on either stream."""
    monkeypatch.setattr(console, "console", console.make_console(stderr=True))
    monkeypatch.setattr(console, "_verbosity", 0)
    name = "exp:x:1:smile:"
    rows = console.table(name, name, title=name)
    rows.add_row(console.literal(name), console.literal(name))
    console.say(f"Wrote {console.literal(name)}.")
    console.show(rows)
    console.show_data(rows)
    console.show_data(console.literal(name))
    assert console.fits(rows)
    out, err = capfd.readouterr()
    assert (out.count(name), err.count(name)) == (6, 6)


def test_consoles_are_made_in_one_place():
    """Rich turns `:x:` into an emoji unless it is told not to, wherever it makes a console or reads markup."""
    makes = re.compile(r"\b(Console|Text\.from_markup|render_markup|TextColumn|rich\.print|Prompt|Live|Status)\(")
    found = {}
    for path in Path(hnet_cli.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if makes.search(line) and "emoji=False" not in line and "markup=False" not in line:
                found.setdefault(path.name, []).append(line.strip())
    assert found == {"console.py": ['TextColumn("{task.percentage:>3.0f}%"),', 'TextColumn("left"),']}


def test_a_narrow_terminal_shows_the_times_whole(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=shown, force_terminal=True, color_system=None, width=80))
    with console.progress("training", total=4) as task:
        task.update(1, note="2.345 bpb  3.42 bytes/chunk (target 5.5)  1.7 kB/s and more")
        task.bar.refresh()
    last = shown.getvalue().rpartition("training")[2].splitlines()[0]
    assert "25% 0:00:00 left" in last
    assert "2.345 bpb  3.42 bytes/chunk" in last
    assert "…" not in last


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_a_narrow_terminal_loses_no_figure(width, monkeypatch, capsys):
    """What is wider than the terminal is broken by it; cells of several words are folded first."""
    monkeypatch.setattr(console, "console", console.make_console(stderr=True, width=width))
    monkeypatch.setattr(console, "get_terminal_size", lambda: (width, 24))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    made = console.table("", "bytes/chunk", "boundaries on", title="A title")
    made.add_row("a-name-of-22-characters", "5.0012345", "a word or so, and another")
    console.show(made)
    console.show_data(made)
    for shown in map(re.compile(r"\x1b\[\d+m").sub, ("", ""), capsys.readouterr()):
        assert "…" not in shown
        assert {"bytes/chunk", "5.0012345", "a-name-of-22-characters", "another"} <= set(shown.split())
        assert max(map(len, shown.splitlines())) <= max(width + 2, 52)  # rich 13.6 does not count its padding


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(console.Task, "EVERY", 0.0)
    console.set_verbosity(0)
    with console.progress("reading", total=4) as task:
        task.update(1, note="fine")  # nothing to tell the speed from yet
        task.update(2)
        task.update(4)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["reading: 25%  fine", "reading: 50%", "reading: 100%  fine"]
    assert lines[1].endswith(" left  fine")
    console.set_verbosity(-1)
    with console.progress("reading", total=4) as task:
        task.update(1)
        console.say("quiet")
    assert capsys.readouterr() == ("", "")
    console.set_verbosity(0)


def test_progress_of_unknown_length_says_nothing_false(capsys, monkeypatch):
    monkeypatch.setattr(console.Task, "EVERY", 0.0)
    with console.progress("reading") as task:
        task.update(5)
        task.update(7, note="7 bytes")
        task.update(5, total=10)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["reading: 7 bytes", "reading: 50%  7 bytes"]


@given(st.lists(st.floats(-1e9, 1e9), max_size=99), st.integers(1, 50))
def test_a_curve_in_a_line_of_text(values, width):
    drawn = console.spark(values, width)
    assert len(drawn) == min(width, len(values))
    assert set(drawn) <= set("▁▂▃▄▅▆▇█")


def test_a_rising_line_rises():
    assert console.spark(range(8)) == "▁▂▃▄▅▆▇█"
    assert console.spark([3, 3, 3]) == "▁▁▁"


@given(st.text() | st.sampled_from(["[/red]", "[bold", "a[/]b", "\x1b]0;title\x07", "\x9b31m", ":x:", "\u202egnp"]))
def test_whatever_is_said_neither_fails_nor_reaches_the_terminal_raw(text):
    """With markup that is none too: then it is shown as it stands."""
    out = io.StringIO()
    before, console.console.file = console.console._file, out
    try:
        console.say(text)
        console.say(f"[bold]{console.literal(text)}[/]")
        rows = console.table("a", title=console.literal(text))
        rows.add_row(text)
        console.show(rows)
    finally:
        console.console.file = before
    assert not set(out.getvalue()) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), 0x202E)}


def test_the_time_left_follows_the_pace(monkeypatch, capsys):
    """Of the last minute: what was before the machine became busy says nothing."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    task = console.Task("training", 1000, None)
    for step in range(1, 301):
        now += 1.0 if step <= 200 else 10.0
        task.update(step)
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"30%, {console.duration(7000)} left" in last


@pytest.mark.slow
def test_progress_in_a_notebook_is_one_line_that_changes(capsys, monkeypatch):
    """The display is IPython's; what it would draw is what it was last told."""
    pytest.importorskip("IPython")
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.display_pub = CapturingDisplayPublisher(parent=shell)
    monkeypatch.setattr(console, "console", console.make_console(force_jupyter=True))
    monkeypatch.setattr(console.Task, "OFTEN", 0.0)
    with console.progress("reading \x1b[1m", total=4) as task:
        task.update(1, note="\x1b[31m")
        part = task.part("splitting", 2)
        part.update(1)
        part.close()
    drawn = [output["data"]["text/plain"] for output in shell.display_pub.outputs]
    assert drawn[0] == "reading \\x1b[1m ..."
    assert drawn[1].startswith("reading \\x1b[1m: 25%")
    assert drawn[2].startswith("splitting: 50%")
    assert drawn[-1] == ""
    assert {output["update"] for output in shell.display_pub.outputs[1:]} == {True}
    assert capsys.readouterr() == ("", "")
    InteractiveShell.clear_instance()
