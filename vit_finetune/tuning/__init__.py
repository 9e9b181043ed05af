"""What trains: the choice of parameters, made by name and told in numbers."""

from vit_finetune.tuning.modes import MODES, Tuned, apply_tuning

__all__ = ["MODES", "Tuned", "apply_tuning"]
