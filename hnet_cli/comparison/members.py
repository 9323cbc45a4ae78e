"""Members of a comparison, sized to equal FLOPs per byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hnet_cli.config.run import RunConfig, differences, resolve
from hnet_cli.data.dataset import Dataset
from hnet_cli.errors import EnvironmentLimit, UsageError
from hnet_cli.terminal.console import literal, say
from hnet_cli.training import lineup

ALIASES = {"bpe": "transformer", "bpe-2x": "transformer-2x"}
"""Other names of members: the Transformers read tokens of byte-level BPE."""
DECIDED = ("steps", "seed", "eval_every", "eval_bytes", "checkpoint_every", "keep_checkpoints", "samples", "log_every")
"""Settings of training that the comparison decides."""


@dataclass(frozen=True)
class Member:
    """One model of the line-up."""

    name: str
    config: RunConfig
    flops_per_byte: float
    """Forward, on this data, where learned chunks are as long as aimed at."""
    share: float = 1.0
    """Multiple of the budget of FLOPs per byte that it is sized to: 2 for a Transformer of twice the size."""

    @property
    def learned(self) -> bool:
        """It is an H-Net proper: one that learns where its chunks begin."""
        return any(chunker.learned for chunker in self.config.model.chunkers)

    @property
    def layout(self) -> str:
        """The layers as the paper writes them: m4+T22+m4."""

        def flat(part: Any) -> list[str]:
            return [part] if isinstance(part, str) else [letters for inner in part for letters in flat(inner)]

        return "+".join(letters for letters in flat(self.config.model.arch_layout) if letters)

    @property
    def bytes(self) -> int:
        """Bytes it is trained on."""
        return self.config.train.steps * self.config.train.batch_bytes

    def with_train(self, **changes: Any) -> Member:
        """The member with other settings of training, none of which changes its size."""
        return replace(self, config=replace(self.config, train=replace(self.config.train, **changes)))


def line_up(
    names: Sequence[str],
    scale: str,
    dataset: Dataset,
    flops: float | None,
    settings: list[str],
    before: dict[str, Path],
    asked: bool = True,
) -> tuple[list[Member], float]:
    """The members called `names`, and the FLOPs per byte they are sized to: by default those of the first one's preset.

    A name that ends in .yaml is a preset of the user's own. `before`: configurations by name that were decided
    before, which hold. A member that needs a package which is not installed is left out, with a notice, unless it was
    `asked` for. Raises UsageError, with the nearest name, or where a file no longer says what was decided;
    EnvironmentLimit.
    """
    members: list[Member] = []
    for given in map(str.strip, names):
        try:
            member, flops = _member(given, scale, dataset, flops, settings, before)
        except EnvironmentLimit as error:
            if asked:
                raise EnvironmentLimit(f"{given}: {error}", error.hint) from error
            say(f"[yellow]left out:[/] {literal(given)}: {literal(error)} ({literal(error.hint)})")
        else:
            members.append(member)
    if not members:
        raise EnvironmentLimit("no member of the line-up can run here", "install what they need, or name others")
    if len({member.name for member in members}) < len(members):
        raise UsageError("a member is named twice", "each has one folder, of its name")
    assert flops is not None
    return members, flops


def _member(
    given: str,
    scale: str,
    dataset: Dataset,
    flops: float | None,
    settings: list[str],
    before: dict[str, Path],
) -> tuple[Member, float | None]:
    """A member of `line_up`, and the FLOPs per byte that all are sized to: its own if `flops` is None."""
    file = given if given.endswith((".yaml", ".yml")) else None
    name = Path(file).stem if file else ALIASES.get(given, given)
    share = lineup.share_of_budget(name)
    if name in before:
        config = resolve(str(before[name]))
        if file and flops:
            _refuse_edited(config, lineup.sized(resolve(file, settings), dataset, share * flops), file)
    else:
        config = resolve(file, settings) if file else lineup.member(name, scale, settings)
        flops = flops or lineup.flops_per_byte(config, dataset) / share
        config = lineup.sized(config, dataset, share * flops)
    return Member(name, config, lineup.flops_per_byte(config, dataset), share), flops


def _refuse_edited(before: RunConfig, now: RunConfig, file: str) -> None:
    decided = {f"train.{name}" for name in DECIDED}
    changed = [
        f"{key} is {new}, not {old}" for key, (old, new) in differences(before, now).items() if key not in decided
    ]
    if changed:
        raise UsageError(
            f"{file} is not what this comparison began with: {', '.join(changed)}",
            "under another name it is a member of its own; --run FOLDER begins another comparison",
        )
