"""Images and labels -> batches. Knows no model, no checkpoint and no training loop."""

from vit_finetune.data.demo import write_demo_digits
from vit_finetune.data.folds import k_folds
from vit_finetune.data.image_set import ImageSet, Splits
from vit_finetune.data.images import decode_image, decode_picture
from vit_finetune.data.samples import splits_from
from vit_finetune.data.scan import find_images, iter_images
from vit_finetune.data.sources import load_folder, load_splits

__all__ = [
    "ImageSet",
    "Splits",
    "decode_image",
    "decode_picture",
    "find_images",
    "iter_images",
    "k_folds",
    "load_folder",
    "load_splits",
    "splits_from",
    "write_demo_digits",
]
