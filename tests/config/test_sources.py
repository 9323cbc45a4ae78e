"""Datasets and weights as people write them: `--data PATH:WEIGHT`, and `data:` of a file."""

import pytest

from hnet_cli.config.run import resolve, to_yaml
from hnet_cli.config.sources import MOST, DataSource, parse, sources_of, words, written
from hnet_cli.errors import UsageError


def pairs(sources):
    return [(source.path, source.weight) for source in sources]


@pytest.mark.parametrize(
    ("texts", "read"),
    [
        ([], []),
        (["a"], [("a", None)]),
        (["a:8"], [("a", None)]),  # alone it is all there is
        (["a:8", "b:1"], [("a", 8), ("b", 1)]),
        (["a", "b"], [("a", None), ("b", None)]),
        (["data/a:0.25", "C:\\data\\b:1e-3"], [("data/a", 0.25), ("C:\\data\\b", 1e-3)]),
        (["exp:x"], [("exp:x", None)]),
        (["C:\\data"], [("C:\\data", None)]),
        (["there:8"], [("there:8", None)]),
        (["there:8:3", "b:1"], [("there:8", 3), ("b", 1)]),
    ],
)
def test_a_path_that_exists_wins(texts, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there:8").mkdir()
    assert pairs(parse(texts)) == read


@pytest.mark.parametrize(
    ("texts", "wrong"),
    [
        (["a:0", "b:1"], "--data a:0: the weight must be above 0, not '0'"),
        (["a:-2"], "the weight must be above 0, not '-2'"),
        (["a:nan", "b:1"], "the weight must be a number, not 'nan'"),
        (["a:1e999", "b:1"], "the weight must be a number, not '1e999'"),
        (["a:1e99", "b:1"], "the weight must be at most 1000000000000000, not '1e99'"),
        (["there:many", "b:1"], "--data there:many: the weight must be a number, not 'many'"),
        (["a:8", "b"], "--data gives b no weight, but others have one"),
        ([f"a{n}" for n in range(MOST + 1)], "at most 64 can be mixed"),
    ],
)
def test_bad_weights_are_named(texts, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError) as error:
        parse(texts)
    assert wrong in str(error.value)
    assert "--data a:8 --data b:1" in error.value.hint


@pytest.mark.parametrize(
    "sources", [(), (DataSource(path="a"),), (DataSource(path="a", weight=8), DataSource(path="b", weight=0.5))]
)
def test_a_file_holds_them_and_gives_them_back(sources, tmp_path):
    config = resolve("nano", [f"data={data_of(sources)}"])
    assert config.sources == sources
    (tmp_path / "my.yaml").write_text(to_yaml(config))
    assert resolve(str(tmp_path / "my.yaml")) == config
    assert sources_of(written(sources) if sources else "") == sources


def data_of(sources):
    entries = [f"{{path: {source.path}, weight: {source.weight}}}" for source in sources]
    return f"[{', '.join(entries)}]" if len(sources) > 1 else sources[0].path if sources else ""


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        ("[{path: a, weight: 8}, {path: b}]", "data gives b no weight"),
        ("[{path: a, weight: 0}]", "data must be above 0"),
        ("[{path: a, weight: .nan}]", "data must be a number"),
        ("[{path: a, wieght: 1}]", "data has an unknown key 'wieght'"),
        ("[a, b]", "data must hold keys and values"),
        ("7", "data should be a valid string or should be a valid list"),
    ],
)
def test_mistakes_in_a_file_are_named(data, wrong):
    with pytest.raises(UsageError, match=r"^--set data: ") as error:
        resolve("nano", [f"data={data}"])
    assert wrong in str(error.value)


def test_in_words():
    assert words(parse(["a:8", "b:0.5"])) == "a:8, b:0.5"
