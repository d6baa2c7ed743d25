"""Fixtures: one shared system for tests that break nothing, and a new one for each test that does."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.system import System


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def healthy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system with two gateways and two workers."""
    async with System(tmp_path_factory.mktemp("healthy"), gateways=2, workers=2) as system:
        yield system


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Returns a function that starts a new system for the test."""
    async with AsyncExitStack() as stack:

        async def start_system(**options: Any) -> System:
            return await stack.enter_async_context(System(tmp_path, **options))

        yield start_system
