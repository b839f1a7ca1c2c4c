//! What one seed stands for: a cluster, its clients, and everything that goes wrong.

use speculation::Time;
use speculation::message::{Basis, Finish, PromptScoring, Scoring, Stopping};
use speculation::policy::{AutoKnobs, Strategy};
use speculation::relay::Role;

use crate::air::Delays;
use crate::reference::{Dice, Language, VOCAB};

/// How long a stream may be silent before an end of it gives it up.
pub(crate) const KEEPALIVE: Time = Time::from_secs(20);

/// A worker process, the same one in all its lives.
#[derive(Clone, Debug)]
pub(crate) struct WorkerPlan {
    pub(crate) role: Role,
    /// Duration of a step, and what each row adds, microseconds.
    pub(crate) step_us: u64,
    pub(crate) row_us: u64,
    /// Rows of a step, all sessions together.
    pub(crate) max_rows: usize,
    /// Tree rows of one session.
    pub(crate) scratch_rows: u16,
    pub(crate) max_sessions: usize,
    pub(crate) pages: u32,
    pub(crate) page: u32,
    pub(crate) agreement: u32,
    pub(crate) salt: u64,
    /// How long its writer takes to look at the slots, at most, microseconds.
    pub(crate) writer_us: u64,
}

/// What a client asks for, and what it has to get.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) language: Language,
    pub(crate) prompt: Vec<u32>,
    pub(crate) stopping: Stopping,
    pub(crate) scoring: Scoring,
    pub(crate) strategy: Strategy,
    pub(crate) drafts: usize,
    pub(crate) qualifiers: usize,
    pub(crate) plain: Vec<u32>,
    pub(crate) finish: Finish,
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
    /// Words of an older term come again, in both directions.
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
    /// How long a session waits for another target.
    pub(crate) replay_wait: Time,
    /// How long a session's task may take to be scheduled, microseconds.
    pub(crate) task_us: u64,
    /// What a session's inbox holds.
    pub(crate) inbox: usize,
}

fn millis(dice: &mut Dice, most: usize) -> Time {
    Time::from_micros(dice.roll() % (most as u64 * 1000 + 1))
}

impl Scenario {
    /// The scenario of a seed; also gives the dice for everything that is left open.
    pub(crate) fn new(seed: u64) -> (Self, Dice) {
        let mut dice = Dice::new(seed);
        let dice_ref = &mut dice;
        let coordinators = 1 + usize::from(dice_ref.percent(35));
        let workers = workers(dice_ref);
        let span = [200, 600, 1500, 4000][dice_ref.below(4)];
        let (drafts, qualifiers) = [Role::Draft, Role::Qualifier]
            .map(|role| workers.iter().filter(|worker| worker.role == role).count())
            .into();
        let sessions = 1 + dice_ref.below(3);
        let requests = (0..sessions)
            .map(|_| request(dice_ref, span, drafts, qualifiers))
            .collect();
        let count = [0, 1, 2, 3, 5, 8][dice_ref.below(6)];
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
        let scenario = Scenario {
            coordinators,
            workers,
            requests,
            delays: Delays {
                base_us: [20, 200, 2000][dice_ref.below(3)],
                jitter_us: [0, 100, 1000, 10_000][dice_ref.below(4)],
            },
            faults,
            replay_wait: [Time::from_secs(1), Time::from_secs(10)][dice_ref.below(2)],
            task_us: [20, 500, 8000][dice_ref.below(3)],
            inbox: [4, 256][usize::from(dice_ref.percent(85))],
        };
        (scenario, dice)
    }
}

fn workers(dice: &mut Dice) -> Vec<WorkerPlan> {
    let targets = [1, 1, 2, 3][dice.below(4)];
    let drafts = [0, 1, 1, 2, 3][dice.below(5)];
    let qualifiers = [0, 0, 1, 2][dice.below(4)];
    let roles = std::iter::repeat_n(Role::Target, targets)
        .chain(std::iter::repeat_n(Role::Draft, drafts))
        .chain(std::iter::repeat_n(Role::Qualifier, qualifiers));
    roles
        .map(|role| {
            let paced = match role {
                Role::Target => 20_000,
                Role::Qualifier => 7_000,
                Role::Draft => 2_000,
            };
            let page = [4, 16][dice.below(2)];
            WorkerPlan {
                role,
                step_us: paced / 4 + dice.roll() % paced,
                row_us: [0, 0, 100, 1000][dice.below(4)],
                max_rows: [4, 12, 64][dice.below(3)],
                scratch_rows: [2, 8, 40][dice.below(3)],
                max_sessions: [1, 2, 8][dice.below(3)],
                // Room for the longest text, and sometimes for little more.
                pages: 60 / page + 1 + dice.below(100) as u32 / page,
                page,
                agreement: dice.below(101) as u32,
                salt: dice.roll(),
                writer_us: [50, 500, 20_000][dice.below(3)],
            }
        })
        .collect()
}

fn request(dice: &mut Dice, span: usize, drafts: usize, qualifiers: usize) -> Request {
    let language = Language { seed: dice.roll() };
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
    let (plain, finish) = language.plain(&prompt, &stopping);
    let prompt_scores = dice.percent(15) && prompt.len() > 1;
    let scoring = Scoring {
        picks: dice.percent(25).then(|| dice.below(3) as u8),
        basis: Basis::Raw,
        prompt: prompt_scores.then(|| PromptScoring {
            top: dice.below(3) as u8,
            first: 1,
        }),
    };
    let strategy = match dice.below(8) {
        0 => Strategy::Ar,
        1 => Strategy::Serial {
            gamma: 1 + dice.below(6) as u16,
        },
        2 => Strategy::SerialTree {
            depth: 1 + dice.below(4) as u16,
            width: 1 + dice.below(4) as u16,
            rows: 1 + dice.below(12) as u16,
        },
        _ => Strategy::Auto(AutoKnobs {
            width: 1 + dice.below(8) as u16,
            rows: 1 + dice.below(16) as u16,
            depth: 1 + dice.below(6) as u16,
            ahead: 1 + dice.below(8) as u16,
        }),
    };
    let leaves = (0..[0, 0, 0, 1, 2][dice.below(5)])
        .map(|_| millis(dice, span))
        .collect();
    let leaves_with = match dice.below(10) {
        0 => Some(plain.len()),
        1 => Some(1 + dice.below(plain.len())),
        _ => None,
    };
    Request {
        language,
        prompt,
        stopping,
        scoring,
        strategy,
        drafts: dice
            .below(drafts + 1)
            .max(usize::from(drafts > 0 && dice.percent(80))),
        qualifiers: dice.below(qualifiers + 1),
        plain,
        finish,
        begins: millis(dice, span / 4),
        reads_us: [0, 0, 2_000, 60_000][dice.below(4)],
        leaves,
        leaves_with,
        quits: dice.percent(10).then(|| millis(dice, span)),
    }
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
    match dice.below(16) {
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
                notice: [
                    [quick, first],
                    [first, quick],
                    [quick, quick],
                    [first, second],
                ][dice.below(4)]
                .map(|time| time.min(KEEPALIVE)),
            }
        }
        12..14 => Fault::Block {
            coordinator,
            worker,
            ways: [[true, true], [true, false], [false, true]][dice.below(3)],
            lasts: first,
        },
        _ => Fault::Echo {
            coordinator,
            worker,
        },
    }
}
