"""Checks the kernels on the card, and times them. Prints tables; with --out, writes what it measured as JSON.

    python3 tests/device/bench.py [--out FOLDER] [--only invariance|steps] [--models 8B,3B,1B] [--rows 1,8,16,32,64] [--parts]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from driver import Failed, Gpu
from invariance import Judge, asks_are_invariant
from kernels import Kernels
from model import SHAPES, differing_bits
from steps import ROWS, Cublas, Steps, bandwidth

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent.parent / "engine" / "src" / "cuda" / "ptx"


def invariance(gpu, kernels, names, report, tiny):
    """Every check of independence of rows, on shapes of attention and matmul that models have; or on tiny ones, for a fake card."""
    wrong = 0
    for base, layers in ((SHAPES[2], 4), (SHAPES[0], 2), (SHAPES[1], 1)):
        if base.name not in names:
            continue
        shape = base.but(name=f"{base.name}, {layers} layers", layers=layers, vocab=4096)
        if tiny:
            shape = base.but(name=f"tiny {base.name}", layers=1, vocab=512, hidden=128, inner=256, heads=base.heads // base.kv_heads,
                             kv_heads=1)
        mark = list(gpu.held)
        judge = Judge(gpu, kernels, shape)
        findings = judge.run()
        pairs = asks_are_invariant(gpu, judge.model, 64)
        findings.append(("answers of 64 rows, not of one", 8 * sum(len(a) for a, _ in pairs),
                         sum(differing_bits(a, b) for a, b in pairs)))
        for address in [a for a in gpu.held if a not in mark]:
            gpu.free(address)
        print(f"\nInvariance, {shape.name}")
        if judge.distance is not None:
            print(f"  logits are {judge.distance:.2e} from those of PyTorch in f32, relatively")
            # bf16 has 8 bits; a handful of roundings to it stay far below this, and a wrong kernel far above.
            wrong += judge.distance > 0.05
        for name, compared, bits in findings:
            print(f"  {name:55} {compared:>12} bits compared, {bits} differ")
            wrong += bits
        report["invariance"][shape.name] = {"distance": judge.distance, "findings": findings}
    print(f"\n{wrong} wrong in all")
    return wrong


def table(title, head, lines):
    print(f"\n{title}\n")
    widths = [max(len(str(row[i])) for row in [head] + lines) for i in range(len(head))]
    for row in [head] + lines:
        print("  " + "  ".join(str(cell).rjust(width) for cell, width in zip(row, widths)))
    sys.stdout.flush()


def steps(gpu, kernels, names, rows, parts, report):
    speed = bandwidth(gpu, kernels)
    report["bandwidth"] = speed
    print(f"\nReads {speed / 1e12:.3f} TB/s")
    for shape in [s for s in SHAPES if s.name in names]:
        bench = Steps(gpu, kernels, shape)
        floor = bench.model.weight_bytes() / speed
        result = {"weight_bytes": bench.model.weight_bytes(), "floor": floor, "rows": {}}
        lines = []
        spans = {count: bench.run(count) for count in rows}
        if parts:
            result["parts"] = {count: bench.parts(count) for count in parts}
            for count, kinds in result["parts"].items():
                described = []
                for kind, span in kinds.items():
                    known = kind in ("qkv", "o", "gate_up", "down", "head")
                    over = f"{span / (bench.bytes_of(kind) / speed):.2f}" if known else ""
                    described.append([kind, f"{span * 1e6:.0f}", over])
                table(f"{shape.name}, {count} rows: microseconds a step by kernel", ["kernel", "us", "over read"], described)
        bench.close()
        cublas = {}
        try:
            other = Cublas(shape)
            cublas = {count: other.run(count) for count in rows}
            other.close()
        except ImportError:
            pass
        for count, span in spans.items():
            result["rows"][count] = dict(span, cublas=cublas.get(count))
            against = f"{span['matmuls'] / cublas[count]:.3f}" if count in cublas else "-"
            lines.append([
                count, f"{span['pick'] * 1e3:.3f}", f"{span['pick'] / floor:.3f}", f"{span['guesses'] * 1e3:.3f}",
                f"{span['forward'] * 1e3:.3f}", f"{span['matmuls'] * 1e3:.3f}", f"{span['matmuls'] / floor:.3f}", against,
            ])
        table(f"{shape.name}: {bench.model.weight_bytes() / 1e9:.2f} GB of weights, read once in {floor * 1e3:.3f} ms",
              ["rows", "step ms", "over read", "with guesses", "forward", "matmuls", "over read", "over cuBLAS"], lines)
        report["steps"][shape.name] = result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--ptx", default=str(KERNELS))
    parser.add_argument("--only", default="")
    parser.add_argument("--models", default="8B,3B,1B")
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--parts", default="")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for the fake driver of tests/cuda")
    flags = parser.parse_args()
    numbers = lambda text: [int(n) for n in text.split(",") if n]
    begun = time.time()
    try:
        gpu = Gpu()
    except Failed as error:
        print(f"skipped: {error}")
        return 0
    print(f"{time.strftime('%Y-%m-%d')}  {gpu.name}, compute {gpu.compute[0]}.{gpu.compute[1]}, driver for CUDA {gpu.driver_version()}")
    report = {"date": time.strftime("%Y-%m-%d"), "card": gpu.name, "invariance": {}, "steps": {}}
    kernels = Kernels(gpu, flags.ptx, HERE / "kernels")
    print(f"kernels loaded after {time.time() - begun:.1f} s")
    wrong = 0
    if flags.only != "steps":
        wrong = invariance(gpu, kernels, flags.models.split(","), report, flags.tiny)
        print(f"after {time.time() - begun:.1f} s")
    if flags.only != "invariance":
        steps(gpu, kernels, flags.models.split(","), numbers(flags.rows), numbers(flags.parts), report)
    print(f"\nafter {time.time() - begun:.1f} s")
    if flags.out:
        Path(flags.out, "device.json").write_text(json.dumps(report, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
