"""Short product reviews in English and Chinese, made up from the word lists in `demo.words`: the text that the demo
base model is pretrained on (unlabelled), and the rows of the demo task.

The demo task: read a review, answer with a compact JSON object, for instance
``{"product": "kettle", "aspect": "noise"}`` (Chinese reviews: the same keys, Chinese values).

Held-out rule: one in five (product, aspect) pairs, picked by a checksum of the two names, belongs to the split
"heldout"; all the others belong to "train". No review of a held-out pair, positive or negative, is ever in the
training rows or in the base model's pretraining text, so accuracy on the held-out rows is not memory.

Everything is a pure function of its arguments: the same seed gives the same reviews on every machine.
"""

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from demo import words

Language = Literal["en", "zh"]
Split = Literal["train", "heldout"]

INSTRUCTIONS: dict[Language, str] = {
    "en": "Read the review. Answer with JSON: product, aspect.",
    "zh": "阅读评论，用 JSON 回答：product、aspect。",
}
SENTIMENTS: dict[Language, tuple[str, str]] = {"en": ("positive", "negative"), "zh": ("正面", "负面")}


@dataclass(frozen=True)
class Review:
    """One review and what it says; product, sentiment and aspect are written in the review's own language."""

    text: str
    product: str
    sentiment: str
    aspect: str
    language: Language


class _Lists(NamedTuple):
    kinds: list[words.Kind]
    aspects: dict[str, words.Phrases]
    intros: list[str]
    bare: list[str]
    frames: list[str]
    fillers: list[str]
    verdicts: tuple[list[str], list[str]]
    adverbs: list[str]
    slots: dict[str, list[str]]
    full_stops: list[str]


_LISTS: dict[Language, _Lists] = {
    "en": _Lists(
        words.KINDS_EN,
        words.ASPECTS_EN,
        words.INTROS_EN,
        words.BARE_EN,
        words.FRAMES_EN,
        words.FILLERS_EN,
        (words.GOOD_EN, words.BAD_EN),
        words.ADVERBS_EN,
        words.SLOTS_EN,
        [".", ".", ".", ".", "!", "..."],
    ),
    "zh": _Lists(
        words.KINDS_ZH,
        words.ASPECTS_ZH,
        words.INTROS_ZH,
        words.BARE_ZH,
        words.FRAMES_ZH,
        words.FILLERS_ZH,
        (words.GOOD_ZH, words.BAD_ZH),
        words.ADVERBS_ZH,
        words.SLOTS_ZH,
        ["。", "。", "。", "！", "~", "……"],
    ),
}


def split_of(product: str, aspect: str) -> Split:
    """The split that reviews of this product about this aspect belong to."""
    return "heldout" if zlib.crc32(f"{product}/{aspect}".encode()) % 5 == 0 else "train"


def pairs(language: Language, split: Split) -> list[tuple[str, str]]:
    """Every (product, aspect) pair of one language and split."""
    return [
        (product, aspect)
        for kind in _LISTS[language].kinds
        for product in kind.products
        for aspect in kind.aspects
        if split_of(product, aspect) == split
    ]


def products(language: Language) -> list[str]:
    """Every product of one language."""
    return [product for kind in _LISTS[language].kinds for product in kind.products]


def reviews(n: int, seed: int, language: Language | None = None, split: Split = "train") -> Iterator[Review]:
    """`n` reviews with distinct texts; both languages in turn unless `language` names one."""
    rng = random.Random(f"{seed}/{split}/{language}")
    known: dict[Language, list[tuple[str, str]]] = {"en": pairs("en", split), "zh": pairs("zh", split)}
    seen: set[str] = set()
    while len(seen) < n:
        lang: Language = language or ("zh" if len(seen) % 2 else "en")
        review = _review(rng, lang, *rng.choice(known[lang]))
        if review.text not in seen:
            seen.add(review.text)
            yield review


def sample_rows(n: int, seed: int, split: Split = "train", language: Language | None = None) -> list[dict[str, str]]:
    """`n` alpaca rows {"instruction", "input", "output"} of the demo task."""
    return [
        {"instruction": INSTRUCTIONS[review.language], "input": review.text, "output": answer(review)}
        for review in reviews(n, seed, language, split)
    ]


def answer(review: Review) -> str:
    """The JSON text that the demo task expects for a review."""
    fields = {"product": review.product, "aspect": review.aspect}
    return json.dumps(fields, ensure_ascii=False)


def _review(rng: random.Random, language: Language, product: str, aspect: str) -> Review:
    """A review of one to three sentences: [intro that names the product] judgement [filler] [verdict]."""
    lists = _LISTS[language]
    bad = rng.randrange(2)
    phrases = lists.aspects[aspect]
    slots = {name: rng.choice(values) for name, values in lists.slots.items()}
    subject, adverb = rng.choice(phrases.subjects), rng.choice(lists.adverbs)
    slots |= {
        "p": product,
        "s": subject,
        "S": _capital(subject),
        "v": rng.choice(phrases.bad if bad else phrases.good),
        "a": adverb,
        "A": _capital(adverb),
    }

    # The product is named exactly once: in an opening sentence, or in the judgement itself.
    if rng.random() < 0.55:
        sentences = [rng.choice(lists.intros), rng.choice(lists.bare) + rng.choice(lists.full_stops)]
    else:
        sentences = [rng.choice(lists.frames) + rng.choice(lists.full_stops)]
    if len(sentences) < 3 and rng.random() < 0.4:
        sentences.insert(rng.choice([0, len(sentences)]), rng.choice(lists.fillers))
    if len(sentences) < 3 and rng.random() < 0.4:
        sentences.append(rng.choice(lists.verdicts[bad]))

    parts = [_capital(sentence.format_map(slots)) for sentence in sentences]
    text = _roughen_zh(rng, "".join(parts)) if language == "zh" else _roughen_en(rng, " ".join(parts), product)
    return Review(text, product, SENTIMENTS[language][bad], aspect, language)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _roughen_en(rng: random.Random, text: str, product: str) -> str:
    """The informal touches of real reviews: a typo, no capitals, no final stop. The product's name stays whole."""
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.15:
        text = text.rstrip(".")
    if rng.random() < 0.2:
        tokens = text.split(" ")
        i = rng.randrange(len(tokens))
        word = tokens[i]
        if word.isalpha() and len(word) > 4 and word.lower() not in product:
            j = rng.randrange(1, len(word) - 2)
            tokens[i] = word[:j] + word[j + 1] + word[j] + word[j + 2 :]
            text = " ".join(tokens)
    return text


def _roughen_zh(rng: random.Random, text: str) -> str:
    """The same for Chinese: spaces or commas for full stops, no final stop, a trailing particle."""
    if rng.random() < 0.15:
        text = text.replace("。", rng.choice([" ", "，"])).rstrip(" ，")
    if rng.random() < 0.15:
        text = text.rstrip("。")
    if rng.random() < 0.08:
        text = text.rstrip("。！") + rng.choice(["哈哈", "~", "啦", "！！", "哦"])
    return text
