"""Tools of an OpenAPI document, over a real server that says what it was asked."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.shared.runtime.net import AddressPolicy
from stagebus.worker.tools.egress import Egress
from stagebus.worker.tools.openapi import openapi_source
from stagebus.worker.tools.openapi.openapi_source import OpenApiSource
from stagebus.worker.tools.registry import ToolRegistry
from stagebus.worker.tools.sources_file import OpenApiEntry
from stagebus.worker.tools.tool_context import ToolContext
from tests.support.waiting import block_until, until

DOCUMENT = Path(__file__).parent / "petshop.yaml"
QUIRKS = Path(__file__).parent / "quirks.yaml"
SPECIAL = {
    "gone": PlainTextResponse("no such pet", 404),
    "picture": Response(b"\x89PNG\x00", media_type="image/png"),
    "nothing": Response(status_code=204),
    "away": RedirectResponse("http://169.254.169.254/latest/meta-data/"),
    "moved": RedirectResponse("/v1/pets?shop=moved", 303),
    "packed": Response(b"x", headers={"Content-Encoding": "gzip"}),
    "endless": Response(b"x" * 2**18),
    "latin": Response("é".encode("latin-1"), media_type="text/plain; charset=ISO-8859-1"),
    "slow": Response(b"a" * 2**17, media_type="text/plain; charset=punycode"),
    "session": Response(headers={"Set-Cookie": "session=of-one-tenant; Path=/"}),
}


async def echo(request: Request) -> Response:
    """Returns the request as JSON, or the answer for the pet of that name."""
    special = SPECIAL.get(request.url.path.rpartition("/")[2])
    if special is not None:
        return special
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "headers": {name: value for name, value in request.headers.items() if name != "user-agent"},
            "body": json.loads(body) if body else None,
        }
    )


async def document(request: Request) -> Response:
    name = request.path_params["document"]
    return PlainTextResponse("[" * 100_000 if name == "hostile" else DOCUMENT.with_name(f"{name}.yaml").read_text())


@pytest.fixture(scope="module")
def url():
    """The service."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app = Starlette(routes=[Route("/{document}.yaml", document), Route("/v1/{path:path}", echo, methods=methods)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    block_until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
async def offer(url):
    """A registry of the operations that a test chooses."""
    registries = []

    async def offer(*operations: str, allow=("127.0.0.1",), **entry) -> ToolRegistry:
        settings = Settings(tool_timeout_s=5, egress_response_max_bytes=2**17)
        entry = {"document": str(DOCUMENT), "base_url": f"{url}/v1", "operations": list(operations)} | entry
        egress = Egress(AddressPolicy(allow), settings.egress_response_max_bytes)
        source = OpenApiSource("pets", OpenApiEntry.model_validate(entry), settings, egress)
        registries.append(ToolRegistry([], settings, sources=[source]))
        await registries[-1].start()
        return registries[-1]

    yield offer
    for registry in registries:
        await registry.aclose()


async def call(registry: ToolRegistry, operation: str, /, **arguments):
    return await registry.get(f"pets__{operation}").call(json.dumps(arguments), ToolContext(run_id="r", call_id="c"))


async def asked(registry: ToolRegistry, operation: str, /, **arguments) -> dict:
    """Calls a tool; returns the request that the service received."""
    reply = await call(registry, operation, **arguments)
    status, _, body = reply.content.partition("\n")
    assert (status, reply.is_error) == ("HTTP 200", False), reply
    return json.loads(body)


async def test_chosen_operations_become_tools(offer):
    registry = await offer("listPets", "addPet", "replacePet", "removePet", "GET /pets/{petId}")
    listed = registry.get("pets__listPets")

    assert registry.names() == (
        "pets__listPets", "pets__addPet", "pets__replacePet", "pets__removePet", "pets__get_pets__petId_",
    )  # fmt: skip
    assert listed.description == "List pets.\n\nAll of a shop's pets."
    assert listed.parameters["required"] == ["shop"]
    assert listed.parameters["properties"]["limit"] == {"type": ["integer", "null"], "exclusiveMinimum": 0}
    assert "session" not in listed.parameters["properties"]
    assert [tool.name for tool in map(registry.get, registry.names()) if not tool.idempotent] == ["pets__addPet"]


@pytest.mark.parametrize(
    ("entry", "gated", "repeatable"),
    [
        ({"requires_approval": ["*"], "idempotent": []}, ["listPets", "addPet", "get_pets__petId_"], []),
        ({"requires_approval": ["POST *"]}, ["addPet"], ["listPets", "get_pets__petId_"]),
        ({"requires_approval": ["GET /pets/{petId}"], "idempotent": ["add*"]}, ["get_pets__petId_"], ["addPet"]),
    ],
)
async def test_tools_file_sets_approvals_and_idempotency(offer, entry, gated, repeatable):
    registry = await offer("listPets", "addPet", "GET /pets/{petId}", **entry)
    tools = {name.removeprefix("pets__"): registry.get(name) for name in registry.names()}

    assert [name for name, tool in tools.items() if tool.requires_approval] == gated
    assert [name for name, tool in tools.items() if tool.idempotent] == repeatable


async def test_approval_for_an_unknown_operation_stops_the_start(offer):
    with pytest.raises(BadTool, match=r"openapi.pets: no chosen operation is called 'addpet'"):
        await offer("addPet", requires_approval=["addPet", "addpet"])


async def test_file_limits_results(offer):
    registry = await offer("listPets", max_result_bytes=256)

    assert (await call(registry, "listPets", shop="s" * 300)).content.endswith(", limit 256]")


async def test_schema_of_a_body_needs_no_document(offer):
    registry = await offer("addPet")
    parameters = registry.get("pets__addPet").parameters
    pet = parameters["$defs"]["Pet"]

    assert parameters["properties"]["body"] == {"$ref": "#/$defs/Pet"}
    assert parameters["required"] == ["shop", "body"]
    assert pet["required"] == ["name"]  # the service gives the id
    assert pet["properties"].keys() == {"name", "owner", "example", "kind", "parent"}
    assert pet["properties"]["name"] == {"type": "string"}
    assert pet["properties"]["parent"] == {"$ref": "#/$defs/Pet"}
    assert pet["properties"]["kind"]["oneOf"][1] == {"$ref": "#/$defs/Kind"}


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ({}, ""),
        ({"limit": 5}, "&limit=5"),
        ({"limit": None}, ""),
        ({"tags": ["a b", "c&d=e"]}, "&tags=a%20b&tags=c%26d%3De"),
        ({"ids": [1, 2]}, "&ids=1,2"),
        ({"filter": {"a": 1, "b[": "x"}}, "&filter[a]=1&filter[b%5B]=x"),
        ({"extra": {"free": True}}, "&free=true"),
    ],
)
async def test_query_is_written_as_the_document_says(offer, arguments, query):
    registry = await offer("listPets")

    assert (await asked(registry, "listPets", shop="s#1", **arguments))["query"] == f"shop=s%231{query}"


async def test_header_and_body_go_where_they_belong(offer):
    registry = await offer("listPets", "addPet")
    listed = await asked(registry, "listPets", shop="s", **{"X-Trace": "t1"})
    added = await asked(registry, "addPet", shop="s", body={"name": "Rex", "kind": "dog"})

    assert listed["headers"]["x-trace"] == "t1"
    assert (added["method"], added["path"], added["body"]) == ("POST", "/v1/pets", {"name": "Rex", "kind": "dog"})
    assert added["headers"]["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("pet", "path"),
    [
        ("a/b", "a%2Fb"), ("a?b=c", "a%3Fb%3Dc"), ("a#b", "a%23b"), ("%2e%2e", "%252e%252e"), ("ü ", "%C3%BC%20"),
        ("a\rX: y", "a%0DX%3A%20y"), ("..a", "..a"), ("a;b", "a%3Bb"), ("@evil.example", "%40evil.example"),
    ],
)  # fmt: skip
async def test_value_stays_in_its_part_of_the_path(offer, pet, path):
    registry = await offer("GET /pets/{petId}")

    assert (await asked(registry, "get_pets__petId_", petId=pet))["path"] == f"/v1/pets/{path}"


@pytest.mark.parametrize("pet", ["", ".", "..", "../admin", "a/../../b", "..\\admin", "./x", "a\0"])
async def test_value_that_would_leave_its_path_segment_is_refused(offer, pet):
    registry = await offer("removePet")
    reply = await call(registry, "removePet", petId=pet)

    assert reply.is_error
    assert "cannot be part of a path" in reply.content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "'shop' is a required property"),
        ({"shop": "s", "limit": 0}, "limit: 0 is less than or equal"),
        ({"shop": "s", "surprise": 1}, "'surprise' was unexpected"),
        ({"shop": "s", "X-Trace": "a\r\nHost: evil"}, "printable ASCII"),
        ({"shop": "s", "extra": {"key": "mine"}}, "key cannot be set"),
    ],
)
async def test_invalid_arguments_are_reported_and_not_sent(offer, arguments, words):
    registry = await offer("listPets", "GET /pets/{petId}", fixed={}, query={"key": "secret"})
    reply = await call(registry, "listPets", **arguments)

    assert reply.is_error
    assert words in reply.content


async def test_pattern_that_backtracks_or_is_not_understood_stops_no_call(offer, tmp_path):
    """With Python's `re`, the first argument takes longer than anyone waits, and the second pattern is an error."""
    patterns = {"person": "^([a-zA-Z]+ ?)+$", "word": "^(?=[a-z])\\w+$", "key": "^[\\p{L} ]+$"}
    parameters = [{"name": n, "in": "query", "schema": {"type": "string", "pattern": p}} for n, p in patterns.items()]
    operation = {"operationId": "find", "parameters": parameters}
    (tmp_path / "doc").write_text(json.dumps({"openapi": "3.1.0", "paths": {"/people": {"get": operation}}}))
    registry = await offer("find", document=str(tmp_path / "doc"))
    refused = await call(registry, "find", person="a" * 45 + "!")

    assert "person: 'aaa" in refused.content
    assert "does not match '^([a-zA-Z]+ ?)+$'" in refused.content
    assert (await asked(registry, "find", word="!", key="é"))["query"] == "word=%21&key=%C3%A9"


async def test_fixed_parameters_are_sent_but_not_offered(offer):
    registry = await offer("listPets", "addPet", fixed={"shop": "ours", "owner": "us"})
    added = await asked(registry, "addPet", body={"name": "Rex"})
    refused = await call(registry, "addPet", body={"name": "Rex", "owner": "me"})

    assert "shop" not in registry.get("pets__listPets").parameters["properties"]
    assert (added["query"], added["body"]) == ("shop=ours", {"name": "Rex", "owner": "us"})
    assert (await asked(registry, "addPet", body={"name": "Rex", "example": "e"}))["body"]["owner"] == "us"
    assert not refused.is_error
    assert json.loads(refused.content.partition("\n")[2])["body"]["owner"] == "us"  # whatever a model says


@pytest.mark.parametrize(
    ("entry", "header", "value"),
    [
        ({"bearer": {"env": "PETS_KEY"}}, "authorization", "Bearer k-1"),
        ({"basic": {"user": "u", "password": "p"}}, "authorization", "Basic dTpw"),
        ({"headers": {"X-Trace": {"env": "PETS_KEY"}}}, "x-trace", "k-1"),
        ({"idempotency_header": "Idempotency-Key"}, "idempotency-key", "r:c"),
    ],
)
async def test_operator_s_headers_are_sent_over_the_model_s(offer, monkeypatch, entry, header, value):
    monkeypatch.setenv("PETS_KEY", "k-1")
    registry = await offer("listPets", **entry)
    got = await asked(registry, "listPets", shop="s", **{"X-Trace": "the model's"})

    assert got["headers"][header] == value
    assert "k-1" not in json.dumps(registry.get("pets__listPets").parameters)


async def test_key_in_the_query_is_sent_and_not_logged(offer, caplog):
    registry = await offer("listPets", query={"api_key": "k&1"})

    assert (await asked(registry, "listPets", shop="s"))["query"] == "api_key=k%261&shop=s"
    assert "k%261" not in "".join(record.getMessage() for record in caplog.records if record.name != "httpx2")


async def test_missing_secret_is_an_error_result_without_its_place(offer, caplog):
    registry = await offer("listPets", bearer={"env": "STAGEBUS_NO_SUCH_KEY"})
    reply = await call(registry, "listPets", shop="s")

    assert reply == (
        "pets__listPets: the operator's key for this service is missing", True,
    )  # fmt: skip
    assert "STAGEBUS_NO_SUCH_KEY" in caplog.text


@pytest.mark.parametrize(
    ("pet", "told", "is_error"),
    [
        ("gone", "HTTP 404\nno such pet", True),
        ("latin", "HTTP 200\né", False),
        ("slow", "HTTP 200\naaaa", False),
        ("picture", "HTTP 200\n[image/png, 5 bytes, not shown]", False),
        ("nothing", "HTTP 204", False),
        ("away", "pets__get_pets__petId_: the service may not be reached: 169.254.169.254 is not among", True),
        ("moved", 'HTTP 200\n{"method":"GET","path":"/v1/pets","query":"shop=moved"', False),
        ("packed", "pets__get_pets__petId_: the service broke off: the response is compressed", True),
        ("endless", "pets__get_pets__petId_: the service broke off: the response is longer than 131072 bytes", True),
    ],
)
async def test_response_with_its_status_is_the_result(offer, pet, told, is_error):
    reply = await call(await offer("GET /pets/{petId}"), "get_pets__petId_", petId=pet)

    assert reply.content.startswith(told)
    assert reply.is_error is is_error


async def test_service_that_is_away_or_private_is_an_error_result(offer, byte_server):
    closed = await offer("addPet", base_url=await byte_server.serve(b""))
    private = await offer("addPet", allow=())
    broke_off = await call(closed, "addPet", shop="s", body={"name": "x"})

    assert "whether it took effect is unknown" in broke_off.content
    assert "the service may not be reached" in (await call(private, "addPet", shop="s", body={"name": "x"})).content


async def test_document_at_a_url_is_fetched_with_relative_servers(offer, url):
    registry = await offer("listPets", document=f"{url}/petshop.yaml", base_url=None)

    assert (await asked(registry, "listPets", shop="s"))["path"] == "/v1/pets"


async def test_document_is_fetched_again_after_any_error(offer, url, monkeypatch, caplog):
    really_offer, surprises = openapi_source.OpenApiSource._offer, iter([KeyError("in"), IndexError("servers")])

    def fail(*args: object) -> None:
        for surprise in surprises:
            raise surprise
        really_offer(*args)

    monkeypatch.setattr(openapi_source, "BACKOFF_S", 0.02)
    monkeypatch.setattr(openapi_source.OpenApiSource, "_offer", fail)
    registry = await offer("listPets", document=f"{url}/petshop.yaml")

    await until(registry.names)
    assert caplog.text.count("cannot get the document") == 2


async def test_unavailable_document_is_fetched_later(offer, url, monkeypatch, caplog):
    monkeypatch.setattr(openapi_source, "FETCH_MAX_S", 0.2)
    monkeypatch.setattr(openapi_source, "BACKOFF_S", 0.02)
    monkeypatch.setattr(DOCUMENT.__class__, "read_text", lambda _path: "{}")
    registry = await offer("listPets", document=f"{url}/petshop.yaml")
    assert registry.names() == ()
    monkeypatch.undo()

    async with asyncio.timeout(5):
        await registry.changed.wait()
    await until(registry.names)
    assert "the document is not OpenAPI 3.0 or 3.1" in caplog.text


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"operations": ["nothing"]}, "there is no operation 'nothing'; available operations: listPets, addPet"),
        ({"operations": ["upload"]}, "the body is image/png; only JSON"),
        ({"operations": ["broken"]}, "leads out of the document"),
        ({"operations": ["crumbs"]}, "style 'matrix', which is not supported"),
        ({"operations": ["listPets"], "base_url": None}, "names no server; set base_url"),
        ({"operations": ["noSlash"], "document": str(QUIRKS)}, "its path does not begin with /"),
        ({"operations": ["listPets"], "fixed": {"shpo": 1}}, "no chosen operation has a parameter shpo"),
        ({"document": "/no/such/file"}, "cannot be read"),
        ({"document": __file__}, "openapi.pets: the document is neither"),
    ],
)
async def test_invalid_document_stops_the_start(offer, entry, words):
    with pytest.raises(BadTool, match=words):
        await offer("listPets", **entry)


@pytest.mark.parametrize(
    "text",
    [
        '{"openapi": "3.1.0", "paths": {"/a": {"get": {"operationId": "listPets", "parameters": ["x"]}}}}',
        '{"openapi": "3.1.0", "paths": {"/a": {"get": {"operationId": "listPets", "requestBody": {"content": [1]}}}}}',
        '{"openapi": "3.1.0", "paths": ["/a"]}',
        "openapi: 3.1.0\npaths: {/a: {get: {operationId: listPets, requestBody: 7}}}",
        "openapi: 3.1.0\na: &a [*a]",
        "[" * 5000,
        "\0",
    ],
)
async def test_malformed_document_is_an_error_in_words(offer, tmp_path, text):
    (tmp_path / "odd").write_text(text)

    with pytest.raises(BadTool, match=r"^openapi\.pets: "):
        await offer("listPets", document=str(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("operation", "arguments", "expected"),
    [
        ("getCharge", {"id": 5.0, "limit": 3.0}, {"path": "/v1/charges/5", "query": "limit=3"}),
        ("getCharge", {"id": 1, "expand": ["a", "b c"]}, {"query": "expand[]=a&expand[]=b%20c"}),
        ("getCharge", {"id": 1, "items": [{"a": 1}, {"a": [2]}]}, {"query": "items[0][a]=1&items[1][a][]=2"}),
        ("getCharge", {"id": 1, "filter": {"a": {"gt": 1}, "b": [1]}}, {"query": "filter[a][gt]=1&filter[b][]=1"}),
        ("patchLease", {"name": "n", "body": {}}, {"body": {}, "type": "application/merge-patch+json"}),
        ("putAny", {"name": "n", "body": {"a": 1}}, {"body": {"a": 1}, "type": "application/json"}),
        ("postLease", {"name": "n", "body": {}}, {"type": 'application/vnd.api+json; ext="x"'}),
        ("searchBooks", {"q": "x"}, {"path": "/v1/search", "query": "kind=book&q=x"}),
        ("searchBooks", {}, {"query": "kind=book"}),
        ("visas", {"country": "NO"}, {"query": "country=NO"}),
        ("switch", {"body": {"on": True, "off": "x"}}, {"body": {"on": True, "off": "x"}}),
    ],
)
async def test_quirks_of_documents_are_understood(offer, operation, arguments, expected):
    got = await asked(await offer(operation, document=str(QUIRKS)), operation, **arguments)
    got |= {"type": got["headers"].get("content-type")}

    assert {name: got[name] for name in expected} == expected


async def test_schema_has_only_keywords_that_providers_take(offer):
    registry = await offer("visas", "switch", "getCharge", document=str(QUIRKS))
    visas, switch, charge = (registry.get(f"pets__{name}").parameters for name in ("visas", "switch", "getCharge"))

    assert visas["properties"]["country"]["enum"] == ["NO", "SE", "on", "off"]
    assert visas["properties"]["since"] == {"type": "string", "default": "2024-01-01"}
    assert switch["properties"]["body"]["properties"]["off"] == {"type": ["string", "integer"]}
    assert switch["properties"]["body"]["required"] == ["on"]
    assert charge["properties"]["limit"]["maximum"] == 9.223372036854776e18


async def test_parameters_of_one_name_are_told_apart(offer, tmp_path):
    name = "header" + "a" * 54
    parameters = [
        {"name": n, "in": place} for n, place in ((name, "query"), (f"{name[:56]}_2", "query"), (name, "header"))
    ]
    parameters += [{"name": n, "in": place} for n, place in (("x y", "query"), ("x_y", "query"), ("x_y", "header"))]
    operation = {"operationId": "same", "parameters": parameters}
    (tmp_path / "doc").write_text(json.dumps({"openapi": "3.1.0", "paths": {"/a": {"get": operation}}}))
    registry = await offer("same", document=str(tmp_path / "doc"))

    assert list(registry.get("pets__same").parameters["properties"]) == [
        name, f"{name[:56]}_2", f"{name[:56]}_3", "x_y", "query_x_y", "header_x_y",
    ]  # fmt: skip


async def test_cookies_of_one_call_are_not_sent_with_the_next(offer):
    registry = await offer("GET /pets/{petId}")
    assert (await call(registry, "get_pets__petId_", petId="session")).content == "HTTP 200"

    assert "cookie" not in (await asked(registry, "get_pets__petId_", petId="x"))["headers"]


async def test_keys_are_not_sent_to_another_origin_that_a_remote_document_names(offer, url, caplog):
    remote = {"document": f"{url}/petshop.yaml", "bearer": "k"}
    away = await offer("elsewhere", "listPets", base_url=None, **remote)
    home = await offer("elsewhere", "listPets", **remote)

    assert away.names() == ()
    assert "its server http://10.0.0.1 has another origin than the document" in caplog.text
    assert home.names() == ("pets__elsewhere", "pets__listPets")


async def test_hostile_document_at_a_url_ends_no_worker(offer, url, caplog):
    registry = await offer("listPets", document=f"{url}/hostile.yaml")

    assert registry.names() == ()
    assert "openapi.pets: the document is nested deeper than 100 levels" in caplog.text


async def test_operation_servers_override_the_document_s_and_are_guarded(offer):
    registry = await offer("elsewhere", base_url=None)

    assert "no public address" in (await call(registry, "elsewhere")).content
