"""The wheel: what it contains, what it installs, and that it runs beside a user's own packages."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

import httpx
import pytest

from stagebus.client import Stagebus

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
IGNORED = shutil.ignore_patterns(".*", "node_modules", "build", "dist", "*.egg-info", "__pycache__", "results")
# The base dependencies, and what these depend on.
CLIENT_PACKAGES = {
    "annotated-doc", "annotated-types", "anyio", "certifi", "h11", "httpcore", "httpx", "httpx-sse", "idna",
    "markdown-it-py", "mdurl", "orjson", "pydantic", "pydantic_core", "pygments", "rich",
    "shellingham", "stagebus", "typer", "typing_extensions", "typing-inspection",
}  # fmt: skip
SERVER_COMMANDS = (["up"], ["gateway"], ["worker"], ["keys", "ls"], ["models", "check"], ["demo-model"])
# Packages with the names of Stagebus's rooms and other common names; `app` has no __init__.py.
USER_PACKAGES = ("shared", "gateway", "worker", "app", "utils", "tests")
TOOL = '''
from stagebus.tools import tool


@tool(name="count_words")
def count_words(text: str) -> str:
    """Count words.

    Args:
        text: the text.
    """
    return f"{len(text.split())} words"
'''


def pip(*args: object, env: Mapping[str, str] | None = None) -> str:
    """Run pip outside the environment that it changes: new ones need no pip of their own, which takes four seconds."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout


class Installation:
    """A virtual environment with the wheel in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.wheel = wheel
        self._bin = folder / "venv" / "bin"
        self._env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("STAGEBUS_", "PYTHON", "VIRTUAL_ENV", "OPENAI_"))
        }
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (self._packages,) = (folder / "venv" / "lib").glob("python*/site-packages")

    def install(self, requirement: str) -> None:
        options = ["--quiet", "--no-compile", "--only-binary", ":all:", "-c", ROOT / "constraints.txt"]
        pip("--python", self._bin / "python", "install", *options, requirement, env=self._env)

    def packages(self) -> set[str]:
        return {found.name.lower() for found in distributions(path=[str(self._packages)])}

    def start(self, *args: str, cwd: Path, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self._bin / args[0], *args[1:]], cwd=cwd, env=self._env | (env or {}), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *args: str, cwd: Path) -> tuple[int, str]:
        (ended,) = self.run_all([args], cwd=cwd)
        return ended

    def run_all(self, commands: Iterable[Sequence[str]], cwd: Path) -> list[tuple[int, str]]:
        """Runs these commands at the same time. Returns the exit code and the output of each."""
        processes = [self.start(*args, cwd=cwd) for args in commands]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a source distribution, as a package index would have it: the links must survive both steps."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=IGNORED)
    (build_tool,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pip("install", "--quiet", "--target", folder / "setuptools", build_tool)
    env = {**os.environ, "PYTHONPATH": str(folder / "setuptools")}
    _build("sdist", folder / "tree", folder, env)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (tree,) = (folder / "sdist").iterdir()
    _build("wheel", tree, folder, env)
    return next(folder.glob("*.whl"))


def _build(kind: str, tree: Path, folder: Path, env: Mapping[str, str]) -> None:
    """Runs the tree's build backend, as pip does."""
    build = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, folder], cwd=tree, env=env, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel without extras."""
    installation = Installation(tmp_path_factory.mktemp("client"), wheel)
    installation.install(str(wheel))
    return installation


@pytest.fixture(scope="module")
def server(client: Installation) -> Installation:
    """The server added to the client: faster than a second environment. Tests of the client alone come first."""
    client.install(f"{client.wheel}[server]")
    return client


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project with packages of the names of Stagebus's own folders."""
    for name in USER_PACKAGES:
        (tmp_path / name).mkdir()
        if name != "app":
            (tmp_path / name / "__init__.py").write_text(f"NAME = {name!r}\n")
    (tmp_path / "app" / "tools.py").write_text(TOOL)
    return tmp_path


def test_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {name.removeprefix("stagebus/") for name in names if name.startswith("stagebus/")}
    modules = {
        path.relative_to(ROOT).as_posix()
        for room in ("gateway", "worker", "shared")
        for suffix in ("py", "lua", "js", "css", "html", "svg", "txt")
        for path in (ROOT / room).rglob(f"*.{suffix}")
    }

    assert {name.split("/")[0].split("-")[0] for name in names} == {"stagebus"}
    assert modules <= files
    assert {"py.typed", "tools.py", "events.py", "client/__init__.py", "cli/main.py"} <= files


def test_client_installs_six_libraries_and_their_dependencies(client: Installation) -> None:
    assert client.packages() <= CLIENT_PACKAGES


def test_client_imports_and_commands_work_without_the_server(client: Installation, tmp_path: Path) -> None:
    imports = "import stagebus.client, stagebus.tools, stagebus.events"

    assert client.run("python", "-c", imports, cwd=tmp_path) == (0, "")
    helps = [["stagebus", *command, "--help"] for command in ([], ["run"], ["tail"], ["ls"], ["models"])]
    for code, output in client.run_all(helps, cwd=tmp_path):
        assert (code, "Usage: stagebus" in output) == (0, True), output
    code, output = client.run("stagebus", "ls", "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert (code, "no gateway answers" in output) == (6, True), output


def test_server_commands_say_how_to_install_the_server(client: Installation, tmp_path: Path) -> None:
    said = client.run_all((["stagebus", *args] for args in SERVER_COMMANDS), cwd=tmp_path)

    for args, (code, output) in zip(SERVER_COMMANDS, said, strict=True):
        assert code == 2, args
        assert output.count("\n") == 1, args
        assert output.endswith("needs the server: pip install 'stagebus[server]'\n"), args


def test_up_runs_beside_packages_of_the_same_names(server: Installation, project: Path) -> None:
    """`stagebus up` with a tool of the project, and one run that calls it."""
    env = {"STAGEBUS_TOOLS": "app.tools:count_words", "STAGEBUS_DRAIN_GRACE_S": "0.5", "STAGEBUS_DRAIN_SPREAD_S": "0.1"}
    process = server.start("stagebus", "up", "--port", "0", cwd=project, env=env)
    try:
        with Stagebus(_await_url(process)) as bus:
            run = bus.runs.create(
                user_prompt='call count_words {"text": "one two three"}', model="demo:delay_ms=0", tools=["count_words"]
            )
            events = {received.event: received.data for received in run}
        assert events["tool_result"]["content"] == "3 words"
        assert "done" in events
        assert httpx.get(f"{bus.url}/static/app.js").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output


def _await_url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    output = ""
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        output += line
        if "Stagebus is up: " in line:
            return line.split("Stagebus is up: ")[1].strip()
        assert line, f"stagebus up ended: {output}"
    raise AssertionError(f"stagebus up did not start: {output}")
