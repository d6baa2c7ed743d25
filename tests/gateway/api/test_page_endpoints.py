import re
from typing import Final
from urllib.parse import urljoin

import httpx
import pytest

PAGE_MAX_BYTES: Final = 100_000  # over the wire
IMPORTS: Final = re.compile(r'^import .*? from "([^"]+)";$', re.MULTILINE)


async def test_page_policy_allows_its_own_origin_only(api: httpx.AsyncClient) -> None:
    page = await api.get("/")
    policy = page.headers["content-security-policy"]

    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in page.headers


async def test_static_files_are_cached_and_revalidated(api: httpx.AsyncClient) -> None:
    first = await api.get("/static/index.html")
    again = await api.get("/static/index.html", headers={"If-None-Match": first.headers["etag"]})

    assert first.headers["cache-control"] == "no-cache"
    assert (first.status_code, again.status_code) == (200, 304)
    assert "content-security-policy" in again.headers


async def test_page_preloads_every_module_and_is_small(api: httpx.AsyncClient) -> None:
    """The page loads in two round trips and with less than 100 KB."""
    page = await api.get("/")
    (script,) = re.findall(r'<script type="module" src="([^"]+)"', page.text)
    preloaded = re.findall(r'<link rel="modulepreload" href="([^"]+)"', page.text)
    others = re.findall(r'<link rel="(?:icon|stylesheet)" href="([^"]+)"', page.text)
    modules = {script: await api.get(script)}
    while new := {urljoin(at, to) for at, got in modules.items() for to in IMPORTS.findall(got.text)} - modules.keys():
        modules |= {path: await api.get(path) for path in new}
    replies = [page, *modules.values(), *[await api.get(path) for path in others]]

    assert sorted(preloaded) == sorted(modules.keys() - {script})
    assert len(others) == 2
    assert all(reply.status_code == 200 for reply in replies)
    assert sum(reply.num_bytes_downloaded for reply in replies) < PAGE_MAX_BYTES


@pytest.mark.parametrize("path", ["", "none", "..%2fapp.py", "%2e%2e/app.py", "%2fetc%2fpasswd", "%00", "x" * 5000])
async def test_static_serves_no_other_files(api: httpx.AsyncClient, path: str) -> None:
    response = await api.get(f"/static/{path}")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")
