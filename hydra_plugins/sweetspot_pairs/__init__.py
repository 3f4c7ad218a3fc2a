"""The paper's 21 pairs as choices of the group strategy: strategy=paper/max_mu-2sigma, so that one axis sweeps pairs.

They have no files: each is strategy/max_min with two other positions.
"""

from hydra.core.config_store import ConfigStore

from sweetspot.strategy import paper_pairs

for _chosen, _rejected in paper_pairs():
    ConfigStore.instance().store(
        group="strategy/paper",
        name=f"{_chosen}_{_rejected}",
        node={"defaults": ["/strategy/max_min@_here_", "_self_"], "chosen": _chosen, "rejected": _rejected},
        provider="sweetspot_pairs",
    )
