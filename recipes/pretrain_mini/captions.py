"""What is true of a picture, and how it is said.

A *fact* is a short text that stands for something a picture shows: ``ladybug``, ``beetle``, ``blurred``. A
picture has facts, a caption needs some; a caption is true of every picture that has all it needs. So what
counts as a match follows from the words and not from which file a caption came with, and words that say how a
picture was changed decide between right and wrong.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from recipes.pretrain_mini.data import Photos


class Caption(NamedTuple):
    """A text and the facts without which it would be false."""

    text: str
    needs: frozenset[str]


@dataclass(frozen=True)
class Subject:
    """What a photograph shows, before anything is done to it.

    Attributes:
        phrases: how it is named, with an article where there is one; a fact each (see :func:`fact_of`).
        kinds: what kind of thing it is ("beetle"), facts too.
        domain: a key of :data:`DOMAINS`.
    """

    phrases: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    domain: str = "photo"
    facts: frozenset[str] = field(default=frozenset())


DOMAINS: Mapping[str, tuple[str, ...]] = {
    "photo": (),
    "aerial": (
        "an aerial photo of {}", "a satellite image of {}", "{} seen from above", "aerial image: {}",
        "a remote sensing image of {}", "{} from the air", "an aerial view of {}",
    ),
    "sport": ("a sports photo of {}", "{} in action", "people doing {}", "sport: {}"),
    "product": (
        "a product photo of {}", "{} for sale", "{} on a plain background", "fashion: {}",
        "a photo of {}, a piece of clothing",
    ),
    "sign": ("a traffic sign photo: {}", "{} by the road", "a photo of {}, a traffic sign"),
    "flower": ("a photo of {}, a type of flower", "a flower: {}", "{}, a kind of flower"),
    "food": ("a photo of {}, a type of food", "{}, a dish on a plate", "food: {}"),
    "sea": ("{} under water", "a photo of {}, a type of sea animal"),
}  # fmt: skip
"""Where pictures come from -> what can be said of them for that reason."""

_DOMAIN_OF_SOURCE = {
    "rsicd": "aerial", "sport": "sport", "fash": "product", "sign": "sign",
    "flo17": "flower", "cbir": "food", "uec": "food", "sea": "sea",
}  # fmt: skip

PLAIN = (
    "a photo of {}", "a photo of {}", "a picture of {}", "a photograph of {}", "an image of {}", "{}", "{}",
    "this is {}", "there is {} in the picture", "one can see {} here", "a view of {}",
    "a snapshot showing {}", "here is a photo of {}", "the picture shows {}",
    "what you can see in this photo is {}",
    "in this picture, taken some time ago, there is {}", "somebody took a photo, and it shows {}",
    "among all the pictures in the collection this is the one with {}",
    "we have been looking at this for a while and we think that it is {}",
)  # fmt: skip
"""Frames that say nothing about the picture; long ones put the name far behind, as learned prompts do."""

_WITH_KIND = (
    "a photo of {}, a type of {}",
    "{}, a kind of {}",
    "{1}: {0}",
    "{} ({})",
    "the {1} in this photo is {0}",
)
_ONLY_KIND = ("a photo of a {}", "a {}", "some kind of {}", "a picture of a {}", "{}", "this is a kind of {}")

_FRAMES = re.compile(
    r"^(?:this is |there (?:is|are) |one can see |people doing "
    r"|(?:an?|the) (?:(?:good|small|cropped|sports|product|aerial|satellite) )*"
    r"(?:photo|picture|photograph|close-up|view|snapshot|image) (?:of|showing|with) )"
)
_TAILS = re.compile(
    r"(?: in the picture| here| on a plain background| seen from above| in action| for sale| by the road)$"
)
_KIND = (
    re.compile(r"^(?P<what>.+), an? (?:kind|type) of (?P<kind>.+)$"),
    re.compile(r"^(?:an? )?(?P<kind>[^:,]+?)(?: photo)?: (?P<what>.+)$"),
    re.compile(r"^(?P<what>.+) \((?P<kind>.+)\)$"),
)
_ARTICLE = re.compile(r"^(?:an?|the) ")
_SENTENCES = frozenset({"f8kb", "coco"})
_NO_KIND = frozenset({"aerial image", "scene", "dish"})


def fact_of(phrase: str) -> str:
    """The fact that a phrase names: the phrase without article."""
    return _ARTICLE.sub("", phrase)


def take_apart(caption: str) -> tuple[str, str]:
    """What a caption of the corpus names, without its frame, and the kind of thing that is, or ``""``.

    Example:
        >>> take_apart("a small photo of a ladybug, a type of beetle.")
        ('a ladybug', 'beetle')
        >>> take_apart("device: television.")
        ('television', 'device')
    """
    text, kind = caption.strip().removesuffix("."), ""
    for pattern in _KIND:
        if match := pattern.match(text):
            text, kind = match["what"], match["kind"]
            break
    return _TAILS.sub("", _FRAMES.sub("", text)), "" if kind in _NO_KIND else kind


def read_subjects(photos: Photos) -> list[Subject]:
    """What each photograph shows; what a corpus says of a name anywhere holds everywhere."""
    parts = [
        [(c.strip().removesuffix("."), "") for c in captions]
        if source in _SENTENCES
        else [*map(take_apart, captions)]
        for source, captions in zip(photos.source, photos.captions, strict=True)
    ]
    spoken = _best_phrases(phrase for found in parts for phrase, _ in found)
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for found in parts:
        for phrase, kind in found:
            if kind:
                kinds[fact_of(phrase)].add(kind)
    grey = _are_grey(photos)
    return [
        _subject(found, source, spoken, kinds, is_grey=bool(is_grey))
        for found, source, is_grey in zip(parts, photos.source, grey, strict=True)
    ]


def _best_phrases(phrases: Iterable[str]) -> dict[str, str]:
    """For each fact its most frequent phrase, one with an article where there is any."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for phrase in phrases:
        counts[fact_of(phrase)][phrase] += 1
    return {
        fact: max(found, key=lambda phrase: (bool(_ARTICLE.match(phrase)), found[phrase]))
        for fact, found in counts.items()
    }


def _subject(
    found: Sequence[tuple[str, str]],
    source: str,
    spoken: Mapping[str, str],
    kinds: Mapping[str, set[str]],
    *,
    is_grey: bool,
) -> Subject:
    facts = [f for f in dict.fromkeys(fact_of(phrase) for phrase, _ in found) if "black and white p" not in f]
    phrases = tuple(spoken[fact] for fact in facts)
    known_kinds = tuple(sorted({kind for fact in facts for kind in kinds.get(fact, ())}))
    domain = _DOMAIN_OF_SOURCE.get(source, "photo")
    extra = [f"domain {domain}", *(["in black and white"] if is_grey else [])]
    return Subject(phrases, known_kinds, domain, frozenset([*facts, *known_kinds, *extra]))


def _are_grey(photos: Photos) -> list[bool]:
    """Whether the three colours of a picture are nearly the same everywhere."""
    grey: list[bool] = []
    for start in range(0, len(photos.pixels), 4096):
        pixels = photos.pixels[start : start + 4096, ::4, ::4].astype(np.int16)
        spread = (pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2))
        grey.extend(spread < 4)
    return grey


class Words:
    """Composes captions; everything it chooses comes from one stream."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def pick(self, choices: Sequence[str]) -> str:
        """One of several texts."""
        return choices[int(self._rng.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self._rng.random() < probability)

    def describe(self, subject: Subject, changes: Sequence[Change] = ()) -> Caption:
        """A caption of a photograph that was changed; every change is mentioned."""
        if not changes and subject.kinds and self._rng.random() < 0.25:
            return self._with_kind(subject)
        phrase = self.pick(subject.phrases)
        needs = {fact_of(phrase), *(change.fact for change in changes)}
        if not changes and subject.domain != "photo" and self._rng.random() < 0.6:
            return self._finished(
                self.pick(DOMAINS[subject.domain]), phrase, needs | {f"domain {subject.domain}"}
            )
        if not changes:
            return self._finished(self.pick(PLAIN), phrase, needs)
        if subject.domain == "aerial":
            phrase = self.pick((phrase, f"{phrase} seen from above", f"an aerial view of {phrase}"))
        return self._finished(self.frame(changes), phrase, needs)

    def coloured(self, subject: Subject, colour: str) -> Caption:
        """A caption that says which colour a picture mostly has."""
        phrase = self.pick(subject.phrases)
        frame = self.pick(
            (f"{{}}, mostly {colour}", f"a {colour} picture of {{}}", f"a photo of something {colour}")
        )
        needs = {f"mostly {colour}"} | ({fact_of(phrase)} if "{}" in frame else set())
        return self._finished(frame, phrase, needs)

    def frame(self, changes: Sequence[Change]) -> str:
        """A frame that mentions all changes, each before or behind the subject."""
        adjectives: list[str] = []
        tails: list[str] = []
        for change in changes:
            use_adjective = bool(change.adjectives) and (not change.tails or self._rng.random() < 0.5)
            (adjectives if use_adjective else tails).append(
                self.pick(change.adjectives if use_adjective else change.tails)
            )
        words = " and ".join(adjectives)
        tail = "".join(f", {text}" for text in tails)
        if adjectives:
            noun = self.pick(("photo", "picture", "image", "photograph", "photo"))
            article = "an" if words[0] in "aeiou" else "a"
            return (
                f"{article} {words} {noun} of {{}}{tail}"
                if self._rng.random() < 0.8
                else f"{words}: {{}}{tail}"
            )
        style = self._rng.random()
        if style < 0.25:  # what was done comes first
            return f"{', '.join(tails)}: {{}}"
        if style < 0.4:
            return f"a picture, {', '.join(tails)}, of {{}}"
        return self.pick(PLAIN) + tail

    def _with_kind(self, subject: Subject) -> Caption:
        kind = self.pick(subject.kinds)
        if self._rng.random() < 0.4:
            return self._finished(self.pick(_ONLY_KIND), kind, {kind})
        facts = [p for p in subject.phrases if fact_of(p) != kind]
        phrase = self.pick(facts or subject.phrases)
        return Caption(
            self.pick(_WITH_KIND).format(phrase, kind) + self._stop(), frozenset({fact_of(phrase), kind})
        )

    def _finished(self, frame: str, phrase: str, needs: Iterable[str]) -> Caption:
        return Caption(frame.replace("{}", phrase) + self._stop(), frozenset(needs))

    def _stop(self) -> str:
        return "." if self._rng.random() < 0.5 else ""


class Change(NamedTuple):
    """A change that can be named.

    Attributes:
        fact: what is true of a picture so changed.
        adjectives: words before "photo".
        tails: words behind the subject.
    """

    fact: str
    adjectives: tuple[str, ...]
    tails: tuple[str, ...]
