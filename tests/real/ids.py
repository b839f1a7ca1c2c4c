#!/usr/bin/env python3
"""Writes ids.json: what Hugging Face transformers makes of lines.json with the tokenizers of real models.

    python3 -m venv venv && venv/bin/pip install transformers==5.24.0 gguf==0.19.0
    tests/real/fetch.py && venv/bin/python tests/real/ids.py [MODEL...]

Vocabulary, scores and merges come from the GGUF files of `fetch.py`; how a text is cut and merged comes from transformers: its
classes for Qwen 2 and Gemma, and for SmolLM 2 its class for GPT-2 behind the split of digits that the publishers' tokenizer.json
has. Of the ids of a line only a hash is kept, FNV-1a of 32 bits over the ids as little-endian words.

Every line is encoded twice: once with control tokens that it spells out as tokens, once with them as text.
"""

import json
import pathlib
import struct
import sys

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AddedToken, GemmaTokenizer, GPT2Tokenizer, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import generate_merges

HERE = pathlib.Path(__file__).parent
FOLDER = HERE.parent.parent / "target/real"

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def strings(field):
    return [bytes(field.parts[at]).decode() for at in field.data]


def read(path):
    fields = GGUFReader(path).fields
    tokens = strings(fields["tokenizer.ggml.tokens"])
    kinds = fields["tokenizer.ggml.token_type"].contents()
    return fields, tokens, kinds


def with_added(tokenizer, tokens, kinds):
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def byte_level(make, path):
    fields, tokens, kinds = read(path)
    # Ids that pad the logits have no token.
    vocab = {token: at for at, token in enumerate(tokens) if not token.startswith("[PAD")}
    merges = [tuple(merge.split(" ")) for merge in strings(fields["tokenizer.ggml.merges"])]
    return with_added(make(vocab=vocab, merges=merges), tokens, kinds)


def smollm2(path):
    tokenizer = byte_level(GPT2Tokenizer, path)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def gemma3(path):
    fields, tokens, kinds = read(path)
    # Converters to GGUF write the runs of spaces that SentencePiece was told of as spaces.
    tokens = [token.replace(" ", "▁") if kind == USER_DEFINED and not token.strip(" ") else token for token, kind in zip(tokens, kinds)]
    vocab = {token: at for at, token in enumerate(tokens)}
    # Converters to GGUF also give tokens that users define a score of their own; SentencePiece's is 0, which comes first.
    scores = fields["tokenizer.ggml.scores"].contents()
    scores = {token: 0.0 if kind == USER_DEFINED else score for token, score, kind in zip(tokens, scores, kinds)}
    merges = generate_merges(vocab, scores)
    return with_added(GemmaTokenizer(vocab=vocab, merges=merges), tokens, kinds)


MODELS = {"smollm2": smollm2, "gemma3": gemma3, "qwen2.5-coder-0.5b": lambda path: byte_level(Qwen2Tokenizer, path)}


def fnv(ids):
    found = 0x811C9DC5
    for byte in struct.pack(f"<{len(ids)}I", *ids):
        found = (found ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f"{found:08x}"


def main():
    lines = json.loads((HERE / "lines.json").read_text())
    found = json.loads((HERE / "ids.json").read_text()) if (HERE / "ids.json").exists() else {}
    for name in sys.argv[1:] or MODELS:
        load = MODELS[name]
        library = load(FOLDER / f"{name}.gguf").backend_tokenizer
        entry = {}
        for how, as_text in [("tokens", False), ("text", True)]:
            library.encode_special_tokens = as_text
            ids = [library.encode(line, add_special_tokens=False).ids for line in lines]
            entry[how] = " ".join(fnv(one) for one in ids)
            print(name, how, sum(map(len, ids)), "ids")
        found[name] = entry
    (HERE / "ids.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
