"""A plain PyTorch loop over timm's module, as anybody writes it: the other side of a comparison.

Layer decay by timm's helper, cosine, torchvision's transforms, a DataLoader, cross-entropy with smoothing, clipping;
val is scored after every epoch, as trainers do. Nothing of vit_finetune is used.

Run: python benchmarks/peers/plain_loop.py --data FOLDER --weights model.safetensors --output predictions.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = ("full", "last_n", "linear_probe")


def split(folder: Path, size: int, *, hflip: float, is_training: bool) -> ImageFolder:
    """Return pictures with the transform of their split."""
    bicubic = transforms.InterpolationMode.BICUBIC
    crop = (
        [transforms.RandomResizedCrop(size, (0.35, 1.0), interpolation=bicubic), transforms.RandomHorizontalFlip(hflip)]
        if is_training
        else [transforms.Resize(size, interpolation=bicubic), transforms.CenterCrop(size)]
    )
    return ImageFolder(folder, transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))


def freeze(model: nn.Module, mode: str, num_blocks: int) -> None:
    """Let the last blocks, the final norm and the head train, or the head alone."""
    kept = {"full": None, "last_n": ("norm.", "head."), "linear_probe": ("head.",)}[mode]
    if kept is not None:
        if mode == "last_n":
            depth = len(model.blocks)
            kept += tuple(f"blocks.{index}." for index in range(depth - num_blocks, depth))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(kept))


@torch.inference_mode()
def predict(model: nn.Module, pictures: ImageFolder, batch_size: int) -> list[int]:
    """Return the class of every picture."""
    model.eval()
    return [guess for images, _ in DataLoader(pictures, batch_size) for guess in model(images).argmax(1).tolist()]


def main() -> None:
    """Train, scoring after every epoch, then write every held-out picture's prediction."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--mode", choices=MODES, default="full")
    parser.add_argument("--num-blocks", type=int, default=3)
    parser.add_argument("--img-size", type=int, default=98)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hflip", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train = split(args.data / "train", args.img_size, hflip=args.hflip, is_training=True)
    val = split(args.data / "val", args.img_size, hflip=args.hflip, is_training=False)
    model = timm.create_model(
        args.model,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(args.weights)},
        img_size=args.img_size,
        num_classes=len(train.classes),
    )
    freeze(model, args.mode, args.num_blocks)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, fused=True)
    loader = DataLoader(train, args.batch_size, shuffle=True)
    num_steps, warmup = args.epochs * len(loader), min(10, args.epochs * len(loader) // 2)

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * step / num_steps))

    for group in groups:
        group["peak"] = args.lr * group["lr_scale"]
    step, guesses = 0, []
    for _ in range(args.epochs):
        model.train()
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor(step)
            nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        guesses = predict(model, val, args.batch_size)
    files = [str(Path(path).relative_to(args.data / "val")) for path, _ in val.samples]
    answers = {name: train.classes[guess] for name, guess in zip(files, guesses, strict=True)}
    args.output.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
