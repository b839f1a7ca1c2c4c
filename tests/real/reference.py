#!/usr/bin/env python3
"""Writes what Hugging Face transformers decodes greedily with the weights of a GGUF file, in f32.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0 gguf==0.19.0
    venv/bin/python reference.py FILE.gguf smollm2.json

For each of `prompts.jsonl`: the ids of the prompt, the tokens that follow, and by how much the best logit of each was ahead of
the second, in hundredths. transformers' converter forgets that SmolLM splits digits, which is mended here. Tests read the result and
never run this script.
"""

import hashlib
import json
import pathlib
import sys

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
TOKENS = 32


def tokenizer(path):
    made = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    field = GGUFReader(path).fields.get("tokenizer.ggml.pre")
    if field and field.contents() in ("smollm", "default-smollm"):
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    return made


@torch.inference_mode()
def greedy(model, ids, ends):
    tokens, ahead, past = [], [], None
    step = torch.tensor([ids])
    for _ in range(TOKENS):
        out = model(input_ids=step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        best = out.logits[0, -1].topk(2)
        tokens.append(best.indices[0].item())
        ahead.append(round(100 * (best.values[0] - best.values[1]).item()))
        if tokens[-1] in ends:
            break
        step = best.indices[:1].reshape(1, 1)
    return tokens, ahead


def main(path, out):
    words = tokenizer(path)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or [])
    ends |= {words.eos_token_id}
    completions = []
    for line in (HERE / "prompts.jsonl").read_text().splitlines():
        ids = words(json.loads(line)["prompt"])["input_ids"]
        tokens, ahead = greedy(model, ids, ends)
        completions.append({"prompt": ids, "tokens": tokens, "ahead": ahead})
        print(len(completions), repr(words.decode(tokens))[:100], flush=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in completions)
    pathlib.Path(out).write_text(f'{{"sha256": "{digest}", "completions": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
