"""What workers tell of their progress, and what shows it: on a terminal a bar, elsewhere now and then a line."""

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sweetspot.visible import one_line

PLAIN_SECONDS = 30.0  # how often a line of progress is printed where there is no terminal

State = Mapping[str, Any]  # {"done", "total", "unit"} and, where known, {"rate", "per", "note"}


@contextlib.contextmanager
def bar(title: str) -> Generator[Callable[[Mapping[int, State]], None]]:
    """A function that shows what the workers of one job told last, by worker."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
    title = one_line(title)
    task = progress.add_task(title, total=None, note="starting")
    last = time.monotonic()

    def show(states: Mapping[int, State]) -> None:
        nonlocal last
        state = together(states)
        progress.update(task, completed=state["done"], total=state["total"], note=one_line(state["note"]))
        if not console.is_terminal and time.monotonic() - last > PLAIN_SECONDS:
            last = time.monotonic()
            left = progress.tasks[0].time_remaining
            console.print(
                f"{title}: {state['done']}/{state['total']} {one_line(state['note'])}"
                + (f", {left:.0f} s left" if left else ""),
                markup=False,
                highlight=False,  # which takes minutes for a word of 100 kB
                soft_wrap=True,
            )

    with progress if console.is_terminal else contextlib.nullcontext():
        yield show


def together(states: Mapping[int, State]) -> dict[str, Any]:
    """The workers' states as one.

    Each tells of the whole job, what others have finished included, so the furthest one counts; rates add up.
    """
    furthest = max(states.values(), key=lambda state: state["done"] - state["total"])
    rates = [state["rate"] for state in states.values() if "rate" in state]
    told = [furthest["unit"]]
    if rates:
        told.append(f"{sum(rates):.0f} {next(state['per'] for state in states.values() if 'rate' in state)}")
    if len(states) > 1:
        told.append(f"{len(states)} workers")
    told += list(dict.fromkeys(state["note"] for state in states.values() if state.get("note")))
    return {"done": furthest["done"], "total": furthest["total"], "note": " ".join(told)}
