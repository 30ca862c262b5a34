"""What a child process says of itself on its metrics port."""

import asyncio

import httpx

from runtime.service import State

READY_POLL_SECONDS = 0.1
ANSWER_SECONDS_MAX = 2.0
_STARTING = {State.NEW.value, State.STARTING.value}


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=ANSWER_SECONDS_MAX, trust_env=False)


async def until_ready(url: str) -> None:
    """Returns when it may be sent work; waits for ever."""
    async with _client() as client:
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except (httpx.HTTPError, AttributeError):
                pass  # AttributeError: anyio, of a connection reset as soon as it was made
            await asyncio.sleep(READY_POLL_SECONDS)


async def is_starting(url: str) -> bool:
    """Whether it says that it is, or does not listen yet. Silence proves nothing."""
    async with _client() as client:
        try:
            return (await client.get(url)).json()["state"] in _STARTING
        except httpx.ConnectError:
            return True
        except (httpx.HTTPError, AttributeError, ValueError, KeyError):
            return False
