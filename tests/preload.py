"""What the processes that fork for each command import beforehand, so that no fork does it again."""

from __future__ import annotations

import gc
import importlib

import certifi

import astra_backup

LATE = (
    "_strptime",
    "astrapy",
    "box_sdk_gen",
    "dotenv",
    "h2.connection",
    "httpcore",
    "httpx",
    "isal.igzip_threaded",
    "multiprocessing.connection",
    "numpy",
    "orjson",
    "prometheus_client.parser",
    "pyrage",
    "requests",
    "rich.console",
    "rich.progress",
)
"""What the scripts import late, or only for some commands; another user may not be able to read it."""


def preload() -> None:
    """Import it all, read the CAs, and leave it all out of the forks' garbage collection, which would copy it."""
    for name in LATE:
        importlib.import_module(name)
    astra_backup.tls_context("", certifi.where())
    gc.freeze()
