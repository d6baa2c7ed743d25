"""Writes docker/requirements.txt: what the image installs, with the hash of every file.

    python -m tests.support.image_lock        (make lock)

The versions are those of constraints.txt. pip resolves them for the image's platforms without installing anything. The
build tool is listed, too, so that the image's build fetches nothing whose hash is not known.
Spec: https://pip.pypa.io/en/stable/topics/secure-installs/, https://pip.pypa.io/en/stable/reference/installation-report/
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
LOCK: Final = ROOT / "docker" / "requirements.txt"
PYTHON: Final = "3.11"
ARCHITECTURES: Final = ("x86_64", "aarch64")
GLIBC: Final = ("manylinux2014", "manylinux_2_28", "manylinux_2_34")  # that of the image is 2.36
EXTRAS: Final = ("server", "mcp", "otel")
HEAD: Final = """\
# What the image installs: the versions of constraints.txt with the hashes of their files. Made by `make lock`.
"""


def requirements() -> list[str]:
    """Return the direct requirements of the image: Stagebus's with the image's extras, and the build tool."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    texts = [*project["dependencies"], *content["build-system"]["requires"]]
    for extra in EXTRAS:
        texts += [text for text in project["optional-dependencies"][extra] if Requirement(text).name != "stagebus"]
    return [str(Requirement(text.partition(";")[0])) for text in texts]


def resolve(architecture: str) -> dict[str, tuple[str, str]]:
    """Return the version and the SHA-256 of the file that pip would install, by package."""
    platforms = [part for glibc in GLIBC for part in ("--platform", f"{glibc}_{architecture}")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--target", folder, "--only-binary", ":all:", "-c", "constraints.txt"]
        command += ["--python-version", PYTHON, "--implementation", "cp", *platforms]
        subprocess.run([sys.executable, *command, *requirements()], cwd=ROOT, check=True)
        installed: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return {
        canonicalize_name(part["metadata"]["name"]): (
            part["metadata"]["version"],
            part["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for part in installed
    }


def lock_lines() -> Iterator[str]:
    """Yield one requirement for each package, with the hashes of its files for all platforms."""
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for architecture in ARCHITECTURES:
        for name, (version, digest) in resolve(architecture).items():
            hashes[name, version].add(digest)
    for (name, version), digests in sorted(hashes.items()):
        yield " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{digest}" for digest in sorted(digests))])


if __name__ == "__main__":
    LOCK.write_text(HEAD + "\n".join(lock_lines()) + "\n")
