"""`hnet segment --format live`: one page that holds the encoders and routers of a model and cuts what is typed into it.

Nothing else decides where chunks begin, and of a small model they are small: the weights stand in the page, in half
precision, compressed, and a script computes what `hnet_cli.inference.windows` does. The page needs no server.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hnet_cli.errors import UsageError
from hnet_cli.inference.windows import Window, window_of
from hnet_cli.modality import Modality
from hnet_cli.model import HNetConfig, HNetForCausalLM
from hnet_cli.model.config import BOS
from hnet_cli.model.rotary import frequencies
from hnet_cli.model.settings import Rotary
from hnet_cli.pages import html
from hnet_cli.terminal.console import count

MOST_BYTES = 1_000_000
"""Bytes of a page, at most."""
MOST_TEXT = 20_000
"""Bytes of a text that the page cuts, at most: its states are kept in memory."""
EXAMPLE_BYTES = 2_000
"""Bytes of the file that stand in the page at first, unless told otherwise."""
LETTERS = bytes.maketrans(b"&<>", b".,:")
"""Letters of Python's base 85 that HTML would escape, and others in their place."""
MANTISSA = (10, 9, 8, 7)
"""Bits of the mantissa of a weight: the first with which the page is small enough. 10 are half precision; weights that
are stored in bfloat16 have 7."""
FINENESS = (64, 32)
"""Steps to the root mean square of a row, for matrices of inner levels where the shortest mantissa is too long: about
8 and 7 bits a weight."""
LARGEST = 60_000
"""Absolute values of weights are below."""


def check(model: HNetForCausalLM, stages: Sequence[int], max_bytes: int | None = None) -> None:
    """Raise UsageError for a model that a page cannot compute as far as the last of these stages, and for a longer text
    than it takes."""
    config, hint = model.config, "--format html draws the chunks of any model"
    for stage in range(stages[-1] + 1):
        if not config.chunkers[stage].learned:
            raise UsageError("a live page is for boundaries that are learned; this model cuts by a fixed rule", hint)
    if model.tokenizer is not None or config.vocab_size != 256:
        raise UsageError("a live page is for models that read bytes", hint)
    if config.ngram_rows:
        raise UsageError("a live page has no room for hashed n-grams", hint)
    widths = [*config.d_model[: stages[-1] + 1], config.ssm_cfg.d_state, config.ssm_cfg.headdim]
    levels = range(stages[-1] + 1)
    heads = [
        config.d_model[s] // config.attn_cfg.num_heads[s] for s in levels if "t" in config.levels[s].encoder.lower()
    ]
    if any(width % 4 for width in widths + heads):
        raise UsageError("a live page computes widths that are multiples of four", hint)
    if max_bytes and max_bytes > MOST_TEXT:
        raise UsageError(
            f"a live page takes at most {MOST_TEXT:,} bytes, not {max_bytes:,}", "--format html takes more"
        )
    if stages[-1] and config.smoothing != "chunks":
        raise UsageError(f"a live page cannot compute smoothing: {config.smoothing}", f"--stage 0, or {hint}")


def page(
    windows: Iterable[Window],
    model: HNetForCausalLM,
    stages: Sequence[int],
    modality: Modality | None,
    label: str,
    carried: bool = False,
) -> Iterator[str]:
    """The page, in one piece; the text of the windows, which are those of one document, is its example.

    Where the encoders of all `stages` are too large the outermost stands there alone. Raises UsageError where even
    that is too large.
    """
    text = b"".join(window.data for window in windows).decode("utf-8", "replace")
    records = bool(modality and modality.records)
    for last in dict.fromkeys((stages[-1], stages[0])):
        weights = weights_of(model, last + 1)
        setup = network_of(model, last + 1, modality, carried) | {
            "shapes": [[name, *weight.shape] for name, weight in weights.items()],
            "text": text,
            "stage": "all" if len(stages) > 1 else str(stages[0]),
            "most": MOST_TEXT,
            "records": records,
            "units": "bases" if records else "bytes",
            "program": base64.b64encode(html.program("kernels.wasm")).decode(),
        }
        number = sum(weight.numel() for weight in weights.values())
        context = {
            "setup": json.dumps(setup),
            "label": label,
            "about": modality.name if modality else "",
            "here": count(number),
            "stored": count(sum(parameter.numel() for parameter in model.parameters())),
            "left_out": stages[-1] - last,
            "units": setup["units"],
            "returns": "\r" in text,
        }
        room = MOST_BYTES - len(html.page("live.html", packed=["", False], **context).encode())
        if packed := pack(weights, room):
            yield html.page("live.html", packed=packed, **context)
            return
    raise UsageError(
        f"the encoders and routers of this model have {count(number)} weights, too many for a page of 1 MB",
        "take a smaller model, or --format html",
    )


def network_of(model: HNetForCausalLM, stages: int, modality: Modality | None, carried: bool = False) -> dict[str, Any]:
    """The facts that `network.js` needs of so many stages of a model, beside their weights."""
    config = model.config
    width, warmup = (0, 0) if carried else window_of(config)
    read = (modality.input_table if modality else None) or bytes(range(256))
    return {
        "levels": [_level(config, level) for level in range(stages)],
        "thresholds": [router.threshold for router in model.routers[:stages]],
        "bos": BOS,
        "table": list(read),
        "width": width,
        "warmup": warmup,
    }


def _level(config: HNetConfig, level: int) -> dict[str, Any]:
    attention, ssm = config.attn_cfg, config.ssm_cfg
    rotary = config.rotary[level] if config.rotary else Rotary()
    letters = config.levels[level].encoder
    return {
        "width": config.d_model[level],
        "letters": letters,
        "hidden": config.mlp_width(level) if letters != letters.lower() else 0,
        "characters": config.chunkers[level].kind == "characters",
        "ssm": {name: getattr(ssm, name) for name in ("d_state", "d_conv", "expand", "headdim")},
        "attention": {
            "heads": attention.num_heads[level],
            "window": attention.window_size[level],
            "turns": frequencies(attention.rotary_emb_dim[level], rotary).tolist(),
        },
    }


def weights_of(model: HNetForCausalLM, stages: int) -> dict[str, torch.Tensor]:
    """The weights that decide on the boundaries of so many stages, by the names of `network.js`; matrices are 2-D."""
    weights, prefix = {"0.embeddings.weight": model.embeddings.weight}, "backbone."
    state = model.state_dict()
    for level in range(stages):
        for name, weight in state.items():
            part = name.removeprefix(prefix)
            if part.startswith("encoder.") or part == "pad_dimension":
                weights[f"{level}.{part}"] = weight[:, 0].T.flatten() if weight.ndim == 3 else weight
        projections = (state[f"{prefix}routing_module.{name}_proj_layer.weight"] for name in "kq")
        weights[f"{level}.routing.weight"] = torch.cat(list(projections))
        prefix += "main_network."
    return {name: weight.detach().float().cpu() for name, weight in weights.items()}


def pack(weights: Mapping[str, torch.Tensor], room: int) -> tuple[str, bool] | None:
    """The weights in base 85, and whether matrices of inner levels are in steps; None where they need more than `room`
    bytes in every way.

    Under zlib stand the high bytes of all matrices in words, their low bytes, and the rest in single precision, with
    the steps (rows,) of a matrix at its place. The mantissa is shortened first, then inner levels lose precision: they
    have few positions, and most weights. Raises UsageError for a matrix that half precision cannot hold.
    """
    values = {name: weight.numpy() for name, weight in weights.items()}
    matrices = [name for name, weight in values.items() if weight.ndim == 2]
    if not all(np.abs(values[name]).max(initial=0) < LARGEST for name in matrices):
        raise UsageError(f"a weight of this model is beyond {LARGEST:,}, too large for a live page", "--format html")
    inner = [name for name in matrices if not name.startswith("0.")]
    for fineness, bits in [(0, bits) for bits in MANTISSA] + [(each, MANTISSA[-1]) for each in FINENESS if inner]:
        words, singles = [], []
        for name, weight in values.items():
            if fineness and name in inner:
                steps, whole = in_steps(weight, fineness)
                words.append(whole.ravel())
                singles.append(steps)
            elif name in matrices:
                words.append(rounded(weight, bits).ravel())
            else:
                singles.append(weight)
        plain = np.concatenate(words)
        planes = (plain >> 8).astype(np.uint8).tobytes() + (plain & 0xFF).astype(np.uint8).tobytes()
        rest = b"".join(single.astype("<f4").tobytes() for single in singles)
        # what little repeats does so by chance
        compressor = zlib.compressobj(9, strategy=zlib.Z_FILTERED)
        stream = compressor.compress(planes + rest) + compressor.flush()
        packed = base64.b85encode(stream).translate(LETTERS).decode()
        if len(packed) <= room:
            return packed, bool(fineness)
    return None


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Half precision (n,) uint16 of values (n,) float32, the mantissa rounded to so many bits, at most 10."""
    words = values.astype(np.float16).view(np.uint16)
    unit = 1 << (10 - bits)
    up = unit // 2 - 1 + (words // unit & 1) if unit > 1 else 0  # half to even
    return (words + up) // unit * unit


def in_steps(matrix: np.ndarray, fineness: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps (rows,) float32, each the root mean square of its row by `fineness`, and the number of steps of each value
    (rows, columns) uint16: 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..., so that high bytes are nearly all zero."""
    steps = np.sqrt(np.square(matrix).mean(1)) / np.float32(fineness)
    number = np.rint(matrix / np.maximum(steps, np.finfo(np.float32).tiny)[:, None]).astype(np.int32)
    return steps, ((number << 1) ^ (number >> 31)).astype(np.uint16)
