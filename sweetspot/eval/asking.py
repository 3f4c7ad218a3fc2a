"""Asking a judge: many requests at once, each answered request paid once.

alpaca-eval's own loop keeps answers per chunk of 128 and only when the whole chunk came back, and turns what it cannot
read into missing annotations for ever. Here every usable answer is on the disk before the next request of its
connection is sent; an answer without a verdict is asked for again and is never kept as a result; and what asking again
cannot mend (a refused key, an unknown model, an exhausted quota) stops the run once what is under way has come back.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import openai

from sweetspot.eval.answers import Answers, request_key
from sweetspot.eval.judge import OpenAIJudge
from sweetspot.visible import encodable, halves

TRANSIENT = (408, 409, 425, 429)  # and every 5xx
LONGEST_PAUSE = 60.0  # seconds
TEST_ANSWERS = 2  # answers without a verdict, each paid, after which the test request gives the judge up
VAIN_ANSWERS = 40  # in a row over all connections, after which a judge that passed the test is given up
Verdict = Callable[[Mapping[str, Any]], float | None]
Progress = Callable[[int, int, float], None]


class JudgeError(ValueError):
    """A judge that cannot go on; the text is one line. What was answered is kept."""


class PassingError(RuntimeError):
    """A request that came to nothing and is worth another attempt; `pause` is what the judge asked for, in seconds."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


def ask(
    bodies: Sequence[Mapping[str, Any]],
    judge: OpenAIJudge,
    answers: Answers,
    verdict: Verdict,
    max_cost: float | None,
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The answers to the requests, in their order; those that are kept already are not asked for.

    The first missing request goes alone, as a test of key, model and form of the answer.

    Args:
        bodies: what is sent, without what the judge adds.
        verdict: reads the preference out of an answer, or gives None.
        max_cost: US dollars that this call may come to, by the tokens that the judge reports.
        progress: is told answered, needed and US dollars so far.

    Returns:
        The answers, and {"requests", "retried", "unusable", "tokens_in", "tokens_out", "halves", "price"} of this call;
        halves: texts of answers that held half a surrogate pair, which stands there as its escape.

    Raises:
        ValueError: when something is missing and the judge cannot be asked at all (`OpenAIJudge.check`).
        JudgeError: when the judge refuses, keeps failing, or leaves requests without a verdict: all or it fails.
    """
    wanted = {request_key(body): body for body in (sent(body, judge) for body in bodies)}
    session = _Session(judge, answers, verdict, max_cost, len(wanted), progress)
    missing = [key for key in wanted if key not in answers.by_key]
    if missing:
        judge.check()
        asyncio.run(session.run([(key, wanted[key]) for key in missing]))
    left = [key for key in wanted if key not in answers.by_key]
    if session.stopped or left:
        kept = f"{len(wanted) - len(left)} of {len(wanted)} answers are kept; the same command asks for the rest"
        why = session.stopped or f"{len(left)} answers hold no verdict after {judge.attempts} attempts each"
        raise JudgeError(f"judge {judge.name}: {why}; {kept}")
    return [answers.by_key[request_key(sent(body, judge))] for body in bodies], session.spent


def sent(body: Mapping[str, Any], judge: OpenAIJudge) -> dict[str, Any]:
    """What goes to this judge: its model and its own settings over the benchmark's."""
    return {**body, "model": judge.model, **judge.extra}


class _Session:
    """One call of `ask`: what it spent, and why it stopped, if it did."""

    def __init__(
        self,
        judge: OpenAIJudge,
        answers: Answers,
        verdict: Verdict,
        max_cost: float | None,
        needed: int,
        progress: Progress,
    ) -> None:
        self.judge, self.answers, self.verdict, self.max_cost = judge, answers, verdict, max_cost
        self.needed, self.progress = needed, progress
        self.stopped: str | None = None
        self._vain = 0  # answers without a verdict since the last one with
        self.spent: dict[str, Any] = dict.fromkeys(
            ("requests", "retried", "unusable", "tokens_in", "tokens_out", "halves"), 0
        )
        self.spent["price"] = 0.0

    async def run(self, requests: list[tuple[str, dict[str, Any]]]) -> None:
        """Ask the first, then the others, `concurrency` at a time."""
        waiting, judge = list(reversed(requests)), self.judge
        client = openai.AsyncOpenAI(api_key=judge.key(), base_url=judge.base_url, max_retries=0, timeout=judge.timeout)

        async def connection() -> None:
            while waiting and not self.stopped:
                await self._settle(*waiting.pop())

        async with client as self._client:
            await self._settle(*waiting.pop(), test=True)
            await asyncio.gather(*(connection() for _ in range(min(self.judge.concurrency, len(waiting)))))

    async def _settle(self, key: str, body: dict[str, Any], test: bool = False) -> None:
        """Ask until there is a verdict; a fault of the last attempt stops everything, no verdict only in the test or
        after many in a row."""
        unusable = 0
        for attempt in range(self.judge.attempts):
            if self.stopped:
                return
            try:
                answer = await self._once(body)
            except PassingError as fault:
                self.spent["retried"] += 1
                if attempt + 1 == self.judge.attempts:
                    self.stopped = f"{fault} ({attempt + 1} attempts)"
                    return
                await asyncio.sleep(max(fault.pause, self._pause(attempt)))
                continue
            except JudgeError as error:
                self.stopped = str(error)
                return
            if self.verdict(answer) is not None:
                self._vain = 0
                self.answers.add(key, answer)
                self.progress(len(self.answers.by_key), self.needed, self.spent["price"])
                return
            self.spent["unusable"] += 1
            self.answers.set_aside(key, answer)
            unusable += 1
            self._vain += 1
            if self._vain == VAIN_ANSWERS:
                self.stopped = f"{self._vain} answers in a row hold no verdict, the last: {_shown(answer)}"
            if test and (unusable == TEST_ANSWERS or attempt + 1 == self.judge.attempts):
                self.stopped = f"the test request was answered without a verdict: {_shown(answer)}"

    def _pause(self, attempt: int) -> float:
        return min(LONGEST_PAUSE, self.judge.backoff * 2**attempt) * random.uniform(0.5, 1.0)

    async def _once(self, body: dict[str, Any]) -> dict[str, Any]:
        """One request.

        Raises:
            PassingError: for what another attempt may mend.
            JudgeError: for what it cannot.
        """
        self.spent["requests"] += 1
        try:
            raw = await self._client.post("/chat/completions", body=body, cast_to=httpx.Response)
        except openai.APIConnectionError as error:  # a timeout is one
            raise PassingError(f"{self.judge.base_url} cannot be reached ({error.__cause__ or error})") from None
        except openai.APIStatusError as error:
            raise _refused(error) from None
        answer = _read(raw.text)
        self._count(answer["tokens_in"], answer["tokens_out"])
        self.spent["halves"] += halves(answer)
        return encodable(answer)

    def _count(self, tokens_in: int, tokens_out: int) -> None:
        self.spent["tokens_in"] += tokens_in
        self.spent["tokens_out"] += tokens_out
        self.spent["price"] = self.judge.price(self.spent["tokens_in"], self.spent["tokens_out"])
        if self.max_cost is not None and self.spent["price"] > self.max_cost:
            self.stopped = f"eval.max_cost is {self.max_cost:.2f} USD and {self.spent['price']:.2f} are spent"


def _refused(error: openai.APIStatusError) -> Exception:
    """The fault or the end that a status means."""
    text = " ".join(str(error).split())[:200]
    final = "insufficient_quota" in text or "exceeded your current quota" in text
    if not final and (error.status_code in TRANSIENT or error.status_code >= 500):
        asked = error.response.headers.get("retry-after", "0")
        pause = float(asked) if asked.replace(".", "", 1).isdigit() else 0.0
        return PassingError(text, min(pause, LONGEST_PAUSE))
    return JudgeError(text)


def _read(text: str) -> dict[str, Any]:
    """An answer as it is kept: the first choice as alpaca-eval's parsers take it, the served model, and the tokens.

    Raises:
        PassingError: when it is no chat completion, such as a proxy's page.
    """
    try:
        found = json.loads(text)
        choice, usage = found["choices"][0], found.get("usage") or {}
        content = choice["message"].get("content")
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        raise PassingError(f"the judge's answer is no chat completion: {' '.join(text.split())[:80]!r}") from None
    return {
        "choice": {**choice, "text": content or " ", "total_tokens": usage.get("total_tokens", 0)},
        "model": found.get("model"),
        "tokens_in": usage.get("prompt_tokens", 0),
        "tokens_out": usage.get("completion_tokens", 0),
        "time": int(time.time()),
    }


def _shown(answer: Mapping[str, Any]) -> str:
    what = repr(answer["choice"]["text"][:60])
    return what if answer["choice"].get("logprobs") else f"{what} without log-probabilities"
