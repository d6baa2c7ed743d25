"""A model's value reaches only its own place in the request."""

from contextlib import suppress
from urllib.parse import parse_qsl, unquote

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.worker.tools.openapi.openapi_document import OpenApiOperation, OpenApiParameter
from stagebus.worker.tools.openapi.openapi_request import build_request
from stagebus.worker.tools.signature import BadArguments

TEXT = st.text(max_size=20) | st.sampled_from(
    ["..", "a/../b", "?x=1", "#", "&k=v", "%2e%2e%2f", "\r\n", "//evil.example", "\\"]
)


def operation(*parameters: OpenApiParameter) -> OpenApiOperation:
    return OpenApiOperation(
        name="o", method="get", base_url="https://api.example/v1", path="/a/{id}/b", description="",
        parameters={parameter.name: parameter for parameter in parameters}, fixed=(), fixed_body={}, schema={},
    )  # fmt: skip


ID = OpenApiParameter("id", "path", "simple", explode=False)


@given(TEXT, TEXT)
def test_no_text_leaves_its_place(path_value, query_value):
    with suppress(BadArguments):
        url = httpx2.URL(
            build_request(
                operation(ID, OpenApiParameter("q", "query")), {"id": path_value, "q": query_value}, {"key": "ours"}
            ).url
        )
        path, _, query = url.raw_path.decode().partition("?")
        segments = path.split("/")

        assert (url.scheme, url.host, url.fragment) == ("https", "api.example", "")
        assert [segments[0], segments[1], segments[2], segments[4:]] == ["", "v1", "a", ["b"]]
        assert unquote(segments[3]) == path_value
        assert parse_qsl(query, keep_blank_values=True) == [("key", "ours"), ("q", query_value)]


@pytest.mark.parametrize(
    ("parameter", "value", "query"),
    [
        (OpenApiParameter("q", "query", "form", explode=False), ["a,b", "c"], "q=a%2Cb,c"),
        (OpenApiParameter("q", "query", "form", explode=False), {"a": 1, "b": True}, "q=a,1,b,true"),
        (OpenApiParameter("q", "query", "spaceDelimited", explode=False), ["a", "b"], "q=a%20b"),
        (OpenApiParameter("q", "query", "pipeDelimited", explode=False), ["a", "b"], "q=a%7Cb"),
        (OpenApiParameter("q", "query", "deepObject"), {"a": [1, 2]}, "q[a][]=1&q[a][]=2"),
        (OpenApiParameter("q", "query", is_json=True), {"a": [1]}, "q=%7B%22a%22%3A%5B1%5D%7D"),
        (OpenApiParameter("q&r", "query"), "x", "q%26r=x"),
        (OpenApiParameter("q", "query"), [], ""),
    ],
)
def test_query_parameter_is_written_in_its_style(parameter, value, query):
    url = build_request(operation(ID, parameter), {"id": "1", parameter.name: value}, {}).url

    assert url.partition("?")[2] == query


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (OpenApiParameter("q", "query"), "x" * 20_000, "too long for a URL"),
        (OpenApiParameter("q", "query"), list(range(20_000)), "too long for a URL"),
        (OpenApiParameter("q", "query", "deepObject"), [[[[[[[[[[[[[[1]]]]]]]]]]]]]], "deeper than 10 levels"),
    ],
)
def test_value_that_no_url_holds_is_refused(parameter, value, words):
    with pytest.raises(BadArguments, match=words):
        build_request(operation(ID, parameter), {"id": "1", parameter.name: value}, {})


@pytest.mark.parametrize(
    ("explode", "value", "written"),
    [
        (False, [1, 2], "1,2"),
        (False, {"a": 1}, "a,1"),
        (True, {"a": 1}, "a=1"),
        (False, True, "true"),
        (False, 1.5, "1.5"),
    ],
)
def test_header_and_path_are_written_simply(explode, value, written):
    asked = build_request(
        operation(
            OpenApiParameter("id", "path", "simple", explode=explode),
            OpenApiParameter("X-A", "header", "simple", explode=explode),
        ),
        {"id": value, "X-A": value},
        {},
    )

    assert asked.headers["X-A"] == written
    assert unquote(asked.url) == f"https://api.example/v1/a/{written}/b"


def test_large_integer_is_sent_exactly():
    """It was shown in full to the person who approved the call."""
    number = 123456789012345678901234567891
    body = OpenApiParameter("body", "body")
    request = build_request(
        operation(ID, OpenApiParameter("q", "query"), body), {"id": 1, "q": number, "body": [number]}, {}
    )

    assert request.url.endswith(f"q={number}")
    assert request.body == f"[{number}]".encode()
