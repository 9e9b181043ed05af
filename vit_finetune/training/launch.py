"""Starting N processes of a run on this machine, as torchrun does, with one clear line where one fails."""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from vit_finetune.common.errors import VitFinetuneError

_STARTED_BY_US = "VIT_FINETUNE_LAUNCHED"


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
        elastic_launch(config, sys.executable)("-u", "-m", "vit_finetune", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 1
        return code, failure.message if code == 2 or failure.error_file_data else f"process {rank}: {failure.message}"
    return 0, None


def report_failure(error: VitFinetuneError) -> bool:
    """Hand an error to the launcher of this process, if there is one.

    Returns:
        Whether the launcher will tell the person, so that this process need not.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return False
    Path(file).write_text(json.dumps({"message": {"message": str(error), "extraInfo": {}}}), encoding="utf-8")
    return _STARTED_BY_US in os.environ
