"""Transformers without its progress bars, its warnings and the network."""

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Give transformers, imported offline; it, and what it imports, is silent inside the block."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers: Any = importlib.import_module("transformers")
            with _no_progress_bars(transformers.utils.logging):
                yield transformers
    finally:
        logging.disable(before)


@contextmanager
def _no_progress_bars(its_logging: Any) -> Iterator[None]:
    had_them = its_logging.is_progress_bar_enabled()
    its_logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_them:
            its_logging.enable_progress_bar()
