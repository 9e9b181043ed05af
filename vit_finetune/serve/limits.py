"""What one request to the service may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from vit_finetune.common.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for; more is refused before it costs anything.

    Attributes:
        max_megabytes: of a request's body, all its pictures together.
        max_megapixels: of one picture, as its header tells them: a small file can hold a huge picture.
        max_pictures: of a batch.
        timeout_seconds: from the arrival of a whole request to its answer.
        max_waiting: requests that may wait for the model; further ones are told to come again.
    """

    max_megabytes: float = 32.0
    max_megapixels: float = 50.0
    max_pictures: int = 64
    timeout_seconds: float = 30.0
    max_waiting: int = 32

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through.

        Raises:
            RequestError: a limit is not above 0.
        """
        for name, value in vars(self).items():
            if not value > 0:
                raise RequestError(f"{name} is {value}; give a number above 0")

    @property
    def max_bytes(self) -> int:
        """The largest body in bytes."""
        return int(self.max_megabytes * 1_000_000)

    @property
    def max_pixels(self) -> int:
        """The most pixels of a picture."""
        return int(self.max_megapixels * 1_000_000)
