"""The tokenizer: open_clip's ids on every text, and any name encodes."""

from __future__ import annotations

import gzip
from pathlib import Path

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softcpt.clip.bpe import BpeTokenizer, merges_of, read_vocabulary, vocabulary_bytes
from softcpt.clip.open_clip import default_vocabulary

ODD = [
    "",
    " ",
    "a photo of a great_spotted woodpecker.",
    "  Two   blanks\tand\nlines ",
    "don't we'll I'M they've",
    "3.14 m² ½ Ⅷ x1y2",
    "Ærøskøbing, naïve café, ß ẞ İstanbul",
    "日本語のテキスト 한국어 עברית العربية",
    "👩‍👩‍👧 flags 🇩🇰 and ❤️",
    "&amp;amp; &lt;b&gt; schÃ¶n",
    "....!!!---___",
    "zero\u200bwidth\u00adsoft\x00nul\x85next",
    "e\u0301 combining",
    "supercalifragilisticexpialidocious" * 3,
]


open_clip_tokenizers = {
    c: open_clip.SimpleTokenizer(clean=c) for c in ("lower", "whitespace", "canonicalize")
}
our_tokenizers = {c: read_vocabulary(default_vocabulary(), clean=c) for c in open_clip_tokenizers}


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_ids_of_odd_texts_are_open_clips(text: str, clean: str) -> None:
    reference = open_clip_tokenizers[clean]
    assert our_tokenizers[clean].encode(text) == reference.encode(text)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_ids_of_any_text_are_open_clips(text: str) -> None:
    assert our_tokenizers["lower"].encode(text) == open_clip_tokenizers["lower"].encode(text)


def test_special_ids_are_clips() -> None:
    tokenizer = our_tokenizers["lower"]
    assert (tokenizer.sot, tokenizer.eot, tokenizer.vocab_size) == (49406, 49407, 49408)


def test_name_that_spells_a_special_token_is_text() -> None:
    tokenizer = our_tokenizers["lower"]
    ids = tokenizer.encode("a <end_of_text> b <start_of_text>")
    assert max(ids) < tokenizer.sot
    # open_clip would end the text there.
    assert tokenizer.eot in open_clip_tokenizers["lower"].encode("a <end_of_text> b")


@pytest.mark.parametrize("n_merges", [0, 1, 1000])
def test_cut_vocabulary_encodes_any_name_as_open_clip_does(tmp_path: Path, n_merges: int) -> None:
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(vocabulary_bytes(merges_of(default_vocabulary(), n_merges)))
    tokenizer = read_vocabulary(file)
    assert tokenizer.vocab_size == 512 + n_merges + 2
    assert tokenizer.eot == tokenizer.vocab_size - 1
    for text in ODD:
        assert max(tokenizer.encode(text), default=0) < tokenizer.sot
        if n_merges:
            assert tokenizer.encode(text) == open_clip.SimpleTokenizer(bpe_path=str(file)).encode(text)


def test_line_end_behind_the_last_merge_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress(b"#version: 0.2\na t</w>\n"))
    assert merges_of(file, 5) == [("a", "t</w>")]


def test_digest_tells_vocabularies_and_cleanings_apart() -> None:
    merges = [("a", "b"), ("b", "c")]
    digests = {
        BpeTokenizer(merges).digest,
        BpeTokenizer(merges[::-1]).digest,
        BpeTokenizer(merges, clean="whitespace").digest,
    }
    assert len(digests) == 3
    assert BpeTokenizer(list(merges)).digest in digests
