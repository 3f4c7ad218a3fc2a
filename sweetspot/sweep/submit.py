"""Submit jobs of a written sweep, for the first time or again, through submitit."""

import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweetspot.component import build
from sweetspot.devices import visible_gpus
from sweetspot.sweep import folder as folders
from sweetspot.sweep import job as jobs
from sweetspot.sweep.folder import Attempt, Job, Sweep
from sweetspot.sweep.launcher import Launcher, Local, Slurm, SubmititLocal
from sweetspot.visible import one_line

PARTS = ("pool", "run")
# After the job, in the batch script: one that ended at a signal is requeued, also when the signal came before Python's
# handlers were there (128 + 12). The shell outlives the job, and has scontrol where a container has not; scancel ends
# the shell as well, so that what was cancelled stays cancelled.
TEARDOWN = [
    "code=$?",
    "task=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
    f"case $code in {jobs.REQUEUE} | 140) scontrol requeue ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}$task ;; esac",
    "exit $code",
]


def submit(sweep: Sweep, numbers: Sequence[int]) -> Sweep:
    """Submit the jobs with these numbers, pools first and the runs after them, and write the sweep's jobs.json.

    With launcher=local they run here, in turn, and have ended when this returns.

    Returns:
        The sweep with an attempt more for each of the jobs.

    Raises:
        ValueError: one line, when the submission is refused.
    """
    launcher: Launcher = build(sweep.launcher, "launcher")
    folders.write(sweep)  # the jobs read it
    before: list[str] = []
    for part in PARTS:
        chosen = [job for job in sweep.jobs if job.number in numbers and job.part == part]
        if not chosen:
            continue
        match launcher:
            case Slurm():
                attempts = _slurm(sweep, chosen, launcher, part, before)
            case SubmititLocal():
                attempts = _together(sweep, chosen)
            case Local():
                own = Attempt(None, None, folders.now(), socket.gethostname(), os.getpid())
                attempts = [own] * len(chosen)
        before = sorted({one.slurm_id.partition("_")[0] for one in attempts if one.slurm_id})
        changed = {
            job.number: replace(job, attempts=(*job.attempts, one)) for job, one in zip(chosen, attempts, strict=True)
        }
        sweep = sweep.with_jobs(changed)
        folders.write(sweep)
        if isinstance(launcher, Local):
            _in_turn(sweep, chosen)
    return sweep


def _in_turn(sweep: Sweep, chosen: Sequence[Job]) -> None:
    for job in chosen:
        print(f"job {job.number}  {job.name}", flush=True)
        try:
            jobs.run(str(sweep.folder), job.number, slurm=False)
        except jobs.JobError as error:  # it is in the job's status, and the others go on
            print(f"failed  {one_line(str(error))}", file=sys.stderr, flush=True)


def _together(sweep: Sweep, chosen: Sequence[Job]) -> list[Attempt]:
    """Start processes of this machine that outlive this one and its terminal."""
    import submitit

    executor = submitit.LocalExecutor(folder=_logs(sweep))
    gpus = [int(name) for name in visible_gpus()]  # submitit hides those that are not named
    executor.update_parameters(
        timeout_min=365 * 24 * 60, stderr_to_stdout=True, gpus_per_node=len(gpus), visible_gpus=gpus
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return hand_over(sweep, chosen, executor, slurm=False)
    finally:
        signal.signal(signal.SIGHUP, before)


def _slurm(sweep: Sweep, chosen: Sequence[Job], launcher: Slurm, part: str, before: Sequence[str]) -> list[Attempt]:
    """Submit one array (a plain job when there is one), to begin when the jobs `before` have ended well."""
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(folder=_logs(sweep), python=python_command(launcher))
    executor.update_parameters(**parameters(launcher, part, before, sweep.folder.name))
    try:
        return hand_over(sweep, chosen, executor, slurm=True)
    except FailedJobError as error:
        raise ValueError(f"launcher: {told_by(str(error))}") from None


def parameters(launcher: Slurm, part: str, before: Sequence[str], name: str) -> dict[str, Any]:
    """What submitit's SLURM executor is told; the keys are sbatch's, where submitit has none of its own."""
    shape = launcher.of(part)
    dependency = [f"afterok:{one}" for one in before] + ([launcher.dependency] if launcher.dependency else [])
    more = {"requeue": True, "kill-on-invalid-dep": "yes", "reservation": launcher.reservation, **launcher.more}
    wanted: dict[str, Any] = {
        "job_name": name,
        "time": shape.minutes,
        "nodes": launcher.nodes if part == "run" else 1,
        "ntasks_per_node": 1,
        "srun_args": ["--kill-on-bad-exit=1"],
        "cpus_per_task": shape.cpus,
        "gpus_per_node": shape.gpus or None,
        "mem": None if shape.memory_gb is None else f"{round(shape.memory_gb * 1024)}MB",
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "exclude": launcher.exclude,
        "dependency": ",".join(dependency) or None,
        "array_parallelism": launcher.array_parallelism,
        "signal_delay_s": launcher.signal_seconds,
        "setup": launcher.setup or None,
        "teardown": TEARDOWN,
        "stderr_to_stdout": True,
        "additional_parameters": {name: value for name, value in more.items() if value is not None},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def python_command(launcher: Slurm) -> str:
    """The shell words that start Python on a node: in the container, where there is one."""
    python = launcher.python or shlex.quote(sys.executable)
    return f"{launcher.container} {python}" if launcher.container else python


def told_by(text: str) -> str:
    """What sbatch said, in one line, out of an error of submitit's."""
    lines = [line.split("error:", 1)[-1].strip() for line in text.splitlines() if line.startswith("sbatch:")]
    return f"sbatch: {'; '.join(dict.fromkeys(lines))}" if lines else " ".join(text.split())


def hand_over(sweep: Sweep, chosen: Sequence[Job], executor: Any, slurm: bool) -> list[Attempt]:
    """Give the jobs to an executor of submitit. One that starts, or ends, before this returns has still begun after it
    was submitted."""
    submitted = folders.now()
    numbers = [job.number for job in chosen]
    given = executor.map_array(jobs.run, [str(sweep.folder)] * len(numbers), numbers, [slurm] * len(numbers))
    logs = [str(one.paths.stdout.relative_to(sweep.folder)) for one in given]
    if slurm:
        return [Attempt(one.job_id, log, submitted) for one, log in zip(given, logs, strict=True)]
    host = socket.gethostname()  # submitit numbers jobs of this machine by the process that starts them
    return [Attempt(None, log, submitted, host, int(one.job_id)) for one, log in zip(given, logs, strict=True)]


def _logs(sweep: Sweep) -> Path:
    return sweep.folder / "logs"
