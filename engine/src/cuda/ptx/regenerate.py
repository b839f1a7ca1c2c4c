"""Compiles the kernels to PTX with NVRTC, or says whether what lies here is current.

    python3 -m pip install nvidia-cuda-nvrtc==13.0.88
    python3 engine/src/cuda/ptx/regenerate.py            # compiles for every architecture
    python3 engine/src/cuda/ptx/regenerate.py --check    # needs nothing but Python
    python3 engine/src/cuda/ptx/regenerate.py --assemble PTXAS sm_80 sm_86 sm_89 sm_90a

NVRTC is all that is needed: the kernels include no header but their own. `SOURCES` holds, in its first line, a hash of the
kernels' sources and the options, and the compiler's version: what results depend on. Its second line is a hash of what came of it,
and of the bench on the card. A test of tests/cuda compares both without a compiler.

The compiler names its own version of PTX, which drivers older than it refuse. The kernels use no instruction that is newer than
their architectures, so the oldest version that knows those is named instead. `--assemble` shows that it is enough, with the
assembler of an old toolkit (nvidia-cuda-nvcc-cu12 12.0 for 8.x and 9.0, 12.8 for what follows), and what kernels spill.
"""

import argparse
import ctypes
import glob
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent / "kernels"
BENCH = HERE.parents[3] / "tests" / "device" / "kernels"
# What a driver compiles further: sm_80 and sm_100 for their whole families and what follows, sm_90a for Hopper.
ARCHITECTURES = {"sm_80": "compute_80", "sm_90a": "compute_90a", "sm_100": "compute_100"}
VERSIONS = {"sm_80": "7.8", "sm_90a": "8.0", "sm_100": "8.6"}
# Products and sums are not contracted: every line rounds as it stands.
OPTIONS = ["--fmad=false", "--std=c++17"]


def kernels():
    return sorted(KERNELS.glob("*.cu*"))


def results():
    return sorted(HERE.glob("*.ptx")) + sorted(BENCH.glob("*.cu")) + sorted(BENCH.glob("*.ptx"))


def hash_of(paths):
    """64-bit FNV-1a over name, length and text of every file, and the options. It finds what is stale, not what is forged."""
    digest = 0xCBF29CE484222325
    parts = [part for path in paths for part in (path.name.encode(), str(path.stat().st_size).encode(), path.read_bytes())]
    for part in parts + [option.encode() for option in OPTIONS]:
        for byte in part:
            digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"fnv1a64 {digest:016x}"


def library():
    """NVRTC, from the package or from the system."""
    for folder in sys.path:
        for path in sorted(glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libnvrtc.so.*"))):
            builtins = glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so.*"))
            for builtin in sorted(builtins):
                ctypes.CDLL(builtin, mode=ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(path)
    return ctypes.CDLL("libnvrtc.so.13")


def compile_to_ptx(nvrtc, path, name):
    architecture = ARCHITECTURES[name]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), path.read_bytes(), path.name.encode(), 0, None, None)
    options = [f"--gpu-architecture={architecture}", f"-I{KERNELS}"] + OPTIONS
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if log.value.strip() or status:
        print(log.value.decode(), file=sys.stderr)
    if status:
        sys.exit(f"{path.name} for {architecture}: NVRTC says {status}")
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, ptx)
    lines = ptx.value.decode().splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.startswith("//")) + "\n"
    return re.sub(r"^\.version .*$", f".version {VERSIONS[name]}", text, count=1, flags=re.MULTILINE)


def assemble(ptxas, gpus):
    """Assembles every kernel for every GPU that its PTX serves; says which spill."""
    for gpu in gpus:
        number = int(re.search(r"\d+", gpu)[0])
        # As engine/src/cuda/kernels.rs chooses; GPUs of 12.0 have too little shared memory for blocks of sm_100.
        name = "sm_90a" if number == 90 else "sm_100" if 100 <= number < 120 else "sm_80"
        for path in sorted(HERE.glob(f"*.{name}.ptx")):
            done = subprocess.run([ptxas, "-v", f"-arch={gpu}", path, "-o", os.devnull], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{path.name} for {gpu}: {done.stderr}")
            kernels = re.findall(r"function '(\w+)' for.*?(\d+) bytes spill stores", done.stderr, re.DOTALL)
            spills = [f"{kernel} spills {size} bytes" for kernel, size in kernels if size != "0"]
            print(f"{path.name} for {gpu}: {len(kernels)} kernels; {', '.join(spills) or 'none spills'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--assemble", nargs="+", metavar=("PTXAS", "GPU"))
    parser.add_argument("--only", help="one architecture, for a look; SOURCES stays as it is, and is stale")
    flags = parser.parse_args()
    record = HERE / "SOURCES"
    if flags.check:
        known = record.read_text()
        if hash_of(kernels()) not in known or hash_of(results()) not in known:
            sys.exit("the PTX is not of these sources: run engine/src/cuda/ptx/regenerate.py")
        return
    if flags.assemble:
        return assemble(flags.assemble[0], flags.assemble[1:])
    nvrtc = library()
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    for name in ARCHITECTURES:
        if flags.only and name != flags.only:
            continue
        for path in kernels() + sorted(BENCH.glob("*.cu")):
            if path.suffix == ".cu":
                folder = BENCH if path.parent == BENCH else HERE
                (folder / f"{path.stem}.{name}.ptx").write_text(compile_to_ptx(nvrtc, path, name))
    if not flags.only:
        made = f"kernels {hash_of(kernels())} nvrtc {major.value}.{minor.value}"
        record.write_text(f"{made}\nptx {hash_of(results())}\n")


if __name__ == "__main__":
    main()
