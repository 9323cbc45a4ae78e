"""Messages, tables and progress for people, all on standard error. Standard output is for data."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.errors import MarkupError
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from hnet_cli.modality import escape


def make_console(**options: Any) -> Console:
    """A console that shows text as it stands: no colours for numbers, no emoji for `:x:`."""
    return Console(highlight=False, emoji=False, **options)


console = make_console(stderr=True)
GAP = 2
"""Columns between those of a table."""
WIDE = 400
"""Columns where standard output is no terminal."""
_verbosity = 0


def set_verbosity(level: int) -> None:
    """-1 quiet (errors only), 0 normal, 1 verbose."""
    global _verbosity
    _verbosity = level


def is_verbose() -> bool:
    """True where the user asked for more messages and tracebacks."""
    return _verbosity > 0


def literal(text: object) -> str:
    """Data or a file name for use in markup: shown as it stands, control characters as escapes."""
    return escape_markup(escape(str(text)))


def say(text: str, *, verbose: bool = False) -> None:
    """A line for the user. Rich markup is read, so what comes from data goes through `literal`."""
    if _verbosity >= (1 if verbose else 0):
        console.print(_safe(text), soft_wrap=True)


def _safe(text: str) -> Text:
    """Markup without control characters; as it stands where it is none, for then it is not ours alone."""
    try:
        return Text.from_markup(escape(text), emoji=False)
    except MarkupError:
        return Text(escape(text))


class SafeTable(Table):
    """A table whose cells are `_safe`, and in which a narrow terminal folds cells but cuts no word or figure."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(_safe(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Divide what a terminal has between the columns: to each its longest word, of the rest a share."""
        texts = [[str(cell) for cell in (column.header, *column.cells)] for column in self.columns]
        least = [max((cell_len(word) for text in each for word in text.split()), default=0) for each in texts]
        wanted = [max((cell_len(line) for text in each for line in text.splitlines()), default=0) for each in texts]
        spare, more = options.max_width - GAP * (len(texts) - 1) - sum(least), sum(wanted) - sum(least)
        for column, width, most in zip(self.columns, least, wanted, strict=True):
            column.width = width + (most - width) * max(0, spare) // max(1, more) if spare < more else None
        return super().__rich_console__(console, options)


def table(*columns: str, title: str | None = None) -> Table:
    """A plain table in the house style: first column left, the others right."""
    heading = _safe(title) if title else None
    made = SafeTable(title=heading, title_justify="left", box=None, pad_edge=False, header_style="dim")
    made.min_width = cell_len(heading.plain) if heading else None  # a title is not broken
    for index, column in enumerate(columns):
        made.add_column(_safe(column), justify="left" if index == 0 else "right")
    return made


def show(renderable: Any) -> None:
    """Print a table unless quiet."""
    if _verbosity >= 0:
        before, console.width = console.width, _width_for(renderable, console.width)
        console.print(renderable)
        console.width = before


def _width_for(renderable: Any, width: int) -> int:
    """`width`, or as much more as a table needs whose words and figures are whole: the terminal breaks its lines."""
    return max(width, make_console(width=WIDE, height=WIDE).measure(renderable).minimum)


def show_data(renderable: Any) -> None:
    """Print a table or a line on standard output; on a terminal as wide as it is, else unwrapped."""
    renderable = _safe(renderable) if isinstance(renderable, str) else renderable
    with (data := _standard_output(renderable)).capture() as text:
        data.print(renderable, soft_wrap=not sys.stdout.isatty() and isinstance(renderable, Text))
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def fits(renderable: Any) -> bool:
    """True if `show_data` prints this unbroken."""
    wide = make_console(width=WIDE, height=WIDE)  # with a height, lest Rich takes a dumb terminal's width to be 80
    return wide.measure(renderable).maximum <= _standard_output().width


def _standard_output(renderable: Any = "") -> Console:
    """A console as wide as standard output, or as `renderable` needs."""
    width, height = get_terminal_size() if sys.stdout.isatty() else (WIDE, WIDE)
    return make_console(width=_width_for(renderable, width), height=height)


def size(count: float) -> str:
    """Bytes for people: 1.5 MB."""
    if count < 999.5:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            break
    return f"{count:.{1 if count < 100 else 0}f} {unit}"


def count(number: float) -> str:
    """A count for people: 1.9M."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.0f}" if unit == "" else f"{number:.{1 if number < 100 else 0}f}{unit}"
        number /= 1000
    return f"{number:.2f}G"


def duration(seconds: float) -> str:
    """Seconds for people: 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 100:
        return f"{minutes} min {seconds % 60:02d} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 72 else f"{hours / 24:.0f} days"


def ago(when: float) -> str:
    """A time, in seconds since the epoch, for people: 3 days ago."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = int(seconds / length)
            return f"{number} {unit}{'s' * (number != 1)} ago"
    return "just now"


def spark(values: Sequence[float], width: int = 40) -> str:
    """A curve as one line of text."""
    if not values:
        return ""
    points = min(width, len(values))
    picked = [values[n * (len(values) - 1) // max(1, points - 1)] for n in range(points)]
    ranked = sorted(picked)
    low, high = ranked[0], ranked[len(ranked) - 1 - len(ranked) // 10]  # the first losses would flatten all the others
    span = high - low if high > low else 1.0
    return "".join("▁▂▃▄▅▆▇█"[int((min(value, high) - low) / span * 7)] for value in picked)


def _bar_width() -> int:
    return 28 if console.width >= 120 else 10


class Task:
    """Progress of one long piece of work: a bar on a terminal, a line that changes in a notebook, a plain line now and
    then elsewhere.

    Labels and notes are shown as they stand; no markup is read.
    """

    EVERY = 10.0
    """Seconds between plain lines."""
    OFTEN = 0.5
    """Seconds between changes of a line in a notebook."""
    RECENT = 60.0
    """Seconds whose pace tells how much time is left: it changes with what else the machine has to do."""

    def __init__(self, label: str, total: float | None, bar: Progress | None, notebook: Any = None) -> None:
        """`notebook`: the handle of a display of IPython."""
        self.label, self.total, self.bar, self.done, self.note = label, total, bar, 0.0, ""
        self.notebook, self.every = notebook, self.EVERY if notebook is None else self.OFTEN
        self.printed = time.monotonic()
        self.recent = deque[tuple[float, float]]()
        """Times and units done at them, of the last `RECENT` seconds."""
        self.within: Task | None = None
        self.id = bar.add_task(escape(label), total=total, note="") if bar else None

    def update(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """`done` of `total` units; `note` is shown behind the bar."""
        self.done = done
        self.recent.append((time.monotonic(), done))
        while len(self.recent) > 2 and self.recent[1][0] < self.recent[-1][0] - self.RECENT:
            self.recent.popleft()
        self.total = total if total is not None else self.total
        self.note = note if note is not None else self.note
        if self.bar is not None and self.id is not None:
            # On a narrow terminal the times come first, the note gets what is left.
            room = max(0, console.width - len(self.label) - _bar_width() - 30)
            self.bar.update(self.id, completed=done, total=self.total, note=escape(self.note[:room]))
        elif time.monotonic() - self.printed >= self.every:
            self.printed = time.monotonic()
            self._line()

    def part(self, label: str, total: float | None) -> Task:
        """Work in between, shown instead of this until its `close`."""
        if self.bar is not None and self.id is not None:
            self.bar.update(self.id, visible=False)
        part = Task(label, total, self.bar, self.notebook)
        part.within = self
        return part

    def close(self) -> None:
        """Show the work again that this is a part of."""
        if self.bar is not None and self.id is not None:
            self.bar.remove_task(self.id)
            if self.within is not None and self.within.id is not None:
                self.bar.update(self.within.id, visible=True)

    def _line(self) -> None:
        if _verbosity < 0 or not (self.total or self.note):
            return
        line = f"{self.label}: {self.note}"
        if self.total:
            here, spent = self.done - self.recent[0][1], time.monotonic() - self.recent[0][0]
            rest = self.total - self.done
            left = f", {duration(spent / here * rest)} left" if here > 0 and rest > 0 else ""
            line = f"{self.label}: {100 * self.done / self.total:.0f}%{left}  {self.note}"
        if self.notebook is None:
            print(escape(line.rstrip()), file=sys.stderr, flush=True)
        else:
            self.notebook.update({"text/plain": escape(line.rstrip())}, raw=True)


@contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Task]:
    """A `Task` for the duration of a block."""
    if console.is_terminal and _verbosity >= 0:
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_bar_width()),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        with Progress(*columns, console=console, transient=True) as bar:
            yield Task(label, total, bar)
    elif console.is_jupyter and _verbosity >= 0:
        from IPython.display import display

        handle = display({"text/plain": f"{escape(label)} ..."}, raw=True, display_id=True)
        try:
            yield Task(label, total, None, handle)
        finally:
            handle.update({"text/plain": ""}, raw=True)
    else:
        yield Task(label, total, None)
