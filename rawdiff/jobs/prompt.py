"""What `rawdiff prompt` shows: how a prompt is read, token by token; no weights are opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rawdiff import weights
from rawdiff.extras import say_unknown
from rawdiff.limits import check_text
from rawdiff.prompts import chunks_of, cut, text_length
from rawdiff.say import Say, say_on_stderr
from rawdiff.syntax import PLAIN, Chunk, Tag, check_syntax, find_markup, find_misread, schedule, take_tags
from rawdiff.vocabulary import Vocabulary

__all__ = ["explain", "lines"]


def explain(
    prompt: str,
    *,
    syntax: str | None = None,
    steps: int,
    model: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    say: Say = say_on_stderr,
) -> dict[str, Any]:
    """A prompt as the model's tokenizer and text encoder take it, as plain values.

    `texts` are what it is from a step on, each with its `chunks` of `tokens`, `ids` and `weights` and with what is
    `cut`; `loras` what its tags ask for; `notes` are lines on what was hardly meant so, or what a run will refuse.
    Raises UsageError, WeightsError, HubError.
    """
    check_text("prompt", prompt)
    syntax = check_syntax(syntax)
    source = weights.open_source(model, revision=revision, offline=offline, say=say)
    vocabulary = Vocabulary(weights.load_tokenizer(source))
    positions = weights.read_config(source, "text_encoder").get("max_position_embeddings", 77)
    length = text_length(vocabulary, positions)
    if syntax == PLAIN:
        numbers, left_out = cut(vocabulary, prompt, length)
        own = tuple(numbers[1:-1])
        texts = [_text(vocabulary, 0, prompt, (Chunk(own, (1.0,) * len(own)),), left_out)]
        markup = find_markup(prompt)
        note = f"{markup} is read as plain text; --prompt-syntax a1111 reads it otherwise"
        found = {"prompt": prompt, "syntax": syntax, "length": length, "loras": [], "texts": texts}
        return {**found, "notes": [] if markup is None else [note]}
    text, tags = take_tags(prompt)
    read = schedule(text, steps)
    return {
        "prompt": prompt,
        "syntax": syntax,
        "length": length,
        "steps": steps,
        "loras": [{"name": tag.name, "scale": tag.scale} for tag in tags],
        "texts": [
            _text(vocabulary, start, said, chunks_of(vocabulary, said, length), "") for start, said in read
        ],
        "notes": [
            *_unknown(source, tags),
            *dict.fromkeys(line for _, text in read for line in find_misread(text)),
        ],
    }


def _unknown(source: weights.Source, tags: Sequence[Tag]) -> Iterator[str]:
    """A line on each tag that names no LoRA which the model brings."""
    own = weights.read_defaults(source).loras if tags else {}
    for name in dict.fromkeys(tag.name for tag in tags if tag.name not in own):
        yield f"{say_unknown('lora', name, own)}, and a run refuses it; a file is given by --lora PATH@scale"


def _text(
    vocabulary: Vocabulary, start: int, text: str, chunks: tuple[Chunk, ...], left_out: str
) -> dict[str, Any]:
    tokens = vocabulary.tokenizer.convert_ids_to_tokens
    told = [
        {"tokens": tokens(list(c.numbers)), "ids": list(c.numbers), "weights": list(c.weights)}
        for c in chunks
    ]
    return {"from_step": start, "text": text, "chunks": told, "cut": left_out}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The same for a person, a line at a time."""
    for lora in found["loras"]:
        yield f"lora {lora['name']}, scale {lora['scale']:g}"
    texts, size = found["texts"], found["length"] - 2
    ends = [text["from_step"] for text in texts[1:]] + [found.get("steps", 0)]
    for text, end in zip(texts, ends, strict=True):
        if len(texts) > 1:
            yield f"steps {text['from_step']} to {end - 1} of {found['steps']}: {text['text']}"
        for k, chunk in enumerate(text["chunks"], start=1):
            yield f"chunk {k}: {len(chunk['ids'])} of {size} tokens"
            yield from _table(chunk)
        if text["cut"]:
            yield f"cut: {text['cut']}"
    yield from found["notes"]


def _table(chunk: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (str(number), f"{weight:.4g}", token)
        for number, weight, token in zip(chunk["ids"], chunk["weights"], chunk["tokens"], strict=True)
    ]
    if rows:
        yield "      id  weight  token"
    for number, weight, token in rows:
        yield f"  {number:>6}  {weight:>6}  {token}"
