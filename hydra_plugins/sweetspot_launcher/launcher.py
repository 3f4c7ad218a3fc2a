"""The launcher of every sweep: names its points, holds them against the run's identity, submits them, and waits."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class SweepLauncherConf:
    """What it is told lies in the group `launcher`, where its keys are checked as every component's."""

    _target_: str = "hydra_plugins.sweetspot_launcher.launcher.SweepLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="sweetspot", node=SweepLauncherConf(), provider="sweetspot_launcher"
)


class SweepLauncher(Launcher):
    """Writes the sweep's folder and has its jobs submitted; the jobs need nothing of this process."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:  # noqa: ARG002
        """Hydra's part of the work."""
        self.config = config
        self.loader = hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:  # noqa: ARG002
        """Submit the points of a sweep and, where the launcher waits, follow them to their ends.

        Raises:
            ValueError: one line, for a sweep that is refused; nothing is submitted then.
            SweepError: when jobs have failed; all others have ended by then.
        """
        from sweetspot.sweep import launching
        from sweetspot.sweep.points import own

        task, sources = list(self.config.hydra.overrides.task), self.config.hydra.runtime.config_sources
        asked = launching.Asked(
            folder=Path(str(self.config.hydra.sweep.dir)),
            command=shlex.join([Path(sys.executable).name, *sys.argv]),
            program=Path(sys.argv[0]).resolve(),
            launcher=_plain(self.config.launcher),
            task=task,
            points=[own(point) for point in job_overrides],
            compose=self._compose(),
            check=_check,
            search=[f"{one.schema}://{one.path}" for one in sources if "command-line" in one.provider],
        )
        launching.launch(asked)
        return [JobReturn(overrides=point, status=JobStatus.COMPLETED) for point in job_overrides]

    def _compose(self) -> Callable[[Sequence[str]], Mapping[str, Any]]:
        def compose(point: Sequence[str]) -> Mapping[str, Any]:
            config = self.loader.load_sweep_config(self.config, list(point))
            return {str(name): _plain(part) for name, part in config.items() if name != "hydra"}

        return compose


def _check(config: Mapping[str, Any]) -> None:
    """Nothing for a configuration that a run would take.

    Raises:
        ValueError: in one line, otherwise.
    """
    from run import settings_of
    from sweetspot.logger import check

    check(settings_of(config).logger)


def _plain(part: Any) -> Any:
    return OmegaConf.to_container(part, resolve=True, throw_on_missing=True) if OmegaConf.is_config(part) else part
