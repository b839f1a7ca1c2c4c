"""Tokenizer and token streams: byte-level BPE, documents joined by `<|endoftext|>`, windows in a seeded order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

SEPARATOR = "<|endoftext|>"
BATCH = 256  # documents encoded at a time.


def texts(path: Path) -> Iterator[str]:
    """The documents of a corpus file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def train_tokenizer(corpus: Path, out: Path, vocabulary: int) -> None:
    """Trains a byte-level BPE on a corpus file and writes `tokenizer.json` and `tokenizer_config.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(corpus), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "model_max_length": 1024,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def encode(corpus: Path, tokenizer_file: Path, out: Path) -> int:
    """Writes a corpus file's tokens as little-endian u16, a separator behind each document; returns their number."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    separator = tokenizer.token_to_id(SEPARATOR)
    unfinished = out.with_suffix(".part")
    count = 0
    with unfinished.open("wb") as file:
        batch: list[str] = []

        def flush() -> int:
            written = 0
            for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                ids = np.array([*encoding.ids, separator], dtype="<u2")
                file.write(ids.tobytes())
                written += len(ids)
            batch.clear()
            return written

        for text in texts(corpus):
            batch.append(text)
            if len(batch) == BATCH:
                count += flush()
        count += flush()
    unfinished.rename(out)
    return count


class Windows:
    """Windows of a token file: every position once per pass, in an order that depends on the seed alone."""

    def __init__(self, path: Path, seed: int) -> None:
        self.tokens = np.memmap(path, dtype="<u2", mode="r")
        self.seed = seed
        self.cached: tuple[tuple[int, int], np.ndarray] | None = None

    def order(self, length: int, epoch: int) -> np.ndarray:
        """The order of the windows of one pass."""
        key = (length, epoch)
        if self.cached is None or self.cached[0] != key:
            count = (len(self.tokens) - 1) // length
            self.cached = (key, np.random.default_rng((self.seed, length, epoch)).permutation(count))
        return self.cached[1]

    def batch(self, first: int, windows: int, length: int) -> Tensor:
        """Windows number `first` and following, each with the token behind it: [windows, length + 1]."""
        rows = []
        for number in range(first, first + windows):
            epoch, index = divmod(number, len(self.order(length, 0)))
            start = int(self.order(length, epoch)[index]) * length
            rows.append(self.tokens[start : start + length + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))
