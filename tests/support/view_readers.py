"""Plain readers of the views: each keeps what its protocol tells a client to keep, and says what text stands."""

from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.support.scripted_log import frames_of

TIMEOUT = httpx.Timeout(10, read=30)


async def frames(method: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """Yields the data of each frame; `[DONE]` is left out.

    Raises:
        httpx.RemoteProtocolError: the connection was cut.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT) as http, http.stream(method, url, **options) as response:
        assert response.status_code == 200, await response.aread()
        rest = ""
        async for text in response.aiter_text():
            *blocks, rest = (rest + text).split("\n\n")
            for _, data in frames_of("\n\n".join([*blocks, ""])):
                if data != "[DONE]":
                    yield data


async def read_responses(url: str, run_id: str) -> str:
    """Returns the output text of a response."""
    async for event in frames("GET", f"{url}/v1/responses/resp_{run_id}?stream=true"):
        last = event
    items = last["response"]["output"]
    return "\n\n".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])


async def read_chat(url: str, body: dict[str, Any], key: str) -> tuple[str, int]:
    """Returns the text of a chat completion, and how often a restart made the client ask again."""
    restarts = 0
    while True:
        text = ""
        options = {"json": {**body, "stream": True}, "headers": {"Idempotency-Key": key}}
        async for chunk in frames("POST", f"{url}/v1/chat/completions", **options):
            if "error" in chunk:
                assert chunk["error"]["code"] == "stage_restarted", chunk
                restarts += 1
                break
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        else:
            return text, restarts


async def read_ui_message(url: str, run_id: str) -> str:
    """Returns the text of a UI message; a step that is reset loses its own."""
    steps: list[str] = []
    async for chunk in frames("GET", f"{url}/api/chat/{run_id}/stream"):
        match chunk:
            case {"type": "start-step"}:
                steps.append("")
            case {"type": "reset-step"}:
                steps[-1] = ""
            case {"type": "text-delta"}:
                steps[-1] += chunk["delta"]
    assert chunk["type"] == "finish"
    return "\n\n".join(step for step in steps if step)


async def read_agui(url: str, run_id: str) -> str:
    """Returns the text of the assistant's messages; a snapshot replaces all of them."""
    body = {
        "threadId": "t",
        "runId": run_id,
        "messages": [],
        "state": {},
        "tools": [],
        "context": [],
        "forwardedProps": {},
    }
    texts: dict[str, str] = {}
    async for event in frames("POST", f"{url}/agui", json=body):
        match event:
            case {"type": "MESSAGES_SNAPSHOT"}:
                said = [message for message in event["messages"] if message["role"] == "assistant"]
                texts = {message["id"]: message.get("content") or "" for message in said}
            case {"type": "TEXT_MESSAGE_CONTENT"}:
                texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
    assert event["type"] == "RUN_FINISHED"
    return "\n\n".join(text for text in texts.values() if text)


def joined(*texts: str) -> str:
    """Returns the texts of all model stages as these readers give them."""
    return "\n\n".join(text for text in texts if text)
