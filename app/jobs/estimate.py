"""How much memory and how many steps a job takes, worked out before it runs: for the API and the trainer alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from app.jobs.hyperparameters import Hyperparameters, Reinforcement
from app.jobs.methods import Apollo, Freeze, Galore, Lora, Method, Mod, Qlora
from app.jobs.spec import JobSpec

# Padded tokens of a micro-batch: enough to keep the cores or the GPU busy, little enough for its activations to fit.
MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}

# On a CPU the weights of attention are kept for the backward pass of texts of up to so many tokens: `worker.trainer.attention`.
ATTENTION_KEPT_UP_TO = 512

# Bytes that a quantised weight takes with its scales: nf4 and fp4 have one in fp32 for each 64 weights, quantised once more
# with double quantisation; int8 one for each row.
_QUANTISED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
_TWICE_QUANTISED = 0.5 + 1 / 64


# What configurations call the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# Texts that a row is compared by.
_TEXTS = {"dpo": 2, "kto": 2, "rm": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that decide how much memory its training takes. `parameters` counts its weights; `hidden` is the width
    of a block's input, `intermediate` that of its widest layer, `queries` and `keys` those of all heads together."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool

    @property
    def embeddings(self) -> int:
        """Weights of the first and the last layer, which are neither adapted nor quantised."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of each kind, at the moment at which all of them together are most."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all; what the process takes without a model comes on top."""
        return self.weights + self.gradients + self.optimizer + self.activations


def shape_of(config: dict[str, Any], parameters: int | None) -> Shape | None:
    """The shape that a config.json describes. None where its layers or sizes are not under the names that transformers uses.

    Where there are no weights yet (`parameters` is None) their number is that of blocks with one gated layer each, and the
    shape is None where there are experts.
    """
    text = config.get("text_config") or config

    def size(*names: str, default: int = 0) -> int:
        return next((value for name in names if isinstance(value := text.get(name), int) and value > 0), default)

    layers, hidden = size("num_hidden_layers", "n_layer"), size("hidden_size", "n_embd", "d_model")
    vocabulary = size("vocab_size")
    if not (layers and hidden and vocabulary) or (parameters is None and size(*_EXPERTS)):
        return None
    heads = size("num_attention_heads", "n_head", default=1)
    width = size("head_dim", default=hidden // heads)
    shape = Shape(
        parameters=parameters or 0,
        layers=layers,
        hidden=hidden,
        intermediate=size("intermediate_size", "n_inner", default=4 * hidden),
        heads=heads,
        queries=heads * width,
        keys=size("num_key_value_heads", default=heads) * width,
        vocabulary=vocabulary,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
    )
    if parameters is not None:
        return shape
    blocks = layers * sum(math.prod(sizes) for sizes in _block(shape).values())
    return replace(shape, parameters=shape.embeddings + blocks)


def count_steps(items: int, settings: Hyperparameters) -> int:
    """Optimiser steps of a run: `epochs` passes, an incomplete last batch counted, or `max_steps` if that is fewer."""
    steps = math.ceil(float(settings.epochs) * math.ceil(items / settings.rows_per_step))
    return min(steps, settings.max_steps or steps)


def trainable(shape: Shape, method: Method) -> int:
    """How many weights a method trains."""
    match method:
        case Lora() | Qlora():
            return method.rank * shape.layers * sum(_widths(shape, method))
        case Freeze():
            return (shape.parameters - shape.embeddings) * method.layers // shape.layers
        case Mod():
            return shape.parameters + shape.layers // 2 * shape.hidden
        case _:
            return shape.parameters


def _block(shape: Shape) -> dict[str, tuple[int, int]]:
    """The linear layers of a block: inputs and outputs."""
    into, out = (shape.hidden, shape.intermediate), (shape.intermediate, shape.hidden)
    return {
        "q_proj": (shape.hidden, shape.queries),
        "k_proj": (shape.hidden, shape.keys),
        "v_proj": (shape.hidden, shape.keys),
        "o_proj": (shape.queries, shape.hidden),
        "gate_proj": into,
        "up_proj": into,
        "down_proj": out,
    }


def _widths(shape: Shape, method: Lora | Qlora) -> list[int]:
    """Of each layer of a block that gets an adapter: its inputs and outputs together."""
    block = {name: sum(sizes) for name, sizes in _block(shape).items()}
    if method.target_modules == "all-linear":
        return list(block.values())
    return [block.get(name, shape.hidden + shape.intermediate) for name in method.target_modules]


def _optimizer(shape: Shape, method: Method, trained: int) -> int:
    """AdamW's two moments in fp32, of all that is trained or of what a projection leaves of a block's gradients."""
    if not isinstance(method, Galore | Apollo):
        return 8 * trained
    sides = [(max(sizes), min(sizes)) for sizes in _block(shape).values()]
    kept = sum(8 * long * min(method.rank, short) for long, short in sides)
    if isinstance(method, Galore):
        kept += sum(4 * short * min(method.rank, short) for _, short in sides)
    return 8 * shape.embeddings + shape.layers * kept


def memory(
    spec: JobSpec,
    shape: Shape,
    *,
    trained: int,
    longest: int,
    loss_share: float,
    device: str,
    compute_bytes: int,
    processes: int = 1,
) -> Memory:
    """The peak of a job's steps, in each of its processes: `trained` weights change, its longest text has so many tokens, of all
    tokens so large a share is predicted, and matrix products are done on a `cpu` or `cuda` device in numbers of 2
    bytes, or else of 4."""
    method, settings, size = spec.method, spec.hyperparameters, compute_bytes
    texts = _TEXTS.get(spec.stage, 1)
    tokens = max(min(settings.batch_size * texts * longest, MICRO_BATCH_TOKENS[device]), texts * longest)
    if spec.stage == "kto":
        tokens //= 2  # a row's other text is only compared with
    # Their logarithms and the gradients of those in fp32; the gradients of the logits themselves, with their padding.
    logits = 0 if spec.stage == "rm" else int(tokens * loss_share) * shape.vocabulary * (8 + 4 * size)
    are_kept = device == "cpu" and longest <= ATTENTION_KEPT_UP_TO and not isinstance(method, Mod)
    attended = shape.heads * longest * size if are_kept else 0
    as_they_were = 4 * trained if isinstance(settings, Reinforcement) and settings.beta else 0
    # Weights in fp32 that are trained are copied to be multiplied with.
    copies = 2 * trained if size == 2 and not isinstance(method, Lora | Qlora) else 0
    whole = Memory(
        weights=_weights(shape, method, size) + (4 * trained if isinstance(method, Lora | Qlora) else 0) + as_they_were,
        gradients=4 * trained,
        optimizer=_optimizer(shape, method, trained),
        activations=_activations(shape, method, settings, tokens, size, attended) + logits + copies,
    )
    if settings.sharding == "none" or processes == 1:
        return whole
    # Of the weights two blocks are whole at a time: the one that is computed and the one that is fetched meanwhile.
    together = 2 * size * (shape.parameters - shape.embeddings) // shape.layers
    return Memory(
        weights=whole.weights // processes + max(together, size * shape.embeddings),
        gradients=whole.gradients // processes,
        optimizer=whole.optimizer // processes,
        activations=whole.activations - copies,
    )


def _weights(shape: Shape, method: Method, size: int) -> int:
    if isinstance(method, Lora):
        return size * shape.parameters
    if isinstance(method, Qlora):
        twice = method.double_quantization and method.quantization != "int8"
        each = _TWICE_QUANTISED if twice else _QUANTISED[method.quantization]
        return int((shape.parameters - shape.embeddings) * each) + 4 * shape.embeddings
    return 4 * shape.parameters


def _activations(shape: Shape, method: Method, settings: Hyperparameters, tokens: int, size: int, attended: int) -> int:
    """What a forward keeps for its backward of a block of norms, attention, of whose weights so many bytes a token are kept, and a
    gated layer."""
    is_adapter = isinstance(method, Lora | Qlora)
    # Where what norms make is in fp32, each layer of five that read it (and not two) keeps a copy of its own in bfloat16.
    reads = 2 if size == 4 or isinstance(method, Lora) else 5
    # A layer of 4 bits answers in fp32 whatever it computes in, and what is between the halves of a gated layer stays so.
    wide = 4 if isinstance(method, Qlora) and method.quantization != "int8" else size
    # What goes in, in fp32; and what comes out where the norm learns.
    norms = 8 * shape.hidden * (1 if is_adapter else 2)
    # Queries, keys and values of each head; what comes out, twice.
    attention = 5 * shape.queries
    # Both its halves, the first activated, and their product, which a layer reads.
    gated = (3 * wide + size) * shape.intermediate
    block = norms + size * (reads * shape.hidden + attention) + attended + gated
    if isinstance(method, Lora | Qlora) and method.dropout:
        # Each adapter's own input, and a mask.
        own = 4 if wide > size else size + 1
        block += own * (5 * shape.hidden + shape.queries + shape.intermediate)
    layers = method.layers if isinstance(method, Freeze) else shape.layers
    if settings.gradient_checkpointing:
        return tokens * (layers * size * shape.hidden + 2 * block)
    if isinstance(method, Mod):
        # Every second block has some of the tokens, taken out and put back in fp32; of all of them it keeps what its router reads,
        # and the norm before.
        routed = layers // 2
        some = 12 * shape.hidden + method.capacity * (block + 8 * shape.hidden)
        return int(tokens * ((layers - routed + 1) * block + routed * some))
    return tokens * (layers + 1) * block  # one more for the gradients on their way
