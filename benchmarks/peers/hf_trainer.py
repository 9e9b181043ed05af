"""Fine-tune with transformers' Trainer as its image-classification example does: the other side of a comparison.

What the example sets is left as it is (AdamW without weight decay, linear schedule, random resized crop and flip);
learning rate, batch and picture size are given. Nothing of vit_finetune is used.

Run: python benchmarks/peers/hf_trainer.py --data FOLDER --weights HF_FOLDER --output predictions.json

Source: transformers, examples/pytorch/image-classification/run_image_classification.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Image, load_dataset
from torchvision.transforms import v2
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, set_seed

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transforms(size: int, *, hflip: float) -> dict[str, v2.Compose]:
    """Return the example's transforms of both splits."""
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    bicubic = v2.InterpolationMode.BICUBIC
    return {
        "train": v2.Compose([v2.RandomResizedCrop(size, interpolation=bicubic), v2.RandomHorizontalFlip(hflip), *end]),
        "val": v2.Compose([v2.Resize((size, size), interpolation=bicubic), *end]),
    }


def main() -> None:
    """Train, then write every held-out picture's prediction."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--weights", required=True, help="a folder that transformers opens")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--img-size", type=int, default=98)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--lr", type=float, default=5e-5, help="the example's default")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hflip", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    set_seed(args.seed)

    splits = {
        name: load_dataset("imagefolder", data_dir=str(args.data / name), split="train") for name in ("train", "val")
    }
    paths = [row["path"] for row in splits["val"].cast_column("image", Image(decode=False))["image"]]
    names = splits["train"].features["label"].names
    for name, transform in transforms(args.img_size, hflip=args.hflip).items():
        splits[name].set_transform(_applied(transform))
    model = AutoModelForImageClassification.from_pretrained(args.weights, num_labels=len(names))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.output.with_suffix("")),
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            seed=args.seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=splits["train"],
        data_collator=_collate,
    )
    trainer.train()
    logits = trainer.predict(splits["val"]).predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    guesses = [names[guess] for guess in np.argmax(logits, axis=1)]
    files = [str(Path(path).relative_to((args.data / "val").resolve())) for path in paths]
    args.output.write_text(json.dumps(dict(zip(files, guesses, strict=True))), encoding="utf-8")


def _applied(transform: v2.Compose) -> Any:
    def apply(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]], "labels": rows["label"]}

    return apply


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


if __name__ == "__main__":
    main()
