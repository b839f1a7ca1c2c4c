"""Takes the examples out of docs/clients.md, runs them against real processes, and checks what they return.

A foreign client library decides what a promise of the protocol is worth, so what such a library shows of errors is checked
here as well. What cannot be run here is skipped and counted.
"""

import argparse
import asyncio
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tokens
import waits
from processes import LIMIT, PROMPT, ROOT, Process, eventually, silently

TOKENS = 32


def examples(work):
    """Writes each example of the page to a file of its name."""
    page = (ROOT / "docs/clients.md").read_text()
    found = {}
    for body in re.findall(r"^```(?:python|sh)\n(# \S+\.(?:py|sh)\n.*?)^```$", page, re.M | re.S):
        name = body.split("\n", 1)[0].removeprefix("# ")
        (work / name).write_text(body)
        found[name] = work / name
    assert set(found) == {"client.py", "asynchronous.py", "calls.sh"}, found
    return found


def stubs(work):
    from grpc_tools import protoc

    files = ["offshoot/v1/generation.proto", "offshoot/v1/worker.proto"]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={work}", f"--grpc_python_out={work}"]
    assert protoc.main([*arguments, *files]) == 0


class Cluster:
    def __init__(self, binary):
        models = ROOT / "models"
        self.target = Process(binary, "target-worker", "--model", f"{models}/target", "--pace", "15")
        self.draft = Process(binary, "draft-worker", "--model", f"{models}/draft")
        workers = ["--target", self.target.address, "--draft", self.draft.address]
        arguments = ["coordinator", "--tokenizer", f"{models}/target", "--reflection", "--failover-wait", "1", *workers]
        self.coordinators = [Process(binary, *arguments) for _ in range(2)]

    def stop(self):
        for process in [*self.coordinators, self.draft, self.target]:
            process.kill()


def python_examples(cluster, work):
    """client.py and asynchronous.py."""
    import grpc

    sys.path.insert(0, str(work))
    client = importlib.import_module("client")
    asynchronous = importlib.import_module("asynchronous")
    pb = client.pb
    address = cluster.coordinators[0].address
    stub = client.connect(address)
    sessions = lambda: stub.Cluster(pb.ClusterRequest()).sessions  # noqa: E731

    def request(**fields):
        return pb.GenerateRequest(**({"text": PROMPT, "max_tokens": TOKENS, "temperature": 0.7, "seed": 7} | fields))

    started, text, ids, reason = silently(client.stream, stub, request())
    assert len(ids) == TOKENS and reason == "FINISH_REASON_LENGTH" and started.seed == 7, (ids, reason)
    assert text and started.system_fingerprint
    # Per-request strategies find the same text.
    for strategy, knobs in [("ar", {}), ("serial", {"gamma": 4}), ("auto", {})]:
        other = silently(client.stream, stub, request(strategy=strategy, knobs=knobs))
        assert other[1:3] == (text, ids), strategy
    yield "stream, and a strategy per request"

    endless = request(max_tokens=0, ignore_eos=True)
    cut = client.cancel(stub, endless, 8)
    assert cut[:8] == ids[:8]
    eventually(lambda: sessions() == 0)
    yield "cancel"

    begun = time.monotonic()
    some, is_whole = client.until(stub, endless, 0.5)
    assert not is_whole and some[:TOKENS] == ids[: len(some)] and time.monotonic() - begun < 5
    eventually(lambda: sessions() == 0)
    assert client.until(stub, request(), 60) == (ids, True)
    yield "deadline"

    scored = client.scores(stub, request(), 2)
    assert [token for token, _, _ in scored] == ids
    assert all(logprob <= 0 and len(likely) == 2 for _, logprob, likely in scored)
    yield "scores"

    # From any point of it, the rest of a completion is the rest of its text.
    for had in [0, 1, TOKENS // 2]:
        _, _, rest, _ = silently(client.stream, stub, client.rest(request(), started, ids[:had]))
        assert rest == ids[had:], had
    yield "resume"

    found = asyncio.run(asynchronous.complete_all(address, [PROMPT] * 3))
    assert len(set(found)) == 1 and found[0]
    assert asyncio.run(asynchronous.give_up(address, PROMPT, 0.3))
    eventually(lambda: sessions() == 0)
    yield "asyncio"

    # What the page says of errors, as this library shows them.
    def status(asked):
        try:
            list(stub.Generate(asked))
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError("no error")

    code, details = status(request(logprobs=0, logprobs_mode=9))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "logprobs_mode" in details, details
    raw = grpc.insecure_channel(address).unary_stream("/offshoot.v1.Generation/Generate")
    try:
        list(raw(b"\x0a\x02\xff\xfe"))
        raise AssertionError("no error")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "UTF-8" in error.details(), error
    yield "errors"

    # Hundreds of calls that are cancelled at once, and a neighbour on the same connection.
    neighbour = stub.Generate(request(max_tokens=TOKENS))
    next(neighbour)
    for call in [stub.Generate(endless) for _ in range(500)]:
        call.cancel()
    rest = [token for event in neighbour for token in event.tokens.token_ids]
    assert ids[len(ids) - len(rest) :] == rest and rest, rest
    eventually(lambda: sessions() == 0)
    yield "quick cancels"

    # The coordinator is lost in the middle: its own client sees UNAVAILABLE, one that resumes sees nothing.
    both = [client.connect(coordinator.address) for coordinator in cluster.coordinators]
    broken = both[0].Generate(endless)
    next(broken)
    resuming = ThreadPoolExecutor().submit(client.resume, both, request(max_tokens=200))
    eventually(lambda: sessions() == 2)
    cluster.coordinators[0].kill()
    try:
        list(broken)
        raise AssertionError("a dead coordinator goes on")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    resumed = resuming.result(LIMIT)
    whole = silently(client.stream, both[1], request(max_tokens=200))
    assert resumed == (whole[1], whole[2])
    yield "a lost coordinator"


def grpcurl_examples(cluster, calls):
    """calls.sh, whose output is checked call by call."""
    address = cluster.coordinators[1].address
    text = calls.read_text().replace("127.0.0.1:7000", address).replace("grpcurl ", f"{shutil.which('grpcurl')} ")
    first = subprocess.run(
        ["bash", "-euc", text.split("# Scores")[0]], capture_output=True, text=True, timeout=LIMIT, check=True
    ).stdout
    for part in ["offshoot.v1.Generation", '"ready"', '"SERVING"', '"promptTokenIds"', '"FINISH_REASON_LENGTH"']:
        assert part in first, f"{part} is not in {first}"
    decoder, events, at = json.JSONDecoder(), [], first.index('{\n  "started"')
    while at < len(first):
        event, end = decoder.raw_decode(first, at)
        events.append(event)
        at = end + len(first[end:]) - len(first[end:].lstrip())
    started = events[0]["started"]
    ids = [token for event in events for token in event.get("tokens", {}).get("tokenIds", [])]
    assert len(ids) == 8, events
    env = os.environ | {
        "PROMPT_IDS": ",".join(map(str, started["promptTokenIds"])),
        "IDS": ",".join(map(str, ids[:3])),
        "FINGERPRINT": started["systemFingerprint"],
    }
    second = subprocess.run(
        ["bash", "-euc", text.split("# Scores")[1].split("\n", 1)[1]],
        capture_output=True, text=True, timeout=LIMIT, check=True, env=env,
    ).stdout
    assert '"logprobs"' in second and second.count('"started"') == 2, second
    resumed = second[second.rindex('"started"') :]
    numbers = re.findall(r'"tokenIds": \[([^\]]*)\]', resumed)
    assert [int(number) for found in numbers for number in found.split(",")] == ids[3:], resumed
    yield "grpcurl"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work = arguments.work / "examples"
    work.mkdir(parents=True, exist_ok=True)
    found = examples(work)
    passed, failed, skipped = 0, 0, 0
    have_python, have_grpcurl = True, shutil.which("grpcurl") is not None
    try:
        import grpc  # noqa: F401
        import grpc_tools  # noqa: F401
    except ImportError:
        have_python = False
    have_binary = Path(arguments.binary).is_file()
    groups = []
    for name, have, needs, run in [
        ("Python", have_python, "grpcio and grpcio-tools", lambda cluster: python_examples(cluster, work)),
        ("Python, waiting", have_python, "grpcio and grpcio-tools", lambda _: waits.checks(arguments.binary, work)),
        ("Python, tokens", have_python, "grpcio and grpcio-tools", lambda _: tokens.checks(arguments.binary, work)),
        ("grpcurl", have_grpcurl, "grpcurl", lambda cluster: grpcurl_examples(cluster, found["calls.sh"])),
    ]:
        if have and have_binary:
            groups.append((name, run))
        else:
            skipped += 1
            print(f"skipped  {name}: no {needs if have_binary else arguments.binary}")
    if groups:
        if have_python:
            stubs(work)
        cluster = Cluster(arguments.binary)
        try:
            for name, run in groups:
                try:
                    for what in run(cluster):
                        passed += 1
                        print(f"ok       {what}", flush=True)
                except Exception as error:  # noqa: BLE001
                    import traceback

                    traceback.print_exc()
                    failed += 1
                    print(f"FAILED   {name}: {error}")
        finally:
            cluster.stop()
    print(f"clients: {passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
