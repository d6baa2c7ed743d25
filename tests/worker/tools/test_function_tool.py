from stagebus.worker.tools.function_tool import ToolOptions, options_of, tool


def test_options_are_kept_and_the_function_stays_itself():
    @tool(name="f-2", timeout_s=3, idempotent=False, concurrency=4, max_result_bytes=5000)
    def f() -> int:
        return 1

    assert f() == 1
    assert options_of(f) == ToolOptions("f-2", 3, idempotent=False, concurrency=4, max_result_bytes=5000)
    assert options_of(print) == ToolOptions()
