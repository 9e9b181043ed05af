"""One class map over all splits: what train knows, in one order, and what the others may have.

A class that only val or test knows is an error, and a class that val lacks keeps its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vit_finetune.common.errors import RequestError
from vit_finetune.common.suggest import did_you_mean, listed
from vit_finetune.data.image_set import ImageSet, Splits
from vit_finetune.data.labels import classes_in, encode_labels, is_multilabel
from vit_finetune.data.parts import Part, Parts
from vit_finetune.data.scan import natural_key


def share_class_map(parts: Parts) -> Splits:
    """Number the classes of the training split and label every split by them.

    Args:
        parts: a source, split.

    Returns:
        The splits, with what there is to tell about their classes among the notes.

    Raises:
        RequestError: there is a single class, or one that train does not have, splits disagree on how many classes a
            picture has, or all training pictures weigh 0.
    """
    trained = classes_in(parts.train.classes)
    class_names = parts.class_names or tuple(sorted(trained, key=natural_key))
    if len(trained) < 2:
        raise RequestError(
            f"only one class, {listed(sorted(trained))}; a classifier needs two, one folder or label each"
        )
    for name, part in (("val", parts.val), ("test", parts.test)):
        if part and is_multilabel(part.classes) != is_multilabel(parts.train.classes):
            raise RequestError(f"{name} and train disagree on whether a picture has one class or a list of them")
        unknown = sorted(classes_in(part.classes) - trained, key=natural_key) if part else []
        if unknown:
            raise RequestError(
                f"classes in {name} that train does not have: {listed(unknown)}{did_you_mean(unknown[0], trained)}"
                f"; train has {listed(class_names)}"
            )
    weights = parts.train.weights
    if weights is not None and not weights.any():
        raise RequestError("every training picture has the weight 0, so there is nothing to learn; give some a weight")
    notes = list(parts.notes)
    unused = [name for name in class_names if name not in trained]
    if unused:
        notes.append(f"classes without a training picture: {listed(unused)}")
    return Splits(
        train=replace(labelled(parts.train, class_names), weights=weights),
        val=labelled(parts.val, class_names) if parts.val else None,
        test=labelled(parts.test, class_names) if parts.test else None,
        class_names=class_names,
        notes=tuple(notes),
    )


def labelled(part: Part, class_names: Sequence[str]) -> ImageSet:
    """Return the pictures with class indices for class names.

    Args:
        part: pictures whose classes are all among `class_names`.
        class_names: in the order of their index.
    """
    groups = None if part.groups is None else tuple(part.groups)
    return ImageSet(part.store, encode_labels(part.classes, class_names), groups=groups)
