"""The messages of `open_inference.proto`, as Python classes.

They come from the compiled description beside it and not from generated code, which asks for a
protobuf of just its own version. Their pool is their own, because a process may hold only one
description of a name in protobuf's common one, and clients such as `tritonclient` bring theirs.
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


def _named(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


ServerLiveResponse = _named("ServerLiveResponse")
ServerReadyResponse = _named("ServerReadyResponse")
ModelReadyRequest = _named("ModelReadyRequest")
ModelReadyResponse = _named("ModelReadyResponse")
ServerMetadataResponse = _named("ServerMetadataResponse")
ModelMetadataRequest = _named("ModelMetadataRequest")
ModelMetadataResponse = _named("ModelMetadataResponse")
ModelInferRequest = _named("ModelInferRequest")
ModelInferResponse = _named("ModelInferResponse")
