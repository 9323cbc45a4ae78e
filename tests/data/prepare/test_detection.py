"""Detection of the modality."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from corpuskit import text

from hnet_cli.data.prepare.detection import detect
from hnet_cli.errors import InputError


def test_a_stray_file_does_not_decide_for_a_folder(tmp_path: Path) -> None:
    """The larger files do, and the stray one is named, whatever is more certain of itself."""
    genome = b">chr1\n" + b"ACGTTGCAACGGTTAC\n" * 40
    (tmp_path / "a.fa").write_bytes(genome)
    (tmp_path / "b.txt").write_text("It was the best of times, it was the worst of times.\n" * 500)
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.7\n")
    name, _, why = detect([tmp_path])
    assert name == "text"
    assert f"{tmp_path}/a.fa looks like dna and would be read as text" in why
    (tmp_path / "a.fa").write_bytes(genome * 400)
    assert detect([tmp_path])[0] == "dna"
    # nor does a long README for the sources beside it
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "README.md").write_text("What this program is about and how to use it.\n" * 500)
    for n in range(6):
        (tmp_path / "p" / f"{n}.py").write_text("import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20)
    assert detect([tmp_path / "p"])[0] == "code"


def test_what_is_left_out_first_does_not_decide(tmp_path: Path) -> None:
    """Empty rows, and the hidden files that stand first in the archive of a repository."""
    rows = [{"text": value} for value in (None, "", None, "", "") for _ in range(3)]
    rows += [{"text": "一个人在北京的街道上慢慢地走着。" * 9}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert detect([tmp_path / "rows.jsonl"])[0] == "chinese"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for n in range(6):
            archive.addfile(tarfile.TarInfo(f"a-1.0/.hidden{n}"))
        info = tarfile.TarInfo("a-1.0/program.py")
        info.size = len(program := b"import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20)
        archive.addfile(info, io.BytesIO(program))
    assert detect([tmp_path / "a.tar"])[0] == "code"


@pytest.mark.slow
def test_detection(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genome = b">chr1\n" + b"\n".join(rng.choice([b"A", b"C", b"G", b"T"], 60).tobytes() for _ in range(200)) + b"\n"
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "genome.fa.gz").write_bytes(gzip.compress(genome))
    (tmp_path / "g" / "notes.tsv").write_bytes(text(1))
    (tmp_path / "prose.txt").write_text("It was the best of times, it was the worst of times.\n" * 50)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "一个人在北京的街道上慢慢地走着。" * 50}) + "\n")
    (tmp_path / "program.py").write_text("import os\n\n\ndef main() -> None:\n    print(os.getcwd())\n" * 20)
    (tmp_path / "noise").write_bytes(rng.bytes(5000))
    (tmp_path / "empty").write_bytes(b"")
    found = {name: detect([tmp_path / name])[0] for name in ("g", "prose.txt", "rows.jsonl", "program.py")}
    assert found == {"g": "dna", "prose.txt": "text", "rows.jsonl": "chinese", "program.py": "code"}
    annotation = b"##gff-version 3\n" + b"chr1\tx\tgene\t5\t20\t.\t+\t.\tID=h\n" * 3000
    (tmp_path / "g" / "genome.gff").write_bytes(annotation)
    assert detect([tmp_path / "g"])[0] == "dna"
    with pytest.raises(InputError, match="no known modality"):
        detect([tmp_path / "noise"])
    with pytest.raises(InputError, match="no data"):
        detect([tmp_path / "empty"])
    program = (
        "from hnet_cli.data.prepare.detection import detect\n"
        "import sys; print(detect(['-'])[0], len(sys.stdin.buffer.read()))"
    )
    rows = json.dumps({"text": genome[:3000].decode()}).encode() + b"\n"
    for data in (genome, gzip.compress(genome), rows * 3, gzip.compress(rows * 30)):
        done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert done.stdout.split() == [b"dna", b"%d" % len(data)]
