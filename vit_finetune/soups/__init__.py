"""Several networks made one: soups of runs, WiSE-FT, the last checkpoints of a run. Assembled from the rooms below."""

from vit_finetune.soups.blends import average_checkpoints, greedy_soup, uniform_soup, wise_ft
from vit_finetune.soups.kitchen import SoupResult

__all__ = ["SoupResult", "average_checkpoints", "greedy_soup", "uniform_soup", "wise_ft"]
