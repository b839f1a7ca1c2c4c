"""Control tokens as a foreign client meets them: in a prompt text unless it says otherwise, as stop texts a stop, and the one that
begins a text never twice."""

import importlib
import json
import shutil
import sys

from processes import PROMPT, ROOT, Process, eventually

# The end of text of the bundled models.
CONTROL, CONTROL_ID = "<|endoftext|>", 0


def checks(binary, work):
    sys.path.insert(0, str(work))
    import grpc

    pb = importlib.import_module("offshoot.v1.generation_pb2")
    finish = importlib.import_module("offshoot.v1.worker_pb2").FinishReason
    stubs = importlib.import_module("offshoot.v1.generation_pb2_grpc")
    model = ROOT / "models/target"
    # Its tokenizer puts the control token before every text.
    begins = work / "begins"
    shutil.rmtree(begins, ignore_errors=True)
    shutil.copytree(model, begins)
    tokenizer = json.loads((begins / "tokenizer.json").read_text())
    token = {"SpecialToken": {"id": CONTROL, "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [token, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [token, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {CONTROL: {"id": CONTROL, "ids": [CONTROL_ID], "tokens": [CONTROL]}},
    }
    (begins / "tokenizer.json").write_text(json.dumps(tokenizer))

    target = Process(binary, "target-worker", "--model", str(model))
    fronts = [
        Process(binary, "coordinator", "--tokenizer", str(folder), "--target", target.address)
        for folder in [model, begins]
    ]
    try:
        plain, beginning = [stubs.GenerationStub(grpc.insecure_channel(front.address)) for front in fronts]
        for stub in [plain, beginning]:
            workers = lambda stub=stub: stub.Cluster(pb.ClusterRequest()).workers  # noqa: E731
            eventually(lambda: [worker.state for worker in workers()] == ["ready"])

        def prompt(stub, text, **fields):
            events = stub.Generate(pb.GenerateRequest(text=text, max_tokens=1, seed=7, **fields))
            return list(list(events)[0].started.prompt_token_ids)

        spelled = f"let a = 1;{CONTROL}fn"
        text, tokens = prompt(plain, spelled), prompt(plain, spelled, parse_special=True)
        assert CONTROL_ID not in text and tokens.count(CONTROL_ID) == 1 and len(text) > len(tokens), (text, tokens)
        bare = prompt(plain, PROMPT)
        assert prompt(beginning, PROMPT) == [CONTROL_ID, *bare]
        assert prompt(beginning, CONTROL + PROMPT, parse_special=True) == [CONTROL_ID, *bare]
        assert prompt(beginning, CONTROL + PROMPT).count(CONTROL_ID) == 1
        yield "control tokens in a prompt"

        def completion(bias, **fields):
            # No end by itself.
            asked = pb.GenerateRequest(
                text=PROMPT, max_tokens=40, temperature=0.8, seed=7, bias_ids=[CONTROL_ID], bias_values=[bias],
                ignore_eos=True, **fields,
            )
            events = list(plain.Generate(asked))
            ids = [token for event in events for token in event.tokens.token_ids]
            shown = "".join(event.tokens.text + event.finished.text for event in events)
            return ids, shown, events[-1].finished

        # As likely as it takes.
        bias = next(bias for bias in range(4, 30) if CONTROL_ID in completion(bias)[0][:-1])
        ids, shown, _ = completion(bias)
        at = ids.index(CONTROL_ID)
        for include in [False, True]:
            found, part, end = completion(bias, stop=["never", CONTROL], include_stop=include)
            assert found == ids[: at + 1] and end.reason == finish.FINISH_REASON_STOP, (found, end)
            assert end.stop_text == CONTROL and part.endswith(CONTROL) == include, (part, end)
            assert shown.startswith(part.removesuffix(CONTROL)), part
        yield "a control token as a stop text"
    finally:
        for process in [*fronts, target]:
            process.kill()
