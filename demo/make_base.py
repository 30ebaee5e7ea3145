"""Make the demo base model, `demo/base/`, from random weights: a recipe, read from top to bottom.

    OMP_NUM_THREADS=1 python -m demo.make_base --corpus DIR [--out demo/base] [--steps N]

DIR holds `gsm8k_train.jsonl` (GSM8K, MIT) and `wizard_of_oz_gutenberg.txt` (public domain); the rest of the text comes
from `demo.text`. A run takes about twenty minutes on one CPU core and needs a C++ compiler (torch.compile).

The model is to be a base on which a fine-tune of the demo task visibly learns. So half of its training tokens are
chat-formatted, to let it know turns and when to stop, but on other tasks: it never sees a sentiment label, an aspect
label, a JSON answer, or a review of the held-out split.
"""

import argparse
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from demo import text

VOCABULARY, ROW, BATCH = 5120, 112, 24  # a row of tokens holds whole documents, a batch so many rows
STEPS, COPY_STEPS = 2600, 1100  # in all, and of them the first ones, on nothing but copying
PEAK_LR, WARMUP, SEED = 1e-3, 60, 7
PROMPT_WEIGHT = 0.2  # of a question's tokens in the loss: random words to repeat cannot be foreseen, only repeated
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
    """A question that only the text before it can answer: loose words or a review to repeat, a product to name."""
    kind = rng.random()
    if kind < 0.4:
        answer = "".join(rng.choices(pieces, k=rng.randint(3, 12))).strip()
        return exchange(rng.choice(REPEAT[review.language]) + "\n" + answer, answer)
    ways, answer_of = TASKS[review.language][0 if kind < 0.8 else 1]
    return exchange(rng.choice(ways) + "\n" + review.text, answer_of(review))


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


def weights(ids: list[int]) -> list[float]:
    """A loss weight a token: PROMPT_WEIGHT in a conversation, 1 in an assistant's turn and in plain text."""
    start, end, assistant = 1, 2, tokenizer.token_to_id("assistant")
    weight, out = PROMPT_WEIGHT if ids[0] == start else 1.0, []
    for previous, token in itertools.pairwise([0, *ids]):
        out.append(weight)
        if previous == start and token == assistant:
            weight = 1.0
        elif token == end:
            weight = PROMPT_WEIGHT
    return out


# Set up.
parser = argparse.ArgumentParser(description="Pretrain the demo base model.")
parser.add_argument("--corpus", type=Path, required=True, help="folder with GSM8K and the book")
parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
parser.add_argument("--steps", type=int, default=STEPS)
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
rng = random.Random(SEED)
torch.manual_seed(SEED)
started = time.monotonic()

# Text: reviews, the book and the school problems.
rows_later = (args.steps - COPY_STEPS) * BATCH
reviews = [review.text for review in text.reviews(3 * rows_later, SEED)]
# The file goes on with other books after the first break; only its opening is The Wizard of Oz.
book = (args.corpus / "wizard_of_oz_gutenberg.txt").read_text(encoding="utf-8").split('",\n    ...\n')[0]
book = re.sub(r'^    "|",$', "", book, flags=re.MULTILINE)
with (args.corpus / "gsm8k_train.jsonl").open(encoding="utf-8") as lines:
    problems = [(row["question"], re.sub(r"<<.*?>>", "", row["answer"])) for row in map(json.loads, lines)]

# Tokenizer. While it is trained, every Chinese character stands alone: the generated Chinese text is so repetitive
# that whole clauses, product names and all, would become single tokens, and other tokens would cut characters in two.
tokenizer = Tokenizer(models.BPE())
tokenizer.normalizer = normalizers.NFC()
split, to_bytes = (
    pre_tokenizers.Split(Regex(PATTERN), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
)
characters = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, characters, to_bytes])
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=SPECIAL,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tasks = [way for language in TASKS for ways, _ in TASKS[language] for way in ways] + [
    "user",
    "assistant",
    "system",
] * 50
tokenizer.train_from_iterator([*reviews, book, *(part for pair in problems for part in pair), *tasks], trainer)
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
tokenizer.save(str(args.out / "tokenizer.json"))
template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
(args.out / "chat_template.jinja").write_text(template, encoding="utf-8")
settings = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "add_prefix_space": False,
    "model_max_length": 2048,
}
(args.out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
Qwen2Config(
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
).save_pretrained(args.out)
loaded = AutoTokenizer.from_pretrained(args.out)

# Rows of whole documents, padded: first copying alone, then all sorts, about as many chat tokens as plain ones. In
# runs that began with the mix instead the model learned the reviews' clauses by heart, and copying never.
pieces = [
    piece for piece in map(loaded.decode, range(len(SPECIAL), VOCABULARY)) if piece.strip() and "\ufffd" not in piece
]
asked = list(text.reviews(COPY_STEPS * BATCH + rows_later // 2, SEED + 1))
chats = [copying(review, pieces, rng) for review in asked[: COPY_STEPS * BATCH]]
chats += [talk(review, pieces, rng) for review in asked[COPY_STEPS * BATCH :]]
chats += [exchange(*problem) for problem in problems]
spoken = [e.ids for e in tokenizer.encode_batch([loaded.apply_chat_template(chat, tokenize=False) for chat in chats])]
plain = [[*e.ids, 0] for e in tokenizer.encode_batch(reviews)]
stories = tokenizer.encode(book).ids
rows = [stories[i : i + ROW] for i in range(0, len(stories), ROW)]
rows += [list(itertools.chain(*plain[i : i + 4])) for i in range(0, len(plain), 4)]
rows += [row for row in spoken[COPY_STEPS * BATCH :] if len(row) <= ROW]
rng.shuffle(rows)
rows = spoken[: COPY_STEPS * BATCH] + rows
steps = min(args.steps, len(rows) // BATCH)

# Train: next-token cross-entropy, weighted.
model = Qwen2ForCausalLM(Qwen2Config.from_pretrained(args.out, attn_implementation="eager"))
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps of {BATCH} rows", flush=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.05, fused=True)


@torch.compile(dynamic=False)
def loss_of(batch: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """batch, weight: [BATCH, ROW]; padding weighs nothing."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY).float(), batch[:, 1:].reshape(-1), reduction="none"
    )
    return (losses * weight[:, 1:].reshape(-1)).sum() / weight[:, 1:].sum()


recent: list[float] = []
for step in range(steps):
    batch, weight = torch.zeros(BATCH, ROW, dtype=torch.long), torch.zeros(BATCH, ROW)
    for i, row in enumerate(rows[step * BATCH : (step + 1) * BATCH]):
        n = min(len(row), ROW)
        batch[i, :n], weight[i, :n] = torch.tensor(row[:n]), torch.tensor(weights(row)[:n])
    for group in optimizer.param_groups:
        group["lr"] = PEAK_LR * min(1, (step + 1) / WARMUP) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
    loss = loss_of(batch, weight)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    recent.append(loss.item())
    if (step + 1) % 50 == 0 or step + 1 == steps:
        print(f"step {step + 1} loss {sum(recent) / len(recent):.3f} {time.monotonic() - started:.0f} s", flush=True)
        recent.clear()

# Save, and check that what users load is what was trained: transformers' tokenizer and the file's own must agree.
model.to(torch.bfloat16).save_pretrained(args.out)
GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False).save_pretrained(args.out)
loaded, raw = AutoTokenizer.from_pretrained(args.out), Tokenizer.from_file(str(args.out / "tokenizer.json"))
for sample in [
    "It's the kettle, isn't it?  1,234 \n\nYes!",
    "这款电水壶的噪音让人发疯……３点 é",
    *reviews[:200],
    *map(str, chats[:200]),
]:
    assert loaded(sample)["input_ids"] == raw.encode(sample).ids, sample
    assert loaded.decode(raw.encode(sample).ids) == normalizers.NFC().normalize_str(sample), sample
size = sum(file.stat().st_size for file in args.out.iterdir() if file.is_file())
print(f"{args.out}: {size / 1e6:.1f} MB in {(time.monotonic() - started) / 60:.1f} min")
