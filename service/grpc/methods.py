"""The methods of inference.GRPCInferenceService. They contain no `try`: `call` answers errors.

Every RPC is taken as a stream of the client's, which on the wire a single message is, too: so a
method checks the key before the message is received.
"""

from __future__ import annotations

from typing import Any

import grpc

from batching import Draining
from model_store.engine import Image
from model_store.manifest import Manifest
from service.errors import NotReady, UnsupportedMethod
from service.grpc import messages, translation
from service.grpc.call import Call, surrounded
from service.grpc.streams import Streams
from service.inference.pipeline import Pipeline
from service.inference.service import Service
from service.upload.body import Lease
from service.v2 import common, inputs
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.outputs import Reply

Name = tuple[str, str]
"""Of a model and its version; that may be empty: whichever is served."""
NAME_SECONDS, NAME_BYTES = 5.0, 4096
"""Limits of a message that only names a model: time to arrive, and bytes that are parsed."""


class Methods:
    """`handler`: all of them, for a server."""

    def __init__(self, service: Service, version: str, streams: Streams) -> None:
        """
        Args:
            service: Answers the calls.
            version: Version of the server.
            streams: The messages that are arriving.
        """
        self._service = service
        self._streams = streams
        self._version = version

    def handler(self) -> grpc.GenericRpcHandler:
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
                surrounded(name, method, self._service, self._streams),
                response_serializer=_serialised,
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(messages.SERVICE.full_name, handlers)

    async def server_live(self, call: Call) -> Any:
        return messages.ServerLiveResponse(live=await self._service.is_live())

    async def server_ready(self, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=await self._is_ready())

    async def model_ready(self, call: Call) -> Any:
        asked = await self._named(call, messages.ModelReadyRequest)
        ready = await self._is_ready()
        if ready:
            served(self._service, asked.name, asked.version)
        return messages.ModelReadyResponse(ready=ready)

    async def _is_ready(self) -> bool:
        """Whether a readiness probe over HTTP would get 200: here it gets no error."""
        try:
            await self._service.check_ready()
        except (NotReady, Draining):
            return False
        return True

    async def server_metadata(self, call: Call) -> Any:
        about = common.server_metadata(self._version, repository=False)
        return messages.ServerMetadataResponse(**about)

    async def model_metadata(self, call: Call) -> Any:
        asked = await self._named(call, messages.ModelMetadataRequest)
        model = served(self._service, asked.name, asked.version).model
        return messages.ModelMetadataResponse(**common.model_metadata(model))

    async def infer(self, call: Call) -> Any:
        """Classify n images. If one of them cannot be classified, the whole call fails."""
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
        """The named model, the wanted reply and the images. The message is released before the
        images wait for the engine."""
        with self._service.uploads.lease() as lease:
            message = await pipeline.read(_read(call, lease))
            named, request = self._translated(message, pipeline.model)
            del message
            for seconds in (call.time_left, request.seconds):
                if seconds is not None:
                    pipeline.shorten_deadline(seconds)
            return named, request.reply, await decoded(pipeline, request)

    def _translated(self, data: bytes, model: Manifest) -> tuple[Name, inputs.InferInputs]:
        """The named model and the inputs. A function of its own, so that nothing else of the
        message is kept."""
        message = translation.read(data)
        named = message.model_name, message.model_version
        served(self._service, *named)
        most = self._service.settings.max_images_per_request
        return named, translation.request(message, model, most)

    async def _named(self, call: Call, kind: Any) -> Any:
        """The message that names a model, of class `kind`."""
        data = await call.message(NAME_SECONDS)
        return translation.parsed(kind, data[:NAME_BYTES])


async def _read(call: Call, lease: Lease) -> bytes:
    """The message of `call`, whose size gRPC's server has checked."""
    data = await call.message(lease.max_seconds)
    lease.add(len(data))
    return data


def _serialised(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
