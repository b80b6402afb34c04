"""A tokenization in a process of its own, which dies at a given moment.

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
    """The store of a file's rows."""
    split = Split(LoadedSource(Rows(str(path)), "train"))
    tokenizer = ByteTokenizer().load(list)
    return cache.cached_store(Path(folder), split, tokenizer, Recipe(), num_proc=num_proc, progress=False)


class Death:
    """Comes at the n-th moment of a kind, to the whole process group or to this process alone."""

    def __init__(self, moment, count, group):
        self.moment, self.left, self.group = moment, count, group

    def pass_by(self, moment):
        self.left -= moment == self.moment
        if self.left == 0:
            (os.killpg if self.group else os.kill)(os.getpgrp() if self.group else os.getpid(), signal.SIGKILL)
            signal.pause()

    def install(self):
        found, save, rename = cache.tokenize_rows, np.save, os.rename

        def documents(*args, **options):
            for document in found(*args, **options):
                self.pass_by("document")
                yield document

        def saved(*args, **options):
            self.pass_by("save")
            return save(*args, **options)

        def renamed(*args):
            self.pass_by("rename")
            rename(*args)
            self.pass_by("renamed")

        cache.tokenize_rows, np.save, os.rename = documents, saved, renamed


if __name__ == "__main__":
    rows, folder, num_proc, moment, count, group = sys.argv[1:]
    Death(moment, int(count), group == "group").install()
    tokenize(rows, folder, int(num_proc))
