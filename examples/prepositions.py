"""Rows for fine-tuning: a sentence with a preposition left out, and the preposition, as JSON lines on standard output.

python examples/prepositions.py [--rows N] TEXT...

The words after the gap come first, then those before it, so that the answer goes on where the prompt ends.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

PREPOSITIONS = ["about", "at", "by", "for", "from", "in", "of", "on", "to", "with"]
BEFORE, AFTER = 6, 3
"""Words on either side of the gap."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=20_000)
    wanted = parser.parse_args()
    gap = re.compile(rf"((?:\S+ ){{{BEFORE}}})({'|'.join(PREPOSITIONS)})((?: \S+){{{AFTER}}})")
    found = dict.fromkeys(
        match.groups()
        for text in wanted.text
        for line in text.read_text(encoding="utf-8").split("\n")
        for match in gap.finditer(line)
    )
    for before, answer, after in random.Random(0).sample(list(found), min(wanted.rows, len(found))):
        print(json.dumps({"prompt": f"{after.strip()} | {before}", "completion": answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
