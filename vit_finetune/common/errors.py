"""The errors a user meets: one class per exit code.

A message is one line (or a short list) that says what is wrong, what was got, what is allowed
and what to do. The command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations


class VitFinetuneError(Exception):
    """Base of every error that is meant for the user rather than for us.

    Args:
        message: what the user reads.
        is_of_all: all processes of a run raise it together, so that it matters to nobody which one tells of it.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, is_of_all: bool = False) -> None:
        super().__init__(message)
        self.is_of_all = is_of_all


class WorkError(VitFinetuneError, RuntimeError):
    """The request was fine but the work failed: a full disk, a non-finite loss, no network."""

    exit_code = 1


class RequestError(VitFinetuneError, ValueError):
    """The request was wrong: a missing folder, an unknown name, a file that is not what it claims."""

    exit_code = 2


class RunStopped(VitFinetuneError):  # noqa: N818 - nothing is wrong
    """A run was asked to stop and is saved; `--resume` goes on with it."""

    exit_code = 3


class NotRepresentable(RequestError):  # noqa: N818 - it says what is the case, as the specification names it
    """A layout has no words for a network: what it computes, or what the other side would compute, can't be said."""
