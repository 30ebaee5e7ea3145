"""The embedded engine's model: transformers weights, PEFT adapters chosen per call, one call at a time.

Everything here runs on one thread (the server's), which is the lock: no two calls ever see each other's adapter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    StoppingCriteria,
    StoppingCriteriaList,
)

from worker.trainer.data.render import Template, plan_prompt, render_answered
from worker.trainer.data.tokenizer import load_tokenizer
from worker.trainer.depths import has_routers, load_routers


@dataclass(frozen=True)
class Sampling:
    """How to generate: at most `max_tokens`, to one of `stop_ids`; greedy at temperature 0; None is the model's default."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()


class EmbeddedModel:
    """Weights, tokenizer and the adapters loaded on them."""

    def __init__(self, path: Path, template: str | None, max_length: int, own_code: bool = False) -> None:
        self.tokenizer = load_tokenizer(str(path), template, own_code)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        options = {"local_files_only": True, "trust_remote_code": own_code}
        config = AutoConfig.from_pretrained(path, **options)
        self.scores = (config.architectures or [""])[0].endswith("ForSequenceClassification")
        kind = AutoModelForSequenceClassification if self.scores else AutoModelForCausalLM
        base = kind.from_pretrained(path, dtype="auto", use_safetensors=True, **options)
        if has_routers(config):
            load_routers(base, path)
        self.model: Any = base.to(self.device).eval()
        self.vocabulary = int(base.get_input_embeddings().num_embeddings)
        own = getattr(base.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = min(max_length, own or max_length)
        ends = None if self.scores else base.generation_config.eos_token_id
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends]) - {None}
        self.adapters: set[str] = set()

    def load_adapter(self, name: str, path: Path) -> None:
        """Load the PEFT adapter in the folder `path`. Raises what PEFT raises where it does not fit."""
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(str(path), adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, str(path), adapter_name=name).eval()
        self.adapters.add(name)

    def unload_adapter(self, name: str) -> None:
        """Take an adapter that is loaded out again."""
        if self.adapters == {name}:
            self.model = self.model.unload()
        else:
            self.model.delete_adapter(name)
        self.adapters.discard(name)

    def render(
        self, messages: list[dict[str, Any]], arguments: dict[str, Any] | None = None, template: str | None = None
    ) -> list[int]:
        """The token ids of a conversation, up to where the assistant's answer begins; `arguments` are the chat template's,
        which is the model's own where none is given. Raises `ChatTemplateError`."""
        text = plan_prompt(Template(self.tokenizer, arguments, template), messages, tools=None).text
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def render_answered(self, messages: list[dict[str, Any]], arguments: dict[str, Any] | None = None) -> list[int]:
        """The token ids of a conversation that ends with the assistant's turn, as training renders it. Raises
        `ChatTemplateError`."""
        return render_answered(Template(self.tokenizer, arguments), messages, tools=None)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text as it is, with the special tokens that the tokenizer adds itself."""
        return list(self.tokenizer(text).input_ids)

    def score(self, ids: list[int]) -> float:
        """A reward model's score of a text."""
        with torch.inference_mode():
            return float(self.model(input_ids=torch.tensor([ids], device=self.device)).logits[0, 0])

    def log_probabilities(self, adapter: str | None, ids: list[int]) -> list[float]:
        """The natural log-probability of each token but the first, given those before it."""
        inputs = torch.tensor([ids], device=self.device)
        with torch.inference_mode(), self._with(adapter):
            logits = self.model(input_ids=inputs).logits[0, :-1].float()
        chosen = logits.log_softmax(-1).gather(1, inputs[0, 1:, None])
        return [float(value) for value in chosen[:, 0]]

    def generate(
        self,
        adapter: str | None,
        ids: list[int],
        sampling: Sampling,
        put: Callable[[int], None],
        cancelled: threading.Event,
    ) -> None:
        """Call `put` with each new token as it is made, the one that ends the answer too; end early when `cancelled`."""
        if cancelled.is_set():
            return
        torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
        inputs = torch.tensor([ids], device=self.device)
        with torch.inference_mode(), self._with(adapter):
            self.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=sampling.max_tokens,
                eos_token_id=sorted(sampling.stop_ids) or None,
                streamer=_Streamer(put),
                stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)]),
                **self._how(sampling),
            )

    def _how(self, sampling: Sampling) -> dict[str, Any]:
        """transformers' arguments; defaults are the model's generation config, without a hidden top-k."""
        own = self.model.generation_config
        temperature = sampling.temperature if sampling.temperature is not None else own.temperature or 1.0
        if temperature < 1e-5:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        top_p = sampling.top_p if sampling.top_p is not None else own.top_p or 1.0
        return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": own.top_k or 0}

    @contextmanager
    def _with(self, adapter: str | None) -> Iterator[None]:
        """The model as this adapter makes it, or as the base is."""
        if adapter is not None:
            self.model.set_adapter(adapter)
            yield
        elif isinstance(self.model, PeftModel):
            with self.model.disable_adapter():
                yield
        else:
            yield


class _Streamer:
    """What `generate` calls with the prompt first, then with each token."""

    def __init__(self, put: Callable[[int], None]) -> None:
        self._put, self._is_prompt = put, True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self._put(int(value.reshape(-1)[0]))
        self._is_prompt = False

    def end(self) -> None:
        pass


class _Cancelled(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation whose client is gone."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._cancelled.is_set(), dtype=torch.bool, device=input_ids.device)
