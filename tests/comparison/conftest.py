"""Three tiny members on a dataset, and a comparison of them that was never interrupted."""

import pytest
from commands import SMALLER
from runkit import SETTINGS, dataset

from hnet_cli.comparison.plan import ComparisonRequest
from hnet_cli.comparison.session import compare
from hnet_cli.config.run import resolve, to_yaml

FLAT = [
    "tokenizer=bpe:300",
    "model.arch_layout=[T1]",
    "model.d_model=[16]",
    "model.d_intermediate=[0]",
    "train.target_ratios=[]",
    "model.attn_cfg={num_heads: [2], rotary_emb_dim: [8], window_size: [-1]}",
    "train.lr_multipliers=auto",
]
MEMBERS = {"learned": [], "fixed": ["model.chunker=fixed:4"], "plain": FLAT}


@pytest.fixture(scope="session")
def arena(tmp_path_factory):
    """A folder with a dataset and members as files: an H-Net, one with fixed chunks, a plain network of tokens."""
    folder = tmp_path_factory.mktemp("arena")
    dataset(folder)
    common = [*(line for line in SETTINGS if "_every" not in line), *SMALLER, "train.batch_bytes=512"]
    for name, settings in (MEMBERS | {"other": ["train.batch_bytes=256"]}).items():
        (folder / f"{name}.yaml").write_text(to_yaml(resolve("nano", [*common, *settings])))
    return folder


@pytest.fixture(scope="session")
def request_of(arena):
    """Makes the request of a comparison of some members in a folder."""

    def make(folder, names="learned,fixed,plain", **options):
        line_up = ",".join(str(arena / f"{name}.yaml") for name in names.split(","))
        options = {"bytes": 5120, "max_bytes": 1500} | options
        return ComparisonRequest(data=arena / "dataset", line_up=line_up, run=folder, device="cpu", **options)

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory, request_of):
    """The folder of a finished comparison, and what `compare` returned."""
    folder = tmp_path_factory.mktemp("whole") / "c"
    return folder, compare(request_of(folder))
