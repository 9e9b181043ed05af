"""Kill a run in the middle, resume it, and compare it with a run that was left alone: bit for bit the same.

Run: python recipes/resume.py data.root=photos [KEY=VALUE]...
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from vit_finetune import Config, RequestError, WorkError, finetune


def main(overrides: list[str]) -> None:
    """Run, kill at the first checkpoint, resume, compare."""
    short = ["train.steps=20", "schedule.warmup_steps=2", "evaluation.every_steps=5", "run.dir=runs/resume"]
    config = Config.load("linear_probe", overrides=[*short, *overrides])
    place = Path(config.run.dir)
    killed = Config.load(config, overrides=[f"run.dir={place}/killed"])
    place.mkdir(parents=True, exist_ok=True)
    recipe = place / "killed.yaml"
    recipe.write_text(killed.to_yaml(), encoding="utf-8")
    command = [sys.executable, "-m", "vit_finetune", "train", str(recipe), "--resume"]
    process = subprocess.Popen(command)  # noqa: S603 - our own command
    while process.poll() is None and not Path(killed.run.dir, "checkpoints", "LATEST").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    resumed = finetune(killed, resume=True)
    alone = finetune(Config.load(config, overrides=[f"run.dir={place}/alone"]), resume=True)
    files = [Path("model", "model.safetensors"), Path("metrics.jsonl"), Path("predictions.parquet")]
    same = [(resumed.run_dir / name).read_bytes() == (alone.run_dir / name).read_bytes() for name in files]
    for name, equal in zip(files, same, strict=True):
        print(f"{name}: {'bit for bit the same' if equal else 'different'}")
    if not all(same):
        raise WorkError("the resumed run is not the undisturbed one; on a GPU that needs run.deterministic=true")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
