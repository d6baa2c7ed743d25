import httpx
from redis.asyncio import Redis

from stagebus.gateway.app import create_app
from stagebus.shared.config.settings import Settings
from stagebus.shared.store import tool_catalog
from stagebus.shared.store.tool_catalog import ToolDescription

PROVIDERS = """
[providers.one]
base_url = "http://127.0.0.1:1/v1"
key = { env = "STAGEBUS_NO_SUCH_KEY" }
models = [{ name = "a", fallbacks = ["b"], price = { input = 2, output = 8 } }, "x/*"]

[providers.two]
base_url = "http://127.0.0.1:2/v1"
tools = "prompted"
models = ["b"]

[aliases]
best = ["a", "b"]
"""


async def test_tools_list_what_workers_have_published(api: httpx.AsyncClient, redis: Redis) -> None:
    assert (await api.get("/tools")).json() == {"tools": []}
    tools = [ToolDescription(name=name, description="d", parameters={"type": "object"}) for name in ("b", "a")]
    await tool_catalog.publish_tools(redis, tools)

    assert [tool["name"] for tool in (await api.get("/tools")).json()["tools"]] == ["a", "b"]


async def test_models_without_a_providers_file_accept_any_name(api: httpx.AsyncClient, settings: Settings) -> None:
    models = (await api.get("/models")).json()

    assert [(model["id"], model["is_default"]) for model in models["models"]] == [(settings.model, True)]
    assert models["any_model"] is True


async def test_models_of_a_providers_file_are_listed_and_others_rejected(redis, settings, tmp_path) -> None:
    (tmp_path / "providers.toml").write_text(PROVIDERS)
    app = create_app(settings.model_copy(update={"providers": tmp_path / "providers.toml"}))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as api,
    ):
        models = (await api.get("/models")).json()
        refused = await api.post("/runs", json={"user_prompt": "hi", "model": {"extraction": "a", "synthesis": "c"}})
        taken = await api.post("/runs", json={"user_prompt": "hi", "model": {"extraction": "best", "synthesis": "x/1"}})
        run = (await api.get(f"/runs/{taken.json()['id']}")).json()

    assert [(m["id"], m["provider"], m["is_default"], m["fallbacks"]) for m in models["models"]] == [
        ("best", "one", True, ["a", "b"]),
        ("a", "one", False, ["b"]),
        ("b", "two", False, []),
    ]
    assert models["models"][2]["abilities"]["tools"] == "prompted"
    price = {"input": 2, "output": 8, "cached": 2, "cache_write": 2, "currency": "USD"}
    assert [model["price"] for model in models["models"]] == [price, price, None]
    assert (models["patterns"], models["any_model"]) == (["x/*"], False)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "model.synthesis")
    assert "available models: best, a, b, x/*" in refused.json()["detail"]
    assert run["model"] == "extraction=best,synthesis=x/1"
