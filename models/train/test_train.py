"""Tests of the training code: `python -m unittest discover -s models/train`."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import corpus
import heldout
import llama
import objectives
from loop import Plan, Stage
from tokens import Windows

TINY = llama.Config(32, 64, 2, 2, 1, vocab_size=50, max_position_embeddings=300)


class Corpus(unittest.TestCase):
    """What may be read."""

    def test_licences(self) -> None:
        """An expression is permissive when some choice of its alternatives is."""
        for text in (
            "MIT",
            "MIT/Apache-2.0",
            "(MIT OR GPL-3.0-only) AND Zlib",
            "Apache-2.0 WITH LLVM-exception OR MIT",
        ):
            self.assertTrue(corpus.is_permissive(text), text)
        for text in ("GPL-3.0-only", "MIT AND MPL-2.0", "", "(MIT", "LGPL-2.1 OR MPL-2.0"):
            self.assertFalse(corpus.is_permissive(text), text)

    def test_held_out_crates(self) -> None:
        """A named crate is away, and about three in a hundred of the others."""
        self.assertTrue(corpus.held_out("tokio", frozenset({"tokio"})))
        share = sum(corpus.held_out(f"crate-{number}", frozenset()) for number in range(5000)) / 5000
        self.assertAlmostEqual(share, corpus.HELD_OUT_SHARE, delta=0.01)

    def test_names_and_heads(self) -> None:
        """Versions and licence headers go."""
        self.assertEqual(heldout.crate_of("tokio-util-0.7.20/src/lib.rs"), "tokio-util")
        self.assertEqual(corpus.without_legal_head("// Copyright me\n// MIT\n\nfn a() {}\n"), "fn a() {}\n")
        self.assertEqual(corpus.without_legal_head("// A note.\nfn a() {}\n"), "// A note.\nfn a() {}\n")


class Models(unittest.TestCase):
    """The model, its losses and its checkpoints."""

    def setUp(self) -> None:
        """Every test draws the same numbers."""
        torch.manual_seed(0)

    def test_blocks_of_attention(self) -> None:
        """Block by block is the fused kernel, at lengths that fill blocks and that do not."""
        for positions in (5, 128, 300, 700):
            query, key, value = torch.randn(3, 1, 2, positions, 16)
            expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            torch.testing.assert_close(llama.attend(query, key, value), expected, atol=1e-5, rtol=1e-4)

    def test_gradients(self) -> None:
        """Gradients by hand are autograd's."""
        logits = torch.randn(130, 50, requires_grad=True)
        teacher, text = torch.randn(130, 50).softmax(-1), torch.randint(0, 50, (130,))
        weights = objectives.Weights(kl=1.0, tv=0.5, ce=0.1)
        ours = logits.log_softmax(-1)
        loss = -weights.kl * (teacher * ours).sum(-1).mean() + weights.ce * F.nll_loss(ours, text)
        loss = loss + weights.tv * 0.5 * (teacher - ours.exp()).abs().sum(-1).mean()
        loss.backward()
        value, gradient = objectives.student_loss(logits, teacher, text, weights)
        self.assertAlmostEqual(value, loss.item(), places=4)
        torch.testing.assert_close(gradient, logits.grad, atol=1e-6, rtol=1e-3)
        logits.grad = None
        F.cross_entropy(logits, text).backward()
        torch.testing.assert_close(objectives.text_loss(logits, text)[1], logits.grad, atol=1e-6, rtol=1e-3)

    def test_checkpoints(self) -> None:
        """What is saved in shards is loaded again, up to bf16; layers that a checkpoint lacks change nothing at first."""
        model = llama.Llama(llama.Config(640, 1792, 3, 5, 5))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "tokenizer.json").write_text("{}")
            llama.save(model, folder / "model", folder / "tokenizer.json")
            files = list((folder / "model").glob("*.safetensors"))
            self.assertGreater(len(files), 1)
            self.assertTrue(all(file.stat().st_size < 16_000_000 for file in files))
            again = llama.load(folder / "model", model.config)
            deeper = llama.load(folder / "model", llama.Config(640, 1792, 5, 5, 5))
        ids = torch.randint(0, 4096, (1, 7))
        torch.testing.assert_close(deeper(ids), again(ids))
        for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
            torch.testing.assert_close(mine.bfloat16().float(), theirs)


class Training(unittest.TestCase):
    """The loop."""

    def stage(self, folder: Path, steps: int) -> Stage:
        """A small stage of `steps` steps over random tokens."""
        torch.manual_seed(0)
        path = folder / "tokens.bin"
        np.random.default_rng(0).integers(0, 50, 5000).astype("<u2").tofile(path)
        models = {name: llama.Llama(TINY) for name in ("target", "draft")}
        rates = dict.fromkeys(models, 1e-3)
        plan = Plan("target", ("target", "draft"), 400 * 128, 1e9, rates, dict.fromkeys(models, 0.0))
        plan = Plan(**{**plan.__dict__, "step_tokens": 128, "micro_tokens": 64, "windows": (32, 64)})
        stage = Stage(plan, models, Windows(path, 1), "cpu", folder)
        stage.resume()
        for _ in range(steps):
            stage.step()
        return stage

    def test_resume(self) -> None:
        """A run that was interrupted ends with the weights of one that was not."""
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            whole = self.stage(Path(one), 8)
            self.stage(Path(two), 5).save()
            resumed = self.stage(Path(two), 3)
        self.assertEqual(whole.tokens, resumed.tokens)
        for name, model in whole.models.items():
            for mine, theirs in zip(model.parameters(), resumed.models[name].parameters(), strict=True):
                torch.testing.assert_close(mine, theirs, atol=0, rtol=0)


if __name__ == "__main__":
    unittest.main()
