"""What is committed of the held-out split: prompts for benches and tests, and a modest text for the evaluation."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from pathlib import Path

PROMPT_CHARACTERS = (120, 700)
PIECE_CHARACTERS = 6000


def crate_of(source: str) -> str:
    """The crate's name, without its version."""
    return re.sub(r"-\d+\..*$", "", source.split("/")[0])


def by_crate(path: Path) -> dict[str, list[dict[str, str]]]:
    """The documents of a corpus file by crate, in the file's order."""
    crates: dict[str, list[dict[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for line in file:
            document = json.loads(line)
            crates[crate_of(document["source"])].append(document)
    return crates


def in_turn(crates: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """One document of each crate, then a second of each, and so on: small crates count as much as large ones."""
    deepest = max(map(len, crates.values()))
    return [crates[name][turn] for turn in range(deepest) for name in sorted(crates) if turn < len(crates[name])]


def prompt_of(text: str, random_: random.Random) -> str | None:
    """A stretch of whole lines from anywhere in a document, or none when it has no fitting one."""
    starts = [0, *(match.end() for match in re.finditer("\n\n", text))]
    start = random_.choice(starts)
    length = random_.randint(*PROMPT_CHARACTERS)
    end = text.rfind("\n", start, start + length)
    if end - start < PROMPT_CHARACTERS[0]:
        return None
    return text[start : end + 1]


def write_prompts(corpus: Path, out: Path, count: int, seed: int) -> int:
    """Writes up to `count` prompts, `{"prompt", "source"}` a line; returns their number."""
    random_ = random.Random(seed)
    prompts = []
    for document in in_turn(by_crate(corpus)):
        if len(prompts) == count:
            break
        if not document["source"].endswith(".rs"):
            continue
        prompt = prompt_of(document["text"], random_)
        if prompt is not None:
            prompts.append({"prompt": prompt, "source": document["source"]})
    write_lines(out, prompts)
    return len(prompts)


def write_text(corpus: Path, out: Path, most_bytes: int) -> int:
    """Writes documents, cut at a line's end after some thousand characters, up to `most_bytes`; returns the bytes."""
    pieces = []
    written = 0
    for document in in_turn(by_crate(corpus)):
        text = document["text"]
        if len(text) > PIECE_CHARACTERS:
            text = text[: text.rfind("\n", 0, PIECE_CHARACTERS) + 1]
        piece = {"source": document["source"], "text": text}
        size = len(json.dumps(piece, ensure_ascii=False).encode()) + 1
        if written + size > most_bytes:
            break
        written += size
        pieces.append(piece)
    write_lines(out, pieces)
    return written


def write_lines(out: Path, entries: list[dict[str, str]]) -> None:
    """Writes one JSON object a line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
