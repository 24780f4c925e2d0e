"""Our messages are the protocol's: names, numbers and types as NVIDIA's client has them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from service.grpc.messages import DESCRIPTION, SERVICE

THEIRS = service_pb2.DESCRIPTOR
OURS = SERVICE.file


def fields(message: Any) -> dict[str, tuple[int, int, bool, str]]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else "",
        )
        for field in message.fields
    }


def messages(of: Any) -> dict[str, Any]:
    """By name, with those inside of others."""
    found = {}
    for message in of:
        found[message.full_name] = message
        found |= messages(message.nested_types)
    return found


@pytest.mark.parametrize("name", messages(OURS.message_types_by_name.values()))
def test_message(name: str) -> None:
    ours = messages(OURS.message_types_by_name.values())[name]
    theirs = messages(THEIRS.message_types_by_name.values())[name]
    assert fields(ours) == fields(theirs)


def test_methods() -> None:
    theirs = THEIRS.services_by_name["GRPCInferenceService"]
    assert SERVICE.full_name == theirs.full_name
    for method in SERVICE.methods:
        there = theirs.methods_by_name[method.name]
        assert method.input_type.full_name == there.input_type.full_name
        assert method.output_type.full_name == there.output_type.full_name


def test_the_description_is_of_the_text_beside_it() -> None:
    """`make proto` was run: the text has the same messages, and the same fields in each."""
    text = re.sub(r"//.*", "", DESCRIPTION.with_suffix(".proto").read_text())
    said = re.findall(r"(\w+) = (\d+);", text)
    described = [
        (field.name, str(field.number))
        for message in messages(OURS.message_types_by_name.values()).values()
        if not message.GetOptions().map_entry
        for field in message.fields
    ]
    assert sorted(said) == sorted(described)
    assert set(re.findall(r"rpc (\w+)", text)) == set(SERVICE.methods_by_name)
