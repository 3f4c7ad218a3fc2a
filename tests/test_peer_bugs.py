"""The silent data bugs that were read in other projects, and the tests here that would have found them."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUGS = {
    "a double BOS when templated text is tokenised again": [
        "test_model.py::test_prompt_ids_are_those_of_the_chat_template_with_exactly_one_bos",
        "test_model.py::test_the_doctor_finds_a_double_bos",
        "test_reward_model.py::test_a_template_that_doubles_the_bos_is_refused",
    ],
    "sampled, scored and trained ids differ": [
        "test_trainer.py::test_a_batch_holds_exactly_the_prompt_ids_and_the_sampled_ids_end_of_turn_included",
        "test_reward_model.py::test_what_was_sampled_is_what_is_scored_end_of_turn_included",
    ],
    "seeds that overlap between prompts or top-ups": [
        "test_sampler.py::test_seeds_of_different_prompts_and_samples_never_overlap",
        "test_sampler.py::test_a_sample_does_not_depend_on_how_the_pool_is_cut",
    ],
    "integer division drops the tail of the data": [
        "test_tile.py::test_the_tiles_cover_every_sample_of_every_prompt_once"
    ],
    "filter, then zip: rows misaligned": [
        "test_stages.py::test_pairs_join_their_own_responses_with_an_over_long_prompt_in_between"
    ],
    "a preference that is not mirrored when the order is swapped": [
        "test_eval.py::test_a_preference_is_1_0_or_a_half_and_both_orders_mirror"
    ],
    "the wrong file overwritten": ["test_store.py::test_the_first_writer_wins_and_leaves_no_scratch_file"],
    "scores depend on the batch": [
        "test_reward_model.py::test_classifier_rewards_do_not_depend_on_batch_order_or_padding",
        "test_reward_model.py::test_embedded_rewards_are_the_same_in_batches_of_1_to_17_and_in_any_order",
        "test_decoder.py::test_the_self_test_refuses_a_reward_that_depends_on_its_batch_naming_both_values",
    ],
    "an argument that is ignored": ["test_sampler.py::test_every_setting_changes_the_samples"],
    "a stale or unused cache of reference log-probabilities": [
        "test_stages.py::test_reference_rows_are_stale_when_model_template_or_pool_change",
        "test_run.py::test_the_same_command_makes_nothing",
    ],
    "ties broken by an unseeded draw": [
        "test_strategy.py::*tie*",
        "test_run.py::test_a_run_killed_at_20_random_moments_ends_in_the_same_bytes",
    ],
    "ArmoRM loaded as another class, or with a template that hides its gate": [
        "test_armorm.py::test_other_weights_are_refused_and_armorm_is_no_plain_classifier",
        "test_armorm.py::test_a_template_without_the_opening_of_an_answer_is_named",
    ],
    "a classifier of another kind scored as if it had one logit": [
        "test_reward_model.py::test_a_classifier_that_cannot_give_one_trained_reward_is_refused"
    ],
}


@pytest.mark.parametrize("bug", BUGS)
def test_each_bug_has_the_tests_that_are_named_for_it(bug: str) -> None:
    for place in BUGS[bug]:
        file, name = place.split("::")
        tree = ast.parse((HERE / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in names or any(name.strip("*") in each for each in names if "*" in name), place
