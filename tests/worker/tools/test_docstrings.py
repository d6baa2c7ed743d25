import pytest

from stagebus.worker.tools.docstrings import parse_docstring


def test_description_is_what_stands_before_the_sections():
    documentation = parse_docstring(
        """Book a table.

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
    )

    assert documentation.description == "Book a table.\n\nIt takes a while."
    assert documentation.parameters == {
        "restaurant": "its name: as a guide spells it, accents and all",
        "guests": "how many people",
        "rest": "more",
    }


@pytest.mark.parametrize("docstring", [None, "", "   "])
def test_no_docstring_says_nothing(docstring):
    assert parse_docstring(docstring) == ("", {})


def test_colon_in_the_description_begins_no_section():
    assert parse_docstring("Do it:\nArgs: none\n\nnote: well").description == "Do it:\nArgs: none\n\nnote: well"
