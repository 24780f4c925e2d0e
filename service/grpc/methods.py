"""The methods of inference.GRPCInferenceService. The `interceptor` turns exceptions into statuses.

Every RPC is registered with a stream of request messages, which looks the same on the wire as a
single message. This way, a method can check the API key before it receives the message.
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
from service.grpc.call import Call
from service.grpc.interceptor import intercepted
from service.grpc.streams import Streams
from service.inference.pipeline import Pipeline, Provisions, Read
from service.inference.serving import Serving
from service.settings import Settings
from service.upload.memory import Lease
from service.v2 import common
from service.v2.common import by_one_version, check_named, decoded, served
from service.v2.inputs import InferInputs
from service.v2.outputs import Reply

Name = tuple[str, str]
"""Name and version of a model. An empty version stands for the served one."""
NAME_SECONDS = 5.0
"""Maximum time for a message that only names a model to arrive."""
NAME_BYTES = 4096
"""Number of bytes of such a message that are parsed."""


class Methods:
    """Implements the methods of the service."""

    def __init__(self, state: State, version: str, streams: Streams) -> None:
        """
        Args:
            state: The application's state.
            version: The version that the server metadata contains.
            streams: The streams of all connections.
        """
        self._state = state
        self._streams = streams
        self._serving: Serving = state.serving
        self._settings: Settings = state.settings
        self._version = version

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler of all methods, for gRPC's server."""
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
                intercepted(name, method, self._state, self._streams),
                response_serializer=_serialized,
            )
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(messages.SERVICE.full_name, handlers)

    async def server_live(self, call: Call) -> Any:
        return messages.ServerLiveResponse(live=await self._serving.live())

    async def server_ready(self, call: Call) -> Any:
        return messages.ServerReadyResponse(ready=await self._is_ready())

    async def model_ready(self, call: Call) -> Any:
        request = await self._model_name(call, messages.ModelReadyRequest)
        ready = await self._is_ready()
        if ready:
            served(self._serving, request.name, request.version)
        return messages.ModelReadyResponse(ready=ready)

    async def _is_ready(self) -> bool:
        """Whether a readiness probe over HTTP would get 200. Over gRPC, a probe gets no error."""
        try:
            await self._serving.available()
        except (NotReady, Draining):
            return False
        return True

    async def server_metadata(self, call: Call) -> Any:
        metadata = common.server_metadata(self._version, repository=False)
        return messages.ServerMetadataResponse(**metadata)

    async def model_metadata(self, call: Call) -> Any:
        request = await self._model_name(call, messages.ModelMetadataRequest)
        model = served(self._serving, request.name, request.version).model
        return messages.ModelMetadataResponse(**common.model_metadata(model))

    async def infer(self, call: Call) -> Any:
        """Classify n images. If one of them fails, the whole call fails."""
        timeout = self._settings.request_timeout
        provisions: Provisions = self._state.provisions
        journey = Pipeline(provisions, call.headers, call.client, call.timing, timeout)
        named, reply, images = await self._images(call, journey)
        answered = await by_one_version(journey, images)
        model = answered[0].model
        check_named(model, *named)
        return translation.response(reply, model, [one.probabilities for one in answered])

    async def stream_infer(self, call: Call) -> Any:
        raise UnsupportedMethod

    async def _images(self, call: Call, journey: Pipeline) -> tuple[Name, Reply, list[Image]]:
        """Receive the message and decode its images.

        The message is freed before the images wait for the engine.
        """
        with journey:
            named, inputs = self._parsed(await journey.read(_reader(call)), journey.model)
            for seconds in (call.time_left, inputs.seconds):
                if seconds is not None:
                    journey.hurry(seconds)
            return named, inputs.reply, await decoded(journey, inputs)

    def _parsed(self, data: bytes, model: Manifest) -> tuple[Name, InferInputs]:
        """The model that the message names, and its inputs. On return, the message is freed."""
        message = translation.read(data)
        named = message.model_name, message.model_version
        served(self._serving, *named)
        return named, translation.request(message, model, self._settings.max_images_per_request)

    async def _model_name(self, call: Call, message_class: Any) -> Any:
        """Receive a message that only names a model."""
        data = await call.message(NAME_SECONDS)
        return translation.parsed(message_class, data[:NAME_BYTES])


def _reader(call: Call) -> Read[bytes]:
    """A function that reads the message of `call`. gRPC's server has checked its size."""

    async def read(max_bytes: int, max_seconds: float, share: Lease) -> bytes:
        data = await call.message(max_seconds)
        share.add(len(data))
        return data

    return read


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
