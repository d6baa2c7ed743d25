"""The generated pages are up to date and complete."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from docs import generate
from docs.event_examples import example_frames
from docs.http_api_page import http_api_page
from stagebus.gateway.api.endpoint import Endpoint
from stagebus.gateway.api.schemas.answers import Problem, RunView
from stagebus.gateway.api.schemas.create_run import CreateRun
from stagebus.gateway.api.schemas.event_page import EventPage
from stagebus.gateway.endpoint_table import ENDPOINTS
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.events import EVENTS, UNLOGGED, Event, Gap, StreamStatus
from stagebus.shared.domain.runs import RunStatus
from stagebus.shared.errors import RunFailed
from stagebus.shared.log import sse

ROOT = Path(__file__).parent.parent


def test_configuration_page_is_current() -> None:
    assert (ROOT / generate.CONFIGURATION).read_text() == generate.configuration_page(), "run `make docs`"


def test_http_api_page_is_current() -> None:
    assert (ROOT / generate.HTTP_API).read_text() == http_api_page(), "run `make docs`"


@pytest.mark.parametrize(
    "endpoint", [endpoint for endpoint in ENDPOINTS if endpoint.is_documented], ids=lambda endpoint: endpoint.name
)
def test_http_api_page_has_every_endpoint(endpoint: Endpoint) -> None:
    assert f"### `{endpoint.method} {endpoint.path_template}`" in http_api_page()


@pytest.mark.parametrize("model", [RunView, CreateRun, EventPage, Problem])
def test_http_api_page_has_every_field(model: type[BaseModel]) -> None:
    _, _, section = http_api_page().partition(f"\n### {model.__name__}\n")
    described, _, _ = section.partition("\n### ")

    assert {name for name in model.model_fields if f"| `{name}` |" not in described} == set()


@pytest.mark.parametrize("event", [*EVENTS, *UNLOGGED], ids=lambda event: event.event)
def test_http_api_page_has_an_example_of_every_event(event: type[Event | Gap | StreamStatus]) -> None:
    (frame,) = sse.decode(f"{example_frames()[event]}\n\n".encode())

    assert frame.event == event.event
    assert event.model_validate_json(frame.data)
    assert frame.data in http_api_page()


def test_http_api_page_has_every_error_code() -> None:
    page = http_api_page()
    codes = {error.code for endpoint in ENDPOINTS for error in endpoint.errors}
    codes |= {error.code for error in RunFailed.__subclasses__()}

    assert {code for code in codes if f"| `{code}` |" not in page} == set()


def test_http_api_page_links_to_its_own_sections() -> None:
    page = http_api_page()
    anchors = {title.strip("`").lower() for title in re.findall(r"^##+ (\S+)$", page, re.MULTILINE)}
    anchors |= set(re.findall(r'<a id="(\w+)">', page))

    assert set(re.findall(r"\(#([^)]+)\)", page)) <= anchors


def test_readme_s_diagram_is_current() -> None:
    readme = (ROOT / generate.README).read_text()

    assert readme == generate.with_states(readme), "run `make docs`"


def test_configuration_page_has_every_setting_with_a_description() -> None:
    page = generate.configuration_page()

    for name, field in Settings.model_fields.items():
        variable = name.upper() if name.startswith("openai_") else f"STAGEBUS_{name.upper()}"
        assert f"| `{variable}` |" in page
        assert field.description


def test_readme_s_diagram_shows_every_state() -> None:
    assert all(f" {status}" in generate.states_diagram() for status in RunStatus)


def test_readme_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no"):
        generate.with_states("# Stagebus")


def test_readme_s_text_around_the_diagram_stays() -> None:
    readme = f"before\n{generate.STATES_BEGIN}\nold\n{generate.STATES_END}\nafter\n"

    made = generate.with_states(readme)
    assert made.startswith("before\n")
    assert made.endswith("\nafter\n")
    assert "old" not in made
