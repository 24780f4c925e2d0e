"""The tables of messages are those of ONNX."""

from __future__ import annotations

from typing import Any

import pytest

from model_store.onnx import messages
from model_store.onnx.wire import Field, Kind, Message, Refused

onnx = pytest.importorskip("onnx")
TABLES = {table.name: table for table in vars(messages).values() if isinstance(table, Message)}


def described(table: Message) -> Any:
    """ONNX's own description of a message."""
    found = onnx
    for part in table.name.split("."):
        found = getattr(found, part)
    return found.DESCRIPTOR


@pytest.mark.parametrize("name", TABLES)
def test_messages_have_the_fields_of_onnx(name: str) -> None:
    """Names and numbers are equal, and all fields of the installed version are listed."""
    fields = {field.number: field for field in described(TABLES[name]).fields}
    opaque = 7 if name == "TypeProto" else None  # of ONNX-ML only
    assert {*fields} <= {*TABLES[name].fields} | {opaque}
    for number, known in TABLES[name].fields.items():
        if number in fields and isinstance(known, Field):
            field = fields[number]
            packed = known.kind is Kind.PAYLOAD and field.type != field.TYPE_BYTES
            assert known.name == field.name
            assert known.repeated == (field.is_repeated and not packed)


def test_messages_are_not_nested_without_end() -> None:
    """No message contains itself, so a file cannot nest messages."""

    def depth(table: Message, seen: tuple[Message, ...]) -> int:
        assert table.name not in [one.name for one in seen]
        inner = [one.kind for one in table.fields.values() if isinstance(one, Field)]
        tables = [one for one in inner if isinstance(one, Message)]
        return 1 + max((depth(one, (*seen, table)) for one in tables), default=0)

    assert depth(messages.MODEL, ()) <= 8


@pytest.mark.parametrize(
    ("table", "number"),
    [
        (messages.MODEL, 20),  # training_info
        (messages.MODEL, 25),  # functions
        (messages.GRAPH, 15),  # sparse_initializer
        (messages.ATTRIBUTE, 6),  # g
        (messages.ATTRIBUTE, 9),  # strings
        (messages.ATTRIBUTE, 11),  # graphs
        (messages.ATTRIBUTE, 21),  # ref_attr_name
        (messages.ATTRIBUTE, 22),  # sparse_tensor
        (messages.TENSOR, 6),  # string_data
        (messages.TENSOR, 13),  # external_data
    ],
)
def test_messages_reject_dangerous_fields(table: Message, number: int) -> None:
    """Fields that run other code, read other files, or contain no numbers."""
    assert isinstance(table.fields[number], Refused)
