"""From any pretrained ViT checkpoint to a classifier for your own images.

This is the whole public API. Names are fetched from their rooms when they are first used (PEP 562), so that
importing the package costs milliseconds and imports neither torch nor timm.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_finetune.common.errors import NotRepresentable, RequestError, WorkError
    from vit_finetune.common.preprocess import PreprocessSpec
    from vit_finetune.config import Config
    from vit_finetune.data import Splits, k_folds, load_splits, splits_from, write_demo_digits
    from vit_finetune.evaluation import EvalResult, Predictions, mean_interval, register_metric
    from vit_finetune.explaining import Explanation, explain, write_explanations
    from vit_finetune.export import export_model_folder
    from vit_finetune.finetune import RunResult, finetune
    from vit_finetune.models import (
        VisionTransformer,
        ViTConfig,
        attention_maps,
        create_model,
        list_models,
        replace_head,
    )
    from vit_finetune.pictures import open_splits
    from vit_finetune.predict import Predictor, evaluate, evaluate_corrupted, picture_batches
    from vit_finetune.preflight import CheckResult, check
    from vit_finetune.report import Comparison, compare_runs, write_comparison, write_report
    from vit_finetune.shipping import ExportResult, export_model, push_model
    from vit_finetune.soups import SoupResult, average_checkpoints, greedy_soup, uniform_soup, wise_ft
    from vit_finetune.sweeps import SweepResult, sweep
    from vit_finetune.tuning import add_lora, apply_tuning, merge_lora, register_tuning_mode, save_adapter
    from vit_finetune.weights import (
        ConversionReport,
        LoadReport,
        average_state_dicts,
        convert_checkpoint,
        convert_state_dict,
        detect_format,
        from_pretrained,
        inspect_checkpoint,
        load_pretrained,
    )

__version__ = "0.1.0"

__all__ = [
    "CheckResult",
    "Comparison",
    "Config",
    "ConversionReport",
    "EvalResult",
    "Explanation",
    "ExportResult",
    "LoadReport",
    "NotRepresentable",
    "Predictions",
    "Predictor",
    "PreprocessSpec",
    "RequestError",
    "RunResult",
    "SoupResult",
    "Splits",
    "SweepResult",
    "ViTConfig",
    "VisionTransformer",
    "WorkError",
    "add_lora",
    "apply_tuning",
    "attention_maps",
    "average_checkpoints",
    "average_state_dicts",
    "check",
    "compare_runs",
    "convert_checkpoint",
    "convert_state_dict",
    "create_model",
    "detect_format",
    "evaluate",
    "evaluate_corrupted",
    "explain",
    "export_model",
    "export_model_folder",
    "finetune",
    "from_pretrained",
    "greedy_soup",
    "inspect_checkpoint",
    "k_folds",
    "list_models",
    "load_pretrained",
    "load_splits",
    "mean_interval",
    "merge_lora",
    "open_splits",
    "picture_batches",
    "push_model",
    "register_metric",
    "register_tuning_mode",
    "replace_head",
    "save_adapter",
    "splits_from",
    "sweep",
    "uniform_soup",
    "wise_ft",
    "write_comparison",
    "write_demo_digits",
    "write_explanations",
    "write_report",
]

# The room that each public name lives in; the imports above say the same to type checkers, and a test compares them.
_ROOMS = {
    "common.errors": ("NotRepresentable", "RequestError", "WorkError"),
    "common.preprocess": ("PreprocessSpec",),
    "config": ("Config",),
    "data": ("Splits", "k_folds", "load_splits", "splits_from", "write_demo_digits"),
    "evaluation": ("EvalResult", "Predictions", "mean_interval", "register_metric"),
    "explaining": ("Explanation", "explain", "write_explanations"),
    "export": ("export_model_folder",),
    "finetune": ("RunResult", "finetune"),
    "models": ("ViTConfig", "VisionTransformer", "attention_maps", "create_model", "list_models", "replace_head"),
    "pictures": ("open_splits",),
    "predict": ("Predictor", "evaluate", "evaluate_corrupted", "picture_batches"),
    "preflight": ("CheckResult", "check"),
    "report": ("Comparison", "compare_runs", "write_comparison", "write_report"),
    "shipping": ("ExportResult", "export_model", "push_model"),
    "soups": ("SoupResult", "average_checkpoints", "greedy_soup", "uniform_soup", "wise_ft"),
    "sweeps": ("SweepResult", "sweep"),
    "tuning": ("add_lora", "apply_tuning", "merge_lora", "register_tuning_mode", "save_adapter"),
    "weights": (
        "ConversionReport",
        "LoadReport",
        "average_state_dicts",
        "convert_checkpoint",
        "convert_state_dict",
        "detect_format",
        "from_pretrained",
        "inspect_checkpoint",
        "load_pretrained",
    ),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


class _Package(ModuleType):
    """The package itself, with `finetune` always the function.

    Python binds every imported submodule to its package under the submodule's name, so importing the module
    `vit_finetune.finetune` anywhere would hide the function of that name. `from vit_finetune.finetune import ...`
    is not affected.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name == "finetune" and isinstance(value, ModuleType):
            value = value.finetune
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import the room of a public name and keep the name for the next time."""
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, fetched or not."""
    return sorted({*globals(), *__all__})
