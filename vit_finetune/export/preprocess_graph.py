"""The evaluation transform as an ONNX graph: bytes of any size in, the numbers that the network takes out.

The steps are those of `data/transforms.py` in Pillow's order, each rounded to bytes as Pillow rounds. ONNX Runtime's
antialiased Resize of bytes is modelled on Pillow's; about one pixel value in a thousand differs by one, because its
weights are of single precision. Pillow resizes one direction after the other, and version 13 begins with the rows where
more than twice as many of them go as columns; earlier ones always begin with the columns. The graph is version 13's.

Not here: decoding. EXIF orientation, CMYK, 16 bits, alpha are the reader's business, as `decode_picture` does them.

Sources: Pillow `src/libImaging/Resample.c`; torchvision `transforms/v2/functional/_geometry.py`; ONNX `Resize-18`.
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

from vit_finetune.common.errors import NotRepresentable
from vit_finetune.common.preprocess import PreprocessSpec

ModelProto: TypeAlias = Any  # onnx.ModelProto; onnx is imported where it is needed
IMAGES = "images"
PIXELS = "pixels"
_CUBIC = 'mode = "cubic", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1'
_RESIZE = {
    "bicubic": _CUBIC,
    "bilinear": 'mode = "linear", antialias = 1, exclude_outside = 1',
}


def preprocess_graph(spec: PreprocessSpec, *, opset: int) -> ModelProto:
    """Return the graph that does what `build_eval_transform(spec)` does.

    Args:
        spec: the transform; of one or three channels, bicubic or bilinear.
        opset: of the graph, 18 or later.

    Returns:
        A model from `images`, uint8 [batch, height, width, 3], to `pixels`, float32 [batch, C, H, W].

    Raises:
        NotRepresentable: ONNX has no words for the transform.
    """
    from onnx import checker, parser

    channels, height, width = spec.input_size
    if channels not in (1, 3):
        raise NotRepresentable(
            f"pictures of {channels} channels are resized by torch, which ONNX Runtime does not follow; leave the "
            "preprocessing out (--no-preprocessing)"
        )
    if spec.interpolation not in _RESIZE:
        raise NotRepresentable(
            f"ONNX Runtime does not follow Pillow's {spec.interpolation} (it does {', '.join(_RESIZE)}); leave the "
            "preprocessing out (--no-preprocessing)"
        )
    lines = [
        "nhwc_shape = Shape (images)",
        "height = Slice (nhwc_shape, i1, i2)",
        "width = Slice (nhwc_shape, i2, i3)",
        "colours = Transpose <perm = [0, 3, 1, 2]> (images)",
        *(_gray() if channels == 1 else ["bytes = Identity (colours)"]),
        *_new_size(spec),
        *_resized(spec.interpolation),
        *_cut(spec),
        "unit = Mul (cut, per_byte)",
        "centred = Sub (unit, mean)",
        "pixels = Div (centred, std)",
    ]
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}]>\n'
        f"preprocess (uint8[batch, height, width, 3] {IMAGES}) "
        f"=> (float[batch, {channels}, {height}, {width}] {PIXELS})\n"
        f"<{_constants(spec, lines)}>\n{{\n  " + "\n  ".join(lines) + "\n}"
    )
    model = parser.parse_model(text)
    checker.check_model(model)
    return model


def _constants(spec: PreprocessSpec, lines: list[str]) -> str:
    """Return the initialisers that the lines use."""
    channels, height, width = spec.input_size
    per_channel = f"float[1, {channels}, 1, 1]"
    values = {
        **{f"int64[1] i{k}": str(k) for k in (0, 1, 2, 3)},
        "int64[1] cut_height": str(height),
        "int64[1] cut_width": str(width),
        "float per_byte": repr(1 / 255),
        f"{per_channel} mean": ", ".join(map(repr, spec.mean)),
        f"{per_channel} std": ", ".join(map(repr, spec.std)),
        f"{per_channel} colour": ", ".join(str(float(round(255 * value))) for value in spec.mean),
    }
    used = set(re.findall(r"\w+", "\n".join(lines)))
    return ", ".join(f"{name} = {{{value}}}" for name, value in values.items() if name.split()[-1] in used)


def _gray() -> list[str]:
    """Return the steps to Pillow's gray, whose weights of the colours are out of 65,536."""
    return [
        "weights = Constant <value = int32[1, 3, 1, 1] {19595, 38470, 7471}> ()",
        "half = Constant <value = int32 {32768}> ()",
        "whole = Constant <value = int32 {65536}> ()",
        "integers = Cast <to = 6> (colours)",
        "weighted = Mul (integers, weights)",
        "added = ReduceSum <keepdims = 1> (weighted, i1)",
        "rounded_up = Add (added, half)",
        "gray = Div (rounded_up, whole)",
        "bytes = Cast <to = 2> (gray)",
    ]


def _new_size(spec: PreprocessSpec) -> list[str]:
    """Return the steps to `new_height` and `new_width`, int64 [1], which the picture is resized to."""
    high, wide = (math.floor(side / spec.crop_pct) for side in spec.input_size[1:])
    constants = [
        f"{name} = Constant <value = int64[1] {{{side}}}> ()" for name, side in (("high", high), ("wide", wide))
    ]
    if spec.crop_mode == "squash":
        return [*constants, "new_height = Identity (high)", "new_width = Identity (wide)"]
    if spec.crop_mode == "center" and high == wide:
        return [
            constants[0],
            "shorter = Min (height, width)",
            "height_times = Mul (height, high)",
            "width_times = Mul (width, high)",
            "new_height = Div (height_times, shorter)",
            "new_width = Div (width_times, shorter)",
        ]
    choose = "Max" if spec.crop_mode == "border" else "Min"
    doubles = [f"{name}_double = Cast <to = 11> ({name})" for name in ("high", "wide", "height", "width")]
    sides = [
        line
        for name in ("height", "width")
        for line in (
            f"{name}_exact = Div ({name}_double, ratio)",
            f"{name}_round = Round ({name}_exact)",
            f"{name}_integer = Cast <to = 7> ({name}_round)",
            f"new_{name} = Max ({name}_integer, i1)",
        )
    ]
    return [
        *constants,
        *doubles,
        "down = Div (height_double, high_double)",
        "across = Div (width_double, wide_double)",
        f"ratio = {choose} (down, across)",
        *sides,
    ]


def _resized(interpolation: str) -> list[str]:
    """Return the steps to `resized`: one direction, then the other, each rounded to bytes."""
    resize = f'Resize <{_RESIZE[interpolation]}, coordinate_transformation_mode = "half_pixel">'
    return [
        "lower = Less (new_height, height)",
        "fewer_rows = Sub (height, new_height)",
        "fewer_columns = Sub (width, new_width)",
        "twice = Mul (fewer_columns, i2)",
        "many = Greater (fewer_rows, twice)",
        "vertical_first = And (lower, many)",
        "first_height = Where (vertical_first, new_height, height)",
        "first_width = Where (vertical_first, width, new_width)",
        "shape = Shape (bytes)",
        "leading = Slice (shape, i0, i2)",
        "first_size = Concat <axis = 0> (leading, first_height, first_width)",
        "size = Concat <axis = 0> (leading, new_height, new_width)",
        f"once = {resize} (bytes, , , first_size)",
        f"resized = {resize} (once, , , size)",
    ]


def _cut(spec: PreprocessSpec) -> list[str]:
    """Return the steps to `cut`: the centre, as float32; a smaller picture is surrounded by the mean colour."""
    if spec.crop_mode != "border":
        return ["padded = Cast <to = 1> (resized)", *_centre("new_height", "new_width")]
    edges = [
        line
        for name in ("height", "width")
        for line in (
            f"{name}_gap = Sub (cut_{name}, new_{name})",
            f"{name}_missing = Max ({name}_gap, i0)",
            f"{name}_before = Div ({name}_missing, i2)",
            f"{name}_after = Sub ({name}_missing, {name}_before)",
            f"padded_{name} = Add (new_{name}, {name}_missing)",
        )
    ]
    return [
        *edges,
        "edges = Concat <axis = 0> (i0, i0, height_before, width_before, i0, i0, height_after, width_after)",
        "floats = Cast <to = 1> (resized)",
        "shifted = Sub (floats, colour)",
        "surrounded = Pad (shifted, edges)",
        "padded = Add (surrounded, colour)",
        *_centre("padded_height", "padded_width"),
    ]


def _centre(height: str, width: str) -> list[str]:
    """Return the steps that cut the centre out of `padded`, whose odd rest is rounded to the even side."""
    lines = ["a_half = Constant <value = float {0.5}> ()"]
    for name, has in (("height", height), ("width", width)):
        lines += [
            f"{name}_over = Sub ({has}, cut_{name})",
            f"{name}_over_float = Cast <to = 1> ({name}_over)",
            f"{name}_halved = Mul ({name}_over_float, a_half)",
            f"{name}_start_float = Round ({name}_halved)",
            f"{name}_start = Cast <to = 7> ({name}_start_float)",
            f"{name}_end = Add ({name}_start, cut_{name})",
        ]
    return [
        *lines,
        "starts = Concat <axis = 0> (height_start, width_start)",
        "ends = Concat <axis = 0> (height_end, width_end)",
        "axes = Concat <axis = 0> (i2, i3)",
        "cut = Slice (padded, starts, ends, axes)",
    ]
