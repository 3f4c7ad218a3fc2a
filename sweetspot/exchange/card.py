"""The data card of an export: what it holds, where it comes from, and how to cite it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweetspot.component import CODE
from sweetspot.exchange.inventory import Artefact, strategy_name
from sweetspot.visible import in_markdown, visible

PAPER = """@inproceedings{xiao-etal-2025-finding,
  title     = {Finding the Sweet Spot: Preference Data Construction for Scaling Preference Optimization},
  author    = {Xiao, Yao and others},
  booktitle = {Proceedings of ACL 2025},
  year      = {2025},
  note      = {arXiv 2502.16825}
}"""
COLUMNS = {
    "pairs": "`prompt`, `chosen`, `rejected` (lists of messages: the conversational preference format), `prompt_id`, "
    "`pair_index`, and of both responses `sample_index` (`chosen_index`, ...), reward and z = (reward - mu) / sigma "
    "within the prompt's rewards",
    "samples": "`prompt_id`, `sample_index`, `response`, `token_ids` (of the sampling model, end of turn included), "
    "`n_tokens`, `finish_reason`, `seed`, `logprob` (nats; null where unknown)",
    "rewards": "`prompt_id`, `sample_index`, `reward`, `heads` (every objective where the reward model has several)",
    "prompts": "`prompt_id`, `messages`, `source`",
}


def card(root: Path, artefact: Artefact, counts: Mapping[str, int]) -> str:
    """The README.md of an export.

    Args:
        counts: rows by file.
    """
    lineage = dict(_lineage(root, artefact))
    return "\n".join(
        [
            "---",
            *_front_matter(counts),
            "---",
            "",
            f"# {artefact.kind.capitalize()} {artefact.key}",
            "",
            *(f"- {in_markdown(line)}" for line in _facts(artefact, lineage)),
            "",
            "## Files",
            "",
            *(f"- `{name}`: {rows:,} rows: {COLUMNS[name.partition('.')[0]]}" for name, rows in counts.items()),
            "",
            "Rows are joined by (prompt_id, sample_index), never by position. `prompt_id` is the first 16 hex digits "
            "of SHA-256 of the canonical JSON of the messages.",
            "",
            "## Lineage",
            "",
            *(line for kind, found in lineage.items() for line in _lineage_lines(kind, found)),
            "## Citation",
            "",
            "Made by sweetspot. The strategies and positions are those of",
            "",
            "```bibtex",
            PAPER,
            "```",
            "",
        ]
    )


def _front_matter(counts: Mapping[str, int]) -> Iterator[str]:
    yield "configs:"
    for number, name in enumerate(counts):
        yield f"- config_name: {name.partition('.')[0]}"
        yield f"  data_files: {name}"
        if number == 0:
            yield "  default: true"
    yield "tags: [preference-optimization, sweetspot]"


def _lineage(root: Path, artefact: Artefact) -> Iterator[tuple[str, Artefact]]:
    """The artefact and what it was made of, by kind: pairs of rewards, rewards of samples."""
    yield artefact.kind, artefact
    for kind in ("rewards", "samples"):
        key = artefact.meta.get(kind)
        folder = root / kind / str(key)
        if kind != artefact.kind and isinstance(key, str) and (folder / "meta.json").exists():
            found = Artefact(kind, folder, json.loads((folder / "meta.json").read_text()))
            yield from _lineage(root, found)
            return


def _facts(artefact: Artefact, lineage: Mapping[str, Artefact]) -> Iterator[str]:
    """Strategy, counts, reward model, policy and source, as far as the lineage knows them."""
    pairs, rewards, samples = (lineage.get(kind) for kind in ("pairs", "rewards", "samples"))
    if pairs is not None:
        yield f"strategy: {strategy_name(pairs.meta['strategy'])} of n = {pairs.meta['n_samples']} responses per prompt"
        yield f"later copies of equal responses were {'' if pairs.meta['ignore_duplicates'] else 'not '}ignored"
    if rewards is not None:
        yield f"reward model: {_config(rewards.meta.get('reward_model', {}))}"
    if samples is not None:
        yield f"responses of: {_config(samples.meta.get('model', {}))}"
        if "import" in samples.meta:
            facts = samples.meta["import"]
            yield f"imported: {facts['responses']:,} responses to {facts['prompts']:,} prompts"
            for source in facts["sources"]:
                yield f"source: {source['name']}, SHA-256 {source['sha256']}"
        else:
            yield f"sampling: {_config(samples.meta.get('sampler', {}))}"
    libraries = ", ".join(f"{name} {version}" for name, version in artefact.meta.get("libraries", {}).items())
    yield f"made {artefact.meta.get('made')} with {libraries}"


def _config(config: Mapping[str, Any]) -> str:
    """A component's class and fields in one line."""
    name = str(config.get("_target_", "unknown")).rpartition(".")[2]
    fields = ", ".join(
        f"{field} {_config(value) if isinstance(value, dict) else value}"
        for field, value in config.items()
        if field not in CODE and value is not None
    )
    return f"{name} ({fields})" if fields else name


def _lineage_lines(kind: str, found: Artefact) -> Iterator[str]:
    told = {name: value for name, value in found.meta.items() if name not in ("import", "libraries")}
    facts = found.meta.get("import")
    yield f"{kind} `{found.key}`"
    yield ""
    yield "```json"
    yield visible(json.dumps(told | ({"import": facts} if facts else {}), indent=2, ensure_ascii=False))
    yield "```"
    yield ""
