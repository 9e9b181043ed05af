"""Write a timm checkpoint's prediction for every held-out picture, with timm's own transform: see small_folders.py.

Run: python benchmarks/peers/timm_predict.py --data FOLDER --checkpoint last.pth.tar --img-size 98 --output FILE.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config


@torch.inference_mode()
def main() -> None:
    """Load, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--img-size", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    dataset = create_dataset("", root=str(args.data), split="val")
    names = sorted(dataset.reader.class_to_idx, key=dataset.reader.class_to_idx.get)
    model = timm.create_model(
        args.model, num_classes=len(names), img_size=args.img_size, checkpoint_path=args.checkpoint
    ).eval()
    config = resolve_data_config({"img_size": args.img_size, "crop_pct": 1.0}, model=model)
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=64,
        is_training=False,
        use_prefetcher=False,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        num_workers=0,
        device=torch.device("cpu"),
    )
    guesses = [names[guess] for images, _ in loader for guess in model(images).argmax(dim=1).tolist()]
    files = dataset.filenames(basename=False, absolute=False)  # below val/
    args.output.write_text(json.dumps(dict(zip(files, guesses, strict=True))), encoding="utf-8")


if __name__ == "__main__":
    main()
