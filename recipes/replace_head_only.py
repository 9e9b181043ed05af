"""Give a checkpoint a new head without training: classes that it knows by name keep what it knows of them.

Run: python recipes/replace_head_only.py MODEL NEW_FOLDER CLASS CLASS...
"""

from __future__ import annotations

import sys

from vit_finetune import RequestError, WorkError, export_model_folder, from_pretrained, replace_head


def main(arguments: list[str]) -> None:
    """Load any checkpoint, swap its head, write a model folder that timm and transformers open."""
    if len(arguments) < 4:
        raise RequestError("give a model, the folder to write and two or more classes: MODEL NEW_FOLDER CLASS CLASS...")
    source, folder, *names = arguments
    model, report = from_pretrained(source)
    replace_head(model, len(names), class_names=names, previous=report.class_names)
    known = [name for name, row in zip(names, model.head.weight, strict=True) if row.any()]
    export_model_folder(model.eval(), folder, preprocess=report.preprocess, class_names=names)
    print("\n".join(report.lines()))
    print(f"kept by name: {', '.join(known) or 'none'}; the other {len(names) - len(known)} start at zero")
    print(f"the model: {folder}; train its head: train linear_probe model.pretrained={folder} data.root=...")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
