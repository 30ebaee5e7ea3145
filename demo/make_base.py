"""Make the demo base model, `app/models/demo_base/`: its tokenizer and architecture, then its weights by two jobs of a service.

    python -m demo.make_base --corpus DIR [--out app/models/demo_base]

DIR holds `gsm8k_train.jsonl` (GSM8K, MIT) and `wizard_of_oz_gutenberg.txt` (public domain); the rest of the text comes
from `demo.text`. A run takes about half an hour on two CPU cores.

The model is to be a base on which a fine-tune of the demo task visibly learns. So most of its training tokens are
chat-formatted, to let it know turns and when to stop, but on other tasks: it never sees a sentiment label, an aspect
label, a JSON answer, or a review of the held-out split.

It begins with copying alone, which a random model takes long to find: at once, and at a rate that does not fall. In runs
that began with all sorts of text it learned the reviews' clauses by heart instead, and copying never.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Config

from app.kit.processes import python
from app.models.service import DEMO_BASE
from demo import text
from demo.service import made, start_service

VOCABULARY, SEED = 5120, 7
COPIES, REVIEWS, TALKS = 33_600, 108_000, 30_000  # chats that only copy, plain reviews, and chats of all sorts
ROW = 160  # tokens
HYPERPARAMETERS = {"epochs": 1, "batch_size": 24, "max_length": ROW, "learning_rate": 0.001, "weight_decay": 0.05}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2

# Qwen2's own pattern. AutoTokenizer puts it in place of any other when model_type is qwen2, so no other will do.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Message = dict[str, str]

# What the chat text asks for, in both languages: (ways to ask, the answer for a review).
TASKS: dict[text.Language, list[tuple[list[str], Callable[[text.Review], str]]]] = {
    "en": [
        (["Name the product of this review.", "What product is this review about?"], lambda r: r.product),
        (["Repeat this text.", "Copy this review word for word.", "Say this again."], lambda r: r.text),
        (["What language is this?", "Name the language of this review."], lambda r: "English"),
        (["How does this review begin? Give three words."], lambda r: " ".join(r.text.split()[:3])),
    ],
    "zh": [
        (["这条评论说的是什么商品？", "说出评论里的商品。"], lambda r: r.product),
        (["重复这段话。", "把这条评论原样抄一遍。", "再说一遍。"], lambda r: r.text),
        (["这是什么语言？", "评论是用什么语言写的？"], lambda r: "中文"),
        (["这条评论的开头是什么？写四个字。"], lambda r: r.text[:4]),
    ],
}
CONTINUE = {"en": ["Continue this review.", "Finish this review."], "zh": ["续写这条评论。", "把这条评论写完。"]}
REPEAT = {"en": ["Repeat these words.", "Say these words again."], "zh": ["重复这些字。", "再说一遍这些字。"]}
WRITE = {
    "en": ["Write a review of this product: {p}", "Write a short review. Product: {p}"],
    "zh": ["写一条{p}的评论。", "请评价{p}。"],
}
SYSTEM = {"en": ["You are a helpful assistant.", "Answer briefly."], "zh": ["你是一个乐于助人的助手。", "请简短回答。"]}


def exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def copying(review: text.Review, pieces: list[str], rng: random.Random) -> list[Message]:
    """Loose words, or a review, that are asked for again and again. In pretraining every token counts alike, and only the
    first question's cannot be foreseen by who copies."""
    language = review.language
    if rng.random() < 0.5:
        shown = "".join(rng.choices(pieces, k=rng.randint(3, 16))).strip()
        asked = [(rng.choice(REPEAT[language]), shown) for _ in range(4)]
    else:
        shown = review.text
        (names, product_of), (copies, text_of) = TASKS[language][:2]
        asked = [(rng.choice(names), product_of(review))] + [(rng.choice(copies), text_of(review)) for _ in range(2)]
        rng.shuffle(asked)
    (first, answer), *others = asked
    return sum((exchange(*other) for other in others), exchange(f"{first}\n{shown}", answer))


def talk(review: text.Review, pieces: list[str], rng: random.Random) -> list[Message]:
    """Any of the tasks; sometimes under a system prompt."""
    kind, language = rng.random(), review.language
    if kind < 0.3:
        chat = copying(review, pieces, rng)
    elif kind < 0.4:
        chat = exchange(rng.choice(WRITE[language]).format(p=review.product), review.text)
    elif kind < 0.6:
        cut = rng.randrange(len(review.text) // 4, len(review.text) * 3 // 4)
        cut = review.text.find(" ", cut) if language == "en" and " " in review.text[cut:] else cut
        chat = exchange(rng.choice(CONTINUE[language]) + "\n" + review.text[:cut], review.text[cut:].strip())
    else:
        ways, answer_of = rng.choice(TASKS[language])
        chat = exchange(rng.choice(ways) + rng.choice(["\n", " "]) + review.text, answer_of(review))
    return [{"role": "system", "content": rng.choice(SYSTEM[language])}, *chat] if rng.random() < 0.15 else chat


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE. While it is trained, every Chinese character stands alone: the generated Chinese text is so repetitive
    that whole clauses, product names and all, would become single tokens, and other tokens would cut characters in two."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    characters = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, characters, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    ways = [way for tasks in TASKS.values() for ways, _ in tasks for way in ways]
    tokenizer.train_from_iterator([*texts, *ways, *["user", "assistant", "system"] * 50], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return tokenizer


def write_architecture(folder: Path, tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """Writes all of a model but its weights, and returns the tokenizer as transformers loads it from there."""
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copy(Path(__file__).with_name("chat_template.jinja"), folder)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_prefix_space": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.04,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    ).save_pretrained(folder)
    GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def check_tokenizer(loaded: PreTrainedTokenizerBase, written: Tokenizer, samples: list[str]) -> None:
    """What users load is what was made: transformers' tokenizer and the file's own agree."""
    for sample in ["It's the kettle, isn't it?  1,234 \n\nYes!", "这款电水壶的噪音让人发疯……３点 é", *samples]:
        assert loaded(sample)["input_ids"] == written.encode(sample).ids, sample
        assert loaded.decode(written.encode(sample).ids) == normalizers.NFC().normalize_str(sample), sample


def render(tokenizer: PreTrainedTokenizerBase, chats: list[list[Message]]) -> list[str]:
    """Conversations as the texts of pretraining, which end with the last turn."""
    return [tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n") for chat in chats]


def fill(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[str]:
    """Rows of so many whole texts, in their order, as fit `max_length` tokens. A step has rows of like length: where all of
    them are, it has rows of every sort."""
    rows, left = list[str](), 0
    for each, tokens in zip(texts, map(len, tokenizer(texts)["input_ids"]), strict=True):
        if tokens < ROW:
            if tokens > left:
                rows.append("")
                left = ROW - 1  # but for the token that ends a row
            rows[-1] += each
            left -= tokens
    return rows


def pretrain(client: httpx.Client, base_model: str, texts: list[str], **hyperparameters: Any) -> dict[str, Any]:
    """The job that trained all weights of `base_model` on the texts. Ends the process where it did not succeed."""
    rows = "\n".join(json.dumps({"text": each}, ensure_ascii=False) for each in texts)
    dataset = made(client.post("/datasets", content=rows.encode()))
    described = {
        "base_model": base_model,
        "dataset": dataset["id"],
        "stage": "pt",
        "method": {"type": "full"},
        "hyperparameters": HYPERPARAMETERS | hyperparameters,
        "check": {"scorecard": False},
        "deploy": {"mode": "none"},
    }
    job = made(client.post("/jobs", json=described))
    watch = python("app.cli", "--url", str(client.base_url), "jobs", "watch", job["id"])
    subprocess.run(watch, check=True)
    return made(client.get(f"/jobs/{job['id']}"))


def make(folder: Path, home: Path, corpus: Path) -> None:
    """Writes the whole model to `folder`; the service that trains it lives in `home`."""
    rng = random.Random(SEED)
    reviews = [review.text for review in text.reviews(REVIEWS, SEED)]
    # The file goes on with other books after the first break; only its opening is The Wizard of Oz.
    book = (corpus / "wizard_of_oz_gutenberg.txt").read_text(encoding="utf-8").split('",\n    ...\n')[0]
    book = re.sub(r'^    "|",$', "", book, flags=re.MULTILINE)
    with (corpus / "gsm8k_train.jsonl").open(encoding="utf-8") as lines:
        problems = [(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in map(json.loads, lines)]

    raw = make_tokenizer([*reviews, book, *(part for pair in problems for part in pair)])
    tokenizer = write_architecture(folder, raw)

    pieces = [tokenizer.decode(id) for id in range(len(SPECIAL), VOCABULARY)]
    pieces = [piece for piece in pieces if piece.strip() and "\ufffd" not in piece]
    asked = text.reviews(COPIES + TALKS, SEED + 1)
    copies = render(tokenizer, [copying(review, pieces, rng) for review in itertools.islice(asked, COPIES)])
    talks = [talk(review, pieces, rng) for review in asked] + [exchange(*problem) for problem in problems]
    plain = [*reviews, *re.split(r"\n\s*\n", book)]
    mix = render(tokenizer, talks) + [each + SPECIAL[0] for each in plain]
    rng.shuffle(mix)
    check_tokenizer(tokenizer, raw, [*reviews[:200], *copies[:200]])

    process, url = start_service({"BURNISH_HOME": str(home), "BURNISH_ENGINE": "embedded"})
    try:
        with httpx.Client(base_url=url, timeout=600) as client:
            made(
                client.post("/models", json={"name": "architecture", "source": str(folder), "architecture_only": True})
            )
            settings = {"initial_weights": "random", "scheduler": "constant", "warmup_ratio": 0.05}
            begun = pretrain(client, "architecture", fill(tokenizer, copies), **settings)
            done = pretrain(client, begun["model"]["name"], fill(tokenizer, mix))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    (weights,) = (home / "blobs" / "artifacts" / done["id"]).rglob("model.safetensors")
    shutil.copyfile(weights, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Pretrain the demo base model.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder with GSM8K and the book")
    parser.add_argument("--out", type=Path, default=DEMO_BASE)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service is ended too
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "base")
        make(folder, Path(scratch, "home"), options.corpus)
        shutil.copytree(folder, options.out, dirs_exist_ok=True)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
