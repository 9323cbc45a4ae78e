"""The `hnet` command: parse, call one function, print. Nothing is computed here, and torch is imported only by the
commands that need it, so that `hnet --help` answers at once."""

from __future__ import annotations

import json
import math
import shlex
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

import hnet_cli
from hnet_cli.cli.compare import compare
from hnet_cli.cli.eval import evaluate
from hnet_cli.errors import INTERRUPTED, HNetError, UsageError
from hnet_cli.terminal import stdio

app = typer.Typer(
    name="hnet",
    help="Train, sample and look inside H-Nets on your own text, Chinese, source code and DNA.",
    epilog="Begin with: hnet quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="A run folder, a checkpoint, or starter:text, starter:chinese, "
                   "starter:code, starter:dna. Default: $HNET_MODEL, else the newest run, else starter:text."),
]  # fmt: skip
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: a GPU if there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@cache
def _installed() -> str:
    """The modalities by name, plugins of other packages too; read from metadata once, none is imported."""
    from hnet_cli import modality

    try:
        return ", ".join(modality.names())
    except HNetError:  # two packages with one name: said by the commands that need a modality
        return "see hnet doctor"


def _version(value: bool) -> None:
    if value:
        print(f"hnet {hnet_cli.__version__}")
        raise typer.Exit


@app.callback()
def _global(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more; show a traceback for an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if verbose or quiet or "hnet_cli.terminal.console" in sys.modules:  # help has no use for it
        from hnet_cli.terminal.console import set_verbosity

        set_verbosity(1 if verbose else -1 if quiet else 0)


def _device(wanted: str | None) -> str:
    from hnet_cli.training.budget import machine

    return machine(wanted).device


def _print_json(data: Any) -> None:
    print(json.dumps(data), flush=True)


# -- prepare -----------------------------------------------------------------------------------------------------------


@app.command()
def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files, folders, archives, URLs, or - for standard "
            "input; plain, .gz, .bz2, .xz, .zst, .tar, .jsonl, .parquet.",
        ),
    ],
    modality: Annotated[
        str | None,
        typer.Option(help=f"What the bytes are: {_installed()}. Default: detected."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The dataset folder. Default: data/<name of the first input>.")
    ] = None,
    val: Annotated[
        float | None, typer.Option(help="Share of the bytes held out for validation. Default: 0.01.")
    ] = None,
    val_input: Annotated[list[str] | None, typer.Option(help="Hold out these files instead of a share.")] = None,
    field: Annotated[str | None, typer.Option(help="The text field of .jsonl and .parquet rows.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares, into OUT.part-I-of-N; then --join.")
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Make one dataset of the part folders given.")] = False,
    allow_skips: Annotated[
        bool, typer.Option("--allow-skips", help="Go on though more than 1% of the input is damaged.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the dataset folder if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn your files into a dataset, part of it held out.

    The summary says what was left out and why, and what a model has to beat. Interrupted, even by a kill, the same
    command goes on where it was.
    """
    from hnet_cli.cli import prepare as preparing

    summary = preparing.run(
        inputs, modality, out, val=val, val_input=val_input or [], field=field, workers=workers, part=part, join=join,
        allow_skips=allow_skips, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        _print_json(vars(summary) | {"path": str(summary.path)})
    else:
        preparing.show_summary(summary)


# -- train -------------------------------------------------------------------------------------------------------------


@app.command()
def train(
    preset: Annotated[
        str | None,
        typer.Option(help="A preset (`hnet presets`) or a YAML file. Default: the modality's preset for this machine."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A dataset of `hnet prepare`. Default: the newest under data/.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/<dataset>-<preset>.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.steps=2000; may be repeated."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop in about so long, the learning rate decayed by then.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder; where none is named, the newest.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --resume: stop if the newest checkpoint is damaged.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events: --set train.tensorboard=true.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an H-Net on a dataset."""
    from hnet_cli import storage
    from hnet_cli.distributed.world import joined
    from hnet_cli.terminal.console import set_verbosity
    from hnet_cli.training import plan

    settings = [*(settings or []), *(["train.tensorboard=true"] if tensorboard else [])]
    if strict and not resume:
        raise UsageError("--strict goes with --resume", "give both, or neither")
    with joined(device) as world:
        if not world.is_main:
            set_verbosity(-1)
        with world.together():
            chosen = plan.choose(preset, data, run, settings, resume=resume, device=device, world=world)
            if dry_run and world.is_main:
                plan.describe(chosen, as_json, minutes)
            elif not dry_run:
                if world.is_main:
                    storage.refuse_if_held(chosen.run)
                plan.refuse_what_cannot_fit(chosen)
            if minutes is None:
                plan.tell_of_repetition(chosen)
        if dry_run:
            return
        from hnet_cli.training.progress import follow

        seconds = math.inf if minutes is None else 60 * minutes
        result = follow(chosen, resume=resume, strict=strict, seconds=seconds, world=world)
    if as_json and world.is_main:
        _print_json({"run": str(result.run), "steps": result.state.step, "seconds": result.seconds} | result.last)


# -- segment and sample ------------------------------------------------------------------------------------------------


@app.command()
def segment(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Files, folders, archives, or - for standard input; whatever `hnet prepare` reads."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="A run folder, a checkpoint, or starter:NAME. Default: $HNET_MODEL, else "
            "the newest run whose modality fits, else the starter model."
        ),
    ] = None,
    stage: Annotated[str, typer.Option(help="0 is the outermost; or all.")] = "all",
    format: Annotated[
        str | None,
        typer.Option(
            help="pretty, plain, jsonl, tsv, html, or one of the modality's own (bed, bedgraph). "
            "Default: pretty on a terminal, else plain."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of standard output.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Stop after so many. Default: all; html: 1 MB.")] = None,
    modality: Annotated[
        str | None, typer.Option(help=f"What the files are: {_installed()}. Default: detected.")
    ] = None,
    field: Annotated[str | None, typer.Option(help="The text field of .jsonl and .parquet rows.")] = None,
    carry: Annotated[
        bool, typer.Option("--carry", help="Read all of a document with the state carried, not in training lengths.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Print the chunks a model has learned, of files of any length."""
    from hnet_cli.cli import verbs

    verbs.segment(files, model, stage, format, out, modality, field, _device(device), max_bytes, carry)


@app.command()
def sample(
    model: ModelArgument = None,
    prompt: Annotated[str | None, typer.Option(help="What to continue.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="Read the prompt from a file, or - for standard input.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest byte.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Choose among the k likeliest bytes.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Choose among the likeliest bytes that together have this probability."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    number: Annotated[int, typer.Option("-n", min=1, help="How many continuations.")] = 1,
    show_chunks: Annotated[
        bool, typer.Option("--show-chunks", help='Mark where chunks begin; with --json: "boundaries".')
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Print bytes as they come, valid or not.")] = False,
    device: DeviceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per continuation.")] = False,
) -> None:
    """Continue a prompt, byte by byte.

    The output is always valid for the modality: UTF-8, or A, C, G and T.
    """
    from hnet_cli.cli import verbs

    verbs.sample(
        model, prompt, prompt_file, max_bytes=max_bytes, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        number=number, show_chunks=show_chunks, raw=raw, device=_device(device), as_json=as_json,
    )  # fmt: skip


app.command("eval")(evaluate)
app.command()(compare)


# -- runs, presets, doctor, convert ------------------------------------------------------------------------------------


@app.command()
def runs(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="Runs, or folders of runs. Default: runs/.")
    ] = None,
    sort: Annotated[str, typer.Option(help="when, name, bpb, bytes or speed.")] = "when",
    out: Annotated[
        Path | None, typer.Option(help="Write a page of the runs here: the report of one, the curves of several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs there are; or compare the runs you name."""
    from hnet_cli.report import runs as seen
    from hnet_cli.terminal.console import show_data

    shown = seen.show(paths or [], sort, out)
    if as_json:
        _print_json(shown.data)
        return
    for table in shown.tables:
        show_data(table)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Show this preset's YAML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the presets, or show one."""
    from hnet_cli.config import run as config
    from hnet_cli.terminal.console import count, show_data, table
    from hnet_cli.training import budget, lineup

    if name is not None:
        text = config.preset_text(name)
        if as_json:
            _print_json(config.to_data(config.resolve(name)))
        else:
            print(text, end="")
        return
    listed = {each: config.resolve(each) for each in config.preset_names()}
    if as_json:
        _print_json({
            each: {"description": c.description, "parameters": c.model.num_parameters, "memory": budget.needs(c).memory}
            for each, c in listed.items()
        })  # fmt: skip
        return
    for group, names in lineup.groups(list(listed)).items():
        rows = table(group, "parameters", "memory", "")
        rows.columns[3].justify = "left"
        for each in sorted(names, key=lambda name: (listed[name].model.num_parameters, name)):
            c, needed = listed[each], budget.needs(listed[each]).memory / budget.GIB
            rows.add_row(each, count(c.model.num_parameters), f"{needed:.1f} GiB", c.description)
        show_data(rows)


@app.command()
def doctor(
    check: Annotated[bool, typer.Option("--check", help="Also compare every kernel with the reference here.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine will run, and why."""
    from hnet_cli.cli import doctor as examine

    examine.run(check=check, as_json=as_json)


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="An official .pt or .safetensors file, or a model folder of ours.")],
    dst: Annotated[Path, typer.Argument(help="The model folder to write; or a .pt or .safetensors file to go back.")],
    config: Annotated[
        Path | None, typer.Option(help="The official JSON configuration, if it is not recognised.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Note what the model was trained on.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Store weights as fp32, bf16 or fp16. Default: as they are.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace DST if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring an official checkpoint in, or a model of ours out.

    The pickle in a .pt file is read without ever being executed.
    """
    from hnet_cli.checkpoints import convert as converter
    from hnet_cli.terminal.console import count, literal, say

    done = converter.convert(src, dst, config=config, overwrite=overwrite, modality=modality, dtype=dtype)
    if as_json:
        _print_json({key: str(value) if isinstance(value, Path) else value for key, value in vars(done).items()})
    say(f"Wrote {literal(dst)}: {done.configuration}, {count(done.parameters)} parameters.")


@app.command()
def retrofit(
    src: Annotated[str, typer.Argument(help="A folder with config.json, model.safetensors and tokenizer.json of a "
                   "Llama-style Transformer; or a run of ours that reads tokens.")],
    dst: Annotated[Path, typer.Argument(help="The model folder to write.")],
    preset: Annotated[str, typer.Option(help="Encoder, decoder, adapters and training: a preset or YAML file."
                      )] = "retrofit-nano",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace DST if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Put a pretrained Transformer into an H-Net over bytes.

    It becomes the frozen main network; what is around it is trained next.
    """
    from hnet_cli.terminal.console import count, literal, say
    from hnet_cli.training import retrofit as retrofitting

    done = retrofitting.retrofit(src, dst, preset, settings, overwrite)
    if as_json:
        _print_json(vars(done))
    trained = count(done.parameters - done.frozen)
    say(f"Wrote {literal(dst)}: {done.layers} frozen layers, {count(done.frozen)} parameters; {trained} to be trained. "
        f"Next: hnet train --preset {literal(shlex.quote(done.preset))}")  # fmt: skip


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="A folder for the dataset and the run.")] = Path("hnet-quickstart"),
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for training.")] = 4.0,
    device: DeviceOption = None,
) -> None:
    """See the whole of it on a bundled text, in minutes.

    It prepares, trains a small model, samples from it, and shows the chunks that it has learned.
    """
    from hnet_cli.cli import quickstart as tour

    tour.run(out, minutes, _device(device))


# -- running -----------------------------------------------------------------------------------------------------------


def run(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code (design: 0, 1 bug, 2 usage, 3 input, 4 damaged, 5 numerical, 69
    environment, 73 busy, 74 I/O, 75 stopped, 130 interrupted)."""
    warnings.formatwarning = lambda message, *_: f"hnet: warning: {message}\n"
    try:
        code = app(args=arguments, prog_name="hnet", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # Typer's answer to Ctrl-C
            print("hnet: interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit):  # Typer and Rich make the second of the first: head, less have seen enough
        stdio.abandon_stdout()
        return 0
    except BaseException as error:
        from hnet_cli.terminal import failures

        return failures.report(error)


def main() -> None:
    """Entry point of the `hnet` command."""
    stdio.make_fit()
    sys.exit(run())
