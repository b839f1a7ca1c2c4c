//! What one seed stands for: a cluster, its clients, and everything that goes wrong.

use decode::{Basis, PromptScoring, Scoring};
use speculation::Time;
use speculation::bypass::Plan;
use speculation::duty::Role;
use speculation::limits::CLIENT_CREDIT;
use speculation::message::{Finish, Stopping};
use speculation::strategy::{DEFAULT, Entry, Range, Registry, Settings};

use crate::reference::{Dice, Language, VOCAB};

/// How long a stream may be silent before an end of it gives it up.
pub(crate) const KEEPALIVE: Time = Time::from_secs(20);

/// Positions that every text fits in.
pub(crate) const CONTEXT: u32 = 60;

/// Numerics that targets may have: texts of one are not continued with another.
pub(crate) const NUMERICS: [&str; 2] = ["a", "b"];

/// Names one of [`NUMERICS`].
pub(crate) type Numerics = usize;

/// How fast the network is, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delays {
    pub(crate) base_us: u64,
    pub(crate) jitter_us: u64,
    /// What calls beside the streams, and their answers, take longer, at most.
    pub(crate) calls_us: u64,
}

/// A worker process, the same one in all its lives.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPlan {
    pub(crate) role: Role,
    pub(crate) numerics: Numerics,
    /// Duration of a step, and what each row adds, microseconds.
    pub(crate) step_us: u64,
    pub(crate) row_us: u64,
    /// No step takes less, microseconds.
    pub(crate) pace_us: u64,
    /// Rows of a step, all sessions together.
    pub(crate) max_rows: usize,
    /// How many times as long as without prompts a step may last for their sake.
    pub(crate) prompt_stretch: f64,
    /// How it is found out whether guesses pay.
    pub(crate) bypass: Plan,
    /// Tree rows of one session.
    pub(crate) tree_rows: u16,
    pub(crate) max_context: u32,
    /// What it computes on, if others may compute there too.
    pub(crate) device: Option<u8>,
    pub(crate) max_sessions: usize,
    pub(crate) pages: u32,
    pub(crate) page: u32,
    pub(crate) agreement: u32,
    pub(crate) salt: u64,
    /// How many picks that no walk can reach it skips, percent.
    pub(crate) skips: u32,
    /// How long its writer takes to look at the slots, at most, microseconds.
    pub(crate) writer_us: u64,
}

/// A text that a client may get, by the numerics of its target.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    pub(crate) language: Language,
    pub(crate) text: Vec<u32>,
    pub(crate) finish: Finish,
}

/// What a client asks for, and what it has to get.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    /// As far as the context of its target allows.
    pub(crate) stopping: Stopping,
    /// Positions that its coordinator reserves for it at first.
    pub(crate) expected: u32,
    pub(crate) scoring: Scoring,
    pub(crate) strategy: Settings,
    pub(crate) drafts: usize,
    pub(crate) qualifiers: usize,
    /// Lower goes first.
    pub(crate) priority: i32,
    /// Whose it is: those of one client share its turns.
    pub(crate) identity: u64,
    /// By numerics.
    pub(crate) plain: Vec<Plain>,
    /// With so many tokens the coordinator finds that the client has all it wants, as it does with a stop text.
    pub(crate) satisfied_with: Option<usize>,
    pub(crate) begins: Time,
    /// How long the client takes for a message, at most, microseconds.
    pub(crate) reads_us: u64,
    /// When it hangs up; it comes back and asks for the rest.
    pub(crate) leaves: Vec<Time>,
    /// It hangs up when it has so many tokens, and asks for the rest, of which there may be none.
    pub(crate) leaves_with: Option<usize>,
    /// When it hangs up and does not come back.
    pub(crate) quits: Option<Time>,
}

impl Request {
    /// When the text ends on a target with this context.
    pub(crate) fn stopping_within(&self, context: u32) -> Stopping {
        let is_short = context < self.stopping.max_len;
        Stopping {
            max_len: self.stopping.max_len.min(context),
            max_len_is_context: self.stopping.max_len_is_context || is_short,
            ..self.stopping.clone()
        }
    }
}

/// Something goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A process is killed and started again later.
    WorkerCrash {
        worker: usize,
        down: Time,
    },
    CoordinatorCrash {
        coordinator: usize,
        down: Time,
    },
    /// A process stands still and then goes on with what it had.
    Hang {
        worker: usize,
        lasts: Time,
    },
    /// Steps take several times as long.
    Lag {
        worker: usize,
        lasts: Time,
        times: u32,
    },
    /// A worker takes no new sessions, ends when it has none, and is started again.
    Drain {
        worker: usize,
        down: Time,
    },
    /// A worker cannot serve one of its sessions any more, and says so.
    GiveUp {
        worker: usize,
    },
    /// A stream breaks; each end learns of it after its own time.
    Break {
        coordinator: usize,
        worker: usize,
        notice: [Time; 2],
    },
    /// Nothing passes, in one direction or both.
    Block {
        coordinator: usize,
        worker: usize,
        ways: [bool; 2],
        lasts: Time,
    },
    /// A coordinator's sources list a worker no more, and then again.
    Leave {
        coordinator: usize,
        worker: usize,
        lasts: Time,
    },
    /// Messages of an older term come again, in both directions.
    Echo {
        coordinator: usize,
        worker: usize,
    },
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) coordinators: usize,
    pub(crate) workers: Vec<WorkerPlan>,
    pub(crate) requests: Vec<Request>,
    pub(crate) delays: Delays,
    pub(crate) faults: Vec<(Time, Fault)>,
    /// Requests that a coordinator runs at one time, and how many more may wait.
    pub(crate) max_running: usize,
    pub(crate) max_queued: usize,
    /// How long a session waits for another target.
    pub(crate) failover_wait: Time,
    /// Tokens that a text may be ahead of its client, and how long workers are kept for one that takes nothing.
    pub(crate) credit: u32,
    pub(crate) park_after: Time,
    /// How long a request's task may take to be scheduled, microseconds.
    pub(crate) task_us: u64,
    /// What a session's inbox holds.
    pub(crate) inbox: usize,
}

fn millis(dice: &mut Dice, most: usize) -> Time {
    Time::from_micros(dice.roll() % (most as u64 * 1000 + 1))
}

impl Scenario {
    /// The scenario of a seed; also gives the dice for everything that is left open.
    pub(crate) fn new(seed: u64, registry: &Registry) -> (Self, Dice) {
        let mut dice = Dice::new(seed);
        let dice_ref = &mut dice;
        let coordinators = 1 + usize::from(dice_ref.percent(35));
        let workers = workers(dice_ref);
        let span = dice_ref.pick([200, 600, 1500, 4000]);
        let [drafts, qualifiers] = [Role::Draft, Role::Qualifier]
            .map(|role| workers.iter().filter(|worker| worker.role == role).count());
        // Several at one moment now and then, so that they have to wait for each other.
        let is_crowd = dice_ref.percent(30);
        let count = if is_crowd {
            3 + dice_ref.below(6)
        } else {
            1 + dice_ref.below(3)
        };
        let begins = if is_crowd { span / 20 } else { span / 4 };
        let mut requests: Vec<Request> = (0..count)
            .map(|_| request(dice_ref, registry, span, begins, [drafts, qualifiers]))
            .collect();
        let (credit, park_after) = slow_clients(seed, &mut requests);
        let count = dice_ref.pick([0, 1, 2, 3, 5, 8]);
        let mut faults: Vec<(Time, Fault)> = Vec::new();
        for _ in 0..count {
            // Trouble likes company: often just behind other trouble.
            let at = match faults.last() {
                Some(&(at, _)) if dice_ref.percent(40) => at + millis(dice_ref, 30),
                _ => millis(dice_ref, span),
            };
            let fault = fault(dice_ref, coordinators, workers.len());
            faults.push((at, fault));
        }
        faults.extend(leaves(seed, span, [coordinators, workers.len()]));
        let scenario = Scenario {
            coordinators,
            workers,
            requests,
            delays: Delays {
                base_us: dice_ref.pick([20, 200, 2000]),
                jitter_us: dice_ref.pick([0, 100, 1000, 10_000]),
                calls_us: dice_ref.pick([0, 0, 10_000, 100_000]),
            },
            faults,
            max_running: dice_ref.pick([1, 2, 4, 16, 16]),
            max_queued: dice_ref.pick([0, 1, 4, 16]),
            failover_wait: dice_ref.pick([Time::from_secs(1), Time::from_secs(10)]),
            credit,
            park_after,
            task_us: dice_ref.pick([20, 500, 8000, 60_000]),
            inbox: [4, 256][usize::from(dice_ref.percent(85))],
        };
        (scenario, dice)
    }
}

fn workers(dice: &mut Dice) -> Vec<WorkerPlan> {
    let targets = dice.pick([1, 1, 2, 3]);
    let drafts = dice.pick([0, 1, 1, 2, 3]);
    let qualifiers = dice.pick([0, 0, 1, 2]);
    let is_mixed = dice.percent(25);
    let roles = std::iter::repeat_n(Role::Target, targets)
        .chain(std::iter::repeat_n(Role::Draft, drafts))
        .chain(std::iter::repeat_n(Role::Qualifier, qualifiers));
    let mut has_long = [false; NUMERICS.len()];
    roles
        .map(|role| {
            let paced = match role {
                Role::Target => 20_000,
                Role::Qualifier => 7_000,
                Role::Draft => 2_000,
            };
            let page = dice.pick([4, 16]);
            let numerics = match role {
                Role::Target if is_mixed => dice.below(NUMERICS.len()),
                Role::Target | Role::Draft | Role::Qualifier => 0,
            };
            // The first target of its numerics holds every text, so that every client can be served.
            let is_long = match role {
                Role::Target => !std::mem::replace(&mut has_long[numerics], true),
                Role::Draft | Role::Qualifier => false,
            };
            let max_context = match is_long || dice.percent(75) {
                true => CONTEXT,
                false => 16 + dice.below(CONTEXT as usize - 16) as u32,
            };
            WorkerPlan {
                role,
                numerics,
                step_us: paced / 4 + dice.roll() % paced,
                row_us: dice.pick([0, 0, 100, 1000]),
                pace_us: if dice.percent(20) { paced } else { 0 },
                max_rows: dice.pick([4, 12, 64]),
                prompt_stretch: dice.pick([1.0, 2.0, 100.0]),
                bypass: bypass(dice),
                tree_rows: dice.pick([2, 8, 40]),
                max_context,
                device: dice.pick([None, Some(0), Some(1)]),
                max_sessions: dice.pick([1, 2, 8]),
                // Room for the longest text, and sometimes for little more.
                pages: CONTEXT.div_ceil(page) + dice.below(100) as u32 / page,
                page,
                agreement: dice.below(101) as u32,
                salt: dice.roll(),
                skips: dice.pick([0, 50, 100]),
                writer_us: dice.pick([50, 500, 20_000]),
            }
        })
        .collect()
}

/// Texts are short here, so that a target makes up its mind after a few steps and changes it often.
fn bypass(dice: &mut Dice) -> Plan {
    match dice.percent(30) {
        true => Plan::default(),
        false => Plan {
            settle: dice.below(2) as u32,
            trial_time: Time::ZERO,
            trial: 1 + dice.below(3) as u32,
            first: 1 + dice.below(4) as u32,
            pause: Time::from_millis(dice.pick([0, 10, 100])),
            slowed_by: dice.pick([0.5, 2.0, 1e9]),
        },
    }
}

/// A strategy of the registry, with its knobs anywhere in their ranges, but small. The default is drawn as often as two
/// others.
fn strategy(dice: &mut Dice, registry: &Registry) -> Settings {
    let entries = registry.entries();
    let default = entries.iter().find(|entry| entry.name == DEFAULT);
    let entry: &Entry = match (entries.get(dice.below(entries.len() + 1)), default) {
        (Some(entry), _) | (None, Some(entry)) => entry,
        (None, None) => panic!("a registry has the default strategy"),
    };
    entry
        .knobs
        .iter()
        .fold(Settings::new(entry.name), |settings, knob| {
            if dice.percent(10) {
                return settings;
            }
            let value = match knob.range {
                Range::Whole(least, most) => {
                    let span = usize::from(most - least).min(dice.pick([2, 6, 15]));
                    f64::from(least) + dice.below(span + 1) as f64
                }
                Range::Real(least, most) => {
                    least + (most - least) * (dice.below(101) as f64 / 100.0)
                }
            };
            settings.with(knob.name, value)
        })
}

fn request(
    dice: &mut Dice,
    registry: &Registry,
    span: usize,
    begins: usize,
    [drafts, qualifiers]: [usize; 2],
) -> Request {
    let prompt: Vec<u32> = (0..1 + dice.below(16))
        .map(|_| dice.roll() as u32 % VOCAB)
        .collect();
    let stopping = Stopping {
        prompt_len: prompt.len() as u32,
        max_len: (prompt.len() + 1 + dice.below(40)) as u32,
        max_len_is_context: dice.percent(30),
        stop_ids: if dice.percent(25) {
            vec![2]
        } else {
            Vec::new()
        },
    };
    let most = stopping.max_len;
    let expected = match dice.percent(50) {
        true => most,
        false => most.min(prompt.len() as u32 + dice.below(40) as u32),
    };
    let breaks_at = (dice.percent(4)).then(|| prompt.len() + dice.below(20));
    let plain: Vec<Plain> = (NUMERICS.iter())
        .map(|_| {
            let seed = dice.roll();
            let language = Language { seed, breaks_at };
            let (text, finish) = language.plain(&prompt, &stopping);
            Plain {
                language,
                text,
                finish,
            }
        })
        .collect();
    let prompt_scores = dice.percent(15) && prompt.len() > 1;
    let scoring = Scoring {
        picks: dice.percent(25).then(|| dice.below(3) as u8),
        basis: Basis::Raw,
        prompt: prompt_scores.then(|| PromptScoring {
            top: dice.below(3) as u8,
            first: 1,
        }),
    };
    let leaves = (0..dice.pick([0, 0, 0, 1, 2]))
        .map(|_| millis(dice, span))
        .collect();
    let len = plain[0].text.len();
    let leaves_with = match dice.below(10) {
        0 => Some(len),
        1 => Some(1 + dice.below(len)),
        _ => None,
    };
    let satisfied_with =
        (dice.percent(10)).then(|| prompt.len() + 1 + dice.below(len + 1 - prompt.len()));
    Request {
        stopping,
        expected,
        scoring,
        strategy: strategy(dice, registry),
        drafts: dice
            .below(drafts + 1)
            .max(usize::from(drafts > 0 && dice.percent(80))),
        qualifiers: dice.below(qualifiers + 1),
        priority: dice.pick([-1, 0, 0, 0, 2]),
        identity: 0,
        plain,
        satisfied_with,
        begins: millis(dice, begins),
        reads_us: dice.pick([0, 0, 2_000, 60_000]),
        leaves,
        leaves_with,
        quits: dice.percent(10).then(|| millis(dice, span)),
        prompt,
    }
}

/// Whose requests they are and, in a third of the schedules, clients so slow that their sessions are parked. They have dice
/// of their own. Gives the credit of a client, and how long workers are kept for one that takes nothing.
fn slow_clients(seed: u64, requests: &mut [Request]) -> (u32, Time) {
    let mut dice = Dice::new(seed ^ 0x7061_726b);
    let identities = dice.pick([1, 2, u64::MAX, u64::MAX]);
    let is_slow = dice.percent(35);
    for (number, request) in (0..).zip(requests) {
        request.identity = number % identities;
        if is_slow && dice.percent(60) {
            request.reads_us = dice.pick([20_000, 200_000, 1_500_000]);
        }
    }
    if !is_slow {
        // Texts are short here: with little credit they are longer than it, as real ones are.
        return (dice.pick([4, 16, CLIENT_CREDIT]), Time::from_secs(5));
    }
    let park_after = dice.pick([0, 3, 30, 300]);
    (dice.pick([4, 8, 20]), Time::from_millis(park_after))
}

/// Workers that leave and come back, in a third of the schedules. They have dice of their own: everything else is as it
/// would be without them.
fn leaves(
    seed: u64,
    span: usize,
    [coordinators, workers]: [usize; 2],
) -> impl Iterator<Item = (Time, Fault)> {
    let mut dice = Dice::new(seed ^ 0x6c65_6176_6573);
    let count = if dice.percent(35) {
        1 + dice.below(4)
    } else {
        0
    };
    (0..count).map(move |_| {
        // Some are not there at the start.
        let at = if dice.percent(25) {
            Time::ZERO
        } else {
            millis(&mut dice, span)
        };
        let most = dice.pick([3, 60, 600, 4000]);
        let leave = Fault::Leave {
            coordinator: dice.below(coordinators),
            worker: dice.below(workers),
            lasts: millis(&mut dice, most),
        };
        (at, leave)
    })
}

fn fault(dice: &mut Dice, coordinators: usize, workers: usize) -> Fault {
    let (coordinator, worker) = (dice.below(coordinators), dice.below(workers));
    // A lease, the patience of a session and the silence of a stream have their own lengths: be around each.
    let mut time = || match dice.below(6) {
        0 => millis(dice, 3),
        1 => millis(dice, 60),
        2 => millis(dice, 600),
        3 => millis(dice, 4000),
        4 => Time::from_millis(1900) + millis(dice, 200),
        _ => millis(dice, 30_000),
    };
    let (first, second) = (time(), time());
    match dice.below(17) {
        0..3 => Fault::WorkerCrash {
            worker,
            down: first,
        },
        3 => Fault::CoordinatorCrash {
            coordinator,
            down: first,
        },
        4..6 => Fault::Hang {
            worker,
            lasts: first,
        },
        6 => Fault::Lag {
            worker,
            lasts: first,
            times: 2 + dice.below(20) as u32,
        },
        7 => Fault::Drain {
            worker,
            down: first,
        },
        8..12 => {
            let quick = millis(dice, 2);
            Fault::Break {
                coordinator,
                worker,
                notice: dice
                    .pick([
                        [quick, first],
                        [first, quick],
                        [quick, quick],
                        [first, second],
                    ])
                    .map(|time| time.min(KEEPALIVE)),
            }
        }
        12..14 => Fault::Block {
            coordinator,
            worker,
            ways: dice.pick([[true, true], [true, false], [false, true]]),
            lasts: first,
        },
        14 => Fault::GiveUp { worker },
        _ => Fault::Echo {
            coordinator,
            worker,
        },
    }
}
