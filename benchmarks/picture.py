"""Draw what `hnet segment` shows of each starter model on an unseen excerpt, for pages dark and light, in docs/.

python benchmarks/picture.py
"""

from __future__ import annotations

import html
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

ROOT = Path(__file__).parent.parent
TEXT = """The lighthouse keeper climbed the narrow stairs every evening, counting the steps under his breath. "Nobody
remembers," he said, "how many ships have passed here without so much as a whistle." The wind answered for them.
"""
CHINESE = """春天来了，公园里的花都开了。孩子们在草地上奔跑，老人们坐在长椅上聊天。
政府应当加强城市绿化建设，保护生态环境。软件开发者可以免费下载源代码，并根据许可证修改和发布。
"""


def excerpts() -> dict[str, bytes]:
    """A few lines of each modality that no starter model was trained on."""
    code = (ROOT / "hnet_cli" / "training" / "optim.py").read_text(encoding="utf-8")
    code = code[code.index("def set_learning_rate") :]
    return {"text": TEXT.encode(), "chinese": CHINESE.encode(), "code": code.encode(), "dna": DNA.encode()}


# The first 240 bases of phiX174 (NC_001422), free of restrictions on use.
DNA = """>NC_001422
GAGTTTTATCGCTTCCATGACGCAGAAGTTAACACTTTCGGATATTTCTGATGAGTCGAAAAATTATCTT
GATAAAGCAGGAATTACTACTGCTTGTTTACGAATTAAATCGAAGTGGACTGCTGGCGGAAAATGAGAAA
ATTCGACCTATCCTTGCGCAGCTCGAGAAGCTCTTACTTTGCGACCTTTCGCCATCAACTAACGATTCTG
TCAAAAACTGACGCGTTGGATGAGGAGAAG
"""


def widened(svg: str) -> str:
    """Correct the widths of Chinese text, which rich sets as if its characters were narrow."""

    def width(found: re.Match[str]) -> str:
        start, narrow, rest, content = found.groups()
        text = html.unescape(content)
        return f"{start}{float(narrow) * cell_len(text) / len(text):g}{rest}{content}<"

    return re.sub(r'(<text [^>]*textLength=")([\d.]+)("[^>]*>)([^<]+)<', width, svg)


def main() -> None:
    console = Console(record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for name, data in excerpts().items():
        words = f"-m hnet_cli -q segment - --modality {name} --model starter:{name} --format pretty".split()
        done = subprocess.run([sys.executable, *words], input=data, capture_output=True, check=True)
        console.print(Text(f"hnet segment --model starter:{name}", style="bold"))
        console.print(Text.from_ansi(done.stdout.decode()))
        console.print()
    for name, theme in {"dark": SVG_EXPORT_THEME, "light": DEFAULT_TERMINAL_THEME}.items():
        out = ROOT / "docs" / f"segments-{name}.svg"
        svg = console.export_svg(title="hnet segment", theme=theme, clear=False)
        out.write_text(widened(svg), encoding="utf-8")
        print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
