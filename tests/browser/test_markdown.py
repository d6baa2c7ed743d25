"""The page renders Markdown within a time budget, whatever a model writes."""

import pytest
from playwright.async_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

# Far below the 5 to 22 s that these texts took without a budget, with room for a busy machine.
RENDER_MAX_MS = 1500
CHARS = 60_000
HOSTILE = {
    "emphasis": "_a",
    "strong": "__a",
    "stars": "*a",
    "strong emphasis": "***a",
    "e-mail addresses": "a.",
    "tags": "<a ",
    "links": "[a](",
    "quotes": ">",
    "strikethrough": "~a",
    "code": "`a``",
}
RENDER = """async (text) => {
    const { MarkdownText } = await import("/static/markdown.js");
    const show = () => {
        const element = document.createElement("div");
        const start = performance.now();
        new MarkdownText(element).show(text);
        return { element, ms: performance.now() - start };
    };
    // The fastest of three, since a busy machine may use up the budget of one.
    const [{ element, ms }] = [show(), show(), show()].sort((one, other) => one.ms - other.ms);
    const nodes = [...element.querySelectorAll("*")];
    return {
        ms, text: element.textContent,
        kinds: [...new Set(nodes.map((node) => node.localName + (node.className ? `.${node.className}` : "")))],
    };
}"""


async def test_hostile_markdown_is_rendered_within_the_budget(page: Page) -> None:
    """The parser is quadratic in such texts; what exceeds the budget is shown as plain text, and nothing is lost."""
    await page.goto("/")

    for name, piece in HOSTILE.items():
        shown = await page.evaluate(RENDER, piece * (CHARS // len(piece)))
        assert shown["ms"] < RENDER_MAX_MS, name
        assert shown["text"].count("a") + shown["text"].count(">") > CHARS // len(piece) - 100, (
            f"{name}: but for the syntax that became elements"
        )


async def test_ordinary_long_answer_is_rendered_completely(page: Page) -> None:
    """The budget is far above what a long real answer needs."""
    await page.goto("/")
    part = "## Part\n\nSome *emphasised* and **strong** text, `code`.\n\n- [x] one\n- [ ] two\n\n| a | b |\n|--:|:-:|\n| 1 | 2 |\n\n"
    answer = part * 100

    shown = await page.evaluate(RENDER, answer)

    assert {"h4", "p", "em", "strong", "code", "li", "ul.tasks", "td.right", "td.center"} <= set(shown["kinds"])
    assert "**" not in shown["text"]
