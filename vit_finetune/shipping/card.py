"""The model card: `README.md` with the hub's metadata, made of what the run saved and of nothing else."""

from __future__ import annotations

from typing import Any

from vit_finetune.common.preprocess import PreprocessSpec
from vit_finetune.evaluation.intervals import wilson_interval
from vit_finetune.models import ViTConfig
from vit_finetune.shipping.finished import Finished
from vit_finetune.shipping.readers import weights_licence

_LIBRARY = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch_export": "pytorch"}


def model_card(finished: Finished, *, target: str, proof: dict[str, Any], repository: str | None = None) -> str:
    """Return the text of a model card.

    Args:
        finished: the model.
        target: what it was exported to.
        proof: of the export.
        repository: owner/name on the hub, for the code that loads it; None: of a folder.

    Returns:
        Markdown behind the hub's YAML metadata.
    """
    report, metrics = finished.recorded("load_report.json"), finished.recorded("metrics.json")
    source = report.get("source")
    licence = weights_licence(source) if source else None
    name = (repository or "an image classifier").split("/")[-1]
    parts = [
        _metadata(target=target, licence=licence, source=source, metrics=metrics, name=name),
        f"# {name}",
        _what(finished, source),
        "## Figures\n\n" + _figures(metrics),
        "## Intended use\n\nTo tell the classes below apart in pictures like those that it was trained on. "
        "A picture of anything else gets one of these classes too.",
        "## Limits\n\n" + _limits(finished, metrics),
        "## How to load it\n\n" + _loading(finished, target, repository or "FOLDER"),
        "## Preprocessing\n\n" + _preprocessing(finished.preprocess),
        "## Proof of this export\n\n" + _proof(proof),
        "## Training\n\n" + _training(finished, source),
        "## Licence\n\n" + _licence(licence, source),
        "## Classes\n\n" + ", ".join(f"`{label}`" for label in finished.class_names),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(*, target: str, licence: str | None, source: str | None, metrics: dict[str, Any], name: str) -> str:
    """Return the block of YAML that the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    if "accuracy" in metrics:
        dataset = {"dataset_type": "image-classification", "dataset_name": "the run's own pictures"}
        told: dict[str, Any] = {"task_type": "image-classification", "dataset_split": metrics.get("split"), **dataset}
        results = [
            EvalResult(metric_type=key, metric_value=metrics[key], **told)
            for key in ("accuracy", "macro_f1")
            if key in metrics
        ]
    base = source.removeprefix("hf-hub:") if source and source.startswith("hf-hub:") else None
    if source and source.startswith("timm:"):
        base = f"timm/{source.removeprefix('timm:')}"
    data = ModelCardData(
        model_name=name if results else None,
        eval_results=results or None,
        license=licence or "other",
        license_name=None if licence else "unknown",
        library_name=_LIBRARY.get(target, "vit-finetune"),
        pipeline_tag="image-classification",
        base_model=base,
        tags=["image-classification", "vision-transformer", "vit-finetune"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _what(finished: Finished, source: str | None) -> str:
    from vit_finetune import __version__

    architecture = getattr(finished.model, "name", None) or "a Vision Transformer"
    kind = "one class" if finished.thresholds is None else "any number of classes"
    return (
        f"`{architecture}` for pictures of {len(finished.class_names)} classes, {kind} a picture, fine-tuned"
        f"{f' from `{source}`' if source else ''} with vit_finetune {__version__}."
    )


def _figures(metrics: dict[str, Any]) -> str:
    """Return the table of the run's figures, accuracy with its interval."""
    if not metrics.get("num_samples"):
        return "None were recorded with this model."
    count, split = int(metrics["num_samples"]), metrics.get("split", "held-out")
    rows = []
    for key, value in metrics.items():
        if key in ("num_samples", "num_skipped", "best_step", "num_steps") or not isinstance(value, float):
            continue
        interval = ""
        if key in ("accuracy", "top5"):
            low, high = wilson_interval(round(value * count), count)
            interval = f"{low:.4f} to {high:.4f}"
        rows.append(f"| {key} | {value:.4f} | {interval} |")
    chosen = " (the split that the checkpoint was chosen by)" if split == "val" else ""
    head = f"On {count} pictures of the {split} split{chosen}, each counted once:"
    table = "\n".join(["| figure | value | 95 % interval (Wilson) |", "| --- | --- | --- |", *rows])
    return "\n\n".join([head, table, *_calibration(metrics.get("calibration") or {})])


def _calibration(found: dict[str, Any]) -> list[str]:
    if not {"ece", "temperature", "ece_scaled"} <= found.keys():
        return []
    before, after, temperature = found["ece"], found["ece_scaled"], found["temperature"]
    return [f"Expected calibration error {before:.4f}; with the temperature {temperature:.3f}, {after:.4f}."]


def _limits(finished: Finished, metrics: dict[str, Any]) -> str:
    rows = [row for row in metrics.get("per_class") or [] if row.get("accuracy") is not None]
    weakest = [
        f"`{row['class']}` {row['accuracy']:.2f} of {row['num_samples']}"
        for row in sorted(rows, key=lambda row: row["accuracy"])[:3]
    ]
    lines = [f"- The weakest classes: {', '.join(weakest)}."] if weakest else []
    if finished.temperature is None:
        lines.append("- Its probabilities were not calibrated: 0.9 need not mean right nine times in ten.")
    lines.append("- It was not tested on pictures from other cameras, places or times than those it was made from.")
    return "\n".join(lines)


def _loading(finished: Finished, target: str, place: str) -> str:
    """Return the code that loads this export, and how to get the others."""
    arguments = _torchvision_arguments(finished) if target == "torchvision" else ""
    code = {
        "timm": _timm_loading(place),
        "transformers": f"""```python
from transformers import pipeline
classify = pipeline("image-classification", model="{place}")
```""",
        "torchvision": f"""```python
import torch
from torchvision.models import VisionTransformer
model = VisionTransformer({arguments})
model.load_state_dict(torch.load("{place}/model.pth", weights_only=True))
model.eval()
```""",
        "onnx": f"""```python
import numpy as np, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession("{place}/model.onnx")
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
logits, probabilities = session.run(None, {{"images": np.asarray(picture)[None]}})
```""",
        "torch_export": f"""```python
import torch
model = torch.export.load("{place}/model.pt2").module()
logits = model(pixels)  # float32 [B, C, H, W], prepared as below
```""",
        "safetensors": f"""```python
from vit_finetune import Predictor
predictions = Predictor("{place}/model.safetensors")("picture.jpg")
```""",
    }[target]
    others = "`vit-finetune export MODEL OUT --to timm|transformers|torchvision|onnx|torch_export|safetensors`"
    return f"{code}\n\nFor timm, transformers, torchvision, ONNX Runtime and plain PyTorch: {others}."


def _timm_loading(place: str) -> str:
    """Return the code that loads timm's folder, which transformers and we open too."""
    return f"""```python
# timm
import timm
model = timm.create_model("{"hf-hub" if "/" in place else "local-dir"}:{place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

# transformers
from transformers import pipeline
classify = pipeline("image-classification", model="{place}")

# vit_finetune
from vit_finetune import Predictor
predictions = Predictor("{"hf-hub:" if "/" in place else ""}{place}")("picture.jpg")
```"""


def _torchvision_arguments(finished: Finished) -> str:
    config = finished.backbone.config
    assert isinstance(config, ViTConfig)  # torchvision holds no other
    width = int(config.embed_dim * config.mlp_ratio)
    return (
        f"image_size={config.img_size[0]}, patch_size={config.patch_size[0]}, num_layers={config.depth}, "
        f"num_heads={config.num_heads}, hidden_dim={config.embed_dim}, mlp_dim={width}, "
        f"num_classes={config.num_classes}"
    )


def _preprocessing(spec: PreprocessSpec) -> str:
    return (
        "Upright RGB, " + ", ".join(f"{key} {value}" for key, value in spec.to_mapping().items()) + " (timm's words)."
    )


def _proof(proof: dict[str, Any]) -> str:
    from vit_finetune.shipping.proof import proof_lines

    notes = "\n".join(f"- {note}" for note in proof.get("notes", []))
    return "```\n" + "\n".join(proof_lines(proof)) + "\n```" + (f"\n\n{notes}" if notes else "")


def _training(finished: Finished, source: str | None) -> str:
    plan = finished.recorded("plan.json")
    facts = {
        "weights": source,
        "steps": plan.get("num_steps"),
        "batch": plan.get("global_batch_size"),
        "pictures": plan.get("num_train"),
    }
    known = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return "\n".join(known) or "Not known here: the model is no run's."


def _licence(licence: str | None, source: str | None) -> str:
    if licence:
        return f"The weights that it was made from (`{source}`) are under `{licence}`; see there before you publish."
    whose = f"of `{source}`, from which it was made" if source else "of the weights that it was made from"
    return f"Not known here: look at the licence {whose}, before you publish."
