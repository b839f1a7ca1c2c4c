"""The training loop: the target learns the text, the smaller models learn the target's distribution and the text."""

from __future__ import annotations

import json
import signal
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llama import Llama
from objectives import Weights, probabilities, student_loss, text_loss
from optimiser import Optimiser
from tokens import Windows

# What a step beyond this took was spent suspended, and must not use up a budget in minutes.
MOST_STEP_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What one stage does. It ends at `tokens` tokens or after `minutes` minutes of training, whichever is first."""

    name: str
    learners: tuple[str, ...]
    tokens: int
    minutes: float
    # Peak learning rate per learner; it rises over `warmup` (a share of the stage), and falls linearly to `floor`.
    rates: dict[str, float]
    floors: dict[str, float]
    warmup: float = 0.04
    step_tokens: int = 8192
    micro_tokens: int = 4096
    # Lengths of the training windows, taken in turn step by step: short contexts and late positions are both learnt.
    windows: tuple[int, ...] = (256, 1024)
    weights: Weights = Weights()
    save_minutes: float = 4.0
    probe_minutes: float = 5.0


class Stage:
    """One resumable stage over a set of models; every model not among the learners is frozen."""

    def __init__(self, plan: Plan, models: dict[str, Llama], train: Windows, device: str, out: Path) -> None:
        self.plan, self.models, self.train_windows, self.device, self.out = plan, models, train, device, out
        self.optimisers = {name: Optimiser(models[name]) for name in plan.learners}
        self.tokens, self.seconds = 0, 0.0
        self.steps = 0
        self.drawn = dict.fromkeys(plan.windows, 0)
        self.interrupted = False
        self.state_file = out / f"{plan.name}.state.pt"
        for name, model in models.items():
            model.to(device).requires_grad_(name in plan.learners)

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """Asks the loop to save and leave after the step in progress."""
        self.interrupted = True

    def progress(self) -> float:
        """Share of the stage that is done, from 0 to 1."""
        return min(1.0, max(self.tokens / self.plan.tokens, self.seconds / (60 * self.plan.minutes)))

    def rate(self, name: str) -> float:
        """The learning rate now."""
        peak, floor, done = self.plan.rates[name], self.plan.floors[name], self.progress()
        if done < self.plan.warmup:
            return peak * max(done, 1e-3) / self.plan.warmup
        return floor + (peak - floor) * (1 - done) / (1 - self.plan.warmup)

    def autocast(self) -> AbstractContextManager[None]:
        """Matrix products in bf16."""
        return torch.autocast(self.device.split(":")[0], dtype=torch.bfloat16)

    def resume(self) -> bool:
        """Takes up a state file when there is one."""
        if not self.state_file.is_file():
            return False
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        for name in self.plan.learners:
            self.models[name].load_state_dict(state["models"][name])
            self.optimisers[name].restore(state["optimisers"][name])
        self.tokens, self.seconds, self.steps = state["tokens"], state["seconds"], state["steps"]
        self.drawn = state["drawn"]
        return True

    def save(self) -> None:
        """Writes the state file; an interrupted write leaves the last one whole."""
        state: dict[str, Any] = {
            "plan": asdict(self.plan),
            "models": {name: self.models[name].state_dict() for name in self.plan.learners},
            "optimisers": {name: self.optimisers[name].state() for name in self.plan.learners},
            "tokens": self.tokens,
            "seconds": self.seconds,
            "steps": self.steps,
            "drawn": self.drawn,
        }
        unfinished = self.state_file.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.rename(self.state_file)

    def micro_step(self, ids: Tensor, share: float) -> dict[str, float]:
        """Adds one micro-batch's gradients, `share` of the step's; returns the losses."""
        inputs, text = ids[:, :-1], ids[:, 1:].reshape(-1)
        losses: dict[str, float] = {}
        learns = "target" in self.plan.learners
        with torch.set_grad_enabled(learns), self.autocast():
            logits = self.models["target"](inputs).flatten(0, 1)
        if learns:
            losses["target"], gradient, teacher = text_loss(logits, text)
            logits.backward(gradient.mul_(share))
        else:
            teacher = probabilities(logits)
        for name in self.plan.learners:
            if name != "target":
                with self.autocast():
                    logits = self.models[name](inputs).flatten(0, 1)
                losses[name], gradient = student_loss(logits, teacher, text, self.plan.weights)
                logits.backward(gradient.mul_(share))
        return losses

    def step(self) -> dict[str, float]:
        """One optimiser step of every learner."""
        plan = self.plan
        window = plan.windows[self.steps % len(plan.windows)]
        micro = max(1, plan.micro_tokens // window)
        count = max(1, plan.step_tokens // (micro * window))
        losses: dict[str, float] = {}
        for _ in range(count):
            ids = self.train_windows.batch(self.drawn[window], micro, window).to(self.device)
            self.drawn[window] += micro
            for name, loss in self.micro_step(ids, 1 / count).items():
                losses[name] = losses.get(name, 0.0) + loss / count
        for name, optimiser in self.optimisers.items():
            optimiser.step(self.rate(name))
        self.tokens += count * micro * window
        self.steps += 1
        return losses

    def run(self, probe: Windows) -> None:
        """Trains to the end of the plan, saving and probing on the way; writes a line of JSON per note to the log."""
        if self.resume():
            self.note({"resumed": True})
        signal.signal(signal.SIGTERM, self.interrupt)
        saved = probed = self.seconds
        smooth: dict[str, float] = {}
        while self.progress() < 1:
            begin = time.monotonic()
            for name, loss in self.step().items():
                smooth[name] = 0.95 * smooth.get(name, loss) + 0.05 * loss
            self.seconds += min(time.monotonic() - begin, MOST_STEP_SECONDS)
            if self.interrupted:
                self.save()
                self.note({"interrupted": True})
                raise SystemExit(143)
            if self.steps % 10 == 0:
                self.note({"train": {name: round(loss, 4) for name, loss in smooth.items()}})
            if self.seconds - saved > 60 * self.plan.save_minutes:
                self.save()
                saved = self.seconds
            if self.seconds - probed > 60 * self.plan.probe_minutes:
                self.note({"held_out": evaluate(self.models, probe, self.device, windows=24)})
                probed = self.seconds
        self.save()
        self.note({"held_out": evaluate(self.models, probe, self.device, windows=96), "done": True})

    def note(self, entry: dict[str, Any]) -> None:
        """Writes to the log and to standard output."""
        where = {"stage": self.plan.name, "tokens": self.tokens, "minutes": round(self.seconds / 60, 2)}
        line = json.dumps(where | entry)
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(line + "\n")


@torch.no_grad()
def evaluate(
    models: dict[str, Llama], windows_of: Windows, device: str, windows: int, length: int = 512
) -> dict[str, float]:
    """Held-out nats per token of each model, and for the others 1 - TV and greedy agreement with the target."""
    sums: dict[str, float] = {}
    rows = 0
    for first in range(0, windows, 4):
        ids = windows_of.batch(first, min(4, windows - first), length).to(device)
        inputs, text = ids[:, :-1], ids[:, 1:].reshape(-1)
        rows += len(text)
        teacher = None
        for name in sorted(models, key=lambda name: name != "target"):
            with torch.autocast(device.split(":")[0], dtype=torch.bfloat16):
                logits = models[name](inputs).flatten(0, 1).float()
            found = {name: float(F.cross_entropy(logits, text, reduction="sum"))}
            probability = logits.softmax(-1)
            if teacher is not None:
                found[f"{name} overlap"] = float(torch.minimum(probability, teacher).sum())
                found[f"{name} greedy"] = float((probability.argmax(-1) == teacher.argmax(-1)).sum())
            elif name == "target":
                teacher = probability
            for key, value in found.items():
                sums[key] = sums.get(key, 0.0) + value
    return {key: round(value / rows, 4) for key, value in sums.items()}
