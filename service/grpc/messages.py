"""Defines the Python classes for the messages of `open_inference.proto`.

The classes are built at import from the compiled file `open_inference.binpb`. Python code generated
by protobuf's compiler is not used, because such code works with one version of protobuf only.

The classes have their own descriptor pool. Protobuf's default pool accepts a message name only
once, and clients such as `tritonclient` register the same names in the default pool.
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
