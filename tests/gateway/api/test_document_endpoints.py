import httpx

from stagebus.shared.domain.event_schema import json_schema


async def test_event_schema_is_served(api: httpx.AsyncClient) -> None:
    assert (await api.get("/schema/events.json")).json() == json_schema()


async def test_problem_type_is_explained_at_its_url(api: httpx.AsyncClient) -> None:
    problem = (await api.get("/runs/x")).json()
    explained = await api.get(problem["type"])

    assert (explained.status_code, explained.json()["code"]) == (200, "run_not_found")
    assert (await api.get("/problems/none")).status_code == 404


async def test_unknown_path_is_a_problem(api: httpx.AsyncClient) -> None:
    for path in ("/none", "/runs/", "/runs/x/y", "/static"):
        response = await api.get(path)
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
