"""What a foreign client sees of long contexts, small caches, full targets, names with many addresses, and of itself when it
does not read."""

import contextlib
import importlib
import json
import shutil
import socket
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from processes import LIMIT, PROMPT, ROOT, Process, eventually

CONTEXT = 131072
# More than fit into an answer over UDP; workers are behind the first of them.
ADDRESSES = [f"127.0.0.{number}" for number in range(1, 61)]


def checks(binary, work):
    sys.path.insert(0, str(work))
    import grpc

    pb = importlib.import_module("offshoot.v1.generation_pb2")
    finish = importlib.import_module("offshoot.v1.worker_pb2").FinishReason
    stubs = importlib.import_module("offshoot.v1.generation_pb2_grpc")
    models = ROOT / "models"

    def stub(process, *options):
        return stubs.GenerationStub(grpc.insecure_channel(process.address, options=options))

    def request(**fields):
        return pb.GenerateRequest(**({"text": PROMPT, "seed": 7, "strategy": "ar"} | fields))

    def tokens(stream):
        return [token for event in stream for token in event.tokens.token_ids]

    @contextlib.contextmanager
    def running(*commands):
        """A process for each command; a function gets the processes before it, and returns its command."""
        processes = []
        try:
            for command in commands:
                words = command(*processes) if callable(command) else command
                processes.append(Process(binary, *words))
            yield processes
        finally:
            for process in processes:
                process.kill()

    def target(*flags, model=models / "target"):
        return ["target-worker", "--model", str(model), *flags]

    def coordinator(*flags, model=models / "target"):
        common = ["coordinator", "--tokenizer", str(model), "--failover-wait", "1", *flags]
        return lambda *workers: [*common, *(word for worker in workers[:1] for word in ("--target", worker.address))]

    def ready(stub, count):
        workers = lambda: stub.Cluster(pb.ClusterRequest()).workers  # noqa: E731
        eventually(lambda: sum(worker.state == "ready" for worker in workers()) == count)

    # A model of a long context: nobody has said how long the texts get, and none takes the room of the longest.
    long = work / "long"
    shutil.rmtree(long, ignore_errors=True)
    long.mkdir()
    shutil.copy(models / "target/tokenizer.json", long)
    config = json.loads((models / "target/config.json").read_text())
    (long / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    synthetic = ["--synthetic", str(models / "profiles/nano.json"), "--pace", "5", "--max-num-seqs", "8"]
    with running(target(*synthetic, "--kv-mib", "2600", model=long), coordinator(model=long)) as (_, front):
        client = stub(front)
        ready(client, 1)
        streams = [client.Generate(request(ignore_eos=True)) for _ in range(6)]
        for stream in streams:
            assert len([next(stream) for _ in range(3)]) == 3
        assert client.Cluster(pb.ClusterRequest()).sessions == 6
        for stream in streams:
            stream.cancel()
        eventually(lambda: client.Cluster(pb.ClusterRequest()).sessions == 0)
    yield "requests without max_tokens on a long context"

    with running(target("--kv-mib", "5", "--max-num-seqs", "4"), coordinator()) as (_, front):
        client = stub(front)
        ready(client, 1)
        try:
            tokens(client.Generate(request(text="let x = 1;\n" * 200, max_tokens=1)))
            raise AssertionError("no error")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "holds 256" in error.details(), error
        events = list(client.Generate(request(ignore_eos=True)))
        length = sum(len(event.tokens.token_ids) for event in events) + events[0].started.prompt_tokens
        assert (length, events[-1].finished.reason) == (256, finish.FINISH_REASON_CONTEXT), events[-1]
    yield "a context that does not fit the cache"

    with running(
        target("--max-num-seqs", "1", "--pace", "10"), coordinator(), coordinator()
    ) as (_, *fronts), ThreadPoolExecutor(8) as pool:
        clients = [stub(front) for front in fronts]
        for client in clients:
            ready(client, 1)
        # Each coordinator has room by what it knows. A refusal would be an exception here.
        asked = request(max_tokens=60, ignore_eos=True)
        found = [pool.submit(lambda client=client: tokens(client.Generate(asked))) for client in clients * 4]
        texts = [one.result(LIMIT) for one in found]
        assert all(text == texts[0] and len(text) == 60 for text in texts), texts
    yield "two coordinators whose target is full"

    with contextlib.closing(Names(ADDRESSES)) as names:
        first = target()
        port = lambda process: process.address.rsplit(":", 1)[1]  # noqa: E731
        more = [
            lambda *others, host=host: [*target(), "--host", host, "--port", port(others[0])] for host in ADDRESSES[1:3]
        ]
        front = lambda *workers: [  # noqa: E731
            *["coordinator", "--tokenizer", str(models / "target"), "--failover-wait", "1"],
            *["--workers-dns", f"many.test.:{port(workers[0])}", "--dns-server", names.address],
        ]
        with running(first, *more, front) as processes, ThreadPoolExecutor(6) as pool:
            client = stub(processes[-1])
            ready(client, 3)
            listed = client.Cluster(pb.ClusterRequest()).workers
            assert len(listed) == len(ADDRESSES), len(listed)
            asked = request(max_tokens=40)
            found = [pool.submit(lambda: tokens(client.Generate(asked))) for _ in range(12)]
            texts = [one.result(LIMIT) for one in found]
            assert all(text == texts[0] for text in texts), texts
            used = [worker.address for worker in client.Cluster(pb.ClusterRequest()).workers if worker.activity.steps]
            assert len(used) == 3, used
    yield "a name with many addresses"

    # All places are taken by a client that has stopped reading.
    waiting = coordinator("--max-sessions", "4", "--park-after", "1", "--client-timeout", "6")
    with running(target("--max-num-seqs", "4"), waiting) as (_, front):
        # The library reads ahead by itself, and much unless it is told not to.
        client, other = stub(front, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)), stub(front)
        ready(client, 1)
        state = lambda: (lambda now: (now.sessions, now.waiting))(other.Cluster(pb.ClusterRequest()))  # noqa: E731
        much = request(n=4, max_tokens=600, ignore_eos=True, logprobs=20, temperature=0.8)
        texts = [completions(client.Generate(much)) for _ in range(2)]
        assert texts[0] == texts[1] and len(texts[0]) == 4
        unread = client.Generate(much)
        next(unread)
        alone = tokens(other.Generate(request(max_tokens=40)))
        assert alone == tokens(other.Generate(request(max_tokens=40)))
        eventually(lambda: state() == (0, 4))
        assert completions(unread) == texts[0]
        yield "a client that stops reading, and reads on"

        unread = client.Generate(much)
        next(unread)
        eventually(lambda: state() == (0, 4))
        eventually(lambda: state() == (0, 0))
        try:
            completions(unread)
            raise AssertionError("no error")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.ABORTED and "6 s" in error.details(), error
    yield "a client that never reads again"


def completions(stream):
    found = {}
    for event in stream:
        found.setdefault(event.choice, []).extend(event.tokens.token_ids)
    return found


class Names:
    """A DNS server that answers every question for addresses with all of them: over TCP, because over UDP they do not fit."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.udp, self.tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
        self.udp.bind(("127.0.0.1", 0))
        self.tcp.bind(self.udp.getsockname())
        self.tcp.listen()
        self.address = "%s:%d" % self.udp.getsockname()
        for serve in [self.over_udp, self.over_tcp]:
            threading.Thread(target=serve, daemon=True).start()

    def close(self):
        for one in [self.udp, self.tcp]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def answer(self, query, most):
        end = query.index(b"\0", 12) + 5
        question, kind = query[12:end], struct.unpack(">H", query[end - 4 : end - 2])[0]
        found = self.addresses if kind == 1 else []
        record = struct.pack(">HHHLH", 0xC00C, 1, 1, 1, 4)
        records = b"".join(record + socket.inet_aton(address) for address in found)
        fits = len(records) <= most
        flags = 0x8580 if fits else 0x8780
        count = len(found) if fits else 0
        return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + question + (records if fits else b"")

    def over_udp(self):
        with contextlib.suppress(OSError):
            while True:
                query, peer = self.udp.recvfrom(4096)
                if not query:
                    return
                self.udp.sendto(self.answer(query, 400), peer)

    def over_tcp(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.tcp.accept()
                threading.Thread(target=self.converse, args=[peer], daemon=True).start()

    def converse(self, peer):
        with contextlib.suppress(OSError, struct.error), peer:
            while True:
                (length,) = struct.unpack(">H", peer.recv(2, socket.MSG_WAITALL))
                answer = self.answer(peer.recv(length, socket.MSG_WAITALL), 65000)
                peer.sendall(struct.pack(">H", len(answer)) + answer)
