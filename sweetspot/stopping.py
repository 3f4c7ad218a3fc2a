"""Being told to stop: what a run does at SIGTERM and SIGUSR2, which a cluster sends before it takes a node away."""

import signal
from typing import Any, NoReturn

REQUEUE = 75  # exit code of a run that was told to stop: the same command goes on from there (EX_TEMPFAIL)
STOPS = (signal.SIGTERM, signal.SIGUSR2)


class Stopped(BaseException):
    """The run was told to stop; the text is the signal's name."""


def listen() -> None:
    """Raise `Stopped` in the main thread at the first of STOPS from now on; later ones are ignored."""
    for number in STOPS:
        signal.signal(number, _stopped)


def _stopped(number: int, frame: Any) -> NoReturn:  # noqa: ARG001 - the signature of a handler
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)
