"""A property for each reader of what people share: any value, of any type and size, at any place of a sound file is
read or refused by an error of ours, and nothing hangs. `test_strangers.py` tries the same by commands under limits."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from corpuskit import Lines, tree
from forms import trials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pagekit import checked
from runkit import TINY, dataset
from strangerkit import HOSTILE, KINDS, replaced, resealed, spoiled

from hnet_cli import modality
from hnet_cli.checkpoints.find import load
from hnet_cli.comparison.measures import Exam, measured
from hnet_cli.comparison.plan import ComparisonRequest, choose, write
from hnet_cli.config.run import resolve
from hnet_cli.config.sources import parse
from hnet_cli.data import mixture, tokens
from hnet_cli.data.dataset import LONGEST_NAME, NAME_BYTES, Dataset
from hnet_cli.data.prepare import planning, preparation, rows
from hnet_cli.data.prepare.preparation import join, part_folder, prepare
from hnet_cli.errors import DamagedError, EnvironmentLimit, HNetError, InputError, UsageError
from hnet_cli.evaluation import probe, tasks
from hnet_cli.modality import Document, Refused, Source
from hnet_cli.model.automaton import MOST_STATES
from hnet_cli.model.settings import Chunker
from hnet_cli.report import history, run_page, runs

some = settings(
    max_examples=trials(30, 300, 3000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(some, max_examples=trials(8, 100, 1000))
"""Of what trains, scores or draws."""


@contextlib.contextmanager
def refused(*kinds: type[HNetError]) -> Iterator[None]:
    """Errors of these kinds, in a line of bounded length, are fine. Fails after 20 seconds."""

    def hung(number: int, frame: object) -> None:
        raise AssertionError("hung")

    before, words = signal.signal(signal.SIGALRM, hung), "none"
    signal.alarm(20)
    try:
        yield
    except kinds as error:
        words = str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < len(words) < 20_000, words[:1000]


# --- what an evaluation reads -----------------------------------------------------------------------------------------

ROWS = [
    {"ctx_a": "He sits [x] down.", "ctx_b": "he", "activity_label": "Chairs", "endings": ["a b", "c"], "label": "1"},
    {"ctx": "He", "endings": ["a", "b"], "label": 1},
    {"goal": "Open it", "sol1": "Pull.", "sol2": "Push.", "label": 0},
    {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["A", "B"]}, "answerKey": "B"},
    {"query": "Q", "choices": ["x", "y"], "gold": 1},
    {"context": "I do not care about", "continuation": "signs"},
    {"text": "a last word"},
]
CELLS = st.sampled_from(
    [
        "1",
        "0",
        "-1",
        "9" * 5000,
        "1-2",
        "2-1",
        "1.1",
        "x",
        "@@x",
        "y" * 101,
        "中文",
        "\u2028",
        "\ufeff",
        "\x00",
        "\x85",
        "",
        "#",
    ]
)
TABLE = st.lists(st.lists(CELLS, max_size=11).map("\t".join) | st.just("") | CELLS, max_size=12).map("\n".join)


@some
@given(st.lists(st.sampled_from(ROWS).flatmap(spoiled) | TABLE, min_size=1, max_size=3).map("\n".join))
def test_tasks(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with refused(InputError):
        for item in tasks.read_items(tmp_path / "x"):
            assert 0 <= item.answer < len(item.endings)
            assert item.size <= tasks.MOST_ITEM


@cache
def plugin(name: str) -> modality.Modality:
    return modality.get(name)


@some
@given(
    st.sampled_from(["text", "chinese"]),
    st.sampled_from(["1\tI\t_\n", "# text = a\n", "a b\n", "ab\ta @@b\n", ""]),
    TABLE,
)
def test_gold_files(name: str, first: str, text: str) -> None:
    """What is read is consistent: edges ascend within the sentence."""
    with refused(InputError):
        for stretch in plugin(name).gold(Source.of_bytes((first + text).encode(), "gold")):
            for edges in () if isinstance(stretch, Refused) else stretch.edges.values():
                assert list(edges) == sorted(edges)
                assert all(0 <= edge < len(stretch.data) for edge in edges)


HEADS = st.sampled_from(
    ["name\tlabel\tg", "name\tstart\tend\tlabel\tg", "g\tlabel\tname\tlabel", "\ufeffname\tlabel\tg"]
)
PLACED = "".join(f"d{n}\t{n}\t{n + 5}\t{n % 2}\t{n % 3}\n" for n in range(9))
PLAIN = "".join(f"d{n}\t{n % 2}\t{n % 3}\n" for n in range(9))


@some
@given(HEADS, st.sampled_from([PLAIN, PLACED, ""]), TABLE, st.sampled_from(["g", "label", "name", "\x1b"]))
def test_labels(tmp_path: Path, head: str, good: str, text: str, group: str) -> None:
    """What is read can be held out: three groups, two values, and pieces that lie in a document."""
    (tmp_path / "labels.tsv").write_text(f"{head}\n{good}{text}")
    with refused(InputError):
        labels = probe.read_labels(tmp_path / "labels.tsv", group)
        assert len({label.group for label in labels}) >= 3
        assert all(label.start is None or 0 <= label.start < (label.end or 0) for label in labels)
        probe.collect(labels, [Document(b"x" * 20, f"d{n}", "x") for n in range(9)], None, 1000)


CONVERSATION = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
TRAINED = [{"prompt": "a ", "completion": "b"}, {"messages": CONVERSATION}, {"text": "words"}, {"messages": []}]


@some
@given(st.data(), st.sampled_from([None, "text", "messages", ("prompt", "completion"), "\x1b"]))
def test_rows(data: st.DataObject, field: Any) -> None:
    """A row is a document, several, or refused by reason."""
    lines = [data.draw(st.sampled_from(TRAINED).flatmap(spoiled)).replace("\n", " ") for _ in range(3)]
    reader = rows.RowReader("x.jsonl", field, Counter())
    with refused(UsageError, InputError):
        for item in reader.lines(io.BytesIO("\n".join(lines).encode("utf-8", "surrogatepass"))):
            if isinstance(item, Refused):
                assert len(item.reason) < 200
            else:
                with item.open() as stream:
                    stream.read().decode()


# --- comparisons, parts, datasets -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a comparison that has been planned."""
    place = tmp_path_factory.mktemp("comparison")
    dataset(place)
    (place / "mine.yaml").write_text(TINY)
    request = ComparisonRequest(place / "dataset", str(place / "mine.yaml"), bytes=5120, run=place / "c", device="cpu")
    write(choose(request), request)
    return place


@few
@given(st.data())
def test_plans_of_comparisons(compared: Path, data: st.DataObject) -> None:
    file = compared / "c" / "plan.json"
    sound = file.read_text()
    try:
        file.write_text(data.draw(spoiled(json.loads(sound))))
        for request in (
            ComparisonRequest(run=compared / "c", device="cpu"),
            ComparisonRequest(compared / "dataset", run=compared / "c", device="cpu", bytes=5120, seeds=2),
        ):
            with refused(DamagedError, UsageError, InputError, EnvironmentLimit):
                plan = choose(request)
                assert 1 <= len(plan.runs) <= 1000 * len(plan.members)
                Exam.of(plan)
    finally:
        file.write_text(sound)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("parts")
    tree(place / "in", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_FILES", 2)
        for part in (1, 2):
            prepare([place / "in"], plugin("text"), place / "x", part=(part, 2))
    return [part_folder(place / "x", part, 2) for part in (1, 2)]


@some
@given(st.data())
def test_parts_of_datasets(parts: list[Path], tmp_path: Path, data: st.DataObject) -> None:
    part = shutil.copytree(parts[0], tmp_path / "part", dirs_exist_ok=True)
    (part / "part.json").write_text(data.draw(spoiled(json.loads((part / "part.json").read_text()))))
    resealed(part)
    with refused(DamagedError, InputError, UsageError):
        join([part, parts[1]], tmp_path / "x", measure=False, overwrite=True)


def cut_or_changed(content: bytes) -> st.SearchStrategy[bytes]:
    """A table with another length, or with another number in one place."""
    sizes = st.integers(0, len(content)).map(lambda size: content[:size]) | st.binary(max_size=60).map(content.__add__)
    numbers = st.sampled_from([-1, 0, 1, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63)])

    def put(place: int, number: int) -> bytes:
        return content[: 8 * place] + struct.pack("<q", number) + content[8 * place + 8 :]

    return sizes | st.builds(put, st.integers(0, max(0, len(content) // 8 - 1)), numbers)


@some
@given(st.data(), st.sampled_from(["documents.bin", "hashes.bin", "names.txt", "shard-00000.bin"]))
def test_tables_of_parts(parts: list[Path], tmp_path: Path, data: st.DataObject, name: str) -> None:
    """A part is refused, or a dataset is made that can be read."""
    part = shutil.copytree(parts[0], tmp_path / "part", dirs_exist_ok=True)
    (part / name).write_bytes(data.draw(cut_or_changed((part / name).read_bytes())))
    resealed(part)
    with refused(DamagedError):
        join([part, parts[1]], tmp_path / "x", measure=False, overwrite=True)
        made = Dataset.open(tmp_path / "x")
        assert sum(len(document) for split in made.splits for document in made.documents(split)) == made.about["bytes"]
        for document in range(len(made.table)):
            assert len(made.name(document)) <= LONGEST_NAME + NAME_BYTES


@few
@given(st.data())
def test_journals_of_preparations(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A journal that is not believed costs time, never the dataset."""
    place = tmp_path_factory.mktemp("journal")
    tree(place / "in", 6)

    class Fails(Lines):
        def documents(self, source: Source) -> Iterator[Any]:
            if "004" in source.name:
                raise KeyboardInterrupt
            yield from super().documents(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "UNIT_FILES", 2)
        patch.setattr(preparation, "UNIT_BYTES", 1)  # so that it is kept
        with pytest.raises(KeyboardInterrupt):
            prepare([place / "in"], Fails(), place / "x", measure=False)
        journal = place / ".x.partial" / "journal.jsonl"
        lines = journal.read_text().splitlines()
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = data.draw(spoiled(json.loads(lines[number]))).replace("\n", " ")
        journal.write_text("\n".join([*lines, ""]))
        with refused(DamagedError):
            prepare([place / "in"], Lines(), place / "x", measure=False)
            prepare([place / "in"], Lines(), place / "y", measure=False)
            assert (place / "x/shard-00000.bin").read_bytes() == (place / "y/shard-00000.bin").read_bytes()


@some
@given(st.data())
def test_datasets(data_of_fox: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = shutil.copytree(data_of_fox, tmp_path / "dataset", dirs_exist_ok=True)
    (folder / "dataset.json").write_text(data.draw(spoiled(json.loads((folder / "dataset.json").read_text()))))
    resealed(folder)
    with refused(DamagedError, UsageError):
        opened = Dataset.open(folder)
        opened.verify()
        for split in opened.splits:
            for _ in itertools.islice(opened.documents(split), 3):
                pass
        opened.name(0)


@pytest.fixture(scope="module")
def data_of_fox(data: Path) -> Path:
    return data


# --- configurations and models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(data: Path) -> dict[str, Any]:
    found = json.loads(tokens.learned(Dataset.open(data), 280).text)
    marks = {"id": 280, "content": "<|end|>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    return found | {"added_tokens": [marks]}


@some
@given(st.data())
def test_tokenizers(vocabulary: dict[str, Any], data: st.DataObject) -> None:
    """What is taken loses no byte."""
    with refused(InputError, EnvironmentLimit):
        read = tokens.Tokenizer(data.draw(spoiled(vocabulary)), "x")
        for text in (b"", b"The quick <|end|> fox.\n", bytes(range(256))):
            assert read.decode(read.encode([text])[0].tolist()) == text


PATTERN = st.text("()[]{}|*+?.\\\\ab-^$,:0164\x00\u4e2d\ud800", max_size=40) | st.builds(
    lambda body, n, more: f"{body}{{{n}}}{more}" * 3,
    st.sampled_from([".", "(a|.)", "[^a]", "(.?)"]),
    st.integers(0, 99),
    st.just("a"),
)


@some
@given(st.data(), PATTERN)
def test_chunkers(data: st.DataObject, pattern: str) -> None:
    """Every table is small, whatever the expression or the vocabulary."""
    each = {"kind": "regex", "pattern": pattern}, {"kind": "bpe", "tokens": "a ab \u0120the"}, {"kind": "fixed", "k": 3}
    texts = [json.dumps(each[0]), *(data.draw(spoiled(one)) for one in each)]
    for text in texts:
        with contextlib.suppress(ValueError), refused():
            if (table := Chunker.from_dict(json.loads(text)).automaton()) is not None:
                assert len(table.following) <= MOST_STATES
                assert (table.following < len(table.following)).all()


YAML = st.sampled_from(
    [*HOSTILE, "!!bool maybe", "&a [*a]", "*a", ".nan", "-.inf", "~", "[0.9, 1.0]", "2**31", "'\\e[31m'"]
)


@few
@given(st.data())
def test_presets(home: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A value of any kind in the place of any other; and twice."""
    lines = (home / "run/config.yaml").read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = f"{lines[number].partition(':')[0]}: {data.draw(YAML)}"
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with refused(UsageError, InputError):
        resolve(str(tmp_path / "mine.yaml"))


@some
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "", "\x1b[31m"]), YAML), max_size=4))
def test_mixtures(sources: list[tuple[str, str]]) -> None:
    """Weights of a command line and of a file; those that are taken make shares."""
    data = ", ".join(f"{{path: {json.dumps(path)}, weight: {weight}}}" for path, weight in sources)
    for read in (
        lambda: parse([f"{path}:{weight}" for path, weight in sources]),
        lambda: resolve("nano", [f"data=[{data}]"]).sources,
    ):
        with refused(UsageError):
            weights = [source.weight for source in read() if source.weight is not None]
            units = mixture._units(weights) if weights else [1]
            assert min(units) >= 1
            assert sum(units) <= mixture.MOST_UNITS


@few
@given(st.data())
def test_configurations_of_models(home: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Nothing is allocated for a model that the file of weights does not have."""
    folder = shutil.copytree(home / "run/checkpoints/step-00000003", tmp_path / "model", dirs_exist_ok=True)
    (folder / "config.json").write_text(data.draw(spoiled(json.loads((folder / "config.json").read_text()))))
    resealed(folder)
    with refused(DamagedError, UsageError, InputError, EnvironmentLimit):
        load(folder, "cpu").segment(b"some text")


# --- runs -------------------------------------------------------------------------------------------------------------

SKETCH = {"base64": "YWJj", "prompt": "YQ==", "depth": [1, 0, 1], "probability": [[0.1, None, 0.3]]}
RECORDS: dict[str, dict[str, Any]] = {
    "events": {"step": 2, "kind": "spike", "text": "x", "documents": [1, "a"], "from": 1, "to": 2},
    "samples": {"step": 2, "bytes": 9, "probe": SKETCH, "sample": SKETCH},
}


@few
@given(st.data(), st.sampled_from(["metrics", "events", "samples"]))
def test_records_of_runs(home: Path, tmp_path: Path, data: st.DataObject, name: str) -> None:
    """A page is always made, and the listing says what JSON can say."""
    run = shutil.copytree(home / "run", tmp_path / "runs/a", dirs_exist_ok=True)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    extra = {"val_bpb": 1.5, "val_bytes": 9, "stage0_prob_histogram": [1] * 20, "grad_norm": 2.0, "xz": 2.0}
    record = RECORDS.get(name) or json.loads(lines[0]) | extra
    more = [data.draw(spoiled(record)).replace("\n", " ") for _ in range(3)]
    (run / f"{name}.jsonl").write_text("\n".join([*(lines if name == "metrics" else []), *more, ""]))
    with refused():
        checked(run_page.page(run))
        json.dumps(history.glance(run).to_dict(), allow_nan=False)
        runs.show([tmp_path / "runs"])


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("read", "kinds"),
    [
        (lambda path: tasks.read_items(path), (InputError,)),
        (lambda path: resolve(str(path)), (UsageError,)),
        (lambda path: resolve("nano", [f"tokenizer={path}"]), (InputError, DamagedError, UsageError)),
        (lambda path: list(history.read_metrics(path.parent)), (DamagedError,)),
    ],
    ids=["task", "preset", "tokenizer", "metrics"],
)
def test_kinds_of_files(
    read: Callable[[Path], object], kinds: tuple[type[HNetError], ...], kind: str, tmp_path: Path
) -> None:
    replaced(tmp_path / "metrics.jsonl", kind)
    with refused(*kinds):
        read(tmp_path / "metrics.jsonl")


@few
@given(st.data())
def test_measurements_of_comparisons(compared: Path, home: Path, data: st.DataObject) -> None:
    """What does not fit is measured again."""
    exam = Exam.of(choose(ComparisonRequest(run=compared / "c", device="cpu")))
    model, file = home / "run/checkpoints/step-00000003", compared / "measured.json"
    if not (sound := compared / "sound.json").exists():
        measured(sound, model, exam, "cpu", lambda note: None)
    file.write_text(data.draw(spoiled(json.loads(sound.read_text()))))
    with refused():
        assert measured(file, model, exam, "cpu", lambda note: None).keys() == json.loads(sound.read_text()).keys()
