#!/usr/bin/env python3
"""Writes tiny checkpoints of every model family with Hugging Face transformers, and what transformers computes with them.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 transformers==5.24.0 gguf==0.19.0 && venv/bin/python make.py

Weights are random, and exact in bf16. Logits and greedy tokens are transformers' own, on the CPU, in f32, with eager attention.
The GGUF files hold the same weights under the names and in the order of llama.cpp's converter. Tests of this repository read
the results and never run this script.
"""

import copy
import json
import math
import os
import shutil

import gguf
import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import generate_merges

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT, STEPS, ROWS = 28, 16, [0, 8, 9, 27]
# Two best logits that are closer than this would make a test of rounding.
MARGIN = 1e-3

SHAPE = dict(
    vocab_size=128, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)

# What each family is shown with: every feature it has, in sizes that a few tokens reach.
FAMILIES = {
    "llama": dict(model_type="llama", rope_theta=5000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "mistral": dict(model_type="mistral", sliding_window=8),
    "mistral-full": dict(model_type="mistral", sliding_window=None, num_hidden_layers=1),
    "qwen2": dict(model_type="qwen2", head_dim=None, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": dict(model_type="qwen3", rope_theta=1e6, head_dim=16),
    "smollm3": dict(model_type="smollm3", num_hidden_layers=4, tie_word_embeddings=True),
    "phi3": dict(model_type="phi3", head_dim=None, sliding_window=9, partial_rotary_factor=0.5),
    "gemma2": dict(model_type="gemma2", sliding_window=8, query_pre_attn_scalar=12, attn_logit_softcapping=4.0,
                   final_logit_softcapping=6.0, head_dim=16, tie_word_embeddings=True),
    "gemma3": dict(model_type="gemma3_text", sliding_window=8, query_pre_attn_scalar=12, head_dim=16, num_hidden_layers=4,
                   layer_types=["sliding_attention", "full_attention"] * 2,
                   rope_theta=50000.0, rope_local_base_freq=500.0, rope_scaling=dict(rope_type="linear", factor=4.0),
                   tie_word_embeddings=True),
}

# Those that GGUF files are written of as well, with what llama.cpp calls them. "llama" there covers Mistral.
GGUF = ["llama", "mistral", "qwen3", "smollm3", "phi3", "gemma2", "gemma3"]


def build(name, settings):
    """A model with random weights."""
    settings = {**SHAPE, **settings}
    settings = {key: value for key, value in settings.items() if value is not None or key == "sliding_window"}
    config = AutoConfig.for_model(**settings)
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # Gemma's norms multiply by one more than their weights.
    around = 0.0 if name.startswith("gemma") else 1.0
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim == 1:
                centre = around if key.endswith("norm.weight") else 0.0
                weight.copy_(centre + 0.3 * torch.randn_like(weight))
            else:
                weight.copy_(0.25 * torch.randn_like(weight))
            # Exact in bf16.
            weight.copy_(weight.to(torch.bfloat16).float())
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0]


def expectation(name, model):
    """Of a few prompts the one whose greedy tokens are least in doubt, among those with the most different ones."""
    generator = torch.Generator().manual_seed(len(name))
    found = []
    for _ in range(12):
        ids = torch.randint(3, model.config.vocab_size, (PROMPT,), generator=generator).tolist()
        text, margin = list(ids), float("inf")
        for _ in range(STEPS):
            last = logits(model, text)[-1]
            best = last.topk(2).values
            margin = min(margin, float(best[0] - best[1]))
            text.append(int(last.argmax()))
        if margin > MARGIN:
            found.append((len(set(text[PROMPT:])), margin, ids, text))
    _, _, ids, text = max(found)
    rows = logits(model, ids)
    return {
        "ids": ids,
        "rows": ROWS,
        "logits": [[float(f"{x:.6f}") for x in rows[row].tolist()] for row in ROWS],
        "greedy": text[PROMPT:],
    }


def save(name, model):
    """A folder as transformers writes it, with bf16 weights."""
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    # A copy, because rotary frequencies would be rounded too.
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    for file in os.listdir(folder):
        if file not in ("config.json", "model.safetensors"):
            os.remove(os.path.join(folder, file))


def neighbours(weight, heads):
    """The order of outputs in which llama.cpp has queries and keys of Llama and SmolLM 3."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def llama3_factors(rope, head_dim):
    """What frequencies are divided by, as llama.cpp's converter writes it."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        if length < high:
            factors.append(1.0)
        elif length > low:
            factors.append(rope["factor"])
        else:
            smooth = (rope["original_max_position_embeddings"] / length - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def as_gguf_says(name, model):
    """Changes what GGUF files have no key for: they scale Gemma's scores by the width of a head."""
    if name.startswith("gemma"):
        for layer in model.model.layers:
            layer.self_attn.scaling = layer.self_attn.head_dim ** -0.5
    return model


def save_gguf(name, model):
    """The same model as a GGUF file: matrices in bf16, vectors in f32."""
    config = model.config
    arch = {"mistral": "llama"}.get(name, name)
    out = gguf.GGUFWriter(os.path.join(HERE, name + ".gguf"), arch)
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes = getattr(config, "rope_parameters", None) or {}
    rope = ropes.get("full_attention", ropes)
    out.add_rope_freq_base(rope["rope_theta"])
    if name != "phi3":
        out.add_key_length(head_dim)
        out.add_value_length(head_dim)
    else:
        out.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    if getattr(config, "sliding_window", None):
        out.add_sliding_window(config.sliding_window)
    if name == "gemma3":
        out.add_uint32("gemma3.attention.sliding_window_pattern", 2)
        out.add_float32("gemma3.rope.freq_base_swa", ropes["sliding_attention"]["rope_theta"])
    if name == "gemma2":
        out.add_attn_logit_softcapping(config.attn_logit_softcapping)
        out.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope.get("rope_type") == "linear":
        out.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        out.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "llama3":
        out.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    if name == "gemma3":
        LINES_OF[name] = gemma_lines(*add_gemma_tokenizer(out, config.vocab_size))
    tied = config.tie_word_embeddings
    for key, weight in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        array = weight.float().numpy()
        if arch in ("llama", "smollm3") and key.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            array = neighbours(array, heads)
        if arch.startswith("gemma") and key.endswith("norm.weight"):
            array = array + 1
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert found, key
        if array.ndim == 1:
            out.add_tensor(found, array)
        else:
            out.add_tensor(found, gguf.quantize(array, gguf.GGMLQuantizationType.BF16),
                           raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# Pieces of a SentencePiece vocabulary as Gemma has it: control tokens, those that users define, and 114 others.
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
DEFINED = ["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<b>"]
PIECES = ["▁t", "he", "▁the", "in", "▁a", "er", "lo", "low", "ing", "▁w", "or", "ld", "orld", "▁world", "b>", "▁▁a"] + list(
    "▁etaoinshrdlcumwfgypbvkjxqzETAOINSHRDLCUMWFGYPBVKJXQZ0123456789.,'!?:;<>()[]{}+-*/=_#@&%$éüßñ")
# What became of those lines.
LINES_OF = {}
LINES = ["Hello world, lower the ring", "a  b   c    the     world", "\n  x\n\n\n   y", "<b>the</b> <start_of_turn>a", "", " ", "naïve", "▁▁a"]


def add_gemma_tokenizer(out, count):
    """As llama.cpp's converter writes it: spaces in place of the marks of tokens that users define, all of one score."""
    tokens = (CONTROL + DEFINED + PIECES)[:count]
    tokens += [f"<unused{n}>" for n in range(count - len(tokens))]
    kinds = [3] * len(CONTROL) + [4] * len(DEFINED) + [1] * (count - len(CONTROL) - len(DEFINED))
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([token.replace("▁", " ") if kind == 4 else token for token, kind in zip(tokens, kinds)])
    out.add_token_scores([-1000.0 if kind != 1 else -float(n) for n, kind in enumerate(kinds)])
    out.add_token_types(kinds)
    out.add_bos_token_id(2)
    out.add_eos_token_id(1)
    out.add_unk_token_id(3)
    out.add_add_bos_token(True)
    out.add_add_space_prefix(False)
    return tokens, kinds


def gemma_lines(tokens, kinds):
    """The ids of lines, as transformers converts such a vocabulary. In the original, what users define has the score 0."""
    vocab = {token: n for n, token in enumerate(tokens)}
    scores = {token: 0.0 if kind != 1 else -float(n) for n, (token, kind) in enumerate(zip(tokens, kinds))}
    found = Tokenizer(models.BPE(
        vocab=vocab, merges=generate_merges(vocab, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Replace(" ", "▁")
    found.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    for token, kind in zip(tokens, kinds):
        if kind != 1:
            found.add_tokens([AddedToken(token, normalized=False, special=kind == 3)])
    return [[2] + found.encode(line).ids for line in LINES]


def main():
    expected = {}
    for name, settings in FAMILIES.items():
        model = build(name, settings)
        save(name, model)
        expected[name] = expectation(name, model)
        if name in GGUF:
            save_gguf(name, model)
            expected[name + ".gguf"] = expectation(name, as_gguf_says(name, model))
    with open(os.path.join(HERE, "expected.json"), "w", encoding="utf-8") as file:
        expected["lines"], expected["tokens"] = LINES, LINES_OF["gemma3"]
        json.dump({"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}", **expected}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
