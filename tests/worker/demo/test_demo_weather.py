import httpx
import pytest

from stagebus.worker.demo.demo_model import create_demo_app
from stagebus.worker.demo.demo_weather import UNKNOWN


@pytest.fixture
async def http():
    transport = httpx.ASGITransport(create_demo_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
        yield client


async def test_place_is_deterministic(http):
    for name in ("Paris", "Gotham"):
        first, second = [(await http.get("/v1/search", params={"name": name})).json() for _ in range(2)]
        assert first == second
        assert first["results"][0]["name"] == name
    assert (await http.get("/v1/search?name=paris")).json()["results"][0]["country"] == "France"


@pytest.mark.parametrize("name", ["", "X", *sorted(UNKNOWN)])
async def test_unknown_place_has_no_results(http, name):
    assert "results" not in (await http.get("/v1/search", params={"name": name})).json()


async def test_forecast_has_the_requested_variables(http):
    answer = (await http.get("/v1/forecast?latitude=48.85&longitude=2.35&current=temperature_2m,weather_code")).json()

    assert set(answer["current"]) == {"time", "interval", "temperature_2m", "weather_code"}
    assert answer["current_units"]["temperature_2m"] == "°C"


@pytest.mark.parametrize("query", ["", "latitude=x&longitude=1", "latitude=1&longitude=1&current=luck"])
async def test_bad_query_gets_open_meteo_s_error(http, query):
    answer = await http.get(f"/v1/forecast?{query}")

    assert answer.status_code == 400
    assert answer.json()["error"] is True
