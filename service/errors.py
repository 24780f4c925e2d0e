"""Defines the exceptions of the service.

The exceptions do not depend on HTTP; `service.http.problems` maps them to responses. Decoder
processes import this module as well. This module imports almost nothing, to keep decoder processes
small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class BadImage(Exception):
    """The data is not an image, or is damaged."""


class UnsupportedImageType(Exception):
    """The data is an image of an unsupported type."""


class ImageTooLarge(Exception):
    """The image has more pixels than allowed."""


class ImageTooExpensive(Exception):
    """Decoding the image takes more CPU time or memory than is allowed for one image."""


class MissingImage(Exception):
    """The request has no image."""


class TooManyImages(Exception):
    """The request has more images than allowed."""


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


class UploadMemoryFull(Exception):
    """All uploads together already hold the maximum number of bytes."""


class EngineBusy(Exception):
    """The engine process does not read requests as fast as clients send them."""


class UploadTimeout(Exception):
    """The body did not arrive in time."""


class BadTimeout(Exception):
    """The timeout that the client sent is not a positive number."""


class Unauthorized(Exception):
    """The request has no API key, or an invalid API key."""

    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class UnknownHost(Exception):
    """The Host header names a host that is not allowed."""


class CrossSite(Exception):
    """A page of another origin made a browser send the request."""


class RateLimited(Exception):
    """The client sent more images than the rate limit allows."""

    def __init__(self, retry_after: float) -> None:
        """`retry_after`: seconds after which the client may send images again."""
        super().__init__(f"retry in {retry_after:.3g} s")
        self.retry_after = retry_after


class DecodeQueueFull(Exception):
    """The queue of images that wait for a decoder is full."""


class DecoderLost(Exception):
    """The decoder process of the image was killed by another process, more than once."""


class DecodersKilled(RateLimited):
    """The images of the client caused too many decoder processes to end."""


class NotAdmin(Unauthorized):
    """The request has no admin key, or an invalid admin key."""


class RepositoryOff(Exception):
    """No admin key is set, so the API that loads and unloads versions is disabled."""


class BadRepositoryCall(Exception):
    """The request to load, unload or list versions is invalid."""


class LoadFailed(Exception):
    """The version could not be loaded. The previous version stays in use."""


class ChangeUnderWay(Exception):
    """A version is already being loaded or unloaded."""


class BadInference(Exception):
    """The inference request is invalid for the Open Inference Protocol or for this model."""


class UnknownModel(Exception):
    """The request names a model or a version that is not loaded."""


class UnsupportedMethod(Exception):
    """The protocol has this method, but this server does not support it."""


class TooManyMessages(Exception):
    """A gRPC message was canceled, because too many messages were arriving at the same time."""


class UnsupportedEncoding(Exception):
    """The body is compressed."""


class NotReady(Exception):
    """No model is loaded, or the model is not warmed up yet."""


class DecodersDown(NotReady):
    """No decoder process is ready."""


class Unloaded(NotReady):
    """No model is loaded, because an operator unloaded it."""


class Stalled(NotReady):
    """The engine has been running one batch for much longer than predicted."""


class NotLive(Exception):
    """The engine has failed. Only a restart of the process can repair it."""


def first_error(error: ValidationError) -> str:
    """Return the first error that pydantic found: a sentence with the field and the reason."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "The body"
    return f"{where}: {first['msg']}."
