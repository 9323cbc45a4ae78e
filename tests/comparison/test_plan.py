"""The plan of a comparison: what holds in its folder, what is refused."""

import json
from dataclasses import replace

import pytest
from rowkit import rows_dataset

from hnet_cli.comparison.plan import ComparisonRequest, _scheduled, _timed, choose, write
from hnet_cli.config.run import resolve
from hnet_cli.data.loader import Windows
from hnet_cli.errors import DamagedError, InputError, UsageError


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bytes": 8192}, "--bytes 5120, not 8192"),
        ({"flops": 5e6}, r"no --flops, not 5e\+06"),
        ({"size": "small"}, "--size"),
        ({"settings": ["train.lr=1e-3"]}, "settings"),
        ({"minutes": 3}, "exclude each other"),
        ({"flops": float("inf")}, "must be a number"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(request_of, tmp_path, change, words):
    request = request_of(tmp_path, "learned,plain")
    write(choose(request), request)
    with pytest.raises(UsageError, match=words):
        choose(request_of(tmp_path, "learned,plain", **change))


def test_what_a_comparison_began_with_holds(arena, tmp_path, capsys):
    """An edited preset under the same name, settings that the comparison decides, a plan that is gone."""
    preset, folder = tmp_path / "mine.yaml", tmp_path / "c"
    preset.write_text((arena / "learned.yaml").read_text())
    request = ComparisonRequest(
        arena / "dataset", str(preset), bytes=5120, run=folder, device="cpu", settings=["train.seed=3"]
    )
    write(choose(request), request)
    assert "train.seed has no effect" in capsys.readouterr().err
    before = (folder / "members" / "mine.yaml").read_text()
    assert choose(request).runs[0].config.train.seed == 0  # the same again is no edit
    lr = resolve(str(preset)).train.lr
    preset.write_text(preset.read_text().replace(f"lr: {lr}", "lr: 0.5"))
    with pytest.raises(UsageError, match=rf"mine\.yaml is not .*train\.lr is 0\.5, not {lr}"):
        choose(request)
    assert choose(ComparisonRequest(run=folder, device="cpu")).members[0].config.train.lr == lr

    # stopped before plan.json was there: what the plan then says is what is kept
    (folder / "plan.json").unlink()
    write(choose(request), request)
    assert (folder / "members" / "mine.yaml").read_text() == before.replace(f"lr: {lr}", "lr: 0.5")
    (folder / "plan.json").write_text('{"format": 1, "bytes": 5120}')
    with pytest.raises(DamagedError, match="no plan of this version"):
        choose(request)
    (folder / "plan.json").unlink()
    (folder / "runs" / "mine-s0").mkdir(parents=True)
    (folder / "runs" / "mine-s0" / "config.yaml").touch()
    with pytest.raises(DamagedError, match="trainings but no plan"):
        choose(request)


def test_all_members_validate_on_the_same_bytes(request_of, tmp_path):
    plan = choose(request_of(tmp_path, "learned,plain"))
    longer = plan.members[1].with_train(sequence_length=128)
    members = _scheduled(replace(plan, members=[plan.members[0], longer]))
    keys = set()
    for member in members:
        train = member.config.train
        keys.add(Windows(plan.dataset, "val", train.eval_window, train.eval_bytes).key)
    assert len(keys) == 1
    assert {member.config.train.eval_window for member in members} == {plan.context}


def test_rows_of_prompt_and_completion_are_not_compared(tmp_path):
    request = ComparisonRequest(rows_dataset(tmp_path / "rows").path, "1stage", bytes=5120, device="cpu")
    with pytest.raises(InputError, match="rows of prompt and completion, which are not compared"):
        choose(request)


def test_a_plan_without_its_budgets_is_damaged(request_of, tmp_path):
    request = request_of(tmp_path, "learned,plain")
    write(choose(request), request)
    file = next(tmp_path.rglob("plan.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"asked": {"minutes": None}}))
    with pytest.raises(DamagedError, match=r"plan\.json is damaged: asked\.bytes"):
        choose(request)


def test_what_is_timed_has_no_router():
    """Whatever else the configuration asks of one."""
    asked = ["train.budgets=[0.5,1,2]", "train.frozen=[level0.routing_module]"]
    timed = _timed(resolve("1stage-nano", asked), 0.5)
    assert [chunker.k for chunker in timed.model.chunkers] == [6]
    assert timed.train.sequence_length == resolve("1stage-nano").train.sequence_length // 2
