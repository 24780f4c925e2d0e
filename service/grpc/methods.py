"""Implements the methods of inference.GRPCInferenceService.

The `interceptor` turns the exceptions of methods into gRPC statuses. Each RPC is registered with a
stream of request messages, so that a method can check the API key before it receives the message.
The registration makes no difference for clients that send a single message.
"""

from __future__ import annotations

from typing import Any

import grpc

from batching import Draining
from model_store.engine import Image
from model_store.manifest import Manifest
from service.errors import NotReady, UnsupportedMethod
from service.grpc import messages, translation
from service.grpc.call import Call
from service.grpc.interceptor import intercepted
from service.grpc.streams import Streams
from service.inference.pipeline import Pipeline
from service.inference.service import Service
from service.upload.body import Lease
from service.v2 import common
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.inputs import InferInputs
from service.v2.outputs import Reply

Name = tuple[str, str]
"""Name and version of a model. An empty version stands for the loaded version."""
NAME_SECONDS = 5.0
"""Maximum number of seconds until a message that only names a model has arrived."""
NAME_BYTES = 4096
"""Maximum number of bytes to parse of a message that only names a model. Further bytes are
ignored."""


class Methods:
    """Implements the methods of the service."""

    def __init__(self, service: Service, version: str, streams: Streams) -> None:
        """
        Args:
            service: The service that handles the calls.
            version: Version of the server, for its metadata.
            streams: The streams of all connections.
        """
        self._service = service
        self._streams = streams
        self._version = version

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler of all methods for gRPC's server."""
        methods = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.infer,
            "ModelStreamInfer": self.stream_infer,
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.stream_unary_rpc_method_handler(
                intercepted(name, method, self._service, self._streams),
                response_serializer=_serialized,
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(messages.SERVICE.full_name, handlers)

    # The messages in the file open_inference.proto describe the requests and responses.

    async def server_live(self, call: Call) -> Any:
        return messages.ServerLiveResponse(live=await self._service.is_live())

    async def server_ready(self, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=await self._is_ready())

    async def model_ready(self, call: Call) -> Any:
        request = await self._model_name(call, messages.ModelReadyRequest)
        ready = await self._is_ready()
        if ready:
            served(self._service, request.name, request.version)
        return messages.ModelReadyResponse(ready=ready)

    async def _is_ready(self) -> bool:
        """Whether a readiness probe over HTTP would get 200. Never raises NotReady."""
        try:
            await self._service.check_ready()
        except (NotReady, Draining):
            return False
        return True

    async def server_metadata(self, call: Call) -> Any:
        metadata = common.server_metadata(self._version, repository=False)
        return messages.ServerMetadataResponse(**metadata)

    async def model_metadata(self, call: Call) -> Any:
        request = await self._model_name(call, messages.ModelMetadataRequest)
        model = served(self._service, request.name, request.version).model
        return messages.ModelMetadataResponse(**common.model_metadata(model))

    async def infer(self, call: Call) -> Any:
        """Classify n images. If one image cannot be classified, the whole call fails."""
        timeout = self._service.settings.request_timeout
        pipeline = Pipeline(self._service, call.headers, call.client, call.timing, timeout)
        named, reply, images = await self._read_and_decode(call, pipeline)
        results = await by_one_version(pipeline, images)
        model = results[0].model
        check_named(model, *named)
        return translation.response(reply, model, [result.probabilities for result in results])

    async def stream_infer(self, call: Call) -> Any:
        raise UnsupportedMethod

    async def _read_and_decode(
        self, call: Call, pipeline: Pipeline
    ) -> tuple[Name, Reply, list[Image]]:
        """Receive the message and decode its images.

        The memory of the message is freed before the images wait for the engine.
        """
        with self._service.uploads.lease() as lease:
            message = await pipeline.read(_read(call, lease))
            named, inputs = self._parsed(message, pipeline.model)
            del message
            for seconds in (call.time_left, inputs.seconds):
                if seconds is not None:
                    pipeline.shorten_deadline(seconds)
            return named, inputs.reply, await decoded(pipeline, inputs)

    def _parsed(self, data: bytes, model: Manifest) -> tuple[Name, InferInputs]:
        """Parse a ModelInferRequest. Returns the requested model, and the content of the request.

        The result does not refer to `data`, so the memory of the message can be freed.
        """
        message = translation.read(data)
        named = message.model_name, message.model_version
        served(self._service, *named)
        max_images = self._service.settings.max_images_per_request
        return named, translation.request(message, model, max_images)

    async def _model_name(self, call: Call, message_class: Any) -> Any:
        """Receive a message that only names a model."""
        data = await call.message(NAME_SECONDS)
        return translation.parsed(message_class, data[:NAME_BYTES])


async def _read(call: Call, lease: Lease) -> bytes:
    """Receive the message of `call`. `lease` counts its bytes toward the upload memory."""
    data = await call.message(lease.max_seconds)
    lease.add(len(data))
    return data


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
