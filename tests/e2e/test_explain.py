"""`stagebus explain` against real processes: a full provider, a killed worker, no worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.shell import type_in
from tests.support.strict_client import post_run
from tests.support.system import System
from tests.support.waiting import until

SLOW = {"user_prompt": "Say hello.", "tools": [], "model": "demo:delay_ms=1000"}


async def until_explained(system: System, run_id: str, waits_for: str) -> dict[str, Any]:
    """Waits until the run waits for this, and returns the explanation."""
    async with httpx.AsyncClient(base_url=system.url) as http:

        async def explain() -> dict[str, Any] | None:
            explained: dict[str, Any] = (await http.get(f"/runs/{run_id}/explain")).json()
            return explained if explained["waits_for"] == waits_for else None

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

    assert "no worker is alive" in (await until_explained(system, first, "no_worker"))["now"]

    worker = system.add_worker()
    await until_explained(system, first, "model")
    second = await post_run(system.url, SLOW)
    held_back = await until_explained(system, second, "provider")
    assert held_back["now"].startswith("waits for a slot of provider only: all 1 are taken")

    await worker.kill()
    lost = await until_explained(system, second, "no_worker")
    assert "lost its lease" in lost["now"]

    await system.add_worker().ready("is ready for")
    # Either run gets the slot, once the dead worker's expires.
    told_run = await until_first_explained(system, (first, second), "provider")
    told = await type_in(f"stagebus explain {told_run} --url {system.url}; stagebus cancel {told_run} --url {system.url}")
    assert ": the worker before lost its lease (attempt " in told
    assert "\nnow:    waits for a slot of provider only: all 1 are taken" in told
    ended = await until_explained(system, second, "nothing")
    assert ended["story"][-1]["text"] == "cancelled"
