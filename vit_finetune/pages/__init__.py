"""Pages that need nothing else: one style, one way to render, charts as SVG and pictures inside the file.

Who has something to tell brings the values; the templates of all pages are in `templates/`.
"""

from vit_finetune.pages.charts import Series, line_chart, reliability_chart
from vit_finetune.pages.rendering import render
from vit_finetune.pages.thumbnails import data_uri, thumbnail

__all__ = ["Series", "data_uri", "line_chart", "reliability_chart", "render", "thumbnail"]
