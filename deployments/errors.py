"""Every error that a caller of the service can meet, with its HTTP status.

ServiceError 500
├── InvalidRequest 400
│   ├── InvalidPrompt           a field of the prompt is malformed
│   ├── InvalidImage            the upload cannot be decoded
│   ├── InvalidVideo            the uploaded video cannot be decoded
│   └── UnknownModel            no such model_id is configured
├── Unauthorized 401            AUTH_TOKEN is set and the bearer token does not match
├── ImageNotCached 404          the model does not remember the image_id
├── VideoNotCached 404          the service does not keep the file of the video_id
├── BodyTimeout 408             the request's body did not arrive in time
├── TooLarge 413                too many bytes, pixels, points, objects, or numbers in the answer
├── UnsupportedMediaType 415    the body's type or coding is none that the route reads
├── Unavailable 503             try again later; the answer carries Retry-After
│   ├── ModelUnavailable        the model is asleep, loading, or failed to load
│   ├── Overloaded              queues are full
│   ├── ShuttingDown            the service is about to end
│   └── DeadlineExceeded        the request took longer than its deadline
└── ModelLoadError 500          a checkpoint could not be loaded; replicas turn it into ModelUnavailable

Each error takes one positional message, so that it survives pickling between replicas.
"""

import math

LONGEST_RETRY_AFTER_S = 30


class ServiceError(Exception):
    """Base of all errors that the service raises on purpose."""

    status = 500
    retry_after_s: int | None = None
    code: str | None = None
    """A stable name that programs may act on without reading the message."""
    rejection: str | None = None
    """The reason under which the metrics count the request as rejected; errors with 401, 408, 413 and 503 have one."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(ServiceError):
    """The request cannot be served as it is; the message names the field and the fault."""

    status = 400


class InvalidPrompt(InvalidRequest):
    """A prompt field is malformed, or two of them contradict each other."""


class InvalidImage(InvalidRequest):
    """The image cannot be decoded."""


class InvalidVideo(InvalidRequest):
    """The video, or one of its frames, cannot be decoded."""


class UnknownModel(InvalidRequest):
    """No model with the requested id is configured."""


class Unauthorized(ServiceError):
    """The bearer token is missing or wrong."""

    status = 401
    rejection = "unauthorized"


class ImageNotCached(ServiceError):
    """The model does not, or no longer, remember the image with this id; the caller has to send the image itself."""

    status = 404
    code = "image_not_cached"


class VideoNotCached(ServiceError):
    """The service does not, or no longer, keep the file of this video; the caller has to send the video itself."""

    status = 404
    code = "video_not_cached"


class BodyTimeout(ServiceError):
    """The client took too long to send the request."""

    status = 408
    rejection = "body_timeout"


class TooLarge(ServiceError):
    """The request, or the answer that it asks for, exceeds a configured limit."""

    status = 413
    rejection = "too_large"


class UnsupportedMediaType(ServiceError):
    """The request body has a content type, or a content coding, that the route does not read."""

    status = 415


class Unavailable(ServiceError):
    """The service cannot answer now; the same request may succeed later."""

    status = 503
    retry_after_s = 5
    rejection = "unavailable"


class ModelUnavailable(Unavailable):
    """The requested model is asleep, loading, or failed to load; the message says which and why."""

    retry_after_s = 10
    rejection = "model_unavailable"


class Overloaded(Unavailable):
    """Queues are full, or so long that the request would not have its turn in time.

    Args:
        message: names the queue.
        wait_s: about how long the queue will take, in seconds; Retry-After is this, from 1 to 30.
    """

    retry_after_s = 1
    rejection = "overloaded"

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        # At least a second: with 0, all callers would return immediately. At most LONGEST_RETRY_AFTER_S: otherwise
        # callers might return long after the queue has emptied.
        self.retry_after_s = min(max(1, math.ceil(wait_s)), LONGEST_RETRY_AFTER_S)


class ShuttingDown(Unavailable):
    """The service finishes the requests that it has and admits no new ones."""

    rejection = "shutting_down"


class DeadlineExceeded(Unavailable):
    """The request did not finish within its deadline. The client decides whether to try again."""

    code = "deadline_exceeded"
    rejection = "deadline_exceeded"


class ModelLoadError(ServiceError):
    """A model's configuration or checkpoint could not be loaded; the message names the cause."""
