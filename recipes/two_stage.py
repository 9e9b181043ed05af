"""Fine-tune twice: on a larger set that is like yours, then on yours, from the first stage's backbone.

Run: python recipes/two_stage.py FOLDER_OF_THE_FIRST_STAGE data.root=photos [KEY=VALUE]...
"""

from __future__ import annotations

import sys

from vit_finetune import Config, RequestError, WorkError, finetune


def main(arguments: list[str]) -> None:
    """Run both stages; each goes on where it stopped, and the second has a new head for its own classes."""
    if not arguments or "=" in arguments[0]:
        raise RequestError("give the pictures of the first stage: two_stage.py FOLDER data.root=photos [KEY=VALUE]...")
    folder, *overrides = arguments
    config = Config.load("lp_ft", overrides=["run.dir=runs/two_stage", *overrides])
    place = config.run.dir
    first = finetune(Config.load(config, overrides=[f"data.root={folder}", f"run.dir={place}/first"]), resume=True)
    changes = [f"model.pretrained={first.run_dir / 'model'}", "model.name=null", f"run.dir={place}/second"]
    second = finetune(Config.load(config, overrides=changes), resume=True)
    for name, result in (("first", first), ("second", second)):
        print(f"{name} stage: {result.metrics['accuracy']:.1%} on held-out pictures; {result.run_dir / 'model'}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
