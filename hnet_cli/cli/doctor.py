"""`hnet doctor`: what this machine will run, and why, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from hnet_cli.cli.machine import Json, report
from hnet_cli.errors import EnvironmentLimit
from hnet_cli.terminal.console import show_data, size, table


def run(check: bool = False, as_json: bool = False) -> None:
    """Print the report on standard output. Raises EnvironmentLimit where `check` finds a kernel that is wrong."""
    answers = report(check)
    if as_json:
        print(json.dumps(answers, ensure_ascii=False), flush=True)
    else:
        show_data(render(answers))
    raise_on_failure(answers)


def raise_on_failure(answers: Json) -> None:
    """Raise EnvironmentLimit naming the kernels whose comparison with the reference failed."""
    rows = answers.get("check", [])
    if isinstance(rows, dict):
        raise EnvironmentLimit(f"the kernels could not be compared: {rows['error']}")
    if wrong := [f"{row.get('op')} ({row.get('backend')})" for row in rows if not row.get("ok", True)]:
        raise EnvironmentLimit(
            f"these kernels do not compute what the reference does: {', '.join(wrong)}",
            "train with `--set kernels=reference`, and update the package they come from",
        )


def render(answers: Json) -> Group:
    """The report as something Rich prints."""
    parts = [
        _part("This machine", _facts(answers), lambda fact: list(fact.values())),
        _part("GPU", answers["gpus"], _gpu),
        _part("Kernels", answers["kernels"], _kernel),
        _part(
            "Optional packages",
            answers["packages"],
            lambda p: [p["name"], p["version"] or "[dim]no[/]", p["purpose"], _extra(p)],
        ),
        _part("Modalities", answers["modalities"], lambda m: [m["name"], escape(m["package"]), _plugin(m)]),
        _part(
            "Presets that fit for training",
            _named_presets(answers["presets"]),
            lambda p: [p["name"], size(p["memory"]), _yes(p["fits"])],
        ),
    ]
    if "check" in answers:
        parts.append(_part("Comparison with the reference", answers["check"], _compared, empty="nothing to compare"))
    parts.append(
        _part(
            "To train first",
            answers["first"],
            lambda p: [p["modality"], p["preset"], "" if p["fits"] else "[red]does not fit[/]", p["command"]],
        )
    )
    verdict = answers["verdict"]
    style = "bold green" if verdict["ok"] else "bold red"
    parts.append([Text(f"\n{verdict['text']}.", style=style)])
    return Group(*(line for part in parts for line in part))


def _named_presets(presets: Any) -> Any:
    """Without the many of the line-up, which `hnet presets` lists."""
    return [row for row in presets if row["group"] != "line-up"] if isinstance(presets, list) else presets


def _extra(package: Json) -> str:
    """The way to a package that is not there."""
    extra = package["extra"]
    return f"[dim]pip install 'hnet-cli\\[{extra}]'[/]" if extra and not package["version"] else ""


def _part(title: str, rows: Any, cells: Callable[[Json], list[str]], empty: str = "none") -> list[Text | Padding]:
    """A heading, and a row of `cells` for each of `rows`, or why there are none."""
    head = Text(f"\n{title}", style="bold")
    if isinstance(rows, dict):
        return [head, Text(f"  {rows['error']}", style="red")]
    if not rows:
        return [head, Text(f"  {empty}")]
    grid = table(*[""] * len(cells(rows[0])))
    grid.show_header = False
    for column in grid.columns:
        column.justify = "left"
    for row in rows:
        grid.add_row(*cells(row))
    return [head, Padding(grid, (0, 0, 0, 2))]


def _facts(answers: Json) -> list[dict[str, str]]:
    def line(name: str, text: Callable[[Json], str]) -> str:
        answer = answers[name]
        return escape(answer["error"] if "error" in answer else text(answer))

    facts = {
        "hnet": f"{answers['hnet']}, Python {answers['python']['version']}, {answers['python']['system']}",
        "torch": line("torch", _torch),
        "CPU": line("cpu", _cpu),
        "memory": line("memory", lambda memory: f"{size(memory['available'])} available of {size(memory['total'])}"),
        "disk": line("disk", lambda disk: f"{size(disk['free'])} free here"),
    }
    return [{"name": name, "fact": fact} for name, fact in facts.items()]


def _torch(torch: Json) -> str:
    ranks = f"ranks over {' and '.join(torch['distributed']) or 'nothing'}"
    return f"{torch['version']}, CUDA {torch['cuda'] or 'no'}, {torch['threads']} threads, {ranks}"


def _cpu(cpu: Json) -> str:
    features = [name for name in ("avx512", "bf16", "amx") if cpu[name]]
    busy = [] if cpu["others"] is None else [f"{cpu['others']:.1f} of them busy with other work"]
    return ", ".join([cpu["name"], f"{cpu['cores']} cores", *features, *busy])


def _gpu(gpu: Json) -> list[str]:
    memory = f"{size(gpu['free'])} free of {size(gpu['memory'])}"
    kind = f"compute capability {gpu['capability']}" if gpu["capability"] else "Metal"
    return [escape(gpu["name"]), memory, kind]


def _kernel(row: Json) -> list[str]:
    version, reason = str(row.get("version") or ""), escape(str(row.get("reason") or ""))
    return [row["op"], row["backend"], version, _yes(row["available"]), reason]


def _plugin(row: Json) -> str:
    return f"[red]{escape('; '.join(row['problems']))}[/]" if row["problems"] else escape(row["summary"])


def _compared(row: Json) -> list[str]:
    words = [escape(str(row.get(key, ""))) for key in ("device", "op", "backend", "error")]
    return [*words, "[green]ok[/]" if row.get("ok") else "[red]WRONG[/]"]


def _yes(value: bool) -> str:
    return "[green]yes[/]" if value else "[dim]no[/]"
