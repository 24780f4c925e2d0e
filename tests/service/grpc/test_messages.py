"""Tests that our messages have the names, numbers and types of NVIDIA's client."""

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
    """All messages by name, nested ones included."""
    by_name = {}
    for message in of:
        by_name[message.full_name] = message
        by_name |= messages(message.nested_types)
    return by_name


@pytest.mark.parametrize("name", messages(OURS.message_types_by_name.values()))
def test_message_has_the_fields_of_the_protocol(name: str) -> None:
    """Each message has the same fields as the message of the same name in NVIDIA's client."""
    ours = messages(OURS.message_types_by_name.values())[name]
    theirs = messages(THEIRS.message_types_by_name.values())[name]
    assert fields(ours) == fields(theirs)


def test_methods_have_the_messages_of_the_protocol() -> None:
    """Each method has the same request and response type as in NVIDIA's client."""
    theirs = THEIRS.services_by_name["GRPCInferenceService"]
    assert SERVICE.full_name == theirs.full_name
    for method in SERVICE.methods:
        same = theirs.methods_by_name[method.name]
        assert method.input_type.full_name == same.input_type.full_name
        assert method.output_type.full_name == same.output_type.full_name


def test_compiled_description_matches_the_proto_file() -> None:
    """The compiled description has the fields and methods of the text, so `make proto` was run."""
    text = re.sub(r"//.*", "", DESCRIPTION.with_suffix(".proto").read_text())
    in_text = re.findall(r"(\w+) = (\d+);", text)
    described = [
        (field.name, str(field.number))
        for message in messages(OURS.message_types_by_name.values()).values()
        if not message.GetOptions().map_entry
        for field in message.fields
    ]
    assert sorted(in_text) == sorted(described)
    assert set(re.findall(r"rpc (\w+)", text)) == set(SERVICE.methods_by_name)
