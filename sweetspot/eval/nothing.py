"""No evaluation."""

from sweetspot.component import component


@component
class NoEvaluation:
    """The policy is trained and not evaluated."""
