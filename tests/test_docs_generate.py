"""The pages that are made out of the code are those of the code as it is."""

from pathlib import Path

import pytest

from docs import generate
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.runs import RunStatus

ROOT = Path(__file__).parent.parent


def test_configuration_page_is_current() -> None:
    assert (ROOT / generate.CONFIGURATION).read_text() == generate.configuration_page(), "run `make docs`"


def test_readme_s_diagram_is_current() -> None:
    readme = (ROOT / generate.README).read_text()

    assert readme == generate.with_states(readme), "run `make docs`"


def test_every_setting_has_its_row_and_its_sentence() -> None:
    page = generate.configuration_page()

    for name, field in Settings.model_fields.items():
        variable = name.upper() if name.startswith("openai_") else f"STAGEBUS_{name.upper()}"
        assert f"| `{variable}` |" in page
        assert field.description


def test_diagram_shows_every_state() -> None:
    assert all(f" {status}" in generate.states_diagram() for status in RunStatus)


def test_readme_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="has no"):
        generate.with_states("# Stagebus")


def test_what_stands_around_the_diagram_stays() -> None:
    readme = f"before\n{generate.STATES_BEGIN}\nold\n{generate.STATES_END}\nafter\n"

    made = generate.with_states(readme)
    assert made.startswith("before\n")
    assert made.endswith("\nafter\n")
    assert "old" not in made
