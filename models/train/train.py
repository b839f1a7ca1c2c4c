"""Trains the bundled family from a Cargo registry cache: corpus, tokenizer, target, qualifier, draft.

    pip install -r models/train/requirements.txt
    python models/train/train.py --registry ~/.cargo/registry/src --out trained --prompts tests/prompts/rust.jsonl

A stage that has already been done is not done again, and an interrupted one goes on where its last checkpoint was.
`--init models` starts from present weights and their tokenizer instead of from nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch

import corpus
import heldout
import llama
import tokens
from loop import Plan, Stage, evaluate

STAGES = ("corpus", "tokenizer", "target", "qualifier", "draft")
STUDENTS = ("qualifier", "draft")
PROBE_ORDER = 7  # the same held-out windows in every run, whatever its seed.
# Peak learning rates, for new weights and for trained ones alike.
RATES = {"target": 1.5e-3, "qualifier": 1.5e-3, "draft": 2e-3}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--registry", type=Path, action="append", required=True, help="unpacked crates; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for corpus, states and checkpoints")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages to run (default: %(default)s)")
    parser.add_argument("--init", type=Path, help="family to start from; its tokenizer is kept")
    parser.add_argument("--prompts", type=Path, help="prompt file whose source crates are held out")
    parser.add_argument("--heldout-text", type=Path, help="write the text for the evaluation there")
    parser.add_argument("--heldout-prompts", type=Path, help="write 240 held-out prompts there")
    parser.add_argument("--per-crate", type=int, default=150_000, help="characters of one crate (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--target-tokens", type=int, default=1_000_000_000)
    parser.add_argument("--target-minutes", type=float, default=1e9)
    parser.add_argument("--student-tokens", type=int, default=300_000_000)
    parser.add_argument("--student-minutes", type=float, default=1e9)
    parser.add_argument("--student-rate", type=float, default=1.0, help="scales the rates of the students' own stages")
    parser.add_argument(
        "--windows", default="256,1024", help="lengths of the training windows, taken in turn (default: %(default)s)"
    )
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--micro-tokens", type=int, default=4096)
    parser.add_argument("--ride-along", action="store_true", help="students learn during the target's stage already")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def gather(args: argparse.Namespace) -> None:
    """The corpus stage."""
    folder = args.out / "corpus"
    report = corpus.gather(args.registry, args.prompts, folder, args.per_crate, args.seed)
    llama.write_json(folder / "report.json", asdict(report))
    print(json.dumps(asdict(report)))
    if args.heldout_prompts:
        heldout.write_prompts(folder / "heldout.jsonl", args.heldout_prompts, 240, args.seed)
    if args.heldout_text:
        heldout.write_text(folder / "heldout.jsonl", args.heldout_text, 380_000)


def tokenize(args: argparse.Namespace) -> None:
    """The tokenizer stage: trained, or taken from the family to start from; then both splits become tokens."""
    folder = args.out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    if args.init:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.init / "target" / name, folder / name)
    else:
        tokens.train_tokenizer(args.out / "corpus" / "train.jsonl", folder, args.vocabulary)
    counts = {}
    for split in ("heldout", "train"):
        text = args.out / "corpus" / f"{split}.jsonl"
        counts[split] = tokens.encode(text, folder / "tokenizer.json", text.with_suffix(".bin"))
    llama.write_json(folder / "tokens.json", counts)
    print(json.dumps(counts))


class Family:
    """The three models of a run and where each stands."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.models: dict[str, llama.Llama] = {}

    def start(self, name: str) -> llama.Llama:
        """A model as an earlier stage left it, as the family to start from has it, or new."""
        config = llama.SIZES[name]
        for folder in (self.args.out / name, self.args.init and self.args.init / name):
            if folder and (folder / "config.json").is_file():
                return llama.load(folder, config)
        return llama.Llama(config)

    def train(self, learners: tuple[str, ...]) -> None:
        """Trains models beside each other; one forward pass of the target serves all of them."""
        args = self.args
        stage = learners[0]
        self.models = {name: self.start(name) for name in dict.fromkeys(("target", *learners))}
        plan = Plan(
            name=stage,
            learners=learners,
            tokens=args.target_tokens if stage == "target" else args.student_tokens,
            minutes=args.target_minutes if stage == "target" else args.student_minutes,
            rates={name: RATES[name] * (args.student_rate if stage != "target" else 1) for name in learners},
            # A student that rides along keeps some of its rate, because its own stage is still to come.
            floors={name: 0.4 * RATES[name] if stage == "target" != name else 0.0 for name in learners},
            windows=tuple(int(length) for length in args.windows.split(",")),
            step_tokens=args.step_tokens,
            micro_tokens=args.micro_tokens,
        )
        # Each stage takes the windows in another order.
        train = tokens.Windows(args.out / "corpus" / "train.bin", args.seed + STAGES.index(stage))
        probe = tokens.Windows(args.out / "corpus" / "heldout.bin", PROBE_ORDER)
        run = Stage(plan, self.models, train, args.device, args.out)
        if not run.state_file.is_file():
            run.note({"before": evaluate(self.models, probe, args.device, windows=96)})
        run.run(probe)
        for name in learners:
            llama.save(self.models[name], args.out / name, args.out / "tokenizer" / "tokenizer.json")


def main() -> None:
    """Runs the stages asked for that are not done yet."""
    args = arguments()
    wanted = args.stages.split(",")
    if unknown := set(wanted) - set(STAGES):
        raise SystemExit(f"unknown stages: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    family = Family(args)
    for stage in STAGES:
        done = args.out / f"{stage}.done"
        if stage not in wanted or done.is_file():
            continue
        if stage == "corpus":
            gather(args)
        elif stage == "tokenizer":
            tokenize(args)
        elif stage == "target":
            family.train(("target", *STUDENTS) if args.ride_along else ("target",))
        else:
            family.train((stage,))
        done.touch()


if __name__ == "__main__":
    main()
