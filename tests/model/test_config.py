"""HNetConfig: reading, refusing, counting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hnet_cli.errors import DamagedError
from hnet_cli.model.config import HNetConfig
from hnet_cli.model.settings import Chunker

OFFICIAL = sorted((Path(__file__).parents[1] / "golden/parity/official_keys").glob("*.json"))
SMALL = {
    "arch_layout": ["m2", ["T1m1", ["T2"], "m1T1"], "m2"],
    "d_model": [64, 96, 128],
    "d_intermediate": [0, 100, 128],
    "vocab_size": 256,
    "ssm_cfg": {"chunk_size": 16, "d_conv": 4, "d_state": 16, "expand": 2},
    "attn_cfg": {"num_heads": [2, 3, 4], "rotary_emb_dim": [16, 16, 32], "window_size": [1023, 7, -1]},
    "tie_embeddings": False,
}


def small(**changes):
    return SMALL | changes


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda p: p.stem)
def test_official_configurations(path):
    official = json.loads(path.read_text())
    config = HNetConfig.from_dict(official["config"])
    assert config.to_dict() == official["config"]
    assert config.num_parameters == official["num_parameters"]
    assert list(config.count_parameters().items()) == list(official["num_parameters_by_part"].items())


def test_round_trip_keeps_our_part(tmp_path):
    ours = {"chunker": [{"kind": "space"}, {"kind": "fixed", "k": 3}], "target_ratios": [3.0, 2.5], "modality": "dna"}
    config = HNetConfig.from_dict(small(hnet=ours))
    config.to_json(tmp_path / "config.json")
    again = HNetConfig.from_json(tmp_path / "config.json")
    assert again == config
    assert again.chunkers == (Chunker("space"), Chunker("fixed", 3))
    assert again.extra == {"modality": "dna"}
    assert again.to_dict()["hnet"] == {"modality": "dna", "chunker": ours["chunker"], "target_ratios": [3.0, 2.5]}


def test_switches_are_counted_and_kept():
    ours = {"rotary": [{}, {}, {"base": 500000.0, "factor": 32.0}], "adapter_width": 40}
    plain, config = HNetConfig.from_dict(SMALL), HNetConfig.from_dict(small(hnet=ours))
    assert HNetConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["hnet"] == ours
    assert config.num_parameters - plain.num_parameters == 2 * 3 * 128 * 40
    more = config.flops_per_byte((0.5, 0.25)) - plain.flops_per_byte((0.5, 0.25))
    assert more == pytest.approx(0.25 * 2 * 2 * 3 * 128 * 40)


def test_an_official_file_stays_official():
    assert "hnet" not in HNetConfig.from_dict(SMALL).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_modle": [1]}, "did you mean 'd_model'"),
        ({"ssm_cfg": {"d_sate": 3}}, "did you mean 'd_state'"),
        ({"attn_cfg": {"num_heads": [2, 3, 4]}}, "lacks rotary_emb_dim, window_size"),
        ({"arch_layout": ["m2", ["T1"]]}, "bad arch_layout"),
        ({"arch_layout": ["x2"]}, "bad arch_layout: 'x2'"),
        ({"arch_layout": ["m"]}, "bad arch_layout: 'm'"),
        ({"arch_layout": ["m0"]}, "at least one layer"),
        ({"arch_layout": "m2"}, "bad arch_layout"),
        ({"d_model": [64, 96]}, "2 entries, but arch_layout has 3 levels"),
        ({"d_model": [64, 96, 64]}, "must not shrink"),
        ({"d_model": [64, 96.0, 128]}, r"d_model\[1\]"),
        ({"d_model": [64, 97, 128]}, "multiple"),
        ({"d_model": 64}, "one entry per level"),
        ({"d_intermediate": [0, -1, 0]}, r"d_intermediate\[1\]"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"tie_embeddings": "no"}, "tie_embeddings"),
        ({"ssm_cfg": {"headdim": 48}}, "headdim"),
        ({"attn_cfg": SMALL["attn_cfg"] | {"num_heads": [2, 5, 4]}}, "num_heads 5"),
        ({"attn_cfg": SMALL["attn_cfg"] | {"rotary_emb_dim": [16, 15, 32]}}, "even"),
        ({"attn_cfg": SMALL["attn_cfg"] | {"rotary_emb_dim": [16, 34, 32]}}, "at most the head size"),
        ({"attn_cfg": SMALL["attn_cfg"] | {"window_size": [1, -2, 3]}}, "window_size"),
        ({"hnet": {"chunker": {"kind": "spaec"}}}, "did you mean 'space'"),
        ({"hnet": {"chunker": {"kind": "space"}}}, "stage 0 only"),
        ({"hnet": {"chunker": {"kind": "fixed"}}}, "chunker.k"),
        ({"hnet": {"chunker": {"kind": "learned", "k": 3}}}, "takes no k"),
        ({"hnet": {"chunker": [{"kind": "learned"}]}}, "1 chunkers for 2 stages"),
        ({"hnet": {"target_ratios": [3]}}, "target_ratios needs 2"),
        ({"hnet": {"target_ratios": [3, 1.0]}}, "above 1"),
        ({"hnet": {"rotary": [{}, {}]}}, "rotary has 2 entries, but arch_layout has 3 levels"),
        ({"hnet": {"rotary": [{}, {}, {"theta": 1}]}}, "unknown key 'theta' in rotary"),
        ({"hnet": {"rotary": [{}, {}, {"base": 0}]}}, "rotary.base must be a number above 0"),
        ({"hnet": {"rotary": 500000}}, "a mapping per level"),
        ({"hnet": {"smoothing": "bytes"}}, "smoothing must be chunks or input, got 'bytes'"),
        ({"hnet": {"lr": "fast"}}, "hnet.lr must be a number above 0"),
        ({"hnet": {"lr_multipliers": 2}}, "hnet.lr_multipliers must be a list"),
        ({"hnet": {"lr_multipliers": [1, -1]}}, r"hnet.lr_multipliers\[1\] must be a number"),
        ({"hnet": {"adapter_width": -1}}, "adapter_width must be an integer"),
        (
            {
                "arch_layout": ["T1"],
                "d_model": [64],
                "d_intermediate": [0],
                "hnet": {"adapter_width": 8},
                "attn_cfg": {"num_heads": [2], "rotary_emb_dim": [8], "window_size": [-1]},
            },
            "without stages",
        ),
    ],
)
def test_refusals_name_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        HNetConfig.from_dict(small(**change))


def test_missing_fields():
    with pytest.raises(ValueError, match="lacks d_intermediate, attn_cfg"):
        HNetConfig.from_dict({"arch_layout": ["T1"], "d_model": [64]})


def test_not_json(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DamagedError, match=r"config\.json is damaged"):
        HNetConfig.from_json(tmp_path / "config.json")


def test_mlp_width_rounds_up():
    config = HNetConfig.from_dict(small(d_intermediate=[0, 100, 129]))
    assert [config.mlp_width(s) for s in range(3)] == [256, 128, 256]  # 8/3 * 64 = 170 -> 256


@pytest.mark.parametrize(
    ("name", "fractions", "printed"),
    [  # paper, table 2; bytes per innermost chunk from table 1, 0.357 from figure 7
        ("hnet_1stage_L", (1 / 4.8,), 0.43),
        ("hnet_1stage_XL", (1 / 4.7,), 0.72),
        ("hnet_2stage_L", (0.357, 1 / 7.0), 0.43),
        ("hnet_2stage_XL", (0.357, 1 / 6.9), 0.69),
    ],
)
def test_flops_of_table_2(name, fractions, printed):
    path = next(p for p in OFFICIAL if p.stem == name)
    config = HNetConfig.from_dict(json.loads(path.read_text())["config"])
    assert config.flops_per_byte(fractions, 8192) / 1e9 == pytest.approx(printed, rel=0.016)


def isotropic(stack, d, mlp, window=-1):
    heads = {"num_heads": [16], "rotary_emb_dim": [32], "window_size": [window]}
    return HNetConfig.from_dict({"arch_layout": [stack], "d_model": [d], "d_intermediate": [mlp], "attn_cfg": heads})


def test_flops_of_the_baselines_of_table_2():
    assert isotropic("T16", 1024, 2816).flops_per_byte((), 8192) / 1e9 == pytest.approx(0.95, abs=0.006)
    assert isotropic("m28", 1024, 0).flops_per_byte((), 8192) / 1e9 == pytest.approx(0.414, abs=0.006)


def test_flops_want_one_fraction_per_stage():
    with pytest.raises(ValueError, match="0 chunk fractions for 2 stages"):
        HNetConfig.from_dict(SMALL).flops_per_byte()


def test_no_torch():
    code = "import sys, hnet_cli.model.config, hnet_cli.model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
