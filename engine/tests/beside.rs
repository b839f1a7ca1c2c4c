//! What is evaluated beside a model: heads and classifier answer what a slow reference answers, for the row where the walk
//! ends and no other, and no pick depends on them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use decode::sampling::{SamplingParams, Shaping};
use decode::{
    Answer, CacheOp, EndAnswer, EndAsk, Forecast, Guess, History, Row, Sampler, SamplerState,
    Sampling, StepPlan, Wanted, math,
};
use engine::{Backend, Beside, CpuEngine, EngineOptions, LoadError, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;
use safetensors::Dtype;
use serde_json::json;
use support::synthetic::{self, HIDDEN, Tensor, VOCAB};
use support::{Asked, append, row};
use tempfile::TempDir;

const HEADS: usize = 3;
const BLOCKS: usize = 2;
const LAYERS: usize = 4;

type Tensors = BTreeMap<String, Tensor>;

fn tensors(shapes: &[(String, Vec<usize>)], seed: u64) -> Tensors {
    let mut seed = seed;
    let each = shapes.iter().map(|(name, shape)| {
        let values = synthetic::weights(shape.iter().product(), &mut seed);
        let tensor = Tensor {
            dtype: Dtype::F16,
            shape: shape.clone(),
            bytes: synthetic::encode(Dtype::F16, &values),
        };
        (name.clone(), tensor)
    });
    each.collect()
}

/// The published layout.
fn heads() -> Tensors {
    let mut shapes = Vec::new();
    for i in 0..HEADS {
        for j in 0..BLOCKS {
            shapes.push((format!("{i}.{j}.linear.weight"), vec![HIDDEN, HIDDEN]));
            shapes.push((format!("{i}.{j}.linear.bias"), vec![HIDDEN]));
        }
        shapes.push((format!("{i}.{BLOCKS}.weight"), vec![VOCAB, HIDDEN]));
    }
    tensors(&shapes, 0x5eed)
}

fn classifier() -> Tensors {
    let shapes: Vec<(String, Vec<usize>)> = [(256, 5 * HIDDEN), (64, 256), (3, 64)]
        .into_iter()
        .enumerate()
        .flat_map(|(i, (outputs, inputs))| {
            let weight = (format!("{i}.weight"), vec![outputs, inputs]);
            [weight, (format!("{i}.bias"), vec![outputs])]
        })
        .collect();
    tensors(&shapes, 0xc1a5)
}

fn write(dir: &Path, file: &str, config: &serde_json::Value, tensors: &Tensors) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    safetensors::serialize_to_file(tensors, None, &dir.join(file)).unwrap();
}

/// A model folder with heads and a classifier.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(synthetic::checkpoint(Dtype::F32, LAYERS));
        folder.heads(
            &json!({"medusa_num_heads": HEADS, "medusa_num_layers": BLOCKS}),
            &heads(),
        );
        folder.classifier(&json!({"hrad_layers": 4, "gamma": 7}), &classifier());
        folder
    }

    fn heads(&self, config: &serde_json::Value, tensors: &Tensors) {
        let dir = self.0.path().join("heads");
        write(&dir, "medusa_lm_head.safetensors", config, tensors);
    }

    fn classifier(&self, config: &serde_json::Value, tensors: &Tensors) {
        write(
            &self.0.path().join("hrad"),
            "hrad.safetensors",
            config,
            tensors,
        );
    }

    fn beside(&self) -> Beside {
        Beside {
            heads: Some(self.0.path().join("heads")),
            hrad: Some(self.0.path().join("hrad")),
        }
    }

    fn load(&self, beside: Beside) -> Result<CpuEngine, LoadError> {
        let options = EngineOptions {
            scratch_rows: 16,
            max_rows: 32,
            beside,
            ..EngineOptions::for_sequences(64, 2)
        };
        CpuEngine::load(self.0.path(), &options)
    }

    fn refused(&self) -> LoadError {
        let Err(error) = self.load(self.beside()) else {
            panic!("it loads");
        };
        error
    }
}

fn sampling(temperature: f32) -> Sampling {
    Sampling {
        params: SamplingParams {
            temperature,
            seed: 11,
            ..SamplingParams::default()
        },
        shaping: Shaping {
            repetition_penalty: 1.3,
            ..Shaping::default()
        },
    }
}

fn step(
    engine: &mut CpuEngine,
    seq: SeqId,
    plan: &StepPlan,
    text: &[u32],
    sampling: &Sampling,
) -> Vec<Answer> {
    let batch = &mut [SeqStep {
        seq,
        plan,
        text,
        prompt_len: 2,
        sampler: &mut SamplerState::from(sampling.clone()),
    }];
    let end = engine.step(batch, &mut |_| ControlFlow::Continue(()));
    let StepEnd::Done(mut answers) = end.unwrap() else {
        panic!("nobody gave the step up")
    };
    answers.remove(0)
}

const EVERYTHING: EndAsk = EndAsk {
    heads: 4,
    known: Vec::new(),
    forecast: Wanted::Yes,
};

/// Steps along a text whose trees hold what the model picks and other tokens: the walk ends in every depth.
struct Line {
    seq: SeqId,
    text: Vec<u32>,
    sampling: Sampling,
}

impl Line {
    fn new(engine: &mut CpuEngine, temperature: f32) -> Line {
        Line {
            seq: engine.open(60).unwrap(),
            text: vec![7, 9, 11],
            sampling: sampling(temperature),
        }
    }

    /// The next step's plan: the last token, and a chain of the next `right` tokens with a wrong one beside each.
    fn plan(&self, engine: &CpuEngine, truth: &[u32], right: usize, end: EndAsk) -> StepPlan {
        let cached = engine.len(self.seq);
        let mut plan = append(&self.text[cached..], Asked::Last);
        let mut above = None;
        let mut path: Vec<u32> = Vec::new();
        for (depth, &token) in truth.iter().skip(self.text.len()).take(right).enumerate() {
            let wrong = (token + 1) % VOCAB as u32;
            for (at, token) in [(0, wrong), (1, token)] {
                let index = 2 * depth as u32 + at;
                plan.rows.push(Row {
                    path: [&path[..], &[token]].concat(),
                    ..row(token, above, index)
                });
            }
            above = Some(2 * depth as u32 + 1);
            path.push(token);
        }
        plan.end = end;
        plan
    }

    fn step(&mut self, engine: &mut CpuEngine, plan: &StepPlan) -> Vec<Answer> {
        let answers = step(engine, self.seq, plan, &self.text, &self.sampling);
        let rows: Vec<_> = plan.rows.iter().map(|row| row.node).collect();
        engine.apply(self.seq, &CacheOp::Drop(rows)).unwrap();
        answers
    }
}

fn picks(answers: &[Answer]) -> Vec<Option<u32>> {
    let rows = answers
        .iter()
        .filter(|answer| !matches!(answer, Answer::End(_)));
    rows.map(|answer| match answer {
        Answer::Pick(pick) => Some(pick.token),
        Answer::Skipped => None,
        other => panic!("{other:?}"),
    })
    .collect()
}

fn end(answers: &[Answer]) -> &EndAnswer {
    match answers.last() {
        Some(Answer::End(end)) => end,
        other => panic!("{other:?} instead of what was asked where the walk ends"),
    }
}

/// The text that the model decodes, one token after another.
fn truth(engine: &mut CpuEngine, tokens: usize, temperature: f32) -> Vec<u32> {
    let mut line = Line::new(engine, temperature);
    for _ in 0..tokens {
        let plan = line.plan(engine, &[], 0, EndAsk::default());
        let picked = picks(&line.step(engine, &plan));
        line.text.push(picked[0].unwrap());
    }
    engine.release(line.seq);
    line.text
}

#[test]
fn no_pick_depends_on_heads_or_classifier() {
    let folder = Folder::new();
    let mut plain = folder.load(Beside::default()).unwrap();
    let mut both = folder.load(folder.beside()).unwrap();
    assert_eq!(plain.facts(), both.facts());
    for temperature in [0.0, 0.8] {
        let truth = truth(&mut plain, 40, temperature);
        let mut lines = [&mut plain, &mut both].map(|engine| Line::new(engine, temperature));
        let mut ended = 0;
        while lines[0].text.len() + 5 < truth.len() {
            let right = lines[0].text.len() % 4;
            let plan = lines[0].plan(&plain, &truth, right, EVERYTHING);
            let without = lines[0].step(&mut plain, &plan);
            let with = lines[1].step(&mut both, &plan);
            assert_eq!(without[..], with[..without.len()]);
            assert_eq!(with.len(), without.len() + 1);
            // The walk goes down the right tokens and picks one more.
            let place = 2 * right;
            let last = end(&with);
            let token = truth[lines[0].text.len() + right];
            assert_eq!((usize::from(last.place), last.token), (place, token));
            for line in &mut lines {
                line.text = truth[..=line.text.len() + right].to_vec();
            }
            ended += 1;
        }
        assert!(ended > 5);
        plain.release(lines[0].seq);
        both.release(lines[1].seq);
    }
}

fn values(tensors: &Tensors, name: &str) -> Vec<f32> {
    let bytes = tensors[name].bytes.chunks_exact(2);
    bytes
        .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
        .collect()
}

/// `w x`, summed from the first input to the last.
fn times(w: &[f32], x: &[f32]) -> Vec<f32> {
    let outputs = w.chunks_exact(x.len());
    outputs
        .map(|w| w.iter().zip(x).fold(0.0, |sum, (w, x)| x.mul_add(*w, sum)))
        .collect()
}

/// The hidden states behind a text, computed alone.
fn states(engine: &mut CpuEngine, text: &[u32]) -> Vec<f32> {
    let seq = engine.open(text.len()).unwrap();
    let plan = append(text, Asked::Last);
    let mut found = Vec::new();
    engine
        .read_states(&[(seq, &plan)], &mut |row| found = row.states.to_vec())
        .unwrap();
    engine.release(seq);
    found
}

/// What the heads guess behind `text` and the token picked there, the slow way.
fn guesses(hidden: &[f32], text: &[u32], pick: u32, sampling: &Sampling) -> Vec<Vec<Guess>> {
    let heads = heads();
    let mut sampler = Sampler::new(VOCAB as u32);
    let mut path = vec![pick];
    let mut ranked = Vec::new();
    for i in 0..HEADS {
        let mut x = hidden.to_vec();
        for j in 0..BLOCKS {
            let inner = times(&values(&heads, &format!("{i}.{j}.linear.weight")), &x);
            let bias = values(&heads, &format!("{i}.{j}.linear.bias"));
            for ((x, inner), bias) in x.iter_mut().zip(inner).zip(bias) {
                *x += math::silu(inner + bias);
            }
        }
        let logits = times(&values(&heads, &format!("{i}.{BLOCKS}.weight")), &x);
        let mut state = SamplerState::from(sampling.clone());
        let history = History {
            text,
            path: &path,
            prompt_len: 2,
        };
        let mut out = Vec::new();
        sampler
            .guesses_after(&logits, &mut state, &history, 4, &mut out)
            .unwrap();
        path.push(out[0].token);
        ranked.push(out);
    }
    ranked
}

fn forecast(states: &[f32], embedding: &[f32]) -> Forecast {
    let tensors = classifier();
    let mut x = [states, embedding].concat();
    for i in 0..3 {
        let bias = values(&tensors, &format!("{i}.bias"));
        x = times(&values(&tensors, &format!("{i}.weight")), &x);
        for (x, bias) in x.iter_mut().zip(bias) {
            *x += bias;
            if i < 2 {
                *x = x.max(0.0);
            }
        }
    }
    let strongest = x.iter().copied().fold(f32::MIN, f32::max);
    let class = x.iter().position(|x| *x == strongest).unwrap();
    Forecast::ALL[class]
}

#[test]
fn heads_and_classifier_answer_as_the_slow_reference_does() {
    let folder = Folder::new();
    let mut engine = folder.load(folder.beside()).unwrap();
    let mut classes = std::collections::BTreeSet::new();
    for temperature in [0.0, 0.8] {
        let truth = truth(&mut engine, 30, temperature);
        let mut line = Line::new(&mut engine, temperature);
        while line.text.len() + 5 < truth.len() {
            let right = line.text.len() % 3;
            let plan = line.plan(&engine, &truth, right, EVERYTHING);
            let answers = line.step(&mut engine, &plan);
            let answer = end(&answers);
            let before = line.text.len() + right;
            let states = states(&mut engine, &truth[..before]);
            let hidden = &states[3 * HIDDEN..];
            let expected = guesses(hidden, &truth[..before], truth[before], &line.sampling);
            let found = answer.heads.as_ref().unwrap();
            assert_eq!(found.ranked, expected);
            assert!(found.share > 0.0);
            let embedding = engine.embedding(truth[before]);
            let class = forecast(&states, &embedding);
            assert_eq!(answer.forecast, Some(class));
            classes.insert(class);
            line.text = truth[..=before].to_vec();
        }
        engine.release(line.seq);
    }
    assert!(classes.len() > 1, "{classes:?} says nothing");
}

#[test]
fn what_is_not_asked_is_not_answered() {
    let folder = Folder::new();
    let mut engine = folder.load(folder.beside()).unwrap();
    let truth = truth(&mut engine, 8, 0.0);
    let mut line = Line::new(&mut engine, 0.0);
    let mut asked = |end: EndAsk| {
        let plan = line.plan(&engine, &truth, 2, end);
        let answers = line.step(&mut engine, &plan);
        engine.apply(line.seq, &CacheOp::Shorten(0)).unwrap();
        answers
    };
    let all = asked(EVERYTHING);
    let last = end(&all).clone();
    assert!(last.heads.is_some() && last.forecast.is_some());
    let rows = all.len() - 1;
    assert_eq!(asked(EndAsk::default()).len(), rows);
    let known = |place, token| EndAsk {
        known: vec![(place, token)],
        ..EVERYTHING
    };
    let answers = asked(known(last.place, last.token));
    assert_eq!(end(&answers).heads, None);
    assert_eq!(end(&answers).forecast, last.forecast);
    // Another place, or another token, is another pick.
    for (place, token) in [
        (0, last.token),
        (last.place, (last.token + 1) % VOCAB as u32),
    ] {
        assert_eq!(end(&asked(known(place, token))), &last);
    }
    // A model without them says nothing.
    let mut plain = folder.load(Beside::default()).unwrap();
    let mut line = Line::new(&mut plain, 0.0);
    let plan = line.plan(&plain, &truth, 2, EVERYTHING);
    assert_eq!(line.step(&mut plain, &plan).len(), rows);
}

#[test]
fn heads_may_share_the_models_own() {
    let folder = Folder::new();
    let mut shared = heads();
    shared.retain(|name, _| name.contains("linear"));
    let config =
        json!({"medusa_num_heads": HEADS, "medusa_num_layers": BLOCKS, "shares_lm_head": true});
    folder.heads(&config, &shared);
    let mut engine = folder.load(folder.beside()).unwrap();
    let truth = truth(&mut engine, 8, 0.0);
    let mut line = Line::new(&mut engine, 0.0);
    let plan = line.plan(&engine, &truth, 0, EVERYTHING);
    let answers = line.step(&mut engine, &plan);
    let found = end(&answers).heads.clone().unwrap().ranked;
    // The first head again, on the model's own output rows.
    let mut x = states(&mut engine, &line.text)[3 * HIDDEN..].to_vec();
    for j in 0..BLOCKS {
        let inner = times(&values(&shared, &format!("0.{j}.linear.weight")), &x);
        let bias = values(&shared, &format!("0.{j}.linear.bias"));
        for ((x, inner), bias) in x.iter_mut().zip(inner).zip(bias) {
            *x += math::silu(inner + bias);
        }
    }
    let logits: Vec<f32> = (0..VOCAB as u32)
        .flat_map(|token| times(&engine.output_row(token), &x))
        .collect();
    let history = History {
        text: &line.text,
        path: &[truth[line.text.len()]],
        prompt_len: 2,
    };
    let mut expected = Vec::new();
    Sampler::new(VOCAB as u32)
        .guesses_after(
            &logits,
            &mut SamplerState::from(line.sampling.clone()),
            &history,
            4,
            &mut expected,
        )
        .unwrap();
    assert_eq!(found[0], expected);
    assert_eq!(found.len(), HEADS);
    // Both an output of its own and the model's would be one too many.
    folder.heads(&config, &heads());
    assert!(folder.refused().to_string().contains("shares_lm_head"));
}

#[test]
fn what_does_not_fit_the_model_is_refused_with_what_is_wrong() {
    let config = json!({"medusa_num_heads": HEADS, "medusa_num_layers": BLOCKS});
    let folder = Folder::new();
    let mut narrow = heads();
    let odd = Tensor {
        shape: vec![HIDDEN, HIDDEN - 1],
        bytes: vec![0; HIDDEN * (HIDDEN - 1) * 2],
        dtype: Dtype::F16,
    };
    narrow.insert("1.0.linear.weight".to_owned(), odd);
    folder.heads(&config, &narrow);
    let error = folder.refused();
    assert!(matches!(error, LoadError::Shape { .. }), "{error}");
    assert!(error.to_string().contains("1.0.linear.weight"), "{error}");

    let mut fewer = heads();
    fewer.remove("2.2.weight");
    folder.heads(&config, &fewer);
    let error = folder.refused().to_string();
    assert!(error.contains("2.2.weight is missing"), "{error}");

    folder.heads(&json!({"medusa_num_heads": 0}), &heads());
    assert!(folder.refused().to_string().contains("0 heads"));

    let dir = folder.0.path().join("heads");
    std::fs::remove_file(dir.join("medusa_lm_head.safetensors")).unwrap();
    assert!(
        folder
            .refused()
            .to_string()
            .contains("no folder of Medusa heads")
    );
    std::fs::write(dir.join("medusa_lm_head.pt"), "pickle").unwrap();
    assert!(folder.refused().to_string().contains("pickle"));

    let folder = Folder::new();
    folder.classifier(&json!({"hrad_layers": 5}), &classifier());
    assert!(folder.refused().to_string().contains("reads 5 layers"));
    let mut wide = classifier();
    let two = wide["2.weight"].clone();
    wide.insert("1.weight".to_owned(), two);
    folder.classifier(&json!({"hrad_layers": 4}), &wide);
    let error = folder.refused();
    assert!(matches!(error, LoadError::Shape { .. }), "{error}");
}
