"""Argument files of other trainers -> recipes: what becomes which key, and what has no counterpart."""

from vit_finetune.migration.importing import ORIGINS, import_arguments, recipe_text
from vit_finetune.migration.vocabulary import Imported, Note, Vocabulary

__all__ = ["ORIGINS", "Imported", "Note", "Vocabulary", "import_arguments", "recipe_text"]
