"""The quickstart: write a folder of real pictures, fine-tune real weights on it, say what came out.

Run: python recipes/quickstart.py (or `make quickstart`). A second call goes on where the first one stopped.
"""

from __future__ import annotations

import sys

from vit_finetune import RequestError, WorkError, finetune, write_demo_digits


def main() -> None:
    """Do the main job and print what to type next."""
    pictures = write_demo_digits("quickstart_images")
    result = finetune("quickstart", resume=True)
    print(f"""
accuracy on {len(list(pictures.glob("val/*/*.png"))):,} held-out pictures: {result.metrics["accuracy"]:.1%}
the model:         {result.run_dir / "model"}
every prediction:  {result.run_dir / "predictions.parquet"}

Next, with `. .venv/bin/activate`:
  vit-finetune predict {result.run_dir} {pictures / "val" / "7"}
  vit-finetune inspect {result.run_dir / "model"}
  vit-finetune train image_folder data.root=YOUR_FOLDER run.dir=runs/mine
With network, from stronger weights:
  vit-finetune train image_folder data.root=YOUR_FOLDER run.dir=runs/mine \\
    model.pretrained=timm:vit_base_patch16_224.augreg2_in21k_ft_in1k""")


if __name__ == "__main__":
    try:
        main()
    except (RequestError, WorkError) as error:
        sys.exit(f"error: {error}")
