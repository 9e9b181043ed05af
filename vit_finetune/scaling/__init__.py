"""What a recipe takes on N processes: memory and traffic, counted and not measured."""

from vit_finetune.scaling.footprint import Footprint, footprint
from vit_finetune.scaling.layouts import Share, share_of
from vit_finetune.scaling.planning import ScalePlan, even_world_sizes, growth_of, scale_plan

__all__ = ["Footprint", "ScalePlan", "Share", "even_world_sizes", "footprint", "growth_of", "scale_plan", "share_of"]
