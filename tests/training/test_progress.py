"""Lines that a run prints and keeps in its log."""

import io
import os

import pytest
from rich.console import Console

from hnet_cli.distributed.threads import Meter
from hnet_cli.terminal import console
from hnet_cli.terminal.console import Task
from hnet_cli.training import progress


def test_what_cannot_be_written_to_the_log_is_written_with_the_next_line(tmp_path):
    screen = progress._Screen(Task("training", 10, None), tmp_path / "run/log.txt", None)
    for text in ("one", "two"):
        screen.log(text)  # no such folder yet: any failure of the disk looks the same to it
    (tmp_path / "run").mkdir()
    screen.log("three")
    screen.log("four")
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["one", "two", "three", "four"]


def test_a_disk_that_stays_full_does_not_fill_the_memory(tmp_path):
    screen = progress._Screen(Task("training", 10, None), tmp_path / "run/log.txt", None)
    for n in range(3 * progress._Screen.MOST_UNWRITTEN):
        screen.log(str(n))
    assert len(screen.unwritten) == progress._Screen.MOST_UNWRITTEN
    assert screen.unwritten[-1].endswith(f"  {3 * progress._Screen.MOST_UNWRITTEN - 1}\n")


def test_a_run_with_limited_time_shows_the_time(tmp_path, monkeypatch):
    task = Task("training", 60.0, None)
    screen = progress._Screen(task, tmp_path / "log.txt", None, limited=True, steps=1000)
    screen.began -= 15
    screen.hear("step", {"step": 3})
    assert task.done == pytest.approx(15, abs=2)
    assert task.total == 60
    screen.hear("shortened", {"step": 3, "steps": 12})
    screen.began -= 600
    screen.hear("step", {"step": 4})
    assert task.done < task.total
    assert "step 4 of about 12" in task.note


def test_what_goes_on_between_steps_has_its_own_bar(tmp_path):
    with console.progress("training", 10) as task:
        screen = progress._Screen(task, tmp_path / "log.txt", None)
        screen.hear("step", {"step": 10})
        screen.show_part("validation", 0, None)
        screen.show_part("validation", 400, 1000)
        assert (screen.part.label, screen.part.done, screen.part.total) == ("validation", 400, 1000)
        screen.show_part("checkpoint", 0, None)
        assert screen.part.label == "checkpoint"
        screen.show_part("", 0, None)
        assert screen.part is None


def test_on_a_terminal_the_steps_give_way_to_it(monkeypatch):
    monkeypatch.setattr(console, "console", Console(force_terminal=True, file=io.StringIO(), width=100))
    with console.progress("training", 10) as task:
        task.update(10)
        part = task.part("validation", 5)
        assert [shown.description for shown in task.bar.tasks if shown.visible] == ["validation"]
        part.close()
        assert [shown.description for shown in task.bar.tasks if shown.visible] == ["training"]


def test_a_machine_that_becomes_busy_is_said_once(tmp_path, capsys):
    """And no sooner than it can be measured."""
    cpus, tick = sorted(os.sched_getaffinity(0)), os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text("".join(f"cpu{number} 0 0 0 0 0 0 0 0 0 0\n" for number in cpus))
    screen = progress._Screen(Task("training", 10, None), tmp_path / "log.txt", None)
    screen.meter = Meter(stat)
    screen.hear("step", {"step": 1})
    assert screen.meter is not None
    busy, own, then = screen.meter.start
    screen.meter.start = busy, own, then - 100
    stat.write_text("".join(f"cpu{number} {100 * tick} 0 0 0 0 0 0 0 0 0\n" for number in cpus))
    for step in (2, 3):
        screen.hear("step", {"step": step})
    said = capsys.readouterr().err
    assert said.count("busy machine: other work takes") == 1
    assert "this process gets 0.0" in " ".join(said.split())
    assert (tmp_path / "log.txt").read_text().count("busy machine") == 1
