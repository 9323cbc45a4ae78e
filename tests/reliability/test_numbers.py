"""Numbers that go wrong do no harm and are told (R20, R21); every way to compute the same gives the same (R24)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forms import trials
from modelkit import tiny_config, tiny_model, worst
from runkit import TWO_STAGES, dataset, metrics, tiny

from hnet_cli.checkpoints.find import load
from hnet_cli.checkpoints.model_folder import load_folder
from hnet_cli.data.dataset import Dataset
from hnet_cli.data.loader import Batches
from hnet_cli.errors import NumericalError
from hnet_cli.model import HNetForCausalLM
from hnet_cli.terminal.process import Stop
from hnet_cli.training.events import EventLog
from hnet_cli.training.loop import _Trainer

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("fox"))


class Run:
    """A run that can be interfered with: `before[step]` is called with the model before that step is computed."""

    def __init__(self, folder: Path, data: Path, *settings: str) -> None:
        self.folder, self.said = folder, list[dict[str, Any]]()
        folder.mkdir(parents=True)
        config = tiny("train.checkpoint_every=1", "train.keep_checkpoints=9", *settings)
        events = EventLog(folder, self.listen)
        self.trainer = _Trainer(config, Dataset.open(data), folder, torch.device("cpu"), events, Stop())
        self.model = self.trainer.model
        self.before: dict[int, Any] = {}
        self.states = [self.state()]
        """Weights and moments after each step."""
        self.model.register_forward_pre_hook(lambda *_: self.interfere())

    def listen(self, kind: str, record: dict[str, Any]) -> None:
        if kind == "warning":
            self.said.append(record)
        if kind == "step":
            self.states.append(self.state())

    def interfere(self) -> None:
        if self.model.training and (act := self.before.pop(self.trainer.state.step + 1, None)):
            act(self.model)

    def state(self) -> dict[str, bytes]:
        found = {name: value.numpy().tobytes() for name, value in self.model.state_dict().items()}
        for i, values in enumerate(self.trainer.optimizer.state.values()):
            found |= {f"{i} {key}": value.numpy().tobytes() for key, value in values.items()}
        return found

    def go(self) -> None:
        self.trainer.go(False)


def poison(kind: str, value: float, random: np.random.Generator) -> Any:
    """Puts `value` into the loss, or into one element of one gradient, of the next step."""

    def act(model: HNetForCausalLM) -> None:
        if kind == "loss":
            module = model.lm_head
            hooks = [module.register_forward_hook(lambda _, __, out: hooks.pop().remove() or out * value)]
            return
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


def test_r20_a_step_that_is_not_finite_changes_nothing(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "NaN or infinity put into the loss or one element of one gradient")
    random = np.random.default_rng(20)
    for trial in range(trials(4, 60, 300)):
        kind, value = ("loss", "gradient")[trial % 2], (np.nan, np.inf, -np.inf)[trial // 2 % 3]
        step = int(random.integers(2, STEPS))
        run = Run(tmp_path / f"{trial}", data, f"train.steps={STEPS}", "train.eval_every=0")
        run.before[step] = poison(kind, value, random)
        run.go()
        skipped = [record for record in metrics(run.folder) if "skipped" in record]
        train = run.trainer.config.train
        batches = Batches(Dataset.open(data), sequence_length=train.sequence_length, rows=train.rows, seed=train.seed)
        told = [(r["step"], r["event"], r["documents"]) for r in skipped]
        wanted = [(step, "skipped", sorted(set(batches.batch(step - 1).documents.tolist())))]
        same = [before == after for before, after in zip(run.states[:-1], run.states[1:], strict=True)]
        finite = all(
            np.isfinite(np.frombuffer(value, np.float32)).all() for state in run.states for value in state.values()
        )
        good = told == wanted and same == [at == step for at in range(1, STEPS + 1)] and finite
        done.count(good, f"{kind} {value} at step {step}: {told}, unchanged steps {same}, finite {finite}")


def test_r20_three_in_a_row_end_the_run_with_exit_5(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "three steps in a row that are not finite: exit 5, the last good checkpoint named")
    random = np.random.default_rng(21)
    for trial in range(trials(3, 20, 60)):
        step = int(random.integers(1, STEPS))
        run = Run(tmp_path / f"{trial}", data, "train.eval_every=0")
        run.before |= {step + i: poison(("loss", "gradient")[trial % 2], np.nan, random) for i in range(3)}
        with pytest.raises(NumericalError) as error:
            run.go()
        saved = run.folder / "checkpoints" / f"step-{step + 2:08d}"
        proven = run.folder / "checkpoints" / f"step-{step - 2:08d}"  # the step after it was finite
        known = f"the last good checkpoint is {proven}" if step > 2 else "no earlier checkpoint is known to be good"
        good = error.value.exit_code == 5 and f"saved in {saved}; {known}" in str(error.value)
        good &= run.states[step - 1] == run.states[-1]
        finite = all(torch.isfinite(p).all() for p in load_folder(saved).parameters())
        done.count(good and finite, f"from step {step}: {error.value}")


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
        finite = all(torch.isfinite(p).all() for folder in saved for p in load_folder(folder).parameters())
        good = finite and len(saved) == 3 and f"the last good checkpoint is {saved[-1]}" in str(error.value)
        done.count(good, str(error.value))


def test_r21_ordinary_runs_warn_of_nothing(tally: Any, data: Path, tmp_path: Path) -> None:
    """But of routers that do not decide, for that is true: of one sentence over and over nothing is worth a chunk, and
    after 500 steps 0.9 of their probabilities are near a half."""
    done = tally("R21", "false alarms in ordinary runs, counted in steps")
    steps = trials(50, 1000, 5000)
    for name, settings in {"one": [], "two": TWO_STAGES}.items():
        run = Run(tmp_path / name, data, *settings, f"train.steps={steps}", "train.checkpoint_every=100000",
                  "train.eval_every=0", "train.log_every=10", "train.lr=4e-3")  # fmt: skip
        run.trainer.listen = lambda kind, record, run=run: run.said.append(record) if kind == "warning" else None
        run.go()
        for step in range(1, steps + 1):
            told = [r["message"] for r in run.said if r.get("step") == step and r["event"] != "undecided"]
            done.count(not told, f"{name} stage(s), {told}")


def test_r21_a_spike_and_a_collapse_are_told_within_fifty_steps(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R21", "a spike and a collapse put into a run")

    def loud(model: HNetForCausalLM) -> None:
        hooks = [model.lm_head.register_forward_hook(lambda _, __, out: hooks.pop().remove() or out * 100)]

    def everywhere(model: HNetForCausalLM) -> None:
        model.backbone.routing_module.register_forward_hook(lambda _, __, out: _all_boundaries(out))

    def _all_boundaries(out: Any) -> Any:
        out.boundary_prob = out.boundary_prob.clamp(min=0.9)
        out.boundary_mask = out.boundary_prob > 0.5
        return out

    for trial in range(trials(1, 5, 20)):
        run = Run(tmp_path / f"{trial}", data, "train.steps=130", "train.checkpoint_every=1000", "train.eval_every=0",
                  f"train.seed={trial}", "train.log_every=1000", "train.lr=1e-5",
                  "train.ratio_loss_weight=0", "train.alignment_loss_weight=0")  # fmt: skip
        run.before |= {65: loud, 75: everywhere}
        run.go()
        told = [(r["step"], r["event"]) for r in metrics(run.folder) if "event" in r]
        said = [(r["step"], r["event"]) for r in run.said]
        done.count(told == said == [(65, "spike"), (124, "collapse")], f"{told}, said {said}")


# -- R24: one function, computed in many ways --------------------------------------------------------------------------

TWO = tiny_config(window=64)


def models() -> dict[str, HNetForCausalLM]:
    return {"one stage, trained": load("starter:text"), "two stages": tiny_model(torch.float32, config=TWO)}


def texts(total: int, seed: int) -> list[torch.Tensor]:
    """Excerpts of the bundled text of very different lengths, `total` bytes in all."""
    whole = (Path(__file__).parents[2] / "hnet_cli/starters/quickstart.txt").read_bytes()
    random = np.random.default_rng(seed)
    shares = (0.4, 0.3, 0.17, 0.1, 0.03)
    at = random.integers(0, len(whole) - total, len(shares))
    return [torch.tensor(list(b"\xfe" + whole[a : a + int(total * s)])) for a, s in zip(at, shares, strict=True)]


@torch.no_grad()
def packed(model: HNetForCausalLM, documents: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Logits of each document in one packed pass, and per document at how many stages a chunk begins at each byte."""
    lengths = [len(document) for document in documents]
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    out = model(torch.cat(documents), cu_seqlens=offsets)
    depth, at = torch.zeros(len(torch.cat(documents)), dtype=torch.int64), torch.arange(sum(lengths))
    for stage in out.routing:
        at = at[stage.boundary_mask]
        depth[at] += 1
    return list(out.logits.split(lengths)), [each.tolist() for each in depth.split(lengths)]


def difference(logits: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference as a share of the largest logit: logits of trained models reach 20, where float32 itself
    rounds by 1e-6."""
    return worst(logits, right) / float(right.abs().max())


@pytest.mark.parametrize("name", ["one stage, trained", "two stages"])
def test_r24_steps_equal_the_parallel_pass(tally: Any, name: str) -> None:
    """In float32 as a share of the largest logit, in float64 as they are; and how far the pass itself is from what it
    is in float64, which is what no way of summation can be blamed for."""
    done = tally("R24", "prefill and steps against the parallel pass, ragged rows, bytes compared", name)
    model, far = models()[name], dict[str, float]()

    def note(what: str, value: float) -> None:
        far[what] = max(far.get(what, 0.0), value)

    for seed in range(trials(1, 1, 5)):
        documents = texts(trials(400, 10_000, 10_000), seed)
        passes = {}
        for dtype in (torch.float32, torch.float64):
            passes[dtype], depths = packed(model.to(dtype), documents)
            for row, byte, logits, found in stepped(model, documents):
                wanted = passes[dtype][row][byte]
                off, share = worst(logits, wanted), difference(logits, wanted)
                good = share <= 1e-5 if dtype == torch.float32 else off <= 1e-10
                done.count(good, f"{dtype}, document {row}, byte {byte}: logits differ by {off:.1e}")
                note(f"{str(dtype)[6:]} apart", off)
                if dtype == torch.float32:
                    note("as a share", share)
                if found is not None:
                    right = depths[row][byte]
                    done.count(found == right, f"document {row}, byte {byte}: {found} chunks begin, not {right}")
        for ours, exact in zip(passes[torch.float32], passes[torch.float64], strict=True):
            note("float32 pass from float64", worst(ours, exact))
            note("largest logit", float(exact.abs().max()))
    done.figures |= {what: f"{value:.1e}" if value < 1 else round(value) for what, value in far.items()}


def stepped(
    model: HNetForCausalLM, documents: list[torch.Tensor]
) -> Iterator[tuple[int, int, torch.Tensor, int | None]]:
    """(document, byte, logits there, at how many stages a chunk begins there) from the end of a prompt of a tenth on,
    all documents beside each other until the last one ends; chunks are known of bytes that are stepped over."""
    prompts = [max(1, len(document) // 10) for document in documents]
    state = model.allocate_state(len(documents), max(map(len, documents)))
    logits = model.prefill([d[:n] for d, n in zip(documents, prompts, strict=True)], state)
    rows, found = list(range(len(documents))), [None] * len(documents)
    for t in range(max(map(len, documents))):
        for i, row in enumerate(rows):
            yield row, prompts[row] + t - 1, logits[i], found[i]
        going = [i for i, row in enumerate(rows) if prompts[row] + t < len(documents[row])]
        if not going:
            return
        if len(going) < len(rows):
            state.select(going)
            rows = [rows[i] for i in going]
        logits, routing = model.step(torch.stack([documents[row][prompts[row] + t] for row in rows]), state)
        found = torch.stack([stage.boundary_mask for stage in routing]).sum(0).tolist()


@pytest.mark.parametrize("name", ["one stage, trained", "two stages"])
def test_r24_a_prompt_may_be_cut_at_every_byte(tally: Any, name: str) -> None:
    done = tally("R24", "prompts cut at every byte of a document, then steps", name)
    model = models()[name]
    document = texts(trials(250, 1000, 1000), 7)[0]
    (wanted,), _ = packed(model, [document])
    cuts = list(range(1, len(document) - 3))
    state = model.allocate_state(len(cuts), len(document))
    logits = model.prefill([document[:cut] for cut in cuts], state)
    for ahead in range(4):
        for row, cut in enumerate(cuts):
            off = difference(logits[row], wanted[cut + ahead - 1])
            done.count(off <= 1e-5, f"cut at {cut}, {ahead} bytes later: logits differ by {off:.1e}")
        if ahead < 3:
            logits, _ = model.step(torch.stack([document[cut + ahead] for cut in cuts]), state)


@pytest.mark.parametrize("name", ["one stage, trained", "two stages"])
def test_r24_neighbours_in_a_pack_change_nothing(tally: Any, name: str) -> None:
    done = tally("R24", "documents packed with strangers against each alone", name)
    model, random, largest = models()[name], np.random.default_rng(3), dict[torch.dtype, float]()
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model.to(dtype)
        for trial in range(trials(2, 40, 200)):
            documents = texts(int(random.integers(200, 3000)), trial)
            order = random.permutation(len(documents)).tolist()
            together, depths = packed(model, [documents[i] for i in order])
            for i, logits, depth in zip(order, together, depths, strict=True):
                (alone,), (own,) = packed(model, [documents[i]])
                off = difference(logits, alone)
                largest[dtype] = max(largest.get(dtype, 0), off)
                done.count(off <= limit and depth == own, f"{dtype}, trial {trial}, document {i}: {off:.1e}")
    done.figures |= {f"difference in {str(dtype)[6:]}": f"{value:.1e}" for dtype, value in largest.items()}


def test_r20_what_is_not_finite_never_stands_in_the_records(tally: Any, data: Path, tmp_path: Path) -> None:
    done = tally("R20", "records of a run with skipped steps are strict JSON")
    run = Run(tmp_path / "run", data, f"train.steps={STEPS}", "train.eval_every=3", "train.samples=true")
    run.before[3] = poison("loss", np.nan, np.random.default_rng(0))
    run.go()
    for file in ("metrics.jsonl", "samples.jsonl"):
        for line in (run.folder / file).read_text().splitlines():
            done.count("NaN" not in line and "Infinity" not in line and bool(json.loads(line)), line[:200])
