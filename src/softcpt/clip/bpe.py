"""CLIP's byte-pair vocabulary: text -> token ids, as open_clip gives them."""

from __future__ import annotations

import gzip
import html
import itertools
import string
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import ftfy
import regex  # type: ignore[import-untyped]  # only its stubs are missing

from softcpt.core.errors import BackboneError, Fault
from softcpt.core.files import digest_of_bytes

# Merges of CLIP's vocabulary that are in use: 49,152 tokens without the bytes (twice) and two special ones.
# The file that everybody ships goes on behind them.
MAX_MERGES = 49152 - 256 - 2
# No vocabulary needs more; what unpacks to more is not one (CLIP's own takes 3.2 MB).
MAX_BYTES = 32 << 20

# Differs from CLIP's pattern: a text that spells a special token is text. Otherwise a class called
# "<end_of_text>" would end its prompt in the middle.
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE)


class BpeTokenizer:
    """A byte-pair vocabulary: 512 byte tokens, one token for each merge, SOT, EOT.

    Args:
        merges: pairs of symbols, the most frequent first.
        clean: how a text is prepared, one of :data:`CLEANINGS`.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], *, clean: str = "lower") -> None:
        letters = list(_byte_letters().values())
        tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
        self._letters = _byte_letters()
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._clean = CLEANINGS[clean]
        self._seen: dict[str, tuple[int, ...]] = {}
        self._n_tokens = len(tokens)
        self.digest = digest_of_bytes("\n".join([clean, *(f"{a} {b}" for a, b in merges)]).encode())

    @property
    def sot(self) -> int:
        """Id of the start token."""
        return self._n_tokens

    @property
    def eot(self) -> int:
        """Id of the end token, the largest of all."""
        return self._n_tokens + 1

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self._n_tokens + 2

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end; nothing is cut.

        Example:
            >>> BpeTokenizer([("a", "t</w>")]).encode("At")
            [512]
        """
        ids: list[int] = []
        for word in _WORDS.findall(self._clean(text)):
            if word not in self._seen:
                self._seen[word] = self._encode_word(word)
            ids.extend(self._seen[word])
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = [self._letters[byte] for byte in word.encode()]
        symbols = [*letters[:-1], letters[-1] + "</w>"]
        while len(symbols) > 1:
            pairs = itertools.pairwise(symbols)
            best = min(pairs, key=lambda pair: self._ranks.get(pair, MAX_MERGES))
            if best not in self._ranks:
                break
            symbols = _merge(symbols, best)
        return tuple(self._ids[symbol] for symbol in symbols)


def _merge(symbols: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every occurrence of the pair, from the left, made one."""
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of the first 256 ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    letters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(printable))
    return letters


def _mended(text: str) -> str:
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _one_blank(text: str) -> str:
    return " ".join(_mended(text).split())


def _lower(text: str) -> str:
    return _one_blank(text).lower()


def _canonical(text: str) -> str:
    words = _mended(text).replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(words.lower().split())


CLEANINGS: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"lower": _lower, "whitespace": _one_blank, "canonicalize": _canonical}
)


def read_vocabulary(path: Path, *, clean: str = "lower") -> BpeTokenizer:
    """The tokenizer of a ``bpe.txt.gz``: a line of comment, then one merge a line.

    Raises:
        BackboneError: all that is wrong with the file.
    """
    return BpeTokenizer(_read_merges(path), clean=clean)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    about = "the vocabulary"
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BackboneError(
                Fault(
                    str(path), f"unpacks to more than {MAX_BYTES >> 20} MiB", "no vocabulary is this large"
                ),
                about=about,
            )
        # Only "\n" ends a line: the letters of some bytes count as line ends elsewhere.
        lines = content.decode().removesuffix("\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BackboneError(
            Fault(str(path), f"is no gzipped text: {error}", "copy it again"), about=about
        ) from error
    faults: list[Fault] = []
    merges: list[tuple[str, str]] = []
    seen: set[str] = set()
    for number, line in enumerate(lines[1 : MAX_MERGES + 1], start=2):
        first, *rest = line.split() or [""]
        if len(rest) != 1:
            faults.append(Fault(f"{path}:{number}", f"{line!r} is not a pair of symbols", "one merge a line"))
        elif first + rest[0] in seen:
            faults.append(
                Fault(f"{path}:{number}", f"{line!r} makes a token that is there already", "remove it")
            )
        else:
            merges.append((first, rest[0]))
            seen.add(first + rest[0])
    if faults:
        raise BackboneError(faults[:20], about=about)
    return merges


def vocabulary_bytes(merges: Iterable[tuple[str, str]]) -> bytes:
    """A ``bpe.txt.gz`` of these merges; equal merges give equal bytes.

    No line end stands behind the last merge: open_clip would count the empty line as one more.
    """
    text = "\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)])
    return gzip.compress(text.encode(), mtime=0)


def merges_of(path: Path, n: int) -> list[tuple[str, str]]:
    """The first ``n`` merges of a vocabulary file."""
    return _read_merges(path)[:n]
