"""CLIP's byte-pair vocabulary, cut to the merges that some words need."""

from __future__ import annotations

import argparse
import itertools
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import regex  # type: ignore[import-untyped]  # only its stubs are missing

from recipes.pretrain_mini.captions import DOMAINS, PLAIN
from recipes.pretrain_mini.changes import COLOURS, KINDS
from recipes.pretrain_mini.data import read_captions
from recipes.pretrain_mini.scenes import read_scenes
from softcpt.clip.bpe import MAX_MERGES, BpeTokenizer, merges_of, vocabulary_bytes
from softcpt.clip.open_clip import default_vocabulary

Merge = tuple[str, str]
_WORD = regex.compile(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def words_of(texts: Iterable[str], *, least: int = 1) -> list[str]:
    """The words that occur at least so often."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in _WORD.findall(text.lower()):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, n in counts.items() if n >= least)


def cut_vocabulary(words: Iterable[str]) -> list[Merge]:
    """The merges, in CLIP's order, that CLIP uses in these words.

    A word keeps its tokens: each step of its encoding takes the first merge of those that fit, and that one
    is kept. Other words are spelled in smaller pieces, down to bytes.
    """
    merges = merges_of(default_vocabulary(), MAX_MERGES)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    used: set[int] = set()
    for word in words:
        if word.isascii():
            used |= _used([*word[:-1], word[-1] + "</w>"], ranks)
    return [merges[rank] for rank in sorted(used)]


def _used(symbols: list[str], ranks: dict[Merge, int]) -> set[int]:
    used: set[int] = set()
    while len(symbols) > 1:
        best = min(itertools.pairwise(symbols), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        used.add(ranks[best])
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == best:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged
    return used


class FastTokenizer:
    """The product's tokenizer with a memory, and without mending: captions here are clean."""

    def __init__(self, merges: Sequence[Merge]) -> None:
        self._bpe = BpeTokenizer(merges)
        self._words: dict[str, list[int]] = {}
        self.size = self._bpe.vocab_size

    def __call__(self, text: str) -> list[int]:
        """Ids from start to end token."""
        ids = [self._bpe.sot]
        for word in text.lower().split():
            if word not in self._words:
                self._words[word] = self._bpe.encode(word)
            ids += self._words[word]
        return [*ids, self._bpe.eot]


def words_of_recipe() -> list[str]:
    """The words that the recipe itself puts into captions."""
    said = [text for kind in KINDS for text in (*kind.words.adjectives, *kind.words.tails)]
    frames = [*PLAIN, *(frame for frames in DOMAINS.values() for frame in frames)]
    signs = [*string.digits, *string.ascii_lowercase]
    pairs = ["two pictures side by side on the left and beside of above below over at the top bottom"]
    glyphs = ["the digit number letter a capital lowercase in bold italics with serifs typewriter letters"]
    return words_of([*said, *frames, *signs, *pairs, *glyphs, *COLOURS, "mostly something background"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("file", type=Path, help="the bpe.txt.gz to write")
    parser.add_argument("--cache", type=Path, help="folder of drawn scenes")
    parser.add_argument("--least", type=int, default=3, help="how often a word occurs at least")
    args = parser.parse_args()
    texts = [text for captions in read_captions(args.corpus) for text in captions]
    scenes = read_scenes(args.cache) if args.cache else None
    drawn = [text for captions in scenes.captions for text in captions] if scenes else []
    words = {*words_of([*set(texts), *drawn], least=args.least), *words_of_recipe()}
    args.file.write_bytes(vocabulary_bytes(cut_vocabulary(words)))


if __name__ == "__main__":
    main()
