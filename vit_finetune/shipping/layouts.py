"""A finished model in the native classes of transformers and torchvision, through the tables of weights/.

Not every network has a native class that computes the same; where none has, the refusal says what to take instead.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from vit_finetune.common.errors import NotRepresentable, RequestError
from vit_finetune.common.files import write_json
from vit_finetune.export import export_model_folder
from vit_finetune.models import NetworkConfig
from vit_finetune.shipping.finished import Finished
from vit_finetune.weights import convert_checkpoint
from vit_finetune.weights.formats import FORMATS
from vit_finetune.weights.readers import read_json

_REPORT = "conversion.json"


def write_transformers(finished: Finished, folder: Path) -> tuple[str, ...]:
    """Fill a folder that transformers opens with a native `...ForImageClassification`, labels and preprocessing inside.

    Args:
        finished: the model.
        folder: an existing folder.

    Returns:
        Decisions, one sentence each.

    Raises:
        NotRepresentable: no native class computes what the network computes.
    """
    with tempfile.TemporaryDirectory() as place:
        source = _plain_folder(finished, Path(place))
        reasons: dict[str, str] = {}
        for name in _candidates(finished.backbone.config):
            try:
                report = convert_checkpoint(source, Path(place) / name, to=name)
            except RequestError as error:
                reasons[name] = str(error).splitlines()[0].removeprefix(f"{source}: ")
                continue
            (built,) = read_json(Path(place) / name / "config.json").get("architectures") or [""]
            if not built.endswith("ForImageClassification"):
                reasons[name] = f"{built} is no image classifier"
                continue
            for path in (Path(place) / name).iterdir():
                shutil.copyfile(path, folder / path.name)
            (folder / _REPORT).unlink(missing_ok=True)
            if finished.thresholds is not None:  # its pipelines then give each class a probability of its own
                told = read_json(folder / "config.json") | {"problem_type": "multi_label_classification"}
                write_json(folder / "config.json", told)
            return (f"transformers' native layout {name}", *report.notes, *_differences(finished))
    problems = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise NotRepresentable(
        "no native class of transformers computes what this network computes; take --to timm, whose folder "
        f"transformers opens as it is through its timm wrapper ({problems})"
    )


def write_torchvision(finished: Finished, folder: Path) -> tuple[tuple[str, ...], Callable[[Tensor], Tensor]]:
    """Fill a folder with a state dict for torchvision's `VisionTransformer`.

    Args:
        finished: the model.
        folder: an existing folder.

    Returns:
        Decisions, one sentence each, and torchvision's forward pass with these weights.

    Raises:
        NotRepresentable: torchvision's network does not compute what this one computes.
    """
    layout = FORMATS["torchvision"]
    with tempfile.TemporaryDirectory() as place:
        source = _plain_folder(finished, Path(place))
        try:
            report = convert_checkpoint(source, Path(place) / "out", to=layout.name)
        except NotRepresentable as error:
            raise NotRepresentable(f"{error}; take --to timm, onnx or torch_export, which hold it as it is") from error
        for path in (Path(place) / "out").iterdir():
            if path.name != _REPORT:
                shutil.copyfile(path, folder / path.name)
    assert layout.reference is not None
    return report.notes, layout.reference(folder, finished.backbone.config)


def _plain_folder(finished: Finished, place: Path) -> Path:
    """Return a model folder of the network, to convert from."""
    return export_model_folder(
        finished.backbone, place / "plain", preprocess=finished.preprocess, class_names=finished.class_names
    )


def _candidates(config: NetworkConfig) -> list[str]:
    """Return the formats of transformers that might hold a classifier, the plainest first that loses no option."""
    plain, scaled = ("hf_vit", "hf_deit"), ("hf_dinov2", "hf_dinov2_with_registers")
    # The others hold a network with LayerScale too, but only folded into other layers, which then train otherwise.
    first = (*scaled, *plain) if getattr(config, "init_values", None) else (*plain, *scaled)
    theirs = {name: layout for name, layout in FORMATS.items() if layout.library == "transformers"}
    fitting = [name for name, layout in theirs.items() if type(config) in layout.families]
    return sorted(fitting, key=lambda name: first.index(name) if name in first else len(first))


def _differences(finished: Finished) -> tuple[str, ...]:
    """Say in which ways transformers' image processor prepares pictures otherwise."""
    spec = finished.preprocess
    told = ["transformers resizes with torch's kernel, which rounds a pixel value otherwise than Pillow now and then"]
    if spec.crop_mode == "center" and spec.crop_pct < 1:
        told.append(
            "its centre crop rounds an odd rest down where Pillow-based ones round to even: some pictures are cut one "
            "pixel beside ours; the timm folder, opened by transformers, cuts as we do"
        )
    if spec.crop_mode == "center" and spec.input_size[1] != spec.input_size[2]:
        told.append("its processor cannot cover a box that is not square as ours does; prepare pixels yourself")
    if spec.crop_mode == "border":
        told.append("its processor cannot fit and pad as ours does; prepare pixels yourself")
    return tuple(told)
