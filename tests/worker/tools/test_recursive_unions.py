import time
from typing import Annotated, Literal, Union

import pytest
from pydantic import BaseModel, Field

from stagebus.worker.tools.signature import BadArguments, read_signature
from stagebus.worker.tools.tool_context import ToolContext


class Leaf(BaseModel):
    op: Literal["leaf"] = "leaf"


class And(BaseModel):
    op: Literal["and"]
    items: list[Union["And", "Or", Leaf]]


class Or(BaseModel):
    op: Literal["or"]
    items: list[Union["And", "Or", Leaf]]


class Not(BaseModel):
    op: Literal["not"]
    item: Annotated[Union["Not", "Same", Leaf], Field(discriminator="op")]


class Same(BaseModel):
    op: Literal["same"]
    item: Annotated[Union["Not", "Same", Leaf], Field(discriminator="op")]


class Chain(BaseModel):
    next: "Chain | Leaf | None" = None


def find(tree: And | Or | Leaf) -> None: ...
def negate(tree: Annotated[Not | Same | Leaf, Field(discriminator="op")]) -> None: ...
def follow(tree: Chain) -> None: ...


def bind(function, tree: str):
    signature = read_signature(function, "f")
    return signature.bind("f", f'{{"tree": {tree}}}', ToolContext(run_id="r", call_id="c"))


@pytest.mark.parametrize("levels", [12, 13, 30, 80])
def test_union_that_contains_itself_is_validated_at_little_cost(levels):
    began = time.thread_time()
    written = '{"op": "or", "items": [' * levels + "{}" + "]}" * levels
    if levels > 12:
        with pytest.raises(BadArguments, match="nest more than 14 objects"):
            bind(find, written)
    else:
        bind(find, written)

    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize(("function", "start"), [(negate, '{"op": "not", "item": '), (follow, '{"next": ')])
def test_other_recursive_types_have_no_limit_of_their_own(function, start):
    leaf = '{"op": "leaf"}' if function is negate else "{}"
    bind(function, start * 60 + leaf + "}" * 60)
