"""What the machine's own counters say of the energy of a run: whole processors by RAPL, one NVIDIA GPU by its driver.

An estimate: a counter is of a whole package or card, whoever uses it, and knows nothing of memory, disks and power
supplies. Where a machine has no counter, or keeps it from us, that is said; nothing is guessed from rated powers.

Sources: Linux `Documentation/power/powercap/powercap.rst`; NVML's `nvmlDeviceGetTotalEnergyConsumption`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")


class _UnknownError(Exception):
    """There is no counter; the message says why."""


@dataclass
class _Counter:
    """One counter of a machine.

    Attributes:
        read: returns its value.
        unit: joules of one count.
        highest: the value after which it starts from zero again; 0 for one that never does.
    """

    read: Callable[[], int]
    unit: float
    highest: int = 0
    _last: int = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.read()

    def joules(self) -> float:
        """Return what was used since the last call: a counter that went round twice in between looks like once."""
        last, self._last = self._last, self.read()
        gained = self._last - last
        return (gained if gained >= 0 else gained + self.highest) * self.unit


class EnergyMeter:
    """Tells the energy used since it was last asked, by this process's machine and device.

    Args:
        device: that the run computes on.
        powercap: the folder where Linux shows the counters of processors.
    """

    def __init__(self, device: torch.device, *, powercap: Path = POWERCAP) -> None:
        opened: dict[str, Callable[[], list[_Counter]]] = {"processors": partial(_processors, powercap)}
        if device.type == "cuda":
            opened["gpu"] = partial(_gpu, device)
        self._counters: dict[str, list[_Counter]] = {}
        self._unknown: dict[str, str] = {}
        for part, counters in opened.items():
            try:
                self._counters[part] = counters()
            except _UnknownError as error:
                self._unknown[part] = str(error)

    def row(self) -> dict[str, float | str]:
        """Return what a row of `timing.jsonl` holds of it.

        Returns:
            `processors_joules` and `gpu_joules` as far as they are known; `no_processors_joules` and `no_gpu_joules`,
            once each, say why the others are not.
        """
        told: dict[str, float | str] = {f"no_{part}_joules": reason for part, reason in self._unknown.items()}
        self._unknown = {}
        for part, counters in list(self._counters.items()):
            try:
                told[f"{part}_joules"] = sum(counter.joules() for counter in counters)
            except (OSError, ValueError, _UnknownError) as error:
                del self._counters[part]
                told[f"no_{part}_joules"] = f"the counter stopped ({error})"
        return told


def _processors(powercap: Path) -> list[_Counter]:
    """Return a counter for each processor package."""
    try:
        zones = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if (zone / "name").read_text(encoding="ascii").startswith("package")
        ]
        counters = [
            _Counter(partial(_number, zone / "energy_uj"), unit=1e-6, highest=_number(zone / "max_energy_range_uj"))
            for zone in zones
        ]
    except PermissionError as error:
        raise _UnknownError(f"{error.filename} may be read by the administrator only") from None
    except (OSError, ValueError) as error:
        raise _UnknownError(f"the counters in {powercap} cannot be read ({error})") from None
    if not counters:
        raise _UnknownError(f"this machine shows no counter in {powercap}")
    return counters


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _gpu(device: torch.device) -> list[_Counter]:
    """Return the counter of an NVIDIA GPU, as its driver keeps it since it was loaded."""
    try:
        import pynvml
    except ImportError:
        raise _UnknownError("its counter is read by nvidia-ml-py: pip install 'vit-finetune[energy]'") from None

    def asked(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (pynvml.NVMLError, AttributeError) as error:  # AttributeError: another maker's GPU has no such name
            raise _UnknownError(f"the driver does not tell ({error})") from None

    asked(pynvml.nvmlInit)
    name = asked(lambda: f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    handle = asked(lambda: pynvml.nvmlDeviceGetHandleByUUID(name))
    return [_Counter(lambda: int(asked(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))), unit=1e-3)]
