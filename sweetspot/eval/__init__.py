"""Evaluation: how a policy answers prompts that it was not trained on, and who says so."""

from sweetspot.eval.held_out import HeldOut, distinct, duplicate_rate, preferences

__all__ = ["HeldOut", "distinct", "duplicate_rate", "preferences"]
