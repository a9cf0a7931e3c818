"""`od-finetune zoo`: the published checkpoints, which of them are here already, and getting one before it is needed."""

from __future__ import annotations

import argparse
import re

from od_finetune.errors import UserError
from od_finetune.text_table import lines
from od_finetune.zoo import cache
from od_finetune.zoo.table import ENTRIES, Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the two actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="names, as in fine_tune_checkpoint: \"zoo:NAME\"",
                                 description="Lists the published checkpoints.")
    listing.add_argument("--grep", metavar="RE", default="", help="only names and titles in which this is found")
    listing.add_argument("--cached", action="store_true", help="only those that are in the cache")
    fetch = actions.add_parser("fetch", help="download one into the cache and verify it",
                               description="Downloads a published checkpoint; prints where it lies.")
    fetch.add_argument("name", metavar="NAME", help="as `list` shows it, with or without zoo:")


def run(options: argparse.Namespace) -> int:
    """Lists or fetches."""
    if options.action == "fetch":
        print(cache.fetch(options.name))
        return 0
    try:
        wanted = re.compile(options.grep, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"--grep {options.grep!r} is not a regular expression: {error}") from None
    rows = [
        _row(entry)
        for entry in ENTRIES
        if (wanted.search(entry.name) or wanted.search(entry.title))
        and (cache.archive(entry).exists() or not options.cached)
    ]
    for line in lines(rows):
        print(line)
    print(f"{len(rows)} of {len(ENTRIES)}; the cache is {cache.directory()}")
    return 0


def _row(entry: Entry) -> list[str]:
    path = cache.archive(entry)
    size = f"{path.stat().st_size / 1e6:.1f} MB in the cache" if path.exists() else ""
    return [entry.name, entry.zoo, entry.title, size]
