"""The example of docs/views.md, served beside the gateway's own routes."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.applications import Starlette

from stagebus.gateway.api.method_router import build_routes
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import StageRestarted
from tests.support.runs_by_hand import RunByHand
from tests.support.socket_server import serving
from tests.support.waiting import until_equal

PAGE = Path(__file__).parents[3] / "docs" / "views.md"
EXPECTED = ["a", {"void": "extraction"}, "b", "c", {"end": True}]


@pytest.fixture
def example(app: Starlette) -> Starlette:
    """The app with the routes of the example."""
    module: dict[str, Any] = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)), module)
    app.router.routes[:0] = build_routes(module["ENDPOINTS"])
    return app


def messages_of(body: str) -> list[Any]:
    return [orjson.loads(frame.removeprefix("data: ")) for frame in body.split("\n\n") if frame.startswith("data: ")]


async def test_example_streams_resumes_and_is_cut_at_a_drain(
    example: Starlette, settings: Settings, run: RunByHand
) -> None:
    async with (
        serving(example, settings) as (host, port),
        httpx.AsyncClient(base_url=f"http://{host}:{port}") as api,
    ):
        hub, url = example.state.gateway.hub, f"/text/{run.run_id}"
        live, cut = (asyncio.create_task(api.get(url)) for _ in range(2))
        await until_equal(lambda: hub.open_streams, 2)
        await run.say("a")
        await run.put(StageRestarted(stage_id="extraction", attempt=2, discard_from=2))
        next(iter(hub._streams_by_run[run.run_id])).close()
        done, _ = await asyncio.wait([live, cut], return_when=asyncio.FIRST_COMPLETED)
        await run.say("b", "c")
        await run.end()
        (whole,) = {live, cut} - done
        response = await whole

        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            await done.pop()
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-run-id"] == run.run_id
        assert messages_of(response.text) == EXPECTED
        for after in range(len(EXPECTED)):
            resumed = await api.get(url, params={"after": after})
            assert messages_of(resumed.text) == EXPECTED[after + 1 :]
        for after in ("5", "x", ""):
            assert (await api.get(url, params={"after": after})).status_code == 422
        assert (await api.get("/text/nope")).status_code == 404
