"""AlpacaEval 2's public data, where they lie beside this tree; tests that need them skip elsewhere."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("SWEETSPOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
ALPACA = DATA / "alpaca_eval"
GAMED = ALPACA / "reconstructed" / "df_gamed.csv.gz"  # made again from published weights; not the hub's file
needs_alpaca = pytest.mark.skipif(not ALPACA.is_dir(), reason="AlpacaEval 2's public data are not here")


def outputs(model: str) -> list[dict[str, Any]]:
    """A model's published responses to the 805 prompts."""
    return json.loads(gzip.decompress((ALPACA / "model_outputs" / f"{model}.json.gz").read_bytes()))


def annotations(model: str) -> list[dict[str, Any]]:
    """The published judgements of a model by gpt-4-1106-preview."""
    return json.loads(gzip.decompress((ALPACA / "annotations" / f"{model}.json.gz").read_bytes()))
