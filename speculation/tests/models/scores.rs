//! A target that scores: whatever its rows, reports and acknowledgements, every token's score arrives once and is that
//! of the token.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use speculation::Time;
use speculation::cost::CostModel;
use speculation::limits::{MAX_PROMPT_SCORES, MAX_SCORED_LOGITS};
use speculation::message::{
    Activity, Finish, NodeBatch, Prob16, PromptScoring, ReplicaUpdate, Score, Scoring, SessionId,
    SessionSpec, Stopping, Task, Term, VerifyReport,
};
use speculation::policy::{AdvicePolicy, Launch, VerifyPolicy};
use speculation::replica::{Poll, RowAt, StepPlan, TailLogits};
use speculation::verify::{NotFinite, VerifySession};
use speculation::walk::Picked;

const VOCAB: u32 = 5;

fn hash(tokens: &[u32]) -> u64 {
    tokens.iter().fold(7, |hash, &token| {
        (hash ^ u64::from(token))
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(23)
    })
}

/// What the model says behind `past`.
fn next(past: &[u32]) -> u32 {
    (hash(past) >> 9) as u32 % VOCAB
}

fn score(past: &[u32], token: u32, top: u8) -> Score {
    let hash = hash(past) ^ u64::from(token);
    Score {
        logprob: -((hash % 512) as f32) / 16.0,
        rank: 1 + (hash % 5) as u32,
        top: (0..u32::from(top))
            .map(|id| (id, -(id as f32) - past.len() as f32))
            .collect(),
    }
}

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
    SessionSpec {
        session: SessionId(1),
        term: Term(1),
        stopping: Stopping {
            prompt_len: case.prompt_len as u32,
            max_len: (text.len() + case.new_tokens) as u32,
            ..Stopping::default()
        },
        text,
        allowed_len: 10_000,
        scoring: case.scoring,
        task: Task::Commit(VerifyPolicy {
            launch: Launch::AtOnce,
            rows: 6,
            min_path: 0.0,
        }),
    }
}

/// The worker: a session and a model, and a cache that is only a length.
struct Target {
    session: VerifySession,
    cached: usize,
}

impl Target {
    fn step(&mut self, now: Time, room: usize) -> bool {
        let cost = CostModel::new(Duration::ZERO);
        let Poll::Step(plan) = self.session.poll_step(now, &cost, room) else {
            return false;
        };
        assert!(plan.rows() <= room);
        for op in self.session.poll_cache_ops() {
            assert!(
                !format!("{op:?}").contains("Shorten"),
                "nothing is computed twice"
            );
        }
        let text = self.session.text().to_vec();
        self.cached = text.len().min(self.cached);
        let first = self.appended_at(&plan, &text);
        if plan.tail == TailLogits::All {
            let top = self.session.scoring().prompt.unwrap().top;
            self.session.handle_scored(&plan, |at, token| {
                let RowAt::Appended(at) = at else {
                    unreachable!("a scored row is an appended one")
                };
                assert_eq!(token, text[first + at + 1]);
                Ok(score(&text[..=first + at], token, top))
            });
        } else {
            let asked = self.session.scoring().picks;
            let took = Duration::from_millis(1);
            self.session.handle_step(now, &plan, took, |_, history| {
                let past = [history.text, history.path].concat();
                let token = next(&past);
                Ok(Picked {
                    token,
                    margin: 0.0,
                    score: asked.map(|top| score(&past, token, top)),
                })
            });
        }
        true
    }

    /// Where the plan's appended tokens stand in the text.
    fn appended_at(&mut self, plan: &StepPlan, text: &[u32]) -> usize {
        let first = match plan.tail {
            TailLogits::Keep => text.len() - plan.append.len(),
            TailLogits::Skip | TailLogits::All => self.cached,
        };
        assert_eq!(text[first..first + plan.append.len()], plan.append);
        self.cached = first + plan.append.len();
        first
    }
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
    fn take(&mut self, report: &VerifyReport, scoring: Scoring) {
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
    let mut target = Target {
        session: VerifySession::new(Time::ZERO, &spec, VOCAB, 0).unwrap(),
        cached: 0,
    };
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
    let mut under_way: VecDeque<VerifyReport> = VecDeque::new();
    let mut sent: Vec<VerifyReport> = Vec::new();
    let mut rooms = case.rooms.iter().cycle();
    let mut actions = case.actions.iter().copied();
    let mut now = Time::from_millis(1);
    for turn in 0.. {
        assert!(turn < 4000, "no end");
        now += Duration::from_micros(100);
        if known.finish.is_some() && known.prompt.len() == prompt_scores {
            break;
        }
        // When the schedule is used up, everybody acts in turn.
        match actions.next().unwrap_or(turn as u8 % 4) {
            0 => {
                target.step(now, *rooms.next().unwrap());
            }
            1 => under_way.extend(target.session.poll_report(Activity::default())),
            2 => {
                if let Some(report) = under_way.pop_front() {
                    known.take(&report, case.scoring);
                    sent.push(report);
                }
            }
            3 => {
                let update = known.update(&mut told, turn as u32 % 6);
                target.session.handle_update(now, &update).unwrap();
            }
            // What has been said before changes nothing.
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
    let mut session = VerifySession::new(Time::ZERO, &spec(&case), vocab, 0).unwrap();
    let mut plans = Vec::new();
    while let Poll::Step(plan) = session.poll_step(Time::ZERO, &CostModel::new(Time::ZERO), 256) {
        plans.push((plan.append.len(), plan.tail));
        if plan.tail == TailLogits::All {
            session.handle_scored(&plan, |_, token| Ok(score(&[], token, 0)));
        } else {
            session.handle_step(Time::ZERO, &plan, Time::ZERO, |_, history| {
                assert_eq!(history.position(), 40);
                Ok(Picked {
                    token: 0,
                    margin: 0.0,
                    score: None,
                })
            });
        }
    }
    // Positions 11 to 39 are scored by rows 10 to 38, three at a time.
    let mut want = vec![(10, TailLogits::Skip)];
    want.extend([(3, TailLogits::All); 9]);
    want.extend([(2, TailLogits::All), (1, TailLogits::Keep)]);
    assert_eq!(plans, want);
}

#[test]
fn a_prompt_that_gives_no_number_ends_its_session() {
    let case = Case {
        prompt_len: 9,
        replayed: 0,
        new_tokens: 3,
        scoring: Scoring {
            prompt: Some(PromptScoring { top: 0, first: 1 }),
            ..Scoring::default()
        },
        rooms: Vec::new(),
        actions: Vec::new(),
    };
    let cost = CostModel::new(Time::ZERO);
    let mut session = VerifySession::new(Time::ZERO, &spec(&case), VOCAB, 0).unwrap();
    let Poll::Step(plan) = session.poll_step(Time::ZERO, &cost, 64) else {
        panic!("the prompt is to be computed");
    };
    session.handle_scored(&plan, |at, token| match at {
        RowAt::Appended(2) => Err(NotFinite),
        _ => Ok(score(&[], token, 0)),
    });
    assert_eq!(session.poll_step(Time::ZERO, &cost, 64), Poll::Done);
    let report = session.poll_report(Activity::default()).unwrap();
    assert_eq!(report.finish, Some(Finish::NotFinite));
    assert_eq!(report.prompt_scores.unwrap().scores.len(), 2);
}

#[test]
fn advice_is_not_scored() {
    let case = Case {
        prompt_len: 4,
        replayed: 0,
        new_tokens: 3,
        scoring: Scoring {
            picks: Some(2),
            prompt: Some(PromptScoring { top: 2, first: 1 }),
            ..Scoring::default()
        },
        rooms: Vec::new(),
        actions: Vec::new(),
    };
    let mut spec = spec(&case);
    let Task::Commit(policy) = spec.task else {
        unreachable!("as built above")
    };
    spec.task = Task::Advise(
        policy,
        AdvicePolicy {
            ahead: 2,
            bare_share: 1.0,
        },
    );
    let mut session = VerifySession::new(Time::ZERO, &spec, VOCAB, 0).unwrap();
    assert_eq!(session.scoring(), Scoring::default());
    let cost = CostModel::new(Time::ZERO);
    let Poll::Step(plan) = session.poll_step(Time::ZERO, &cost, 64) else {
        panic!("the prompt is to be computed");
    };
    assert_eq!((plan.append.len(), plan.tail), (4, TailLogits::Keep));
}
