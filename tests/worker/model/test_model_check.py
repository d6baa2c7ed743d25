"""`stagebus models check` against the demo model and against servers that support less."""

import sys
from pathlib import Path

import httpx
import pytest

from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import Providers
from stagebus.shared.config.settings import Settings
from stagebus.worker.model import model_check
from stagebus.worker.model.model_client import ModelClient

REFUSAL = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
)


async def check(url: str, **entry: object) -> list[model_check.ModelReport]:
    file = {"providers": {"p": {"base_url": f"{url}/v1", "models": ["m"], **entry}}}
    providers = Providers(ProvidersFile.model_validate(file), "m")
    return await model_check.check_models(ModelClient(Settings(), providers), model_check.find_routes(providers, []))


def test_models_check_prints_a_table(demo_url: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The demo behaves as the file says. A model that is down is reported and makes the exit code 1."""
    models = [
        '{ name = "demo", id = "demo:delay_ms=0" }', '{ name = "gone", id = "demo:status=503" }',
        '{ name = "claude", id = "demo:delay_ms=0,reasoning=1", api = "messages" }',
        '{ name = "gpt", id = "demo:delay_ms=0,reasoning=1", api = "responses" }',
    ]  # fmt: skip
    text = f'[providers.demo]\nbase_url = "{demo_url}/v1"\nmodels = [{", ".join(models)}]'
    (tmp_path / "p.toml").write_text(text)
    monkeypatch.setenv("STAGEBUS_PROVIDERS", str(tmp_path / "p.toml"))
    shown = {}
    for names in (["demo", "claude", "gpt"], []):
        monkeypatch.setattr(sys, "argv", ["check", *names])
        with pytest.raises(SystemExit) as end:
            model_check.main()
        shown[end.value.code] = capsys.readouterr().out.splitlines()

    columns = ["model", "provider", "api", "answers", "usage", "reasons", "tools", "parallel", "limit"]
    assert shown[0][0].split() == columns
    assert [line.split()[2:3] + line.split()[4:] for line in shown[0][1:]] == [
        ["chat", "s", "yes", "no", "native", "yes", "max_tokens"],
        ["messages", "s", "yes", "yes", "native", "yes", "max_tokens"],
        ["responses", "s", "yes", "yes", "native", "yes", "max_output_tokens"],
    ]
    assert "gone    demo      chat       no: the model's provider answered 503" in shown[1][2]


async def test_models_check_reports_corrections_for_the_file(byte_server) -> None:
    """The server accepts any request, counts no tokens and calls no tool."""
    (report,) = await check(await byte_server.serve(ANSWER))

    assert report.row()[2:3] == ("chat",)
    assert report.row()[4:] == ("no", "no", "no calls", "no", "max_tokens")
    assert list(report.corrections()) == ['tools = "prompted" or "none", as it called no tool']


async def test_models_check_tries_other_parameters_after_a_rejection(monkeypatch) -> None:
    file = {"providers": {"p": {"base_url": "http://127.0.0.1:1/v1", "models": ["m"], "tools": "none"}}}
    providers = Providers(ProvidersFile.model_validate(file))
    model = ModelClient(Settings(), providers)
    tried = []

    async def stream(request):
        body = request.body(request.route)
        tried.append(("max_tokens" in body, "stream_options" in body))
        if "tools" not in body and ("max_tokens" in body or "stream_options" in body):
            raise model_check.ModelRejected("no")
        yield {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}

    monkeypatch.setattr(model, "stream", stream)
    report = await model_check.check_model(model, providers.routes("m")[0])

    assert tried[:4] == [(True, True), (True, False), (False, True), (False, False)]
    assert list(report.corrections()) == [
        'max_tokens_parameter = "max_completion_tokens", as it rejects "max_tokens"',
        "stream_options = false, as it rejects true",
    ]


async def test_models_check_reports_a_model_that_rejects_everything(byte_server) -> None:
    (report,) = await check(await byte_server.serve(REFUSAL))

    assert report.row() == ("m", "p", "chat", "no: the model's provider answered 400: bad request")


@pytest.mark.parametrize("api", ["responses", "messages"])
async def test_models_check_names_the_api_that_the_model_accepts(demo_url, byte_server, api: str) -> None:
    """The server speaks one API alone; the demo answers for it."""
    path = {"responses": "/v1/responses", "messages": "/v1/messages"}[api]

    def answer(head: bytes, body: bytes) -> bytes:
        if head.split()[1].decode() != path:
            return REFUSAL
        answered = httpx.post(f"{demo_url}{path}", content=body)
        return ANSWER.partition(b"data:")[0] + answered.content

    (report,) = await check(await byte_server.serve(answer), models=[{"name": "m", "id": "demo:delay_ms=0"}])

    assert list(report.corrections()) == [f'api = "{api}", as it rejects "chat"']
