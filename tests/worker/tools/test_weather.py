"""get_weather against the demo's weather, and against services that fail."""

import json

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.tool_context import ToolContext
from stagebus.worker.tools.tool_results import ToolReply

CONTEXT = ToolContext(run_id="r", call_id="c")
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"


@pytest.fixture
async def ask():
    """Call get_weather at any service."""
    registries = []

    async def ask(url: str, city: str = "Paris", allow: str = "127.0.0.1") -> ToolReply:
        settings = Settings(weather_geocoding_url=url, weather_forecast_url=f"{url}/", egress_allow=allow)
        registries.append(ToolRegistry.from_settings(settings))
        return await registries[-1].get("get_weather").call(json.dumps({"city": city}), CONTEXT)

    yield ask
    for registry in registries:
        await registry.aclose()


@pytest.mark.parametrize("city", ["Paris", "paris", " Paris , France"])
async def test_weather_is_asked_for_and_put_in_words(ask, demo_url, city):
    reply = await ask(demo_url, city)
    weather = json.loads(reply.content)

    assert not reply.is_error
    assert weather["place"] == "Paris, France"
    assert -5 <= weather["temperature_c"] <= 30
    assert isinstance(weather["conditions"], str)
    assert set(weather) == {
        "place", "conditions", "temperature_c", "feels_like_c", "humidity_percent", "wind_kmh", "local_time",
    }  # fmt: skip


async def test_unknown_place_is_said(ask, demo_url):
    assert await ask(demo_url, "Atlantis") == ToolReply(
        "get_weather: there is no place called 'Atlantis'", is_error=True
    )


async def test_country_chooses_among_places_of_one_name(ask, byte_server):
    places = [{"name": "Paris", "country": c, "latitude": 1, "longitude": 2} for c in ("France", "United States")]
    both = {"results": places, "current": {"temperature_2m": 20, "weather_code": 0}}
    url = await byte_server.serve(OK + json.dumps(both).encode())

    assert json.loads((await ask(url, "Paris, united states")).content)["place"] == "Paris, United States"
    assert json.loads((await ask(url, "Paris, Utopia")).content)["place"] == "Paris, France"
    assert b"name=Paris&count=10" in byte_server.requests[0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "answered 503"),
        (OK + b"<html>", "unexpected response"),
        (OK + b"[]", "no place called"),
        (OK + b'{"results": [{"name": "x"}]}', "unexpected response"),
        (OK + b'{"results": [{"latitude": 1, "longitude": 1}], "current": {}}', "no current weather"),
        (b"", "cannot be reached"),
    ],
)
async def test_failing_weather_service_is_an_error_in_words(ask, byte_server, answer, words):
    url = await byte_server.serve(answer)
    reply = await ask(url)

    assert reply.is_error
    assert words in reply.content
    assert url not in reply.content


async def test_weather_service_at_a_private_address_needs_permission(ask, byte_server):
    url = await byte_server.serve(OK)
    reply = await ask(url, allow="10.0.0.0/8")

    assert reply.is_error
    assert "may not be reached" in reply.content
    assert not byte_server.requests
