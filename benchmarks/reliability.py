"""Run the trials of tests/reliability and write their counts and figures into the table of docs/reliability.md.

python benchmarks/reliability.py                            the short form, as in CI
python benchmarks/reliability.py --form long --only R2,R8   minutes to hours; results are merged into the table
python benchmarks/reliability.py --table                    only write the table again
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
FORMS = ("short", "nightly", "long")
OWN = {"id", "what", "case", "form", "n", "failures", "seconds", "date"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=FORMS, default="short")
    parser.add_argument("--only", default="", help="rules such as R2,R8; default: all")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    status, records = 0, list[dict[str, Any]]()
    if not options.table:
        wanted = [rule.strip().upper() for rule in options.only.split(",") if rule.strip()]
        status, records = run(options.form, wanted)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # read last: other rules may run beside
    if not options.table:
        for record in records:
            key = ": ".join(part for part in (record["id"], record["what"], record["case"]) if part)
            before = results.get(key)
            # The more searching form stays in the table, whatever is run after it; a failure always shows.
            if not before or FORMS.index(record["form"]) >= FORMS.index(before["form"]) or record["failures"]:
                results[key] = record | {"date": date.today().isoformat()}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(PAGE.read_text(), results))
    return status


def run(form: str, rules: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """pytest on the tests whose names carry one of the rules (`test_r12_r23_...`), and the lines they printed."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "records.jsonl"
        environment = os.environ | {"HNET_RELIABILITY": form, "HNET_RELIABILITY_RECORDS": str(lines)}
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-rs", str(ROOT / "tests" / "reliability")]
        if rules:
            command += ["-k", " or ".join(f"_{rule.lower()}_" for rule in rules)]
        status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
        return status, [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def table(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown table: what was tried, how often, what failed; the cases of one trial in one row."""
    rows = ["| rule | what was tried | times | failed | form | measured |", "|---|---|--:|--:|---|---|"]
    trials: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for key in sorted(results):
        trials.setdefault((int(results[key]["id"][1:]), results[key]["what"]), []).append(results[key])
    for (number, what), cases in sorted(trials.items()):
        n, failed = (sum(case[count] for case in cases) for count in ("n", "failures"))
        forms = sorted({f"{case['form']}, {case['date']}" for case in cases})
        rows.append(
            f"| R{number} | {what} | {n:,} | {failed} | {'; '.join(forms)} | {'; '.join(map(figures, cases))} |"
        )
    return "\n".join(rows)


def figures(case: dict[str, Any]) -> str:
    """Figures measured in one case, after its name."""
    measured = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in case.items() if key not in OWN)
    return ": ".join(part for part in (case.get("case"), measured) if part)


def page(text: str, results: dict[str, dict[str, Any]]) -> str:
    """The page with its table replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    head = f"Written by `benchmarks/reliability.py`; the last run was on {machine}."
    return f"{before}{BEGIN}\n{head}\n\n{table(results)}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
