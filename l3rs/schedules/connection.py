"""Requests to the Hugging Face Hub: a time limit, a token that can be sent, and messages without secrets."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

from l3rs.schedules.seal import CheckpointError
from l3rs.text import first_line

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
TIMEOUT = "L3RS_HUB_TIMEOUT"  # environment variable: seconds; huggingface_hub has limits for the time between two bytes only
T = TypeVar("T")


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Runs `call` within a time limit: `L3RS_HUB_TIMEOUT` if that is set, else `seconds`.

    The call has a thread of its own, and stays behind there when the time is over: no client gives up a Hub that sends a byte now and then.

    Args:
        what: the call's name in the message, such as "the download of me/mine".

    Raises:
        CheckpointError: the time is over.
    """
    limit = _limit(seconds)
    answer = _ask(limit, call)
    if answer is None:
        raise CheckpointError(f"{what} took longer than {limit:g} s and was given up; try again later, or set {TIMEOUT} to more seconds")
    return answer.result()


def _ask(seconds: float, call: Callable[[], T]) -> Future[T] | None:
    """Waits for the outcome of `call`; None if the time is over."""
    import huggingface_hub

    answer = Future[T]()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread = Thread(target=run, daemon=True, name="l3rs-hub")
    thread.start()
    thread.join(seconds)
    if answer.done():
        return answer
    huggingface_hub.close_session()  # the thread ends when it next reads
    return None


def _limit(seconds: float) -> float:
    given = os.environ.get(TIMEOUT, "")
    try:
        limit = float(given or seconds)
    except ValueError:
        limit = math.nan
    if not 0 < limit <= 1e6:  # a day has 86,400; a thread cannot be waited for for ever
        raise CheckpointError(f"{TIMEOUT} must be a number of seconds, above 0 and at most a million (got {given!r})")
    return limit


def usable(token: str | bool | None) -> str | bool | None:
    """Gives the token to send: `token`, or the token of `HF_TOKEN` or `hf auth login`, without blanks around it.

    An HTTP library would repeat a token that it cannot send, whole, in its error.

    Raises:
        CheckpointError: it cannot be sent; the message does not show it.
    """
    from huggingface_hub import constants, get_token

    if token is False or (token is None and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        return token
    try:
        found = token if isinstance(token, str) else get_token()
    except Exception as error:  # of huggingface_hub, which may ask elsewhere; or the token's file cannot be read, or is no text
        raise CheckpointError(f"the token for the Hub cannot be read ({reason(error)}); {LOG_IN}") from None
    if found is None:
        return token
    found = found.strip()
    if not re.fullmatch("[!-~]+", found):
        raise CheckpointError(f"the token for the Hub must be letters, digits and signs of ASCII, without spaces or line breaks; {LOG_IN}")
    return found


def reason(error: BaseException, token: str | bool | None = None) -> str:
    """Gives the first line of an error of the Hub's client, without tokens and passwords."""
    text = first_line(error)
    if isinstance(token, str):
        text = text.replace(token, "***")
    return re.sub(r"(?i)bearer\s+\S+", "***", re.sub(r"hf_\w{20,}", "***", _without_password(text)))


def endpoint() -> str:
    """Gives the Hub's address without its password, if it has one."""
    from huggingface_hub import constants

    return _without_password(constants.ENDPOINT)


def _without_password(text: str) -> str:
    return re.sub(r"(?<=//)[^/@\s]+@", "", text)


def guarded_session() -> Any:
    """The session of the Hub's client, which from now on refuses an answer with a path in its headers."""
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _only_names not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _only_names]}
    return session


def reachable() -> bool:
    """Whether the Hub, or the proxy to it, answers within `HF_HUB_ETAG_TIMEOUT`, 10 seconds by default."""
    from huggingface_hub import constants

    seconds, session = constants.HF_HUB_ETAG_TIMEOUT, guarded_session()
    answer = _ask(seconds, lambda: session.head(constants.ENDPOINT, timeout=seconds))
    return answer is not None and answer.exception() is None


def _only_names(response: Any) -> None:
    """Refuses an answer with a path in its headers: huggingface_hub names files of its cache by them."""
    for header in ("x-repo-commit", "x-linked-etag", "etag", "x-xet-hash"):
        name = response.headers.get(header, "").removeprefix("W/")
        if "x-repo-commit" in response.headers and re.search(r"[/\\]|^\W*\.", name):
            raise ValueError(f"its header {header} must be a name (got {name!r})")
