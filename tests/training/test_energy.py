"""Energy is read from the machine's counters as Linux and NVIDIA's library show them, and else the reason is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vit_finetune.training.energy import EnergyMeter

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
HIGHEST = 262_143_328_850  # of a real package, in microjoules


def zone(powercap: Path, number: str, name: str, energy: int) -> Path:
    """Write a zone as the kernel shows it."""
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", HIGHEST)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_meter__adds_packages_and_goes_round(tmp_path: Path) -> None:
    """Packages are added up, the zones inside them are not counted twice, and a counter may begin from zero again."""
    first = zone(tmp_path, "0", "package-0", 1_000_000)
    second = zone(tmp_path, "1", "package-1", HIGHEST - 2_000_000)
    zone(tmp_path, "0:0", "core", 500)
    zone(tmp_path, "2", "psys", 500)
    meter = EnergyMeter(CPU, powercap=tmp_path)
    assert meter.row() == {"processors_joules": 0.0}
    first.write_text("4500000\n")
    second.write_text("1000000\n")
    assert meter.row() == {"processors_joules": pytest.approx(3.5 + 3.0)}
    assert meter.row() == {"processors_joules": 0.0}
    second.unlink()
    assert meter.row().keys() == {"no_processors_joules"}
    assert meter.row() == {}


def test_meter__says_why_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No counter, one of zones without packages, and one that only the administrator may read: told once."""
    meter = EnergyMeter(CPU, powercap=tmp_path / "none")
    assert meter.row() == {"no_processors_joules": f"this machine shows no counter in {tmp_path / 'none'}"}
    assert meter.row() == {}
    file = zone(tmp_path, "0", "package-0", 0)
    read = Path.read_text

    def refused(path: Path, **options: str) -> str:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    told = EnergyMeter(CPU, powercap=tmp_path).row()
    assert told == {"no_processors_joules": f"{file} may be read by the administrator only"}


def test_meter__gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU of the run is found by its UUID; without the library, or where the driver refuses, that is told."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"u-{device.index}"))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'vit-finetune[energy]'" in str(EnergyMeter(GPU, powercap=tmp_path).row()["no_gpu_joules"])

    class RefusedError(Exception):
        """As the library's error."""

    millijoules = [1_000, 3_500]

    def total(handle: str) -> int:
        if handle != "GPU-u-0" or not millijoules:
            raise RefusedError("Not Supported")
        return millijoules.pop(0)

    names = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid, "NVMLError": RefusedError}
    library = SimpleNamespace(**names, nvmlDeviceGetTotalEnergyConsumption=total)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter = EnergyMeter(GPU, powercap=tmp_path)
    assert meter.row()["gpu_joules"] == 2.5
    assert meter.row() == {"no_gpu_joules": "the counter stopped (the driver does not tell (Not Supported))"}
    assert "does not tell (Not Supported)" in str(EnergyMeter(GPU, powercap=tmp_path).row()["no_gpu_joules"])
