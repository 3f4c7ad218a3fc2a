"""The start-up self-test: a reward must not depend on what else is scored with it."""

from typing import TypeVar

from sweetspot.reward_model import Conversation, Scorer

Checked = TypeVar("Checked", bound=Scorer)
TOLERANCE = {
    "float32": 1e-4,  # sums in another order move the seventh digit
    "bfloat16": 5e-2,  # 8 significant bits: one rounding is 0.4%, and layers add theirs up
}
KNOWN = Conversation([{"role": "user", "content": "Name one colour of the rainbow."}], "Green.", None)
LONGER = Conversation(
    [{"role": "user", "content": "Tell me of a garden in spring."}],
    "The first warm days bring the bees back, the beds are raked, and by noon the whole street smells of earth. " * 8,
    None,
)


def checked(scorer: Checked, dtype: str) -> Checked:
    """The scorer, after it gave a known conversation the same reward alone and beside a much longer one.

    The two may differ by TOLERANCE of the dtype, relative to the larger of 1 and the reward alone.

    Raises:
        RuntimeError: when they differ by more, naming both.
    """
    alone = float(scorer([KNOWN], _silent).rewards[0])
    together = float(scorer([KNOWN, LONGER, KNOWN], _silent).rewards[0])
    allowed = TOLERANCE[dtype] * max(1.0, abs(alone))
    if not abs(alone - together) <= allowed:  # a NaN is refused too
        raise RuntimeError(
            f"reward_model: a reward must not depend on its batch, but the self-test's conversation got {alone:g} "
            f"alone and {together:g} in a padded batch (allowed in {dtype}: {allowed:g})"
        )
    return scorer


def _silent(scored: int) -> None:
    del scored
