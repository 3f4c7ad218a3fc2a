"""Reward models made of others, and functions of one's own."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweetspot.component import build, identity, key, to_config
from sweetspot.model import Model, load_tokenizer
from sweetspot.reward_model import Conversation, RewardModel
from sweetspot.reward_model.composed import Ensemble, EnsembleScorer, LengthPenalised
from sweetspot.reward_model.python_function import PythonFunction
from sweetspot.schema import REWARDS
from sweetspot.store import read_tile
from tests.test_reward_model import answered, classifier, pool, silent, tiny_scorer

torch = pytest.importorskip("torch")

from sweetspot.reward_model import worker  # noqa: E402 - needs torch

SHORTEST = PythonFunction(function="tests.tiny.shortest_wins")
ROWS = [Conversation([{"role": "user", "content": "Why?"}], "x" * n, None, n_tokens=2 * n) for n in (4, 7)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's on the Python path, named after nothing that was imported before."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_{tmp_path.name.replace('-', '_')}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / f"{name}.py"


def test_a_function_scores_one_conversation_at_a_time() -> None:
    found = SHORTEST.scorer()(ROWS, silent)
    assert found.rewards.tolist() == [6.0, 3.0] and found.heads is None


def test_an_edited_function_is_another_reward_model(own: Path) -> None:
    own.write_text("raise SystemExit('a key needs no code')\n")
    before = key(PythonFunction(function=f"{own.stem}.reward"))
    own.write_text("def reward(messages, response):\n    return 1.0\n")
    assert key(PythonFunction(function=f"{own.stem}.reward")) != before
    assert key(PythonFunction(function=f"{own.stem}.other")) != key(PythonFunction(function=f"{own.stem}.reward"))


def test_a_function_that_is_missing_or_gives_no_number_is_named(own: Path) -> None:
    own.write_text("def reward(messages, response):\n    return 'good'\n")
    with pytest.raises(ValueError, match=r"reward_model\.function: .*\.reward must give a float, got 'good'"):
        PythonFunction(function=f"{own.stem}.reward").scorer()(ROWS, silent)
    with pytest.raises(ValueError, match=r"reward_model\.function must be a function of .*, got 'other'"):
        PythonFunction(function=f"{own.stem}.other").scorer()
    for path in ("nowhere.reward", "nowhere.at_all.reward", "sys.exit"):
        with pytest.raises(ValueError, match=r"reward_model\.function must be in a module on the Python path, got "):
            key(PythonFunction(function=path))


def ensemble(members: dict[str, RewardModel], **changes: Any) -> Ensemble:
    return Ensemble(**{"members": members, "mean": None, "sd": None, "caution": 1.0, **changes})


def test_an_ensemble_is_the_mean_less_the_spread_of_standardised_members() -> None:
    members: dict[str, RewardModel] = {"a": SHORTEST, "b": LengthPenalised(reward_model=SHORTEST, slope=0.5)}
    found = ensemble(members).scorer()(ROWS, silent)
    assert found.heads is not None and found.heads.tolist() == [[6.0, 2.0], [3.0, -4.0]]
    assert found.rewards.tolist() == [4.0 - 2.0, -0.5 - 3.5]  # sd of two values is half their distance
    moved = ensemble(members, mean={"a": 4.0, "b": 0.0}, sd={"a": 2.0, "b": 4.0}, caution=2.0)
    found = moved.scorer()(ROWS, silent)  # standardised: 1 and 0.5; -0.5 and -1
    assert found.rewards.tolist() == [0.75 - 2 * 0.25, -0.75 - 2 * 0.25]
    assert found.heads is not None and found.heads.tolist() == [[6.0, 2.0], [3.0, -4.0]]


def test_a_reward_of_an_ensemble_depends_on_no_other_conversation(tiny_reward: Path, tiny_armorm: Path) -> None:
    from tests.test_armorm import armorm

    scorer = ensemble({"plain": classifier(tiny_reward), "gated": armorm(tiny_armorm)}).scorer()
    conversations = answered(9)
    together = scorer(conversations, silent)
    alone = np.array([scorer([each], silent).rewards[0] for each in conversations])
    np.testing.assert_allclose(together.rewards, alone, atol=2e-5)
    assert together.heads is not None
    gated = armorm(tiny_armorm).scorer()(conversations, silent)
    np.testing.assert_allclose(together.heads[:, 0], gated.rewards, atol=2e-5)  # in the order of the names


def test_a_price_for_length_counts_the_sampled_tokens_and_keeps_the_heads(tiny_armorm: Path) -> None:
    from tests.test_armorm import armorm

    free = armorm(tiny_armorm).scorer()(ROWS, silent)
    priced = LengthPenalised(reward_model=armorm(tiny_armorm), slope=0.25).scorer()(ROWS, silent)
    np.testing.assert_allclose(priced.rewards, free.rewards - [2.0, 3.5], atol=1e-5)
    assert free.heads is not None and priced.heads is not None
    np.testing.assert_array_equal(priced.heads, free.heads)
    with pytest.raises(ValueError, match="n_tokens"):
        LengthPenalised(reward_model=SHORTEST, slope=0.25).scorer()([replace(ROWS[0], n_tokens=None)], silent)


def test_sampled_ids_reach_the_members_that_read_them(tiny_model: Model) -> None:
    embedded, function = tiny_scorer(tiny_model), SHORTEST.scorer()
    both = EnsembleScorer([function, embedded], np.zeros(2), np.ones(2), 0.0)
    assert both.tokenizer is embedded.tokenizer
    letters = [load_tokenizer(tiny_model).convert_tokens_to_ids(letter) for letter in "rain"]
    row = Conversation([{"role": "user", "content": "Hi"}], "rain", [*letters, 2])
    found = both([row], silent)
    assert found.heads is not None
    assert found.heads[0, 1] == pytest.approx(embedded([row], silent).rewards[0], abs=1e-5)
    assert found.heads[0, 1] != pytest.approx(embedded([replace(row, token_ids=None)], silent).rewards[0], abs=1e-3)


def test_a_made_reward_model_travels_as_plain_config_and_its_key_is_that_of_its_parts() -> None:
    whole = ensemble({"a": SHORTEST, "b": LengthPenalised(reward_model=SHORTEST, slope=0.5)})
    assert build(to_config(whole)) == whole
    assert identity(whole)["members"]["b"]["reward_model"] == identity(SHORTEST)
    assert key(whole) != key(replace(whole, caution=2.0))
    assert key(whole) != key(ensemble({"a": SHORTEST, "c": LengthPenalised(reward_model=SHORTEST, slope=0.5)}))


def test_a_tile_without_samples_has_no_rewards(tiny_reward: Path, tiny_armorm: Path, tiny_model: Model) -> None:
    from tests.test_armorm import armorm

    made = [SHORTEST, classifier(tiny_reward), armorm(tiny_armorm), LengthPenalised(reward_model=SHORTEST, slope=1.0)]
    made.append(ensemble({"a": SHORTEST, "b": armorm(tiny_armorm)}))
    for scorer in (*(each.scorer() for each in made), tiny_scorer(tiny_model)):
        scores = scorer([], silent)
        assert scores.rewards.shape == (0,) and worker.rewards_table([], scores).num_rows == 0


def nan_for_the_second(messages: list[dict[str, str]], response: str) -> float:
    del messages
    return float("nan") if "patience" in response and "hunting" not in response else 1.0


@pytest.mark.parametrize("kind", ["function", "ensemble", "length_penalised"])
def test_a_nan_for_one_response_names_it_and_leaves_what_was_complete(
    kind: str, tiny_model: Model, tmp_path: Path
) -> None:
    function = PythonFunction(function=f"{__name__}.nan_for_the_second")
    made: dict[str, RewardModel] = {
        "function": function,
        "ensemble": ensemble({"a": SHORTEST, "b": function}),
        "length_penalised": LengthPenalised(reward_model=function, slope=0.1),
    }
    prompts, tiles = pool(tiny_model, tmp_path)
    job: dict[str, Any] = {"model": to_config(tiny_model), "probe": None, "prompts": str(prompts), "lease_seconds": 60}
    worker.main({**job, "reward_model": to_config(SHORTEST), "tiles": tiles[:1]}, silent)
    before = Path(tiles[0]["rewards"]).read_bytes()
    with pytest.raises(ValueError, match=r"must be finite, got .*nan.* for prompt_id [0-9a-f]{16}, sample_index 1"):
        worker.main({**job, "reward_model": to_config(made[kind]), "tiles": tiles}, silent)
    assert Path(tiles[0]["rewards"]).read_bytes() == before and not Path(tiles[1]["rewards"]).exists()
    assert read_tile(Path(tiles[0]["rewards"]), REWARDS)[0].num_rows == 3


@pytest.mark.parametrize("kind", ["classifier", "armorm"])
def test_weights_that_make_a_nan_of_one_response_leave_the_others_alone(
    kind: str, tiny_reward: Path, tiny_armorm: Path, tiny_model: Model
) -> None:
    from tests.test_armorm import armorm

    scorer: Any = (classifier(tiny_reward) if kind == "classifier" else armorm(tiny_armorm)).scorer()
    conversations = answered(9)
    clean = scorer(conversations, silent).rewards
    (broken,) = load_tokenizer(tiny_model)("~")["input_ids"]
    with torch.no_grad():
        scorer.network.model.embed_tokens.weight[broken] = float("nan")
    marked = [*conversations[:4], replace(conversations[4], response="a ~ b"), *conversations[5:]]
    found = scorer(marked, silent).rewards
    assert np.isnan(found[4]) and np.isfinite(np.delete(found, 4)).all()
    np.testing.assert_allclose(np.delete(found, 4), np.delete(clean, 4), atol=1e-5)
    rows = [{"prompt_id": "aa", "sample_index": number} for number in range(9)]
    with pytest.raises(ValueError, match="prompt_id aa, sample_index 4"):
        worker.rewards_table(rows, scorer(marked, silent))
