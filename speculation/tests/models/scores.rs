//! A target that scores: whatever its rows, reports and acknowledgements, every token's score arrives once and is that
//! of the token.

use std::collections::VecDeque;
use std::time::Duration;

use decode::{Answer, Ask, PromptScoring, Score, Scoring};
use proptest::prelude::*;
use speculation::Time;
use speculation::duty::{Duties, Duty};
use speculation::limits::{MAX_PROMPT_SCORES, MAX_SCORED_LOGITS};
use speculation::message::{Finish, NodeBatch, Prob16, ReplicaUpdate, Report, SessionSpec};
use speculation::session::Capacity;

use crate::rig::{AMPLE, Next, VOCAB, Worker, next, score, spec as plain_spec};

#[derive(Clone, Debug)]
struct Case {
    prompt_len: usize,
    /// Tokens committed before the session was opened here.
    replayed: usize,
    new_tokens: usize,
    scoring: Scoring,
    rooms: Vec<usize>,
    actions: Vec<u8>,
}

fn cases() -> impl Strategy<Value = Case> {
    let scoring = (
        prop::option::of(0_u8..4),
        prop::option::of((0_u8..4, 0.0..1.0)),
    );
    (
        prop_oneof![1_usize..12, 250_usize..700],
        0_usize..4,
        1_usize..30,
        scoring,
        prop::collection::vec(1_usize..300, 1..20),
        prop::collection::vec(0_u8..6, 10..80),
    )
        .prop_map(
            |(prompt_len, replayed, new_tokens, (picks, prompt), rooms, actions)| Case {
                prompt_len,
                replayed,
                new_tokens,
                scoring: Scoring {
                    picks,
                    prompt: prompt.map(|(top, share): (u8, f64)| PromptScoring {
                        top,
                        first: 1 + (share * prompt_len as f64) as u32,
                    }),
                    ..Scoring::default()
                },
                rooms,
                actions,
            },
        )
}

fn spec(case: &Case) -> SessionSpec {
    let mut text: Vec<u32> = (0..case.prompt_len as u32)
        .map(|at| at * at % VOCAB)
        .collect();
    for _ in 0..case.replayed {
        text.push(next(&text));
    }
    let mut spec = plain_spec(&text);
    spec.stopping.prompt_len = case.prompt_len as u32;
    spec.stopping.max_len = (text.len() + case.new_tokens) as u32;
    spec.scoring = case.scoring;
    spec
}

/// The coordinator: what has arrived.
struct Known {
    text: Vec<u32>,
    picks: Vec<Score>,
    prompt_first: usize,
    prompt: Vec<Score>,
    finish: Option<Finish>,
    next_id: u32,
}

impl Known {
    fn take(&mut self, report: &Report, scoring: Scoring) {
        let base = report.base_len as usize;
        let old = self.text.len() - base;
        self.text.extend(report.picks.iter().skip(old));
        match &report.scores {
            None => assert_eq!(scoring.picks, None),
            Some(scores) => {
                assert_eq!(
                    (scores.len(), Some(scores.top_n)),
                    (report.picks.len(), scoring.picks)
                );
                self.picks
                    .extend((old..scores.len()).map(|at| scores.get(at).unwrap()));
            }
        }
        if let Some(part) = &report.prompt_scores {
            assert!((1..=MAX_PROMPT_SCORES).contains(&part.scores.len()));
            let have = self.prompt_first + self.prompt.len();
            let old = have - part.first as usize;
            let fresh = old..part.scores.len().max(old);
            self.prompt
                .extend(fresh.map(|at| part.scores.get(at).unwrap()));
        }
        self.finish = report.finish.or(self.finish);
    }

    /// Acknowledges everything, and guesses the truth with a wrong turn now and then.
    fn update(&mut self, told: &mut usize, wrong: u32) -> ReplicaUpdate {
        let mut nodes = NodeBatch {
            first_id: self.next_id,
            ..NodeBatch::default()
        };
        let mut past = self.text.clone();
        for depth in 0..4_u32 {
            let token = (next(&past) + u32::from(depth == wrong)) % VOCAB;
            nodes.parents.push(if depth == 0 {
                0
            } else {
                self.next_id + depth - 1
            });
            nodes.tokens.push(token);
            nodes.edges.push(Prob16(50_000));
            nodes.owners.push(0);
            past.push(token);
        }
        self.next_id += 4;
        let update = ReplicaUpdate {
            base_len: *told as u32,
            commit: self.text[*told..].to_vec(),
            nodes,
            prompt_scored: (self.prompt_first + self.prompt.len()) as u32,
            ..ReplicaUpdate::default()
        };
        *told = self.text.len();
        update
    }
}

fn play(case: &Case) {
    let spec = spec(case);
    let mut target = Worker::new(&spec, AMPLE);
    let mut known = Known {
        text: spec.text.clone(),
        picks: Vec::new(),
        prompt_first: case
            .scoring
            .prompt
            .map_or(0, |prompt| prompt.first as usize),
        prompt: Vec::new(),
        finish: None,
        next_id: 1,
    };
    let prompt_scores = match case.scoring.prompt {
        Some(prompt) => case.prompt_len - (prompt.first as usize).min(case.prompt_len),
        None => 0,
    };
    let mut told = spec.text.len();
    let mut under_way: VecDeque<Report> = VecDeque::new();
    let mut sent: Vec<Report> = Vec::new();
    let mut rooms = case.rooms.iter().cycle();
    let mut actions = case.actions.iter().copied();
    let mut now = Time::from_millis(1);
    for turn in 0.. {
        assert!(turn < 4000, "no end");
        now += Duration::from_micros(100);
        if known.finish.is_some() && known.prompt.len() == prompt_scores {
            break;
        }
        // When the schedule is used up, each party acts in turn.
        match actions.next().unwrap_or(turn as u8 % 4) {
            0 => {
                target.step(now, *rooms.next().unwrap());
            }
            1 => under_way.extend(target.report()),
            2 => {
                if let Some(report) = under_way.pop_front() {
                    known.take(&report, case.scoring);
                    sent.push(report);
                }
            }
            3 => {
                let update = known.update(&mut told, turn as u32 % 6);
                target.update(now, &update);
            }
            // What was sent before changes nothing.
            _ => {
                if let Some(report) = sent.last().cloned() {
                    known.take(&report, case.scoring);
                }
            }
        }
    }
    assert_eq!(known.text.len(), spec.stopping.max_len as usize);
    let from = spec.text.len();
    if let Some(top) = case.scoring.picks {
        let want: Vec<Score> = (from..known.text.len())
            .map(|at| score(&known.text[..at], known.text[at], top))
            .collect();
        assert_eq!(known.picks, want);
    }
    if let Some(prompt) = case.scoring.prompt {
        let want: Vec<Score> = (prompt.first as usize..case.prompt_len)
            .map(|at| score(&known.text[..at], known.text[at], prompt.top))
            .collect();
        assert_eq!(known.prompt, want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_score_arrives_and_is_that_of_its_token(case in cases()) {
        play(&case);
    }
}

#[test]
fn prompt_rows_with_logits_are_bounded_by_memory() {
    let vocab = (MAX_SCORED_LOGITS / 3) as u32;
    let case = Case {
        prompt_len: 40,
        replayed: 0,
        new_tokens: 1,
        scoring: Scoring {
            prompt: Some(PromptScoring { top: 0, first: 11 }),
            ..Scoring::default()
        },
        rooms: Vec::new(),
        actions: Vec::new(),
    };
    let capacity = Capacity { vocab, ..AMPLE };
    let mut target = Worker::new(&spec(&case), capacity);
    let mut plans = Vec::new();
    while let Next::Step(plan) = target.step(Time::ZERO, 256) {
        plans.push((plan.append.len(), kinds(&plan.asks)));
    }
    // Positions 11 to 39 are scored by rows 10 to 38, three at a time.
    let mut want = vec![(10, "")];
    want.extend([(3, "scores"); 9]);
    want.extend([(2, "scores"), (1, "pick")]);
    assert_eq!(plans, want);
}

/// What the appended tokens of a plan are asked for.
fn kinds(asks: &[Ask]) -> &'static str {
    match asks {
        [] => "",
        [Ask::Pick { .. }] => "pick",
        scores if (scores.iter()).all(|ask| matches!(ask, Ask::Score { .. })) => "scores",
        other => panic!("{other:?}"),
    }
}

fn prompt_from_1(top: u8, prompt_len: usize) -> Case {
    Case {
        prompt_len,
        replayed: 0,
        new_tokens: 3,
        scoring: Scoring {
            prompt: Some(PromptScoring { top, first: 1 }),
            ..Scoring::default()
        },
        rooms: Vec::new(),
        actions: Vec::new(),
    }
}

#[test]
fn a_prompt_that_gives_no_number_ends_its_session() {
    let mut target = Worker::new(&spec(&prompt_from_1(0, 9)), AMPLE);
    let Next::Step(plan) = target.poll(Time::ZERO, 64) else {
        panic!("the prompt is to be computed");
    };
    let mut answers = target.answers(&plan);
    answers[2] = Answer::NotFinite;
    target.finish(Time::ZERO, &plan, &answers);
    assert_eq!(target.poll(Time::ZERO, 64), Next::Done);
    let report = target.report().unwrap();
    assert_eq!(report.finish, Some(Finish::NotFinite));
    assert_eq!(report.prompt_scores.unwrap().scores.len(), 2);
}

#[test]
fn every_token_of_a_prompt_is_asked_for_the_score_of_the_one_behind_it() {
    let spec = spec(&prompt_from_1(2, 6));
    let mut target = Worker::new(&spec, AMPLE);
    let plan = target.plan(Time::ZERO);
    let want: Vec<Ask> = (spec.text[1..].iter())
        .map(|&token| Ask::Score { token, top: 2 })
        .collect();
    assert_eq!((plan.append.as_slice(), plan.asks), (&spec.text[..5], want));
}

#[test]
fn advice_is_not_scored() {
    let case = prompt_from_1(2, 4);
    let mut spec = spec(&case);
    spec.scoring.picks = Some(2);
    spec.duties = Duties::of(Duty::Advise);
    let mut qualifier = Worker::new(&spec, AMPLE);
    let plan = qualifier.plan(Time::ZERO);
    assert_eq!(plan.append.len(), 4);
    assert_eq!(plan.asks, [Ask::Pick { score: None }]);
    let answers = qualifier.answers(&plan);
    qualifier.finish(Time::ZERO, &plan, &answers);
    let report = qualifier.report().unwrap();
    assert_eq!((report.picks.len(), report.scores), (1, None));
}
