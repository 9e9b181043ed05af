"""The ladder: what fits into a time budget is tried from the cheapest up, and the best on val is kept."""

from vit_finetune.ladder.climb import Climbed, climb

__all__ = ["Climbed", "climb"]
