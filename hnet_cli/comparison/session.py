"""All of a comparison, in order: plan, trainings, measurements, results, page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnet_cli import storage
from hnet_cli.comparison import plan as planning
from hnet_cli.terminal.console import literal, progress, say
from hnet_cli.terminal.process import catch_signals

JSON, PAGE = "compare.json", "compare.html"


def run(asked: planning.Request, *, out: Path | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Plan, train what is not trained, measure what is not measured, write `compare.json` and the page.

    Gives what `compare.json` holds, or with `dry_run` the plan. Raises whatever a plan, a training or an evaluation
    does; Stopped after a signal: all that is done is kept, and the same call goes on.
    """
    plan = planning.choose(asked)
    from hnet_cli.comparison import measures, page, results, tables, training, verdict

    exam = measures.Exam.of(plan.data, plan.kind, plan.max_bytes, plan.context)
    if dry_run:
        return planning.describe(plan, planning.seconds_per_byte(plan))
    with catch_signals() as stop, storage.FolderLock(plan.folder):
        planning.write(plan, asked)
        planning.describe(plan, {})
        failed = training.train_all(plan, stop)
        measured = {}
        with progress("measuring", len(plan.runs)) as task:
            for n, each in enumerate(plan.runs):
                if (model := training.last_checkpoint(each)) is not None:
                    file = plan.folder / "measured" / f"{each.name}.json"

                    def tell(what: str, n: int = n, name: str = each.name) -> None:
                        training.refuse_if_stopped(stop, plan)
                        task.update(n, note=f"{name}: {what}")

                    measured[each.name] = measures.measured(file, model, exam, plan.machine.device, tell)
        told = results.results(plan, measured, failed, exam.chosen, exam.bytes)
        told["verdict"] = verdict.verdict(told)
        told["definitions"] = tables.definitions(told)
        storage.write_json(plan.folder / JSON, told)
        where = out or plan.folder / PAGE
        storage.write_text(where, page.page(told))
    say(f"Wrote {literal(plan.folder / JSON)} and {literal(where)}.")
    return told
