"""Lists the packages that an installed Stagebus needs, with versions and licences, from their metadata.

    python -m tests.support.supply sbom.json        (make sbom)

writes a software bill of materials of the runtime packages as CycloneDX JSON, without development
packages, and prints the licences. It uses no network.
Spec: https://cyclonedx.org/docs/1.6/json/
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
EXTRAS: Final = frozenset({"server", "mcp", "otel"})

# Licences of packages that may be distributed with an Apache-2.0 program, unchanged and with their notices.
ALLOWED: Final = frozenset({
    "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0",
})  # fmt: skip
# Names in older metadata: in the field License or in a classifier.
NAMES: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def packages(extras: Collection[str] = EXTRAS) -> dict[str, Distribution]:
    """Return Stagebus and its runtime dependencies, by name."""
    found: dict[str, Distribution] = {}
    visited: set[tuple[str, str]] = set()

    def add(name: str, extra: str) -> None:
        key = canonicalize_name(name)
        if (key, extra) in visited:
            return
        visited.add((key, extra))
        try:
            found[key] = distribution(name)
        except PackageNotFoundError:  # needed on another system or Python version
            return
        for text in found[key].requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                for further in ("", *needed.extras):
                    add(needed.name, further)

    for extra in ("", *extras):
        add("stagebus", extra)
    return found


def licence_of(package: Distribution) -> str:
    """Return the licence as an SPDX expression, else its text as written, which may be empty.

    Spec: https://packaging.python.org/en/latest/specifications/core-metadata/#license-expression
    """
    declared = [package.metadata.get(field) for field in ("License-Expression", "License")]
    classifiers = package.metadata.get_all("Classifier") or []
    kinds = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License ::")]
    written = [text for text in (*declared, *kinds) if text]
    for text in written:
        try:
            return str(canonicalize_license_expression(NAMES.get(text, text)))
        except InvalidLicenseExpression:
            continue
    return written[0].splitlines()[0] if written else ""


def is_allowed(licence: str) -> bool:
    """Return True if the SPDX expression is allowed: every part of an AND, at least one choice of each OR."""
    for choice in licence.replace("(", "").replace(")", "").split(" AND "):
        if not set(choice.split(" OR ")) & ALLOWED:
            return False
    return bool(licence)


def only(bom: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Remove the packages that are not among `names` from a bill of materials."""
    kept = [part for part in bom["components"] if canonicalize_name(part["name"]) in names]
    refs = {part["bom-ref"] for part in kept} | {bom["metadata"]["component"]["bom-ref"]}
    edges = [
        {**edge, "dependsOn": [ref for ref in edge.get("dependsOn", []) if ref in refs]}
        for edge in bom.get("dependencies", [])
        if edge["ref"] in refs
    ]
    return {**bom, "components": kept, "dependencies": edges}


def make_bom(names: Collection[str]) -> str:
    """Return the bill of materials of the installed packages among `names`."""
    command = ["-m", "cyclonedx_py", "environment", "--pyproject", "pyproject.toml", "--output-reproducible"]
    command += ["--no-validate", "--output-format", "JSON", "--spec-version", "1.6", sys.executable]
    made = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    text = json.dumps(only(json.loads(made.stdout), names), indent=2, ensure_ascii=False) + "\n"
    if (fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ValueError(f"not a valid bill of materials: {fault}")
    return text


def by_licence(found: dict[str, Distribution]) -> Iterator[str]:
    """Yield one line per licence with its packages."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, package in found.items():
        names[licence_of(package)].append(f"{name} {package.version}")
    for licence in sorted(names):
        yield f"{licence or 'unknown'}: {', '.join(sorted(names[licence]))}"


def main() -> int:
    """Write the bill and print the licences; return 1 if one is not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bom", type=Path)
    path: Path = parser.parse_args().bom
    found = packages()
    path.write_text(make_bom(found))
    print(*by_licence(found), sep="\n")
    print(f"{path}: {len(found)} packages")
    return 0 if all(is_allowed(licence_of(package)) for package in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
