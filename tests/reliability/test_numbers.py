"""Values that are not finite do no harm and are reported (R20), and so are runs that go wrong (R21)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALLER
from forms import trials
from runkit import TWO_STAGES, metrics, tiny

from hnet_cli.checkpoints.model_folder import load_folder
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.data.mixture import Mixture
from hnet_cli.errors import NumericalError
from hnet_cli.model import HNetForCausalLM
from hnet_cli.terminal.process import Stop
from hnet_cli.training.events import EventLog
from hnet_cli.training.loop import _Trainer

STEPS = 6
Act = Callable[[HNetForCausalLM], None]


class Run:
    """A run to interfere with: `before[step]` is called with the model before that step is computed."""

    def __init__(self, folder: Path, data: Path, *settings: str) -> None:
        self.folder, self.warnings, self.before = folder, list[dict[str, Any]](), dict[int, Act]()
        folder.mkdir(parents=True)
        config = tiny(*SMALLER, "train.checkpoint_every=1", "train.keep_checkpoints=9", *settings)
        events = EventLog(folder, self.listen)
        self.trainer = _Trainer(config, Mixture.open(str(data)), folder, torch.device("cpu"), events, Stop())
        self.states = [self.state()]
        """Weights and moments after each step."""
        self.trainer.model.register_forward_pre_hook(lambda *_: self.interfere())

    def listen(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "warning":
            self.warnings.append(record)
        if kind == "step":
            self.states.append(self.state())

    def interfere(self) -> None:
        model = self.trainer.model
        if model.training and (act := self.before.pop(self.trainer.state.step + 1, None)):
            act(model)

    def state(self) -> dict[str, bytes]:
        values = dict(self.trainer.model.state_dict())
        for i, moments in enumerate(self.trainer.optimizer.state.values()):
            values |= {f"{i} {key}": value for key, value in moments.items()}
        return {name: value.numpy().tobytes() for name, value in values.items()}

    def go(self) -> None:
        self.trainer.go(False)


def scale_logits(factor: float) -> Act:
    """Multiply the logits of the next pass."""

    def act(model: HNetForCausalLM) -> None:
        hooks = [model.lm_head.register_forward_hook(lambda _, __, out: hooks.pop().remove() or out * factor)]

    return act


def poison_gradient(value: float, random: np.random.Generator) -> Act:
    """Put `value` into one element of one gradient of the next step."""

    def act(model: HNetForCausalLM) -> None:
        parameters = list(model.parameters())
        parameter = parameters[random.integers(len(parameters))]
        place = int(random.integers(parameter.numel()))

        def spoil(gradient: torch.Tensor) -> torch.Tensor:
            hooks.pop().remove()
            spoilt = gradient.clone()
            spoilt.view(-1)[place] = value
            return spoilt

        hooks = [parameter.register_hook(spoil)]

    return act


def poison(trial: int, value: float, random: np.random.Generator) -> Act:
    """Put `value` into the loss in even trials, into a gradient in odd ones."""
    return poison_gradient(value, random) if trial % 2 else scale_logits(value)


def finite(folder: Path) -> bool:
    """Return True if all weights of a checkpoint are finite."""
    return all(bool(torch.isfinite(parameter).all()) for parameter in load_folder(folder).parameters())


def test_r20_a_step_that_is_not_finite_changes_nothing(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "NaN or infinity put into the loss or one element of one gradient")
    random = np.random.default_rng(20)
    for trial in range(trials(4, 60, 300)):
        value, step = (np.nan, np.inf, -np.inf)[trial // 2 % 3], int(random.integers(2, STEPS))
        settings = (f"train.steps={STEPS}", "train.eval_every=0", "train.checkpoint_every=100")
        run = Run(tmp_path / f"{trial}", data, *settings)
        run.before[step] = poison(trial, value, random)
        run.go()
        train = run.trainer.config.train
        batches = Batches(Dataset.open(data), sequence_length=train.sequence_length, rows=train.rows, seed=train.seed)
        records = [(r["step"], r["event"], r["documents"]) for r in metrics(run.folder) if "skipped" in r]
        good = records == [(step, "skipped", sorted(set(batches.batch(step - 1).documents.tolist())))]
        same = [before == after for before, after in zip(run.states[:-1], run.states[1:], strict=True)]
        good = good and same == [at == step for at in range(1, STEPS + 1)]
        values = (np.frombuffer(value, np.float32) for state in run.states for value in state.values())
        good = good and all(np.isfinite(value).all() for value in values)
        done.count(good, f"trial {trial}, {value} at step {step}: {records}, unchanged steps {same}")


def test_r20_three_in_a_row_end_the_run_with_exit_5(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "three steps in a row that are not finite: exit 5, the last good checkpoint named")
    random = np.random.default_rng(21)
    for trial in range(trials(3, 20, 60)):
        step = int(random.integers(1, STEPS))
        run = Run(tmp_path / f"{trial}", data, "train.eval_every=0")
        run.before |= {step + i: poison(trial, np.nan, random) for i in range(3)}
        with pytest.raises(NumericalError) as error:
            run.go()
        saved = run.folder / "checkpoints" / f"step-{step + 2:08d}"
        proven = run.folder / "checkpoints" / f"step-{step - 2:08d}"  # the step after it was finite
        known = f"the last good checkpoint is {proven}" if step > 2 else "no earlier checkpoint is known to be good"
        kept = f"saved in {saved}" if step > 1 else "no step since the start had one"
        good = error.value.exit_code == 5 and f"{kept}; {known}" in str(error.value)
        good = good and run.states[step - 1] == run.states[-1] and (step == 1 or finite(saved)) == saved.exists()
        done.count(good, f"from step {step}: {error.value}")


def test_r20_weights_that_are_not_finite_reach_no_checkpoint(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "weights or moments that overflow are never saved")

    def overflow(model: HNetForCausalLM) -> None:
        with torch.no_grad():
            model.embeddings.weight[0] = torch.inf  # the byte 0 never comes, so the loss stays finite

    for trial in range(trials(1, 3, 10)):
        run = Run(tmp_path / f"{trial}", data)
        run.before[4] = overflow
        with pytest.raises(NumericalError, match="after step 4 the weights") as error:
            run.go()
        saved = sorted((run.folder / "checkpoints").iterdir())
        good = all(map(finite, saved)) and len(saved) == 3
        done.count(good and f"the last good checkpoint is {saved[-1]}" in str(error.value), str(error.value))


def test_r20_what_is_not_finite_never_stands_in_the_records(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "records of a run with skipped steps are strict JSON")
    run = Run(tmp_path / "run", data, f"train.steps={STEPS}", "train.eval_every=3", "train.samples=true")
    run.before[3] = scale_logits(np.nan)
    run.go()
    for file in ("metrics.jsonl", "samples.jsonl"):
        for line in (run.folder / file).read_text().splitlines():
            done.count("NaN" not in line and "Infinity" not in line and bool(json.loads(line)), line[:200])


def test_r21_ordinary_runs_warn_of_nothing(tally: Any, data: Path, tmp_path: Path) -> None:
    """Except of undecided routers, for that is true: of one sentence over and over nothing is worth a chunk, and after
    500 steps 0.9 of their probabilities are near a half."""
    done = tally("R21", "false alarms in ordinary runs, counted in steps")
    steps = trials(50, 1000, 5000)
    rare = ("train.checkpoint_every=100000", "train.eval_every=0", "train.log_every=10", "train.lr=4e-3")
    two = (*TWO_STAGES, "model.ssm_cfg={d_state: 16, headdim: 32}")
    for name, settings in (("one", ()), ("two", two)):
        run = Run(tmp_path / name, data, *settings, f"train.steps={steps}", *rare)
        run.trainer.listen = lambda kind, record, run=run: run.warnings.append(record) if kind == "warning" else None
        run.go()
        for step in range(1, steps + 1):
            messages = [r["message"] for r in run.warnings if r.get("step") == step and r["event"] != "undecided"]
            done.count(not messages, f"{name} stage(s), {messages}")


def test_r21_a_spike_and_a_collapse_are_reported_within_fifty_steps(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R21", "a spike and a collapse put into a run")

    def everywhere(model: HNetForCausalLM) -> None:
        model.backbone.routing_module.register_forward_hook(lambda _, __, out: _all_boundaries(out))

    def _all_boundaries(out: Any) -> Any:
        out.boundary_prob = out.boundary_prob.clamp(min=0.9)
        out.boundary_mask = out.boundary_prob > 0.5
        return out

    rare = ("train.checkpoint_every=1000", "train.eval_every=0", "train.log_every=1000")
    quiet = ("train.lr=1e-5", "train.ratio_loss_weight=0", "train.alignment_loss_weight=0")
    for trial in range(trials(1, 5, 20)):
        run = Run(tmp_path / f"{trial}", data, "train.steps=106", f"train.seed={trial}", *rare, *quiet)
        run.before |= {52: scale_logits(100), 55: everywhere}
        run.go()
        events = [(r["step"], r["event"]) for r in metrics(run.folder) if "event" in r]
        messages = [(r["step"], r["event"]) for r in run.warnings]
        done.count(events == messages == [(52, "spike"), (104, "collapse")], f"{events}, messages {messages}")
