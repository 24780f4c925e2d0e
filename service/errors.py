"""Exceptions of the service. They know nothing of HTTP; `service.http.problems` maps them to
responses. Decoder processes import this module, so it imports little."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class BadImage(Exception):
    """The data is not an image, or is damaged."""


class UnsupportedImageType(Exception):
    """The data is an image of a type that is not served."""


class ImageTooLarge(Exception):
    """The image has more pixels than allowed."""


class ImageTooExpensive(Exception):
    """Decoding the image took more CPU time or memory than one image may take."""


class MissingImage(Exception):
    """The request has no image."""


class TooManyImages(Exception):
    """The request has more images than allowed."""


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


class UploadMemoryFull(Exception):
    """All uploads together hold their maximum of memory."""


class EngineBusy(Exception):
    """The engine process does not read requests as fast as they arrive."""


class UploadTimeout(Exception):
    """The body did not arrive in time."""


class BadTimeout(Exception):
    """The timeout that the client asks for is not a positive number."""


class Unauthorized(Exception):
    """The request has no API key, or an unknown one."""

    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class UnknownHost(Exception):
    """The Host header names a host that is not allowed."""


class CrossSite(Exception):
    """A browser sent the request for a page of another origin."""


class RateLimited(Exception):
    """The client sent more images than the rate limit allows."""

    def __init__(self, retry_after: float) -> None:
        """`retry_after`: seconds after which the client may send images again."""
        super().__init__(f"retry in {retry_after:.3g} s")
        self.retry_after = retry_after


class DecodeQueueFull(Exception):
    """The queue of images that wait for a decoder is full."""


class DecoderLost(Exception):
    """The process that decoded the image was killed from outside, more than once."""


class DecodersKilled(RateLimited):
    """The images of the client ended too many decoder processes."""


class NotAdmin(Unauthorized):
    """The request has no admin key, or an unknown one."""


class RepositoryOff(Exception):
    """The model repository is disabled, because no admin key is set."""


class BadRepositoryCall(Exception):
    """The request to the model repository is invalid."""


class LoadFailed(Exception):
    """The version could not be loaded. The version that served before still serves."""


class ChangeUnderWay(Exception):
    """Another version is being loaded or unloaded."""


class BadInference(Exception):
    """The inference request is invalid for the Open Inference Protocol or for this model."""


class UnknownModel(Exception):
    """The request names a model or a version that is not served."""


class UnsupportedMethod(Exception):
    """The method is part of the protocol, and is not supported over gRPC."""


class TooManyMessages(Exception):
    """A gRPC message was canceled for a newer one, because too many were arriving."""


class UnsupportedEncoding(Exception):
    """The body is compressed."""


class NotReady(Exception):
    """The model is not loaded or not warm yet."""


class DecodersDown(NotReady):
    """No decoder process can be started."""


class Unloaded(NotReady):
    """An operator unloaded the model, and has not loaded it again."""


class Stalled(NotReady):
    """The engine has made no progress on its batch for too long."""


class NotLive(Exception):
    """The engine has failed, and only a restart of the process helps."""


def first_error(error: ValidationError) -> str:
    """The first error that pydantic found, as a sentence: where it is, and what is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "The body"
    return f"{where}: {first['msg']}."
