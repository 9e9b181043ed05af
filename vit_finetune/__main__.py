"""`python -m vit_finetune`: the command line for launchers, which start modules rather than scripts."""

from __future__ import annotations

from vit_finetune.cli import main

if __name__ == "__main__":
    main()
