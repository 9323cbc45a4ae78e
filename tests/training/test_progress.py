"""Lines that a run prints and keeps in its log."""

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
