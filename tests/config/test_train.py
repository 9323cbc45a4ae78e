"""The `train:` section: every setting has a type and a range, checked where it is read."""

from dataclasses import fields, replace

import pytest

from hnet_cli.config.run import resolve
from hnet_cli.config.train import SettingError, TrainConfig
from hnet_cli.errors import UsageError


def refusal(*settings):
    with pytest.raises(UsageError) as error:
        resolve("nano", settings)
    return f"{error.value} {error.value.hint}"


@pytest.mark.parametrize("name", [f.name for f in fields(TrainConfig)])
def test_no_setting_takes_what_is_not_its_type(name):
    for value in ("{a: 1}", "[[[a]]]"):
        assert refusal(f"train.{name}={value}").startswith(f"--set train.{name}: train.{name} ")
    if not isinstance(getattr(TrainConfig(), name), bool):
        assert f"train.{name} " in refusal(f"train.{name}=true")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("betas=[0.9, 1.0]", "at least 0 and below 1, not 1.0"),
        ("betas=[0.9]", "too few entries"),
        ("betas=[0.9, 0.9, 0.9]", "at most 2 items"),
        ("seed=18446744073709551616", "at most 18446744073709551615"),
        ("seed=-9223372036854775809", "at least -9223372036854775808"),
        ("lr_multipliers=[-1, 1]", "at least 0, not -1"),
        ("lr_multipliers=fast", "should be 'auto' or should be a valid list"),
        ("lr=0", "above 0, not 0"),
        ("lr=.inf", "a number, not inf"),
        ("lr=1e400", "a number, not inf"),
        ("lr=1e300", "at most 1000000000000000"),
        ("lr=", "a number, not ''"),
        ("eps=0", "above 0"),
        ("grad_clip=-1", "at least 0"),
        ("warmup=1.5", "at most 1, not 1.5"),
        ("warmup=0.9", "train.warmup and train.decay together"),
        ("steps=0", "at least 1"),
        ("steps=1.5", "valid integer"),
        ("steps=1" + "0" * 40, "at most"),
        ("sequence_length=1", "at least 2"),
        ("eval_every=-1", "at least 0"),
        ("keep_checkpoints=0", "at least 1"),
        ("samples=maybe", "valid boolean"),
        ("frozen=[x]", "no part 'x'"),
        ("target_ratios=[true]", "a number, not True"),
        ("target_ratios=[[[0, 2], [1, .nan]]]", "a number, not nan"),
    ],
)
def test_ranges(setting, said):
    assert said in refusal(f"train.{setting}")


def test_whole_numbers_may_be_written_as_floats():
    assert resolve("nano", ["train.steps=2e4", "train.eval_every=0"]).train.steps == 20_000


def test_of_settings_that_do_not_fit_the_one_given_is_named():
    with pytest.raises(UsageError, match="lm_head is tied to the embeddings"):
        resolve("nano", ["model.tie_embeddings=true", "train.frozen=[lm_head]"])
    assert refusal("train.micro_batches=3").startswith("--set train.micro_batches: train.batch_bytes (4096) must be")
    with pytest.raises(SettingError, match="multiple"):
        replace(TrainConfig(), micro_batches=3)
