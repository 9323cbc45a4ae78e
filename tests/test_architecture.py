"""The shape of the code: which module may import which, where torch may be, and how long a file may get."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE, PLUGINS = ROOT / "hnet_cli", ROOT / "modalities"

ROOMS: list[set[str]] = [
    {"__main__"},
    {"cli"},
    {"api", "play"},
    {"comparison"},
    {"evaluation"},
    {"transformers", "contract"},
    {"training"},
    {"report", "checkpoints"},
    {"inference"},
    {"data"},
    {"pages", "distributed", "config"},
    {"terminal"},
    {"model"},
    {"provenance"},
    {"storage", "modality"},
    {"kernels", "starters"},
    {"errors"},
]
"""Packages and top-level modules of the core: each imports its own room and those further down."""
WITHOUT_TORCH = {
    *(
        "__main__",
        "api",
        "distributed.device",
        "distributed.groups",
        "distributed.threads",
        "distributed.workers",
        "cli.app",
        "cli.compare",
        "cli.doctor",
        "cli.machine",
        "cli.eval",
        "cli.prepare",
        "config",
        "contract",
        "data",
        "errors",
        "modality",
        "pages",
        "provenance",
        "report",
        "starters",
        "storage",
    ),
    *("terminal", "distributed.world", "inference.agreement", "inference.chunks_page", "inference.render"),
    *("model.config", "model.settings", "training.budget", "training.lineup", "training.plan"),
}
"""Importing one of these must not import torch; functions inside may."""
ACCELERATORS = {"triton", "mamba_ssm", "flash_attn", "causal_conv1d", "torch.nn.attention.varlen"}


def room(module: str) -> str:
    """The entry of ROOMS a module below hnet_cli belongs to: "model.hnet" -> "model"."""
    return module.partition(".")[0]


def rank(module: str) -> int:
    ranks = [number for number, names in enumerate(ROOMS) if room(module) in names]
    assert ranks, f"hnet_cli/{room(module)} has no place in ROOMS of this test: give it one"
    return ranks[0]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def calls(path: Path) -> list[tuple[ast.Call, str]]:
    """Every call in a file, with what is called."""
    return [(node, ast.unparse(node.func)) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]


@functools.cache
def modules() -> dict[str, Path]:
    """Modules of the core by their name below hnet_cli, `__init__` files under that of their folder."""
    names = {}
    for path in sorted(CORE.rglob("*.py")):
        dotted = path.relative_to(CORE).with_suffix("").as_posix().replace("/", ".")
        names[dotted.removesuffix(".__init__")] = path
    names.pop("__init__")  # the package itself resolves its exports on first use
    return names


@functools.cache
def imports(path: Path, package: str, *, lazy: bool = True) -> list[str]:
    """Absolute names of what a file imports, type checking apart; `lazy`: inside functions too."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # nothing else holds an import
                yield from visit(child)

    return list(visit(parsed(path)))


def core_imports(name: str, path: Path) -> set[str]:
    """Modules of the core that a module of the core imports."""
    package = "hnet_cli." + name if path.name == "__init__.py" else f"hnet_cli.{name}".rpartition(".")[0]
    below = {found.removeprefix("hnet_cli.") for found in imports(path, package) if found.startswith("hnet_cli.")}
    return below & modules().keys()


def test_dependencies_point_down() -> None:
    for name, path in modules().items():
        for other in core_imports(name, path):
            fine = room(other) == room(name) or rank(other) > rank(name)
            assert fine, f"hnet_cli/{name} imports {other}, which is not below it"


@pytest.mark.parametrize("path", sorted(PLUGINS.glob("*.py")), ids=lambda path: path.stem)
def test_plugins_know_the_contract_only(path: Path) -> None:
    """A built-in plugin imports what a third-party one could: the contract, the errors and its siblings."""
    for found in imports(path, "modalities"):
        if found.startswith("hnet_cli"):
            assert found.split(".")[1] in ("modality", "errors"), f"{path.name} imports {found}"
        assert found.partition(".")[0] != "torch", f"{path.name} imports torch"


WRITES = {
    "os": {
        "rename",
        "replace",
        "unlink",
        "remove",
        "mkdir",
        "makedirs",
        "rmdir",
        "truncate",
        "write",
        "symlink",
        "link",
    },
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree"},
}
"""Calls that change a disk; and so do these, whatever they are called on."""
WRITING_METHODS = {"write_text", "write_bytes", "mkdir", "unlink", "rmdir", "touch", "symlink_to", "save_file"}


def writes(path: Path) -> Iterator[str]:
    """Calls in a file that change a disk."""
    for node, called in calls(path):
        owner, _, name = called.rpartition(".")
        modes = [
            a.value
            for a in (*node.args, *(k.value for k in node.keywords if k.arg == "mode"))
            if isinstance(a, ast.Constant) and isinstance(a.value, str)
        ]
        opens = name == "open" and any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
        storage = owner == "storage" or owner.endswith(".storage") or not owner
        if opens or name in WRITES.get(owner, ()) or (name in WRITING_METHODS and not storage):
            yield f"{path.name}:{node.lineno}: {called}"


def test_storage_alone_writes() -> None:
    """So that a fault at any operation on files can be tried: tests/reliability/test_crash.py."""
    found = [
        write
        for name, path in modules().items()
        if room(name) != "storage" and name != "model.config"
        for write in writes(path)
    ]
    assert not found, found


READS_ITS_OWN = {
    *("config.presets", "pages.html", "kernels.tuned"),  # files of the package
    *("distributed.groups", "cli.machine"),  # those of the system: memory, processor
    "terminal.process",  # /dev/null
}
READERS = {"open", "io.open", "np.memmap", "np.fromfile", "np.load", "json.load", "mmap.mmap", "torch.load"}
READING_METHODS = {"read_text", "read_bytes", "safe_open", "load_file"}


def reads(path: Path) -> Iterator[str]:
    """Calls in a file that read a path past `hnet_cli.storage`."""
    tree = parsed(path)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("hnet_cli.storage", "hnet_cli.config"))
        for alias in node.names
    }
    own = imported | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node, called in calls(path):
        owner, _, name = called.rpartition(".")
        ours = owner == "storage" or (not owner and name in own)
        opens = name == "open" and owner.partition("(")[0] in ("Path", "path", "file", "self.path")
        if called in READERS or opens or (name in READING_METHODS and not ours):
            yield f"{path.name}:{node.lineno}: {called}"


def test_storage_alone_reads() -> None:
    """So that what stands in the place of a file (a pipe, a device, 8 GB of zeros) is refused everywhere."""
    found = [
        read
        for name, path in modules().items()
        if room(name) != "storage" and name not in READS_ITS_OWN
        for read in reads(path)
    ]
    assert not found, found


def test_the_core_never_names_a_modality() -> None:
    plugins = {path.stem for path in PLUGINS.glob("*.py")} - {"__init__"}
    for name, path in modules().items():
        for found in imports(path, "hnet_cli"):
            assert "modalities" not in found.split("."), f"hnet_cli/{name} imports {found}"
        if room(name) in ("data", "errors", "kernels", "modality", "model", "storage", "terminal"):
            strings = {n.value for n in ast.walk(parsed(path)) if isinstance(n, ast.Constant)}
            assert not plugins & {s for s in strings if isinstance(s, str)} - {"text", "code"}, f"hnet_cli/{name}"


def test_only_kernels_know_accelerators() -> None:
    for name, path in modules().items():
        if room(name) != "kernels":
            for found in imports(path, "hnet_cli"):
                assert not any(found == a or found.startswith(a + ".") for a in ACCELERATORS), (
                    f"hnet_cli/{name}: {found}"
                )


def test_no_accelerator_is_imported_with_the_kernels() -> None:
    """They are probed when asked for; a machine without them, or with broken ones, imports the rest."""
    for name, path in modules().items():
        if room(name) == "kernels" and "triton" not in name:
            for found in imports(path, "hnet_cli.kernels", lazy=False):
                assert not any(found == a or found.startswith(a + ".") for a in ACCELERATORS), (
                    f"hnet_cli/{name}: {found}"
                )


def loaded(code: str) -> set[str]:
    """Top-level packages in memory after `code` in a fresh process."""
    report = "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


def test_importing_what_does_not_compute_is_fast() -> None:
    names = [name for name in modules() if {name, room(name)} & WITHOUT_TORCH and name != "__main__"]
    code = "import importlib\n" + "\n".join(f"importlib.import_module('hnet_cli.{name}')" for name in names)
    assert not {"torch", "Bio", "pyarrow", "matplotlib"} & loaded(code)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["doctor", "--help"]])
def test_help_never_imports_torch(arguments: list[str]) -> None:
    code = f"""
from hnet_cli.cli.app import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, {arguments!r}).exit_code == 0
"""
    assert not {"torch", "numpy", "Bio", "yaml"} & loaded(code)


def test_every_module_has_a_test_file_of_its_name() -> None:
    missing = set()
    for path in [*CORE.rglob("*.py"), *PLUGINS.glob("*.py")]:
        if path.stem not in ("__init__", "__main__"):
            inside = path.relative_to(CORE).parent if path.is_relative_to(CORE) else Path("modalities")
            folder, stem = ROOT / "tests" / inside, path.stem.lstrip("_")
            if not ((folder / f"test_{stem}.py").exists() or any(folder.glob(f"test_{stem}_*.py"))):
                missing.add(path.relative_to(ROOT).as_posix())
    assert not missing


def test_ruff_is_content() -> None:
    pytest.importorskip("ruff")
    run = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stdout


SAFE = {"literal", "size", "count", "duration", "ago", "spark", "len"}
"""Functions that make text safe, or numbers into text."""


def unsafe_markup(node: ast.AST) -> Iterator[str]:
    """Values in markup that are neither numbers in a format nor through a function of `SAFE`."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in SAFE:
        return
    if isinstance(node, ast.FormattedValue):
        format = ast.unparse(node.format_spec) if node.format_spec else ""
        safe = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in SAFE
        if not safe and not set(",fgd%") & set(format.removeprefix("f")):
            yield ast.unparse(node.value)
        return
    for child in ast.iter_child_nodes(node):
        yield from unsafe_markup(child)


def test_foreign_text_goes_through_one_function() -> None:
    for name, path in modules().items():
        for node, called in calls(path):
            if called in ("say", "console.print") and room(name) != "terminal":
                found = [value for argument in node.args for value in unsafe_markup(argument)]
                assert not found, f"hnet_cli/{name}:{node.lineno}: {found} past `literal`"
