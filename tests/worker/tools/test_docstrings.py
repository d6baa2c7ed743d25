import pytest

from stagebus.worker.tools.docstrings import Documentation, parse_docstring

GOOGLE = """Book a table.

    It takes a while.

    Args:
        restaurant: its name: as a guide spells it,
            accents and all
        guests (int, optional): how many

            people

        *rest: more
        silent:

    Returns:
        restaurant: not this one

    Raises:
        ValueError: full
    """

NUMPY = """Book a table.

    It takes a while.

    Parameters
    ----------
    restaurant : str
        its name: as a guide spells it,
        accents and all
    guests : int, optional
        how many

        people
    *rest
        more
    silent : bool

    Attributes
    ----------
    table : str
        not this one

    Returns
    -------
    restaurant : str
        not this one
    """

REST = """Book a table.

    It takes a while.

    :param str restaurant: its name: as a guide spells it,
        accents and all
    :param guests: how many
        people
    :type guests: int
    :param rest: more
    :param silent:
    :returns: not this one
    :raises ValueError: full
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_docstring_describes_the_tool_and_its_parameters(docstring: str) -> None:
    assert parse_docstring(docstring) == Documentation(
        "Book a table.\n\nIt takes a while.",
        {
            "restaurant": "its name: as a guide spells it, accents and all",
            "guests": "how many people",
            "rest": "more",
        },
    )


def test_numpy_docstring_describes_several_parameters_together() -> None:
    docstring = """Add.

    Parameters
    ----------
    a, b : int
        the summands
    """
    assert parse_docstring(docstring).parameters == {"a": "the summands", "b": "the summands"}


def test_docstring_of_sections_alone_has_no_description() -> None:
    docstring = """
    Args:
        a: the a
    """
    assert parse_docstring(docstring) == Documentation("", {"a": "the a"})


@pytest.mark.parametrize("section", ["Returns", "Yields", "Raises", "Example", "Examples", "Note", "See Also", "Todo"])
def test_other_sections_are_no_part_of_the_description(section: str) -> None:
    assert parse_docstring(f"Do it.\n\n    {section}:\n        something: for people\n    ").description == "Do it."


@pytest.mark.parametrize("docstring", [None, "", "   "])
def test_empty_docstring_has_no_description(docstring: str | None) -> None:
    assert parse_docstring(docstring) == Documentation("", {})


@pytest.mark.parametrize(
    "docstring", ["Do it:\nArgs: none\n\nnote: well", "Do it.\n\nArgs:\nnothing is indented", "A: b\n---\nc"]
)
def test_docstring_in_no_known_style_is_the_description(docstring: str) -> None:
    assert parse_docstring(docstring) == Documentation(docstring, {})
