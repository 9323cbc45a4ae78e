"""Run configurations: what users write, and what they get wrong."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hnet_cli.config.run import RunConfig, TrainConfig, resolve, to_yaml
from hnet_cli.errors import UsageError
from hnet_cli.model.config import Chunker

BASE = """
model:
  arch_layout: [m1, [T1], m1]
  d_model: [64, 64]
  d_intermediate: [0, 128]
  attn_cfg: { num_heads: [2, 2], rotary_emb_dim: [16, 16], window_size: [-1, -1] }
train:
  target_ratios: [4]
"""


@pytest.fixture
def config_of(tmp_path):
    """The configuration of a YAML text, `{base}` in it standing for a small model."""

    def resolved(text, *settings):
        file = tmp_path / "my.yaml"
        file.write_text(text)
        return resolve(str(file), settings)

    return resolved


def saved(config, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    return resolve(str(file))


# -- what people write -------------------------------------------------------------------------------------------------


def test_settings_win_over_the_file(config_of):
    config = config_of(BASE + "  lr: 1e-3\n", "train.lr=2e-3", "train.lr_multipliers=[2, 1]", "precision=bf16")
    assert (config.train.lr, config.train.lr_multipliers, config.precision) == (2e-3, [2, 1], "bf16")
    assert config_of(BASE, "train.lr=1e-3", "train.lr=3e-3").train.lr == 3e-3
    assert config_of(BASE, "description=").description == ""
    assert config_of(BASE, "model.arch_layout=[m2, [T1], M1]").model.arch_layout == ("m2", ("T1",), "M1")


TWO = [
    "model.arch_layout=[m1, [m1, [T1], m1], m1]",
    "model.d_model=[64, 64, 64]",
    "model.d_intermediate=[0, 0, 128]",
    "model.attn_cfg.num_heads=[2, 2, 2]",
    "model.attn_cfg.rotary_emb_dim=[16, 16, 16]",
    "model.attn_cfg.window_size=[-1, -1, -1]",
    "train.target_ratios=[4, 2]",
]


@pytest.mark.parametrize(
    ("written", "settings", "read"),
    [
        ("learned", [], ["learned"]),
        ("space", [], ["space"]),
        ("fixed:6", [], [("fixed", 6)]),
        ("{fixed: 6}", [], [("fixed", 6)]),
        ("{kind: fixed, k: 6}", [], [("fixed", 6)]),
        ("fixed:3", TWO, [("fixed", 3), ("fixed", 3)]),
        ("[space, fixed:3]", TWO, ["space", ("fixed", 3)]),
        ("characters", [], ["characters"]),
        ("[characters, learned]", TWO, ["characters", "learned"]),
        ("[space, learned]", TWO, ["space", "learned"]),
        ("learned", TWO, ["learned", "learned"]),
        ("'regex:[^a-z] *[a-z]: x'", [], [("regex", "[^a-z] *[a-z]: x")]),
        ("['regex:a|b', learned]", TWO, [("regex", "a|b"), "learned"]),
    ],
)
def test_chunkers(config_of, tmp_path, written, settings, read):
    config = config_of(BASE, f"model.chunker={written}", *settings)
    operands = [(c.kind, c.k or c.pattern) if c.k or c.pattern else c.kind for c in config.model.chunkers]
    assert operands == read
    assert saved(config, tmp_path) == config


def test_a_chunker_by_the_vocabulary_of_a_tokenizer(config_of, tmp_path):
    vocabulary = {"<s>": 0, "t": 1, "he": 2, "Ġthe": 3, "中": 4}
    at = tmp_path / "my tokenizer.json"
    marks = [{"id": 0, "content": "<s>", "special": True}]
    at.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": marks}))
    config = config_of(BASE, f"model.chunker=bpe:{at}")
    assert config.model.chunkers == (Chunker("bpe", tokens="he t Ġthe"),)
    at.unlink()
    assert saved(config, tmp_path) == config
    for content in ("[]", '{"model": {"type": "BPE", "vocab": 3}}', '{"model": {"type": "WordPiece", "vocab": {}}}'):
        at.write_text(content)
        with pytest.raises(UsageError, match="the chunker's tokenizer"):
            config_of(BASE, f"model.chunker=bpe:{at}")
    with pytest.raises(UsageError, match="cannot be read"):
        config_of(BASE, f"model.chunker=bpe:{tmp_path / 'none'}")


def test_a_large_vocabulary_stands_in_the_configuration_of_a_run(config_of, tmp_path):
    """Or is refused before there is a run that could not be gone on with."""
    words = [a + b + c for a in "abcdefghijklmnopqrstu" for b in "abcdefghijklmnopqrst" for c in "abcdefghijklmnopqrst"]
    at = tmp_path / "tokenizer.json"
    for part, count in ((words, 8400), (["é" + word for word in words[:8000]] + words[:4000], 12000)):
        at.write_text(json.dumps({"model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(part)}}}))
        config = config_of(BASE, f"model.chunker=bpe:{at}")
        assert config.model.chunkers[0].tokens.count(" ") == count - 1
        assert saved(config, tmp_path) == config
    chain = ["a" * length for length in range(1, 500)]
    at.write_text(json.dumps({"model": {"type": "BPE", "vocab": {word: n for n, word in enumerate(chain)}}}))
    with pytest.raises(UsageError, match=r"125,248 characters, at most 100,000 .* a smaller vocabulary"):
        config_of(BASE, f"model.chunker=bpe:{at}")


def test_a_network_without_stages(config_of, tmp_path):
    text = BASE.replace("[m1, [T1], m1]", "[m2]").replace("[4]", "[]")
    config = config_of(
        text.replace(", 64]", "]")
        .replace(", 128]", "]")
        .replace("2, 2]", "2]")
        .replace(", 16]", "]")
        .replace("-1, -1", "-1")
    )
    assert config.model.num_stages == 0
    assert saved(config, tmp_path) == config


def test_extends_a_preset_or_a_neighbouring_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("extends: nano\ntrain: { lr: 1e-3, seed: 5 }\n")
    (tmp_path / "sub/b.yaml").write_text("extends: ../a.yaml\ntrain: { seed: 6 }\n")
    config = resolve(str(tmp_path / "sub/b.yaml"))
    assert (config.name, config.train.lr, config.train.seed) == ("b", 1e-3, 6)
    assert config.model == resolve("nano").model
    assert config.train.steps == resolve("nano").train.steps


def test_an_empty_section_is_no_section(config_of):
    assert config_of("extends: nano\ntrain:\n  # steps: 5\n").train == resolve("nano").train


def schedules(values):
    """Points over the run, with these values."""
    points = st.lists(st.tuples(st.floats(0, 1), values), min_size=1, max_size=4, unique_by=lambda point: point[0])
    return points.map(sorted)


@given(
    st.builds(
        TrainConfig,
        lr=st.floats(1e-12, 1e6),
        betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
        eps=st.floats(1e-30, 1),
        seed=st.integers(-(2**63), 2**64 - 1),
        target_ratios=st.lists(st.floats(1.01, 1e9) | schedules(st.floats(1.01, 1e9)), min_size=1, max_size=1),
        ratio_loss_weight=st.floats(0, 9) | schedules(st.floats(0, 9)),
        lr_multipliers=st.just("auto") | st.lists(st.floats(0, 9), min_size=2, max_size=2),
        warmup=st.floats(0, 0.5),
        schedule=st.sampled_from(["wsd", "constant"]),
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30),
)
@example(TrainConfig(target_ratios=[5.0]), "0E0")
@example(TrainConfig(target_ratios=[5.0]), "1e5")
@example(TrainConfig(target_ratios=[5.0]), "no")
def test_what_is_saved_is_what_is_read(tmp_path_factory, train, description):
    """A run's `config.yaml` starts the same run again, whatever the numbers."""
    config = RunConfig(model=resolve("nano").model, train=train, description=description)
    assert saved(config, tmp_path_factory.getbasetemp()) == config


def test_a_schedule_is_read_and_followed(config_of):
    config = config_of(
        BASE.replace("[4]", "[[[0, 2], [0.5, 6]]]") + "  steps: 100\n", "train.ratio_loss_weight=[[0, 1], [1, 0]]"
    )
    assert [config.train.ratios(step) for step in (0, 25, 50, 100)] == [[2], [4], [6], [6]]
    assert config.train.ratios() == [6]
    assert [config.train.alpha(step) for step in (0, 25, 100)] == [1, 0.75, 0]
    plain = config_of(BASE, "train.ratio_loss_weight=0.5")
    assert (plain.train.ratios(7), plain.train.alpha(7)) == ([4], 0.5)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        (BASE + "  stepz: 5\n", ":9", "'steps'"),
        (BASE + "trian: {}\n", ":9", "'train'"),
        (BASE.replace("d_model", "d_modle"), ":4", "d_model"),
        (BASE.replace("num_heads", "num_head"), ":6", "num_heads"),
        (BASE + "  lr: fast\n", ":9", "train.lr"),
        (BASE + "  schedule: cosine\n", ":9", "wsd"),
        (BASE + "  batch_bytes: 100\n", ":9", "multiple"),
        (BASE + "  lr_multipliers: [1]\n", ":9", "2 entries"),
        (BASE.replace("[4]", "[4, 4]"), ":8", "1 stages"),
        (BASE.replace("[4]", "[1]"), ":8", "above 1"),
        (BASE.replace("[4]", "[[0, 3], [1, 6]]"), ":8", "must be a number, or a schedule"),
        (BASE + "  ratio_loss_weight: [0, 1]\n", ":9", "[share of the run, value] points"),
        (BASE + "precision: fp8\n", ":9", "bf16"),
        (BASE.replace("[m1, [T1], m1]", "[m1, [Q1], m1]"), ":3", "Q1"),
        (BASE.replace("[64, 64]", "[64, 32]"), ":4", "shrink"),
        (BASE.replace("train:", "  chunker: spaces\ntrain:"), ":7", "space"),
        (BASE.replace("train:", "  chunker: fixed:x\ntrain:"), ":7", "integer"),
        (BASE.replace("train:", "  hnet: {}\ntrain:"), ":7", "hnet"),
        ("train: {}\n", "", "no model: section"),
        ("model: 5\n", ":1", "no model: section"),
        ("extends: nano\ntrain: [1]\n", ":2", "keys and values"),
        ("extends: [nano]\n", ":1", "one preset"),
    ],
)
def test_a_mistake_is_named_with_its_place(config_of, text, where, said):
    with pytest.raises(UsageError) as error:
        config_of(text)
    assert f"my.yaml{where}" in str(error.value)
    assert said in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.stepz=5", "'steps'"),
        ("train.lr=fast", "--set train.lr"),
        ("train.batch_bytes=100", "--set train.batch_bytes: train.batch_bytes (100)"),
        ("model.d_model=[64]", "--set model.d_model"),
        ("model.chunker=fixed", "chunker.k"),
        ("model.chunker='regex:a*'", "empty string"),
        ("model.chunker=regex", "needs pattern"),
        ("model.chunker=bpe", "needs tokens"),
        ("train.lr", "section.key=value"),
        ("=5", "section.key=value"),
        ("train..lr=5", "section.key=value"),
        ("train=5", "keys and values"),
        ("train.lr.x=5", "train.lr"),
        ("a.b=5", "'a'"),
        ("train.lr=[1", "--set train.lr"),
    ],
)
def test_a_mistaken_setting_is_named(config_of, setting, said):
    with pytest.raises(UsageError) as error:
        config_of(BASE, setting)
    assert said in f"{error.value} {error.value.hint}"


def test_two_settings_that_exclude_each_other(config_of):
    with pytest.raises(UsageError, match="has a value already"):
        config_of(BASE, "train=5", "train.lr=1")


def test_a_mistake_in_a_parent_is_placed_there(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: nano\ntrain:\n  stepz: 5\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UsageError, match=r"a\.yaml:3: unknown key 'stepz'"):
        resolve(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize("back", ["b.yaml", "./b.yaml", "sub/../b.yaml", "a.yaml"])
def test_extends_in_a_circle(tmp_path, back):
    (tmp_path / "a.yaml").write_text(f"extends: {back}\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UsageError, match="circle"):
        resolve(str(tmp_path / "b.yaml"))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("nanno", "'nano'"),
        ("2stage_xl", "'2stage-xl'"),
        ("llamabite-nano", "'llamabyte-nano'"),
        ("zzz", "hnet presets"),
        ("no/such.yaml", "does not exist"),
        (".", "no preset"),
    ],
)
def test_a_preset_that_is_not_there(choice, said):
    with pytest.raises(UsageError) as error:
        resolve(choice)
    assert said in f"{error.value} {error.value.hint}"


def test_switches_of_the_model_stand_beside_the_official_fields(config_of, tmp_path):
    config = config_of(BASE, "model.adapter_width=16", "model.rotary=[{}, {base: 5e5}]")
    assert (config.model.adapter_width, config.model.rotary[1].base) == (16, 5e5)
    assert saved(config, tmp_path) == config
    with pytest.raises(UsageError, match=r"--set model.rotary.*2 levels"):
        config_of(BASE, "model.rotary=[{}]")
