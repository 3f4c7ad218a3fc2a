"""Components: identity by fields, and one clear line for every wrong value."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field

from sweetspot.component import build, component, identity, key, runtime, to_config
from sweetspot.strategy import PositionPair
from tests.pages import ROOT


@component
class Inner:
    """A nested component."""

    size: int = Field(ge=1)


@component
class Toy:
    """A component with one field of each kind."""

    rate: float
    inner: Inner
    batch: int = runtime(ge=1)


TOY = Toy(rate=0.5, inner=Inner(size=2), batch=4)


def test_the_key_is_made_of_the_fields_that_change_results() -> None:
    assert key(TOY) == key(Toy(rate=0.5, inner=Inner(size=2), batch=8))
    assert key(TOY) != key(Toy(rate=0.5, inner=Inner(size=3), batch=4))
    assert "batch" not in identity(TOY)
    assert identity(TOY)["inner"]["size"] == 2


def test_the_file_of_a_class_of_one_s_own_is_part_of_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    base, own = tmp_path / "own_base.py", tmp_path / "own_part.py"
    head = "from sweetspot.component import component\n"
    base.write_text(head + "@component\nclass Base:\n    size: int\n")
    own.write_text(head + "from own_base import Base\n@component\nclass Part(Base):\n    pass\n")
    part = build({"_target_": "own_part.Part", "size": 2})
    first = key(part)
    assert sorted(identity(part)["_source_"]) == ["own_base", "own_part"]
    assert "_source_" not in identity(PositionPair(chosen="max", rejected="min"))
    keys = {first}
    for file in (own, base):
        file.write_text(file.read_text() + "# edited\n")
        assert key(part) in keys  # the code that this process has imported is that of before
        for name in ("own_part", "own_base"):
            monkeypatch.delitem(sys.modules, name)
        part = build({"_target_": "own_part.Part", "size": 2})
        keys |= {key(part)}
    assert len(keys) == 3


def test_a_process_that_would_use_code_edited_since_it_was_keyed_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own_travelling.py"
    own.write_text("from sweetspot.component import component\n@component\nclass Part:\n    size: int\n")
    sent = to_config(build({"_target_": "own_travelling.Part", "size": 2}))
    program = f"from sweetspot.component import build; print(build({sent!r}, 'reward_model').size)"

    def elsewhere() -> "subprocess.CompletedProcess[str]":
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
        )

    assert elsewhere().stdout == "2\n"
    own.write_text(own.read_text() + "# edited\n")
    assert elsewhere().stderr.splitlines()[-1] == (
        "ValueError: reward_model._target_: own_travelling was edited after the run had read it; the same command goes "
        "on with what it is now"
    )


def test_a_field_that_a_class_of_one_s_own_adds_to_an_inherited_identity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_reward: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_function.py").write_text("def reward(messages, response):\n    return 0.0\n")
    (tmp_path / "own_scaled.py").write_text(
        "from sweetspot.component import component, runtime\n"
        "from sweetspot.reward_model import SequenceClassifier\n"
        "from sweetspot.reward_model.python_function import PythonFunction\n"
        "@component\nclass Scaled(SequenceClassifier):\n"
        "    scale: float\n    source: str\n    shards: int = runtime()\n"
        "@component\nclass Other(Scaled):\n    pass\n"
        "@component\nclass Doubled(PythonFunction):\n    pass\n"
    )
    classifier = {"revision": None, "dtype": "float32", "max_tokens": 64, "trust_remote_code": False, "batch_tokens": 9}
    whole = {"_target_": "own_scaled.Scaled", "path": str(tiny_reward), **classifier}
    whole |= {"scale": 1.0, "source": "a", "shards": 1}
    first = key(build(whole))
    assert key(build({**whole, "shards": 2, "batch_tokens": 8})) == first  # runtime
    changes = [{"scale": 2.0}, {"source": "b"}, {"max_tokens": 65}, {"_target_": "own_scaled.Other"}]
    assert len({first, *(key(build({**whole, **change})) for change in changes)}) == 5

    doubled = build({"_target_": "own_scaled.Doubled", "function": "own_function.reward"})
    before = key(doubled)
    (tmp_path / "own_function.py").write_text("def reward(messages, response):\n    return 1.0\n")
    assert key(doubled) != before


def test_a_fault_within_a_module_of_one_s_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_broken.py").write_text("import no_such_library\n")
    with pytest.raises(ValueError) as refused:
        build({"_target_": "own_broken.Part"}, "strategy")
    assert str(refused.value) == (
        "strategy._target_ must be the dotted path of a class, got 'own_broken.Part' "
        "(ModuleNotFoundError: No module named 'no_such_library')"
    )


def test_a_component_travels_as_plain_config() -> None:
    assert build(to_config(TOY)) == TOY


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"rate": "fast"}, "toy.rate: must be a valid number, got 'fast'"),
        ({"rate": float("nan")}, "toy.rate: must be a finite number, got nan"),
        ({"rate": float("inf")}, "toy.rate: must be a finite number, got inf"),
        ({"_target_": "no.such.Class"}, "toy._target_ must be the dotted path of a class, got 'no.such.Class'"),
        ({"_target_": "os.getcwd"}, "toy._target_ must be the dotted path of a class, got 'os.getcwd'"),
        ({"batch": 0}, "toy.batch: must be greater than or equal to 1, got 0"),
        ({"batch": True}, "toy.batch: must be a valid integer, got True"),
        ({"speed": 1}, "toy.speed: unknown key; the keys are rate, inner, batch"),
        (
            {"inner": {"_target_": f"{__name__}.Inner", "size": 0}},
            "toy.inner.size: must be greater than or equal to 1, got 0",
        ),
    ],
)
def test_a_wrong_value_is_one_line_with_key_rule_and_value(change: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError) as refused:
        build({**to_config(TOY), **change}, "toy")
    assert str(refused.value) == line


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"toy\.rate: a value is missing"):
        build({name: value for name, value in to_config(TOY).items() if name != "rate"}, "toy")
