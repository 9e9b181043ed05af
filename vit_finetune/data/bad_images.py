"""Pictures that cannot be decoded: which ones they are, and which errors are the machine's and not the picture's.

A picture is left out only for what its own file is, since that repeats: whoever comes to it, on whatever process, in
whatever epoch, finds the same. A disk that fails or memory that runs out does not repeat, and ends the run.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from vit_finetune.common.errors import RequestError

# What the operating system says about a path itself; everything else (EIO, ESTALE, EMFILE, ...) may be gone next time.
_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    }
)


@dataclass(frozen=True, order=True)
class BadImage:
    """A picture that was left out.

    Attributes:
        index: its place in the split.
        reason: one line that names it and says why.
    """

    index: int
    reason: str


def is_bad_image(error: RequestError) -> bool:
    """Tell whether a picture could not be read because of what it is, so that it never can be.

    Args:
        error: what reading or decoding the picture raised.
    """
    cause = error.__cause__
    if isinstance(cause, MemoryError):
        return False
    number = cause.errno if isinstance(cause, OSError) else None  # Pillow's own OSErrors have no number
    return number is None or number in _OF_THE_FILE
