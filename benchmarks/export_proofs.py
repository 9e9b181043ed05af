"""The proof of every export of one model, as a table: what each file computes beside the model it was made from.

    python benchmarks/export_proofs.py [MODEL] [--work FOLDER] [--images FOLDER ...] [--max-images 256]

MODEL is a run or a model folder, by default what `make quickstart` trained. Each target is exported into the work
folder, opened by its own library and compared on the run's held-out pictures, or on those given; the rows are the
`proof.json` files. "same pixels" is the network alone, "same files" is each side with its own preprocessing. What a
library has no class for is a row with the reason.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from vit_finetune import ExportResult, RequestError, export_model

EXPORTS: dict[str, dict[str, Any]] = {
    "timm": {},
    "transformers": {},
    "torchvision": {},
    "torch_export": {},
    "safetensors": {},
    "onnx": {},
    "onnx, prepared pixels": {"preprocessing": False},
    "onnx, fp16": {"precision": "fp16"},
    "onnx, int8": {"precision": "int8"},
}
HEAD = ("export", "opened by", "MB", "same pixels: logits", "top-1", "same files: probabilities", "top-1", "accuracy")


def rows(model: str, work: Path, images: list[Path] | None, max_images: int) -> Iterator[tuple[str, ...]]:
    """Export to each target and yield its row."""
    for name, options in EXPORTS.items():
        target = name.partition(",")[0]
        place = work / name.replace(", ", "_").replace(" ", "_")
        try:
            result = export_model(
                model, place, to=target, images=images, max_images=max_images, overwrite=True, **options
            )
        except RequestError as error:
            yield name, f"refused: {str(error).partition(' (')[0]}", *[""] * (len(HEAD) - 2)
            continue
        yield row(name, result)


def row(name: str, result: ExportResult) -> tuple[str, ...]:
    """Return one export's row."""
    proof, nothing = result.proof, "-"
    network, pictures, accuracy = (proof.get(key) for key in ("network", "pictures", "accuracy"))
    size = sum(path.stat().st_size for path in result.folder.iterdir()) / 1e6
    return (
        name,
        proof["opened_by"],
        f"{size:.1f}",
        f"{network['max_abs_logit_difference']:.1e}" if network else nothing,
        top1(network),
        f"{pictures['max_abs_probability_difference']:.1e}" if pictures else nothing,
        top1(pictures),
        f"{100 * accuracy['ours']:.1f} to {100 * accuracy['exported']:.1f} %" if accuracy else nothing,
    )


def top1(figures: dict[str, Any] | None) -> str:
    """Return how often the best class agrees."""
    return f"{figures['num_top1_agreeing']} of {figures['num_pictures']}" if figures else "-"


def main() -> None:
    """Print the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="runs/quickstart")
    parser.add_argument("--work", type=Path, default=Path("build/export_proofs"))
    parser.add_argument("--images", type=Path, nargs="+")
    parser.add_argument("--max-images", type=int, default=256)
    arguments = parser.parse_args()
    made = rows(arguments.model, arguments.work, arguments.images, arguments.max_images)
    for cells in chain([HEAD, ["---"] * len(HEAD)], made):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
