"""The command line: thin verbs over the public API. Heavy imports happen inside them.

Verbs are listed in the order in which their modules are imported here.
"""

from vit_finetune.cli import (
    explaining,
    making,
    planning,
    reporting,
    serving,
    shipping,
    starting,
    using,
    weights,
    workshop,
)
from vit_finetune.cli.app import app, main

__all__ = [
    "app",
    "explaining",
    "main",
    "making",
    "planning",
    "reporting",
    "serving",
    "shipping",
    "starting",
    "using",
    "weights",
    "workshop",
]
