"""The trainer's small models and rows."""

from tests.trainer.conftest import base, base_of, make_spec, rows, rows_of, taught, tokenizer

__all__ = ["base", "base_of", "make_spec", "rows", "rows_of", "taught", "tokenizer"]
