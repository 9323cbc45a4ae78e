"""Who takes part in a comparison, sized to equal FLOPs per byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hnet_cli.config.run import RunConfig, differences, resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import UsageError
from hnet_cli.training import lineup

ALIASES = {"bpe": "transformer", "bpe-2x": "transformer-2x"}
"""Other names of members: the Transformers read tokens of byte-level BPE."""
DECIDED = ("steps", "seed", "eval_every", "eval_bytes", "checkpoint_every", "keep_checkpoints", "samples", "log_every")
"""Settings of training that are the comparison's and not a member's."""


@dataclass(frozen=True)
class Member:
    """One model of the line-up."""

    name: str
    config: RunConfig
    flops_per_byte: float
    """Forward, on this data, where learned chunks are as long as aimed at."""
    share: float = 1.0
    """Of the budget of FLOPs per byte that it is meant to have: 2 for a Transformer of twice the size."""

    @property
    def learned(self) -> bool:
        """Whether it is an H-Net proper: one that learns where its chunks begin."""
        return any(chunker.learned for chunker in self.config.model.chunkers)


def line_up(
    names: Sequence[str] | None,
    size: str,
    dataset: Dataset,
    flops: float | None,
    settings: Sequence[str],
    kept: Mapping[str, Path],
) -> tuple[list[Member], float]:
    """The members called `names` (by default the paper's for the modality), and the FLOPs per byte they are sized to:
    by default those of the first one's preset.

    A name that ends in .yaml is a preset of the user's own. `kept`: configurations by name that were decided before,
    which hold. Raises UsageError, with the nearest name, or where a file no longer says what was decided.
    """
    members: list[Member] = []
    for given in names or lineup.members(dataset.modality):
        name, file = _named(given)
        share = lineup.share_of_budget(name)
        if name in kept:
            config = resolve(str(kept[name]))
            if file and flops:
                _refuse_edited(config, lineup.sized(resolve(file, settings), dataset, share * flops), file)
        else:
            config = resolve(file, settings) if file else lineup.member(name, size, settings)
            flops = flops or lineup.flops_per_byte(config, dataset) / share
            config = lineup.sized(config, dataset, share * flops)
        members.append(Member(name, config, lineup.flops_per_byte(config, dataset), share))
    if len({member.name for member in members}) < len(members):
        raise UsageError("a member is named twice", "each has one folder, of its name")
    assert flops is not None
    return members, flops


def _named(given: str) -> tuple[str, str]:
    """The name of a member, and the file it is read from if it is no member of the paper's."""
    given = given.strip()
    if given.endswith((".yaml", ".yml")):
        return Path(given).stem, given
    return ALIASES.get(given, given), ""


def _refuse_edited(kept: RunConfig, now: RunConfig, file: str) -> None:
    decided = [f"train.{name}" for name in DECIDED]
    changed = {key: was for key, was in differences(kept, now).items() if key not in decided}
    if changed:
        told = ", ".join(f"{key} is {new}, not {old}" for key, (old, new) in changed.items())
        raise UsageError(
            f"{file} is not what this comparison began with: {told}",
            "under another name it is a member of its own; --run FOLDER begins another comparison",
        )


def with_train(member: Member, **changes: object) -> Member:
    """The member with other settings of training, none of which changes its size."""
    train = dataclasses.replace(member.config.train, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(member, config=dataclasses.replace(member.config, train=train))
