"""The trainer's small model and rows."""

from tests.trainer.conftest import base, make_spec, rows, rows_of, tokenizer

__all__ = ["base", "make_spec", "rows", "rows_of", "tokenizer"]
