"""Tiny runs for the tests of training, checkpoints and the command line: a model of 0.1M parameters, 64 bytes a row."""

import json
import os
import signal
from pathlib import Path

import torch

from hnet_cli import modality
from hnet_cli.checkpoints.find import newest
from hnet_cli.checkpoints.model_folder import load_folder
from hnet_cli.config.run import resolve
from hnet_cli.data.prepare import preparation

torch.set_num_threads(1)  # more threads only cost time at this size

SETTINGS = [
    "model.arch_layout=[m1, [T1], m1]",
    "model.d_model=[64, 64]",
    "model.d_intermediate=[0, 128]",
    "model.ssm_cfg={d_state: 16, headdim: 32}",
    "model.attn_cfg={num_heads: [2, 2], rotary_emb_dim: [16, 16], window_size: [-1, -1]}",
    "train.sequence_length=64",
    "train.batch_bytes=256",
    "train.target_ratios=[4]",
    "train.steps=12",
    "train.log_every=1",
    "train.eval_every=4",
    "train.eval_bytes=512",
    "train.checkpoint_every=4",
    "train.samples=false",
    "precision=fp32",
]
TWO_STAGES = [
    "model.arch_layout=[m1, [m1, [T1], m1], m1]",
    "model.d_model=[64, 64, 64]",
    "model.d_intermediate=[0, 0, 128]",
    "model.attn_cfg={num_heads: [2, 2, 2], rotary_emb_dim: [16, 16, 16], window_size: [-1, -1, -1]}",
    "train.target_ratios=[3, 2]",
    "train.lr_multipliers=auto",
]
FLAT = [
    "model.arch_layout=[m2]",
    "model.d_model=[64]",
    "model.d_intermediate=[0]",
    "model.attn_cfg={num_heads: [2], rotary_emb_dim: [16], window_size: [-1]}",
    "train.target_ratios=[]",
    "train.lr_multipliers=auto",
]


def tiny(*settings):
    """A tiny one-stage configuration, changed by `settings`."""
    return resolve("nano", [*SETTINGS, *settings])


def fox(folder: Path, lines=800):
    """A text that is quickly learned."""
    file = folder / "fox.txt"
    file.write_text("".join(f"The quick brown fox number {i} jumps over the lazy dog.\n" for i in range(lines)))
    return file


def dataset(folder: Path, *inputs, kind="text", **options):
    """A dataset of some files, by default of the fox."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = inputs or (fox(folder),)
    plugin = kind if isinstance(kind, modality.Modality) else modality.get(kind)
    preparation.prepare(inputs, plugin, folder / "dataset", measure=False, val=0.1, **options)
    return folder / "dataset"


def metrics(run: Path):
    """Records of a run without what depends on the clock. Fails for what is no strict JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{key: value for key, value in record.items() if key != "bytes_per_s"} for record in records]


def weights(run: Path):
    """The bytes of the newest checkpoint's model."""
    newest = (run / "latest").read_text().strip()
    return (run / "checkpoints" / newest / "model.safetensors").read_bytes()


def newest_model(run):
    """The model of a run's newest checkpoint that is whole."""
    return load_folder(newest(run))


def when(kind, step, action):
    """A listener that acts on one event."""

    def listen(heard, record):
        if (heard, record.get("step")) == (kind, step):
            action()

    return listen


def sending(name):
    """An action that sends this process a signal."""
    return lambda: os.kill(os.getpid(), signal.Signals[name])


TINY = """
extends: nano
model:
  arch_layout: [m1, [T1], m1]
  d_model: [64, 64]
  d_intermediate: [0, 128]
  ssm_cfg: { d_state: 16, headdim: 32 }
  attn_cfg: { num_heads: [2, 2], rotary_emb_dim: [16, 16], window_size: [-1, -1] }
train: { steps: 4, batch_bytes: 256, sequence_length: 64, target_ratios: [4], eval_bytes: 512, eval_every: 2,
         checkpoint_every: 2, log_every: 1 }
precision: fp32
"""
