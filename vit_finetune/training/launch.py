"""Starting N processes of a run on this machine, as torchrun does, with one clear line where one fails."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from vit_finetune.common.errors import VitFinetuneError
from vit_finetune.common.machine import num_cores
from vit_finetune.training.stopping import SIGNALS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_STARTED_BY_US = "VIT_FINETUNE_LAUNCHED"
# As gloo and NCCL say it.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_TIME_TO_TELL = 1.0


def launch(arguments: Sequence[str], *, num_processes: int) -> tuple[int, str | None]:
    """Run `python -m vit_finetune ARGUMENTS` in N processes that share one run, and wait for them.

    Args:
        arguments: of the command line, without `--num-processes`.
        num_processes: how many; each gets its share of the cores.

    Returns:
        The exit code of the first process that failed and what it said, or (0, None).
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[_STARTED_BY_US] = "1"  # inherited by the processes; see `report_failure`
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_processes)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # our line replaces its reports
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        _in_a_thread(lambda: elastic_launch(config, sys.executable)("-u", "-m", "vit_finetune", *arguments))
    except ChildFailedError as error:
        return _first_cause(error.failures)
    return 0, None


def _first_cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, str]:
    """Return the exit code and the line of the process that failed for a reason of its own, not for another's end."""

    def reason(failure: ProcessFailure) -> str | None:
        told = failure.error_file_data.get("message")  # a plain text where the process left no file
        return told.get("message") if isinstance(told, dict) else None

    def is_consequence(rank: int) -> tuple[bool, bool, int]:
        failure = failures[rank]
        was_killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        return reason(failure) is None, not was_killed, failure.timestamp

    rank = min(failures, key=is_consequence)
    failure = failures[rank]
    how = f"exit code {failure.exitcode}" if failure.exitcode >= 0 else f"signal {failure.signal_name()}"
    return max(1, failure.exitcode), reason(failure) or f"process {rank} of the run ended with {how}"


def _in_a_thread(work: Callable[[], object]) -> None:
    """Do work while this thread passes signals on to the processes of the run.

    torch's launcher would end them half a minute after a signal, whether they have saved or not; outside of the main
    thread it leaves signals alone.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    before = {number: signal.signal(number, _pass_on) for number in SIGNALS}
    try:
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if failed:
        raise failed[0]


def _pass_on(number: int, _frame: FrameType | None) -> None:
    """Send a signal to the processes of the run, not to what they started themselves."""
    import psutil  # comes with accelerate

    for child in psutil.Process().children():
        child.send_signal(number)


def lost_a_peer(error: BaseException) -> bool:
    """Say whether an error only tells that another process of the run ended, which then tells why itself."""
    is_shared = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_shared and any(sign in str(error) for sign in _LOST_PEER):
        time.sleep(_TIME_TO_TELL)  # the other one's reason is to be there first
        return True
    return False


def with_rank(error: Exception) -> str:
    """Return an error's message, with the process that had it where it is one of several."""
    message = str(error) if isinstance(error, VitFinetuneError) else f"{type(error).__name__}: {error}"
    is_shared = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not getattr(error, "is_of_all", False)
    return f"process {os.environ.get('RANK', '0')}: {message}" if is_shared else message


def report_failure(error: Exception) -> bool:
    """Hand an error to the launcher of this process, if there is one.

    Returns:
        Whether the launcher will tell the person, so that this process need not.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return False
    details = {"timestamp": str(int(time.time())), "py_callstack": ""}
    Path(file).write_text(
        json.dumps({"message": {"message": with_rank(error), "extraInfo": details}}), encoding="utf-8"
    )
    return launched_by_us()


def launched_by_us() -> bool:
    """Say whether `launch` started this process, and so tells the person what went wrong in it."""
    return _STARTED_BY_US in os.environ
