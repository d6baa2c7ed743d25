"""`stagebus explain` against real processes: a full provider, a killed worker, no worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.shell import type_in
from tests.support.strict_client import post_run
from tests.support.system import System
from tests.support.waiting import until

LOST = ": the worker before lost its lease (attempt "
SLOW = {"user_prompt": "Say hello.", "tools": [], "model": "demo:delay_ms=1000"}


async def until_explained(system: System, waits_for: str, *run_ids: str, told: str = "") -> dict[str, Any]:
    """Waits until one of the runs waits for this and its story tells that; returns its explanation."""
    async with httpx.AsyncClient(base_url=system.url) as http:

        async def explain() -> dict[str, Any] | None:
            for run_id in run_ids:
                explained: dict[str, Any] = (await http.get(f"/runs/{run_id}/explain")).json()
                if explained["waits_for"] == waits_for and told in str(explained["story"]):
                    return explained
            return None

        found = await until(explain)
    assert found is not None
    return found


async def test_explain_follows_a_run_through_real_faults(start: Callable[..., Any], tmp_path: Path) -> None:
    """One system and one story, since each process takes half a second to start."""
    system = await start(gateways=0, workers=0)
    providers = tmp_path / "providers.toml"
    providers.write_text(f'[providers.only]\nbase_url = "{system.demo_url}/v1"\nmodels = ["*"]\nconcurrency_max = 1\n')
    system.set_env("STAGEBUS_PROVIDERS", str(providers))
    system.urls.append(await system.add_gateway().ready())
    first = await post_run(system.url, SLOW)

    assert "no worker is alive" in (await until_explained(system, "no_worker", first))["now"]

    worker = system.add_worker()
    await until_explained(system, "model", first)
    second = await post_run(system.url, SLOW)
    held_back = await until_explained(system, "provider", second)
    assert held_back["now"].startswith("waits for a slot of provider only: all 1 are taken")

    await worker.kill()
    await system.add_worker().ready("is ready for")
    # Either run gets the slot, once the dead worker's lease of it expires.
    waiting = (await until_explained(system, "provider", first, second, told=LOST))["id"]
    told = await type_in(f"stagebus explain {waiting} --url {system.url}; stagebus cancel {waiting} --url {system.url}")
    assert LOST in told
    assert "\nnow:    waits for a slot of provider only: all 1 are taken" in told
    ended = await until_explained(system, "nothing", waiting)
    assert ended["story"][-1]["text"] == "cancelled"
