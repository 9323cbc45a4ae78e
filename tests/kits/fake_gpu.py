"""Places where the host waits for a GPU, found without one: training and generation steps on tensors that say they
are on a GPU and have a shape and a dtype, but no values.

    python tests/kits/fake_gpu.py [--presets 2stage-xl small] [--rows 2] [--set train.alignment=entropy ...] [--nodes]

Forward pass, losses, records and optimizer run as they are; an operation between tensors of different devices or of
dtypes that do not fit fails here as it would there. Backward passes need a GPU: gradients are made up. Attention is
torch's for packed documents, weights of routers and residuals are split, the rest is the reference's. The last line is
a JSON object with, for the training step of two micro-batches, for a byte of generation (plain, and as it is recorded)
and for its choice, every place where the host would wait, and how often: what it reads of the device, copies that are
not asynchronous or not out of pinned memory, and operations whose result has a size that only the device knows. With
`--no-float64` the device has none, as Apple's, and operations that give it all the same are listed too.

`--nodes` counts instead the nodes of the CUDA graphs of a byte of generation, on the reference's kernels and on ours.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import json
import sys
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hnet_cli import kernels as seam
from hnet_cli.data.loader import Batch
from hnet_cli.distributed.world import World
from hnet_cli.kernels import Kernels, reference
from hnet_cli.kernels import cuda as external
from hnet_cli.model import HNetForCausalLM
from hnet_cli.model.blocks import recompute
from hnet_cli.model.init import skeleton

GPU = torch.device("cuda", 0)
NO_GUARD = 69
"""Exit code where this build of torch hides what is needed."""
aten = torch.ops.aten
ONE_NODE = ("linear", "rms_norm", "scaled_dot_product_attention")
"""Composite operations that are one kernel on a GPU."""
OF_UNKNOWN_SIZE = (aten.nonzero, aten.masked_select, aten._unique2, aten._local_scalar_dense, aten.equal)


def here() -> str:
    """The line of the product that is at work."""
    for frame in reversed(traceback.extract_stack()):
        if "/hnet_cli/" in frame.filename:
            return f"{Path(frame.filename).name}: {frame.name}"
    return "?"


class Waits(TorchDispatchMode):
    """Notes what makes the host wait, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def note(self, what: str) -> None:
        self.found[f"{here()}: {what}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet in OF_UNKNOWN_SIZE and args[0].is_cuda:
            self.note(f"{packet.__name__}")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            for index in args[1]:
                if index is not None and index.is_cuda and index.dtype in (torch.bool, torch.uint8):
                    self.note("index by a mask")
                if index is not None and index.is_cuda != args[0].is_cuda:
                    self.note("index on another device")
        out = func(*args, **kwargs)
        for each in tree_leaves(out):
            if (
                isinstance(each, Tensor)
                and each.dtype == torch.float64
                and each.device.type in reference.WITHOUT_FLOAT64
            ):
                self.note(f"{packet.__name__} gives float64")
        if packet in (aten._to_copy, aten.copy_):
            source = args[1] if packet is aten.copy_ else args[0]
            unasked = kwargs.get("non_blocking", args[2] if packet is aten.copy_ and len(args) > 2 else False)
            host = source if out.is_cuda else out
            if source.is_cuda != out.is_cuda and not (unasked and getattr(host, "pinned", False)):
                self.note(f"copy {'to' if out.is_cuda else 'from'} the device {tuple(source.shape)}")
        return out


class Pinned(TorchFunctionMode):
    """Memory is pinned by a mark: there is no driver to ask."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pin = kwargs.pop("pin_memory", False)
        out = args[0] if func is Tensor.pin_memory else func(*args, **kwargs)
        if pin or func is Tensor.pin_memory:
            out.pinned = True
        return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """`external.product`: torch does not say what shape its product has."""
    assert a.dtype == b.dtype == torch.bfloat16
    return a.new_empty(len(a), b.shape[1], dtype=torch.float32)


@contextlib.contextmanager
def faked(offsets: Callable[[Tensor], list[int]], wait: Callable[[str], None]) -> Iterator[None]:
    """In here tensors have no values. What is read of one on the device is told to `wait`; integers are `offsets` of
    chunks, other numbers 1."""
    real = torch.from_numpy
    event = types.SimpleNamespace(synchronize=lambda: wait("waits for a copy"))
    current: Any = types.SimpleNamespace(synchronize=lambda: wait("waits for the stream"), record_event=lambda: event)

    def read(tensor: Tensor) -> list[Any]:
        if tensor.is_cuda:
            wait(f"reads {tuple(tensor.shape)}")
        counts = tensor.dtype in (torch.int32, torch.int64)
        return offsets(tensor) if counts else [1.0] * tensor.numel()

    def from_numpy(array: Any) -> Tensor:
        with unset_fake_temporarily():
            return real(array)

    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", read))
        stack.enter_context(mock.patch.object(torch, "from_numpy", from_numpy))
        stack.enter_context(mock.patch.object(external, "product", product))
        stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True))
        stack.enter_context(
            mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False)
        )
        stack.enter_context(mock.patch.object(torch.cuda, "device", return_value=contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(torch.cuda, "current_stream", return_value=current))
        yield


def empty_of(array: Any) -> Tensor:
    """`torch.from_numpy` without the values."""
    return torch.empty(array.shape, dtype={"b": torch.bool, "f": torch.float64, "i": torch.int64}[array.dtype.kind])


def without_values(config: Any, device: torch.device) -> HNetForCausalLM:
    """The model of a run configuration, inside `faked`."""
    model = skeleton(HNetForCausalLM, config.model)
    recompute(model, config.train.activation_checkpointing)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device))
    return model


class Offsets:
    """Chunks at a given share of the positions of each level, equally many in each document."""

    def __init__(self, positions: int, shares: Sequence[float]) -> None:
        self.positions, self.shares, self.asked = positions, shares, 0

    def __call__(self, offsets: Tensor) -> list[int]:
        stage, rows = self.asked % len(self.shares), len(offsets) - 1
        self.asked += 1
        chunks = max(rows, round(self.positions * self.shares[stage]))
        return [row * chunks // rows for row in range(rows + 1)]


class MadeUp(World):
    """One rank whose gradients have no values either."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def backward(self, loss: Tensor, last: bool = True) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)


@functools.cache
def have_guard() -> None:
    """Give a torch built without CUDA the behaviour of one that finds no GPU: streams and the like are
    those of no device. It asks for a guard that counts no devices, and puts one that does nothing in its place."""
    if torch.version.cuda is not None:
        return
    zero = ctypes.CFUNCTYPE(ctypes.c_int8)(lambda: 0)
    table = (ctypes.c_void_p * 64)(*[ctypes.cast(zero, ctypes.c_void_p).value] * 64)
    guard = ctypes.pointer(ctypes.c_void_p(ctypes.addressof(table)))
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
        register = library._ZN3c104impl24DeviceGuardImplRegistrarC1ENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE
    except (OSError, AttributeError) as error:
        print(f"torch cannot be made to believe in GPUs here: {error}", file=sys.stderr)
        raise SystemExit(NO_GUARD) from error
    register(ctypes.byref(ctypes.c_char()), ctypes.c_int8(1), guard)
    torch._C._ensureCUDADeviceGuardSet()


def documents(rows: int, length: int, seed: int = 0) -> Any:
    """A micro-batch of random letters; what they are makes no difference to the time."""
    data = np.random.default_rng(seed).integers(97, 123, rows * length + 1, dtype=np.uint8)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    index = np.arange(rows, dtype=np.int64)
    return Batch(data[:-1], data[1:], None, offsets, index, index)


def training(config: Any, rows: int) -> dict[str, int]:
    """Waits of a training step with two micro-batches, recorded with histograms."""
    from hnet_cli.training.budget import chunk_fractions
    from hnet_cli.training.build import precision_context
    from hnet_cli.training.optim import build_optimizer
    from hnet_cli.training.step import skips_on_device, train_step

    length, waits = config.train.sequence_length, Waits()
    offsets = Offsets(rows * length, chunk_fractions(config))
    with faked(offsets, waits.note), Pinned():
        model = without_values(config, GPU)
        optimizer = build_optimizer(model, config)
        given = (model, optimizer, [documents(rows, length)] * 2, 1, config, precision_context(config, GPU))
        model.requires_grad_(False)
        with waits:
            train_step(*given, True, MadeUp(model), ahead=skips_on_device(optimizer))()
    return dict(waits.found)


class Nodes(TorchDispatchMode):
    """Counts what would be nodes of a CUDA graph: operations that are neither views nor allocations, one each, and
    launches of Triton kernels. Some operations of torch are several nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if func.namespace == "aten" and name not in ONE_NODE and func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        out = func(*args, **kwargs)
        allocates = name.removeprefix("new_").startswith(("empty", "lift_fresh", "detach", "_unsafe_view"))
        if not is_view and not allocates and any(isinstance(t, Tensor) and t.is_cuda for t in tree_leaves(out)):
            self.found[name] += 1
        return out

    def launch(self, kernel: Any, *args: Any, grid: Any, **options: Any) -> None:
        assert all(t.is_cuda for t in args if isinstance(t, Tensor))
        self.found[kernel.fn.__name__] += 1


def nodes(name: str, rows: int, settings: list[str], own: bool = True) -> dict[str, dict[str, int]]:
    """Nodes by kind of each recording of a byte of a preset, "1 in" is the way into level 1, on our own kernels or on
    the reference's. With more than two rows some of them reach the inner levels, else all."""
    from hnet_cli.config.run import resolve
    from hnet_cli.inference.graphs import GraphSteps
    from hnet_cli.kernels import triton_elementwise

    have_guard()
    config, found = resolve(name, settings), dict[str, dict[str, int]]()
    norms = {"add_rms_norm": triton_elementwise.add_rms_norm}
    record = GraphSteps._in_place

    def counted(self: Any, number: int, part: str, rows: Tensor | None) -> None:
        with Nodes() as count, mock.patch("triton.runtime.jit.JITFunction.run", autospec=True) as run:
            run.side_effect = lambda kernel, *args, **options: count.launch(kernel, *args, **options)
            record(self, number, part, rows)
        found[f"{number} {part}"] = dict(count.found)

    with contextlib.ExitStack() as stack:
        kernels = dataclasses.replace(seam.step_kernels(), **norms) if own else seam.REFERENCE
        for context in (
            faked(Offsets(rows * 16, [0.5] * config.model.num_stages), lambda what: None),
            Pinned(),
            torch.inference_mode(),
            mock.patch.object(seam, "_choose", return_value=seam.REFERENCE),
            mock.patch.object(GraphSteps, "_in_place", counted),
        ):
            stack.enter_context(context)
        model = without_values(config, GPU).cast(torch.bfloat16)
        state = model.allocate_state(rows, 64)
        model.prefill([torch.zeros(16, dtype=torch.int64)] * rows, state)
        state.kernels, stepper = kernels, GraphSteps(model, state)
        for _ in range(2):  # the first makes tables and buffers
            stepper.step(torch.zeros(rows, dtype=torch.int64, device=GPU))
        if rows > 2:  # inner levels for some rows, one of them repeated
            stepper._descend(1, list(range(rows - 1)), [])
    return found


def per_byte(found: dict[str, dict[str, int]]) -> float:
    """Nodes of a byte at the rates of the paper at which inner levels are reached."""
    rates = {3: (1, 0.357, 0.145), 2: (1, 0.21), 1: (1,)}[1 + max(int(part.split()[0]) for part in found)]
    return sum(rates[int(part.split()[0])] * sum(kinds.values()) for part, kinds in found.items())


def generation(config: Any, rows: int) -> dict[str, dict[str, int]]:
    """Waits of one byte with every row at a boundary of every stage: plain, as a graph, and of its choice."""
    from hnet_cli import modality
    from hnet_cli.inference.generate import Choice, Chooser, Grammar
    from hnet_cli.inference.graphs import GraphSteps

    waits, prompt = Waits(), 16
    offsets = Offsets(rows * prompt, [0.5] * config.model.num_stages)
    with contextlib.ExitStack() as stack:
        for context in (faked(offsets, waits.note), Pinned(), torch.inference_mode()):
            stack.enter_context(context)
        model = without_values(config, GPU).cast(torch.bfloat16)
        state = model.allocate_state(rows, 64)
        model.prefill([torch.zeros(prompt, dtype=torch.int64)] * rows, state)
        tokens = torch.zeros(rows, dtype=torch.int64, device=GPU)
        found = {}
        plain, recorded = functools.partial(model.step, state=state), GraphSteps(model, state).step
        for name, step in (("byte", plain), ("recorded_byte", recorded)):
            step(tokens)
            waits.found.clear()
            with waits:
                logits = step(tokens)[0]
            found[name] = dict(waits.found)
        stack.enter_context(mock.patch.object(torch, "from_numpy", empty_of))
        grammar = Grammar(modality.get("text").automaton(), GPU)
        chooser = Chooser(Choice(0.8, 40, 0.9), grammar, [0] * rows, range(rows), 0, 99, 255)
        chooser(list(range(rows)), logits)
        waits.found.clear()
        with waits:
            chooser(list(range(rows)), logits)
        found["choice"] = dict(waits.found)
    return found


def waits(name: str, rows: int, settings: list[str], float64: bool) -> dict[str, Any]:
    """Waits of a preset; `float64` says that the device has it."""
    from hnet_cli.config.run import resolve

    have_guard()
    attention = external.varlen_attention(external.load_varlen()[1])
    kernels = Kernels(attention=attention, wide_linear=external.wide_linear if float64 else reference.wide_linear)
    config = resolve(name, [*settings, "precision=bf16", "train.micro_batches=2"])
    lacking = mock.patch.object(reference, "WITHOUT_FLOAT64", frozenset() if float64 else {GPU.type})
    with mock.patch.object(seam, "_choose", return_value=kernels), lacking:
        return {"stages": config.model.num_stages, "step": training(config, rows), **generation(config, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["2stage-xl", "small"])
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--no-float64", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    parser.add_argument("--nodes", action="store_true", help="count the nodes of a byte's recordings instead")
    given = parser.parse_args()
    if given.nodes:
        for name in given.presets:
            for own in (False, True):
                counted = nodes(name, given.rows, given.settings, own)
                print(json.dumps({"preset": name, "own": own, "per_byte": per_byte(counted), "recordings": counted}))
        return
    print(json.dumps({name: waits(name, given.rows, given.settings, not given.no_float64) for name in given.presets}))


if __name__ == "__main__":
    main()
