import subprocess
import sys

from stagebus.worker.tools.function_tool import ToolOptions, options_of, tool


def test_options_are_kept_and_the_function_stays_itself():
    @tool(name="f-2", timeout_s=3, idempotent=False, concurrency=4, max_result_bytes=5000)
    def f() -> int:
        return 1

    assert f() == 1
    assert options_of(f) == ToolOptions("f-2", 3, idempotent=False, concurrency=4, max_result_bytes=5000)
    assert options_of(print) == ToolOptions()


def test_tools_module_imports_without_the_server_s_dependencies():
    """A module of tools can be imported and tested where only the client is installed."""
    program = "import sys, stagebus.tools; print(*{name.partition('.')[0] for name in sys.modules})"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    imported = {name for name in output.split() if not name.startswith("_")} - set(sys.stdlib_module_names)
    assert "pydantic" in imported
    assert imported <= {
        "stagebus",
        "pydantic",
        "pydantic_core",
        "annotated_types",
        "typing_extensions",
        "typing_inspection",
        "orjson",
    }
