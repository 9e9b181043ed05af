"""What a run is assembled from: the configuration's sections turned into calls of the rooms below.

`finetune()` tells the order in which these happen; nothing here trains, and nothing here writes.
"""

from vit_finetune.assembly.feeding import Feeder, blend_with_start, open_feeder
from vit_finetune.assembly.frozen import FrozenWork
from vit_finetune.assembly.learning import make_objective, settle_metric
from vit_finetune.assembly.network import add_adapters, build_model, preprocess_of, train_transform_of
from vit_finetune.assembly.numbers import make_plan, settle_micro_batch
from vit_finetune.assembly.opening import open_run_folder, prepare_manifest
from vit_finetune.assembly.telling import beside_lines, end_screen, flat, start_screen

__all__ = [
    "Feeder",
    "FrozenWork",
    "add_adapters",
    "beside_lines",
    "blend_with_start",
    "build_model",
    "end_screen",
    "flat",
    "make_objective",
    "make_plan",
    "open_feeder",
    "open_run_folder",
    "prepare_manifest",
    "preprocess_of",
    "settle_metric",
    "settle_micro_batch",
    "start_screen",
    "train_transform_of",
]
