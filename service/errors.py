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
    """The request holds no image."""


class TooManyImages(Exception):
    """More images in one request than allowed."""


class BodyTooLarge(Exception):
    """The body is longer than allowed."""


class UploadMemoryFull(Exception):
    """Uploads hold as much memory as they may."""


class EngineBusy(Exception):
    """The engine process does not read requests as fast as they arrive."""


class UploadTimeout(Exception):
    """The body did not arrive in time."""


class BadTimeout(Exception):
    """The deadline that the client asks for is none."""


class Unauthorized(Exception):
    """No key, or a wrong one, where one is asked for."""

    headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class UnknownHost(Exception):
    """The request is addressed to a host that this server does not answer for."""


class CrossSite(Exception):
    """A browser sent the request for a page of another origin that is not allowed to."""


class RateLimited(Exception):
    """A client sent more images than it may; as of now it may again in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"welcome again in {retry_after:.3g} s")
        self.retry_after = retry_after


class DecodeQueueFull(Exception):
    """As many images wait for a decoder as may, and none of them is to make room."""


class DecoderLost(Exception):
    """The process that decoded the image was ended from outside, more than once."""


class DecodersKilled(RateLimited):
    """A client's images ended too many decoder processes."""


class NotAdmin(Unauthorized):
    """No admin key, or a wrong one, where one is asked for."""


class RepositoryOff(Exception):
    """A call to the model repository, and no admin key is set."""


class BadRepositoryCall(Exception):
    """Not a call to the model repository that can be followed."""


class LoadFailed(Exception):
    """Another version was to be loaded and was not; what served before goes on to."""


class ChangeUnderWay(Exception):
    """Another version is being loaded or unloaded."""


class BadInference(Exception):
    """Not a request that the Open Inference Protocol or this model can take."""


class UnknownModel(Exception):
    """Another model, or another version of it, is served."""


class UnsupportedMethod(Exception):
    """Of gRPC: in the protocol, and not served."""


class TooManyMessages(Exception):
    """A gRPC message was canceled for a newer one, because too many were arriving."""


class UnsupportedEncoding(Exception):
    """The body is compressed."""


class NotReady(Exception):
    """The model is not loaded or not warm yet."""


class DecodersDown(NotReady):
    """No decoder process can be started."""


class Unloaded(NotReady):
    """The model was unloaded, and not loaded again since."""


class Stalled(NotReady):
    """The engine has made no progress on a batch for long."""


class NotLive(Exception):
    """The engine does not answer any more; only a new process helps."""


def first_error(error: ValidationError) -> str:
    """The first error that pydantic found, as a sentence: where it is, and what is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "The body"
    return f"{where}: {first['msg']}."
