"""The messages of `open_inference.proto`, as Python classes.

They are built from the compiled description beside it, not from generated code, which would need
one exact version of protobuf. They have a descriptor pool of their own: a process can register a
message name only once in protobuf's default pool, and clients such as `tritonclient` register the
same names there.
"""

from __future__ import annotations

import pathlib
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

DESCRIPTION = pathlib.Path(__file__).with_name("open_inference.binpb")
_POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file:
    _POOL.AddSerializedFile(_file.SerializeToString())

SERVICE = _POOL.FindServiceByName("inference.GRPCInferenceService")


def _message_class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


ServerLiveResponse = _message_class("ServerLiveResponse")
ServerReadyResponse = _message_class("ServerReadyResponse")
ModelReadyRequest = _message_class("ModelReadyRequest")
ModelReadyResponse = _message_class("ModelReadyResponse")
ServerMetadataResponse = _message_class("ServerMetadataResponse")
ModelMetadataRequest = _message_class("ModelMetadataRequest")
ModelMetadataResponse = _message_class("ModelMetadataResponse")
ModelInferRequest = _message_class("ModelInferRequest")
ModelInferResponse = _message_class("ModelInferResponse")
