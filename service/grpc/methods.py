"""The methods of inference.GRPCInferenceService. They contain no `try`: `call` answers errors.

Every RPC is taken as a stream of the client's, which on the wire a single message is, too: so a
method checks the key before the message is received.
"""

from __future__ import annotations

from typing import Any

import grpc
from starlette.datastructures import State

from batching import Draining
from model_store.engine import Image
from model_store.manifest import Manifest
from service.errors import NotReady, UnsupportedMethod
from service.grpc import messages, translation
from service.grpc.call import Call, surrounded
from service.grpc.streams import Streams
from service.inference.pipeline import Pipeline, Provisions, Read
from service.inference.serving import Serving
from service.settings import Settings
from service.upload.memory import Lease
from service.v2 import common, inputs
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.outputs import Reply

Name = tuple[str, str]
"""Of a model and its version; that may be empty: whichever is served."""
NAME_SECONDS, NAME_BYTES = 5.0, 4096
"""Limits of a message that only names a model: time to arrive, and bytes that are parsed."""


class Methods:
    """`handler`: all of them, for a server."""

    def __init__(self, parts: State, version: str, streams: Streams) -> None:
        """`parts`: the application's; `version`: the server's; `streams`: the messages that are
        arriving."""
        self._parts = parts
        self._streams = streams
        self._serving: Serving = parts.serving
        self._settings: Settings = parts.settings
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
                surrounded(name, method, self._parts, self._streams),
                response_serializer=_serialised,
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(messages.SERVICE.full_name, handlers)

    async def server_live(self, call: Call) -> Any:
        return messages.ServerLiveResponse(live=await self._serving.live())

    async def server_ready(self, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=await self._is_ready())

    async def model_ready(self, call: Call) -> Any:
        asked = await self._named(call, messages.ModelReadyRequest)
        ready = await self._is_ready()
        if ready:
            served(self._serving, asked.name, asked.version)
        return messages.ModelReadyResponse(ready=ready)

    async def _is_ready(self) -> bool:
        """Whether a readiness probe over HTTP would get 200: here it gets no error."""
        try:
            await self._serving.available()
        except (NotReady, Draining):
            return False
        return True

    async def server_metadata(self, call: Call) -> Any:
        about = common.server_metadata(self._version, repository=False)
        return messages.ServerMetadataResponse(**about)

    async def model_metadata(self, call: Call) -> Any:
        asked = await self._named(call, messages.ModelMetadataRequest)
        model = served(self._serving, asked.name, asked.version).model
        return messages.ModelMetadataResponse(**common.model_metadata(model))

    async def infer(self, call: Call) -> Any:
        """The classes of n images, or an error if any of them cannot be answered."""
        timeout = self._settings.request_timeout
        provisions: Provisions = self._parts.provisions
        journey = Pipeline(provisions, call.headers, call.client, call.timing, timeout)
        named, reply, images = await self._images(call, journey)
        answered = await by_one_version(journey, images)
        model = answered[0].model
        check_named(model, *named)
        return translation.response(reply, model, [one.probabilities for one in answered])

    async def stream_infer(self, call: Call) -> Any:
        raise UnsupportedMethod

    async def _images(self, call: Call, journey: Pipeline) -> tuple[Name, Reply, list[Image]]:
        """Read and decoded; the message is forgotten before the images wait for the engine."""
        with journey:
            named, asked = self._asked(await journey.read(_reader(call)), journey.model)
            for seconds in (call.time_left, asked.seconds):
                if seconds is not None:
                    journey.hurry(seconds)
            return named, asked.reply, await decoded(journey, asked)

    def _asked(self, data: bytes, model: Manifest) -> tuple[Name, inputs.InferInputs]:
        """A function of its own, so that of the message only its images are left."""
        message = translation.read(data)
        named = message.model_name, message.model_version
        served(self._serving, *named)
        return named, translation.request(message, model, self._settings.max_images_per_request)

    async def _named(self, call: Call, kind: Any) -> Any:
        """The message that names a model, of class `kind`."""
        data = await call.message(NAME_SECONDS)
        return translation.parsed(kind, data[:NAME_BYTES])


def _reader(call: Call) -> Read[bytes]:
    """Reads the message of `call`, whose size gRPC's server has checked."""

    async def read(max_bytes: int, max_seconds: float, share: Lease) -> bytes:
        data = await call.message(max_seconds)
        share.add(len(data))
        return data

    return read


def _serialised(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
