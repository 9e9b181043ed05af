"""What trains: the choice of parameters, made by name and told in numbers; adapters beside those that do not."""

from vit_finetune.tuning.lora import add_lora, merge_lora, require_peft, save_adapter
from vit_finetune.tuning.modes import MODES, Tuned, apply_tuning, count_tuning, register_tuning_mode

__all__ = [
    "MODES",
    "Tuned",
    "add_lora",
    "apply_tuning",
    "count_tuning",
    "merge_lora",
    "register_tuning_mode",
    "require_peft",
    "save_adapter",
]
