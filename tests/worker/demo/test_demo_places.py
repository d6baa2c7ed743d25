import pytest

from stagebus.worker.demo.demo_places import PLACES_MAX, places_in


@pytest.mark.parametrize(
    ("prompt", "places"),
    [
        ("What is the weather in Paris and in Tokyo?", ["Paris", "Tokyo"]),
        ("Weather in New York, London and São Paulo?", ["New York", "London", "São Paulo"]),
        ("How warm is it in Łódź, Århus or Zürich right now?", ["Łódź", "Århus", "Zürich"]),
        ("I'd like the weather for Rio de Janeiro or St. Louis.", ["Rio de Janeiro", "St. Louis"]),
        ("Is it raining in Paris, London, Tokyo, and Paris?", ["Paris", "London", "Tokyo"]),
        ("Compare: Oslo, Lima", ["Oslo", "Lima"]),
        ("weather in paris and tokyo", ["paris", "tokyo"]),
        ("what's the weather in san francisco today?", ["san francisco"]),
        ("Hello, World", []),
        ("Tell me a joke in french", []),
        ("Say it in French, please.", []),
        ("", []),
    ],
)
def test_places_are_found(prompt, places):
    assert places_in(prompt) == places


def test_number_of_places_is_limited():
    assert len(places_in("in " + ", ".join(f"A{i}" for i in range(1000)))) == PLACES_MAX
