"""`hnet presets`: the configurations that ship with the tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hnet_cli.cli import options

if TYPE_CHECKING:
    from hnet_cli.config.run import RunConfig


def presets(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print this preset's YAML.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the presets, or print one."""
    from hnet_cli.config.presets import preset, shipped
    from hnet_cli.config.run import resolve, to_data, to_yaml

    if name is not None:
        written = preset(name)
        if as_json:
            options.print_json(to_data(resolve(name)))
        else:
            print(to_yaml(resolve(name)) if written.group == "line-up" else written.text, end="")
        return
    configs = {name: resolve(name) for name in shipped()}
    if as_json:
        options.print_json({name: _summary(config) for name, config in configs.items()})
    else:
        _show(configs)


def _summary(config: RunConfig) -> dict[str, Any]:
    from hnet_cli.training import budget

    parameters, memory = config.model.num_parameters, budget.needs(config).memory
    return {"description": config.description, "parameters": parameters, "memory": memory}


def _show(configs: Mapping[str, RunConfig]) -> None:
    """A table for every group of presets, and one of the line-up: members by size, parameters in the cells."""
    from hnet_cli.config.presets import GROUPS, SIZES, line_up, shipped
    from hnet_cli.distributed.device import GIB
    from hnet_cli.terminal.console import count, show_data, table

    for group in GROUPS:
        rows = table(group, "parameters", "memory", "")
        rows.columns[3].justify = "left"
        for name in (name for name, preset in shipped().items() if preset.group == group):
            summary = _summary(configs[name])
            memory = f"{summary['memory'] / GIB:.1f} GiB"
            rows.add_row(name, count(summary["parameters"]), memory, summary["description"])
        show_data(rows)
    rows = table("line-up: MEMBER-SIZE", *SIZES, "")
    rows.columns[-1].justify = "left"
    for member, entry in line_up()["members"].items():
        sizes = (configs.get(f"{member}-{size}") for size in SIZES)
        cells = [count(config.model.num_parameters) if config else "" for config in sizes]
        rows.add_row(member, *cells, entry["description"])
    show_data(rows)
