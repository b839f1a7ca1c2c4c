//! The commands on a real local cluster of the bundled models: what goes to which stream, and that every strategy
//! finds the same text.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

fn offshoot(arguments: &[&str]) -> Output {
    offshoot_told("", arguments)
}

/// With this on its standard input.
fn offshoot_told(input: &str, arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("offshoot").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OFFSHOOT_") {
            command.env_remove(name);
        }
    }
    let output = (command.args(arguments).write_stdin(input))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} printed {stderr}");
    output
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_completion_goes_to_stdout_and_its_statistics_to_stderr() {
    let complete = |strategy| {
        let output = offshoot(&[
            "generate",
            "fn main() {",
            "--max-tokens",
            "24",
            "--strategy",
            strategy,
            "--log-level",
            "error",
        ]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(
            stderr.starts_with("24 tokens, ") && stderr.contains("finish: length"),
            "{stderr}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = complete("ar");
    assert!(plain.trim().len() > 10, "{plain:?}");
    assert_eq!(complete("auto"), plain);
}

/// The bundled target with a chat template. It was not trained for chat; what it makes of a conversation is text all the same.
fn with_template(dir: &Path) {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/target");
    for entry in fs::read_dir(bundled).unwrap() {
        let path = entry.unwrap().path();
        let link = dir.join(path.file_name().unwrap());
        std::os::unix::fs::symlink(path.canonicalize().unwrap(), link).unwrap();
    }
    let template =
        "{% for m in messages %}\n{{ m.role }}: {{ m.content }}\n{% endfor %}\nassistant:";
    fs::write(dir.join("chat_template.jinja"), template).unwrap();
}

#[test]
fn a_conversation_is_what_its_template_makes_of_it() {
    let dir = tempfile::tempdir().unwrap();
    with_template(dir.path());
    let model = dir.path().to_str().unwrap();
    let alone = [
        "--model",
        model,
        "--drafts",
        "0",
        "--no-qualifier",
        "--max-tokens",
        "8",
    ];
    let complete = |prompt: &str| {
        let output = offshoot(&[&["generate", prompt][..], &alone].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.strip_suffix('\n').unwrap().to_owned()
    };
    let begun = "system: be brief\nuser: let a = 1;\nassistant:";
    let first = complete(begun);
    assert!(!first.is_empty());
    let second = complete(&format!("{begun} {first}\nuser: and b?\nassistant:"));
    let chat = |input| {
        offshoot_told(
            input,
            &[&["chat", "--system", "be brief"][..], &alone].concat(),
        )
    };
    let said = chat("let a = 1;\n/retry\n/stats\n/retry\n");
    let stdout = String::from_utf8(said.stdout).unwrap();
    assert_eq!(stdout, format!("{first}\n").repeat(3));
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(
        stderr.starts_with("8 tokens, ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let said = chat("let a = 1;\nand b?\n/quit\nunread\n");
    let stdout = String::from_utf8(said.stdout).unwrap();
    assert_eq!(stdout, format!("{first}\n{second}\n"));
}

#[test]
fn a_bench_compares_strategies_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let [prompts, out, page, trace] =
        ["prompts.jsonl", "out.json", "page.html", "trace.json"].map(|name| dir.path().join(name));
    fs::write(
        &prompts,
        "{\"prompt\": \"fn main() {\"}\n{\"prompt\": \"pub struct\"}\n",
    )
    .unwrap();
    let output = offshoot(&[
        "bench",
        "--prompts",
        prompts.to_str().unwrap(),
        "--strategies",
        "serial:gamma=3,serial-tree:drafts=1,auto,auto:qualifier=off:drafts=1",
        "--max-tokens",
        "12",
        "--temperature",
        "0.7",
        "--tune-prompts",
        "0",
        "--drafts",
        "2",
        "--pace",
        "target=2",
        "--concurrency",
        "2",
        "--json",
        out.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
        "--trace",
        trace.to_str().unwrap(),
        "--pictures",
        dir.path().to_str().unwrap(),
        "--trace-prompts",
        "1",
    ]);
    let table = String::from_utf8(output.stdout).unwrap();
    let (speeds, misses) = table.split_once("\n\n").unwrap();
    assert!(
        speeds.starts_with("PACED") && speeds.lines().count() == 6,
        "{table}"
    );
    assert!(misses.starts_with("misses per 100 target steps"), "{table}");
    let report = json(&out);
    assert_eq!(report["paced"]["target"], 2.0);
    let strategies = report["strategies"].as_array().unwrap();
    let names: Vec<_> = strategies
        .iter()
        .map(|strategy| strategy["strategy"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["serial", "serial-tree", "auto", "auto"]);
    for strategy in strategies {
        assert_eq!(strategy["differing_requests"], 0, "{strategy}");
        assert_eq!(strategy["requests"], 2);
        assert_eq!(strategy["token_ids"], strategies[0]["token_ids"]);
        assert!(
            strategy["tok_s"].as_f64().unwrap() > 0.0
                && strategy["ratio_to_ar"].as_f64().unwrap() > 0.0
        );
        assert!(strategy["acceptance_length"].as_f64().unwrap() >= 1.0);
    }
    // Those that use as many devices stand together.
    let devices: Vec<_> = (strategies.iter())
        .map(|strategy| strategy["devices"].as_u64().unwrap())
        .collect();
    assert_eq!(devices[1], 2, "one draft");
    // On a busy machine `auto` may have asked nobody for anything.
    assert!(devices[3] <= 2, "{devices:?}");
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("<caption>2 devices</caption>"), "{page}");
    // It fetches nothing, and runs nothing.
    for absent in ["<script", "src=", "@import", "<link", "href=\"http"] {
        assert!(!page.contains(absent), "{absent}");
    }
    // Every token of every text with guesses is there, with whose guess it was. On a busy machine `auto` may make none.
    let texts = page.matches("<span class=\"prompt\"").count();
    assert!((2..=4).contains(&texts), "{texts}");
    let tokens = page.matches("<span class=\"g").count();
    assert!(tokens >= texts * 12, "{tokens}");
    assert!(page.contains("title=\"draft, first guess\""), "{page}");
    let trace = json(&trace);
    let events = trace["traceEvents"].as_array().unwrap();
    let count = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    assert!(count("target step") > 4 && count("draft step") > 4);
    assert!(count("hit") + count("miss") > 4);
    let committed: u64 = (events.iter())
        .filter(|event| event["name"] == "committed")
        .map(|event| event["args"]["tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(committed, 4 * 12);
    for name in ["timeline.svg", "guesses.svg"] {
        let picture = fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            picture.starts_with("<svg") && picture.ends_with("</svg>\n"),
            "{name}"
        );
    }
}

#[test]
fn an_engine_bench_reports_every_row_count() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.json");
    offshoot(&[
        "bench-engine",
        "--rows",
        "1,4",
        "--repeats",
        "2",
        "--json",
        out.to_str().unwrap(),
    ]);
    let report = json(&out);
    let rows: Vec<_> = report["rows"].as_array().unwrap().iter().collect();
    assert_eq!((&rows[0]["rows"], &rows[1]["rows"]), (&1.into(), &4.into()));
    for row in rows {
        assert!(row["step_ms"].as_f64().unwrap() > 0.0);
    }
    assert!(report["bandwidth_gb_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_recorded_profile_serves_in_place_of_the_models() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (prompts, profile, out) = (path("prompts.jsonl"), path("mine.json"), path("out.json"));
    fs::write(
        &prompts,
        "{\"prompt\": \"fn main() {\", \"source\": \"a\"}\n{\"prompt\": \"pub struct\", \"source\": \"b\"}\n",
    )
    .unwrap();
    let recorded = offshoot(&[
        "models",
        "evaluate",
        "--text",
        &prompts,
        "--profile",
        &profile,
        "--profile-name",
        "mine",
        "--profile-texts",
        "2",
    ]);
    let table = String::from_utf8(recorded.stdout).unwrap();
    assert!(
        table.lines().count() == 4 && table.contains("| 128 |"),
        "{table}"
    );
    let content = json(Path::new(&profile));
    assert_eq!(content["format"], "offshoot-profile");
    assert_eq!(content["temperatures"][1]["temperature"], 1.0);

    let step_ms = "target=1:4,64:8,qualifier=2,draft=1";
    let rig = ["--synthetic", &profile, "--step-ms", step_ms];
    let generate = ["generate", "fn main() {", "--max-tokens", "12"];
    let output = offshoot(&[&generate[..], &rig].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("12 tokens, SYNTHETIC, "), "{stderr}");
    let bench = [
        "bench",
        "--prompts",
        &prompts,
        "--strategies",
        "serial,auto",
        "--tune-prompts",
        "0",
        "--max-tokens",
        "12",
        "--json",
        &out,
    ];
    let output = offshoot(&[&bench[..], &rig].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.starts_with("SYNTHETIC") && table.contains("1:4,64:8"),
        "{table}"
    );
    let report = json(Path::new(&out));
    assert_eq!(report["synthetic"]["profile"], "mine");
    assert_eq!(report["step_ms"]["draft"], "1:1");
    assert!(
        report["models"]["draft"]
            .as_str()
            .unwrap()
            .starts_with("synthetic-mine")
    );
    for strategy in report["strategies"].as_array().unwrap() {
        assert_eq!(strategy["differing_requests"], 0, "{strategy}");
        assert_eq!(strategy["synthetic"], true);
    }
}
