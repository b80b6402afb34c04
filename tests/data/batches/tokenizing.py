"""Tokenizes in its own process, which is killed at a given moment.

python tokenizing.py ROWS CACHE NUM_PROC MOMENT COUNT GROUP
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from lit_probsft.data import Rows
from lit_probsft.data.batches import cache
from lit_probsft.data.batches.row_tokenizer import Recipe
from lit_probsft.data.rows.splits import LoadedSource, Split
from lit_probsft.data.tokens.tokenizers import ByteTokenizer


def tokenize(path, folder, num_proc=None):
    """Returns the store of a file's rows."""
    split = Split(LoadedSource(Rows(str(path)), "train"))
    tokenizer = ByteTokenizer().load(list)
    return cache.cached_store(Path(folder), split, tokenizer, Recipe(), num_proc=num_proc, progress=False)


class Killer:
    """Kills this process, or its whole process group, at the n-th moment of a kind."""

    def __init__(self, moment, count, group):
        self.moment, self.left, self.group = moment, count, group

    def reach(self, moment):
        self.left -= moment == self.moment
        if self.left == 0:
            (os.killpg if self.group else os.kill)(os.getpgrp() if self.group else os.getpid(), signal.SIGKILL)
            signal.pause()

    def install(self):
        tokenize_rows, save, rename = cache.tokenize_rows, np.save, os.rename

        def documents(*args, **options):
            for document in tokenize_rows(*args, **options):
                self.reach("document")
                yield document

        def saved(*args, **options):
            self.reach("save")
            return save(*args, **options)

        def renamed(*args):
            self.reach("rename")
            rename(*args)
            self.reach("renamed")

        cache.tokenize_rows, np.save, os.rename = documents, saved, renamed


if __name__ == "__main__":
    rows, folder, num_proc, moment, count, group = sys.argv[1:]
    Killer(moment, int(count), group == "group").install()
    tokenize(rows, folder, int(num_proc))
