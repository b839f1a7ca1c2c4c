//! What each strategy claims for itself, with sessions of a target, a draft and sometimes a qualifier.

use decode::{Answer, Guess, Rule, StepPlan, Tolerance};
use speculation::duty::{Duties, Duty, Role};
use speculation::message::{Forecast, Outlook, ReplicaUpdate, SessionSpec};
use speculation::relay::{Candidate, WorkerKey};
use speculation::strategy::Settings;

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, next, spec};
use crate::rounds::{Cluster, DRAFT, TARGET, TEXT};

const QUALIFIER: WorkerKey = WorkerKey(2);

/// The text and the tokens that plain decoding would put behind it.
fn plain(text: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = text.to_vec();
    for _ in 0..tokens {
        all.push(next(&all));
    }
    all
}

/// The texts before each answer of a plan.
fn pasts(worker: &Worker, plan: &StepPlan) -> Vec<Vec<u32>> {
    let text = worker.session.text();
    let asks = plan.asks.iter().map(|_| text.to_vec());
    let rows = plan.rows.iter().filter(|row| !row.path.is_empty());
    asks.chain(rows.map(|row| [text, &row.path].concat()))
        .collect()
}

/// One step of a worker whose model ranks guesses by `twist` of what it is asked behind.
fn step(worker: &mut Worker, twist: &dyn Fn(&[u32], &mut Vec<Guess>)) -> Option<StepPlan> {
    let Next::Step(plan) = worker.poll(MS, 256) else {
        return None;
    };
    let pasts = pasts(worker, &plan);
    let mut answers = worker.answers(&plan);
    for (answer, past) in answers.iter_mut().zip(&pasts) {
        if let Answer::Guesses(guesses) = answer {
            twist(past, guesses);
        }
    }
    worker.finish(MS, &plan, &answers);
    Some(plan)
}

/// The draft takes all the steps that it wants, at most 200; gives their plans. What it makes reaches the relay.
fn grow(cluster: &mut Cluster, twist: &dyn Fn(&[u32], &mut Vec<Guess>)) -> Vec<StepPlan> {
    let mut plans = Vec::new();
    while let Some(plan) = step(cluster.worker(DRAFT), twist) {
        cluster.collect(DRAFT);
        plans.push(plan);
        assert!(plans.len() < 200, "it never rests");
    }
    cluster.collect(DRAFT);
    plans
}

/// The target computes its next step, and everybody is told; gives the tokens of its rows.
fn verify(cluster: &mut Cluster) -> Vec<u32> {
    cluster.send(MS, TARGET);
    let Next::Step(plan) = cluster.worker(TARGET).step(MS, 256) else {
        panic!("it does not start");
    };
    cluster.collect(TARGET);
    cluster.send(MS, DRAFT);
    plan.rows.iter().map(|row| row.token).collect()
}

/// Ranks as the target would.
fn right(_past: &[u32], _guesses: &mut Vec<Guess>) {}

/// Puts the target's token in this place where `len` tokens come before it.
fn right_in_place(place: u32, len: usize) -> impl Fn(&[u32], &mut Vec<Guess>) {
    move |past, guesses| {
        if past.len() == len {
            let best = guesses[0].token;
            for (guess, rank) in guesses.iter_mut().zip(0..) {
                guess.token = (best + rank + VOCAB - place) % VOCAB;
            }
        }
    }
}

fn ssd(gamma: f64, outcomes: f64) -> Settings {
    Settings::new("ssd")
        .with("gamma", gamma)
        .with("outcomes", outcomes)
}

/// The draft makes a chain of three; when the target has verified it, the chain that follows is there already.
#[test]
fn ssd_has_the_next_chain_ready_wherever_the_target_stops() {
    for accepted in 0..=3 {
        let mut cluster = Cluster::new(&ssd(3.0, 16.0), &[Role::Target, Role::Draft]);
        let twist = right_in_place(1, TEXT.len() + accepted);
        let plans = grow(&mut cluster, &twist);
        assert!(
            plans.len() >= 3 + 1 + 3,
            "a chain, its end, and the answers"
        );
        assert!(plans[..3].iter().all(|plan| plan.len() <= TEXT.len()));
        assert_eq!(verify(&mut cluster).len(), 3, "the chain and nothing else");
        let text = plain(&TEXT, accepted + 1);
        assert_eq!(cluster.worker(TARGET).session.text(), text);
        // No draft step has taken place since.
        let rows = verify(&mut cluster);
        let following = plain(&text, 3);
        assert_eq!(rows, following[text.len()..], "{accepted} accepted");
        assert_eq!(cluster.worker(TARGET).session.text(), plain(&text, 4));
    }
}

#[test]
fn after_a_miss_the_target_of_ssd_waits_for_a_chain_from_scratch() {
    let mut cluster = Cluster::new(&ssd(3.0, 2.0), &[Role::Target, Role::Draft]);
    // With two outcomes the fifth-best token is never prepared.
    grow(&mut cluster, &right_in_place(4, TEXT.len() + 1));
    verify(&mut cluster);
    assert_eq!(cluster.worker(TARGET).session.text(), plain(&TEXT, 2));
    let waits = cluster.worker(TARGET).poll(MS, 256);
    assert!(matches!(waits, Next::Wait(Some(_))), "{waits:?}");
    let plans = grow(&mut cluster, &right);
    assert!(plans.len() > 3);
    assert_eq!(verify(&mut cluster).len(), 3);
}

#[test]
fn the_target_of_ssd_starts_when_the_chain_is_there_though_the_draft_goes_on() {
    let mut cluster = Cluster::new(&ssd(2.0, 4.0), &[Role::Target, Role::Draft]);
    for chain in 1..=2 {
        cluster.send(MS, TARGET);
        let waits = cluster.worker(TARGET).poll(MS, 256);
        assert!(matches!(waits, Next::Wait(_)), "{chain}: {waits:?}");
        step(cluster.worker(DRAFT), &right).expect("it makes the chain");
        cluster.collect(DRAFT);
    }
    cluster.send(MS, TARGET);
    assert!(matches!(
        cluster.worker(TARGET).poll(MS, 256),
        Next::Step(_)
    ));
    assert!(step(cluster.worker(DRAFT), &right).is_some());
}

fn unsure(len: usize, place: u32) -> impl Fn(&[u32], &mut Vec<Guess>) {
    let shift = right_in_place(place, len);
    move |past, guesses| {
        for guess in guesses.iter_mut() {
            guess.q = if past.len() == len { 0.1 } else { 0.9 };
        }
        shift(past, guesses);
    }
}

fn branch() -> Settings {
    Settings::new("branch")
        .with("eps", 0.4)
        .with("branches", 5.0)
        .with("gamma", 5.0)
}

#[test]
fn the_target_of_branch_verifies_down_to_the_branch_point_and_picks_the_branch() {
    for place in 0..4 {
        let mut cluster = Cluster::new(&branch(), &[Role::Target, Role::Draft]);
        // The third guess is unsure, and the target's token is one of its floor(5 (1 - 0.1)) = 4 best.
        let plans = grow(&mut cluster, &unsure(TEXT.len() + 2, place));
        let widest = plans.iter().map(|plan| plan.rows.len()).max();
        assert_eq!(widest, Some(4), "four branches at a time, no more");
        assert_eq!(verify(&mut cluster).len(), 2, "the chain before it");
        let text = plain(&TEXT, 3);
        assert_eq!(cluster.worker(TARGET).session.text(), text);
        // The branch that begins with the target's token is the next chain, made without another step.
        let rows = verify(&mut cluster);
        assert_eq!(rows, plain(&text, rows.len())[text.len()..]);
        assert!(rows.len() >= 4, "{rows:?}");
    }
}

/// An unsure first token leaves no chain to verify, and the branches are verified instead: the target's token, then what
/// follows it on its branch.
#[test]
fn a_branch_point_at_once_costs_no_step() {
    let mut cluster = Cluster::new(&branch(), &[Role::Target, Role::Draft]);
    grow(&mut cluster, &unsure(TEXT.len(), 2));
    let rows = verify(&mut cluster);
    assert_eq!(rows.len(), 4, "the first tokens of four branches: {rows:?}");
    let text = plain(&TEXT, 2);
    assert_eq!(cluster.worker(TARGET).session.text(), text);
    let rows = verify(&mut cluster);
    assert_eq!(rows, plain(&text, rows.len())[text.len()..]);
    assert!(rows.len() >= 3, "{rows:?}");
}

#[test]
fn a_wrong_token_before_the_branch_point_ends_every_branch() {
    let mut cluster = Cluster::new(&branch(), &[Role::Target, Role::Draft]);
    let unsure = unsure(TEXT.len() + 2, 0);
    let wrong = right_in_place(1, TEXT.len());
    grow(&mut cluster, &|past, guesses| {
        unsure(past, guesses);
        wrong(past, guesses);
    });
    assert_eq!(verify(&mut cluster).len(), 2);
    assert_eq!(cluster.worker(TARGET).session.text(), plain(&TEXT, 1));
    let stats = cluster.relay.stats().walks;
    assert_eq!((stats.misses, stats.chain_accepted), (1, 0));
    assert_eq!(stats.chain_submitted, 2);
}

/// The branch point moves with the forecast that came with the commit, unless knob `hrad` is 0.
#[test]
fn branch_follows_the_targets_forecast() {
    let branches = |forecast, hrad| {
        let settings = branch().with("hrad", hrad);
        let mut cluster = Cluster::new(&settings, &[Role::Target, Role::Draft]);
        let commit = vec![next(&TEXT)];
        let update = ReplicaUpdate {
            base_len: TEXT.len() as u32,
            commit: commit.clone(),
            outlook: Outlook {
                accepted: Some(1.0),
                forecast,
                ..Outlook::default()
            },
            ..ReplicaUpdate::default()
        };
        cluster.worker(DRAFT).update(MS, &update);
        let text = [&TEXT[..], &commit].concat();
        let unsure = unsure(text.len() + 2, 0);
        // Where several guesses are at one place, and how many.
        let draft = cluster.worker(DRAFT);
        while step(draft, &unsure).is_some() {}
        let nodes = draft.report().expect("guesses").nodes;
        let mut depths = vec![0];
        for (at, &parent) in nodes.parents.iter().enumerate() {
            depths.push(depths[parent as usize] + 1);
            let siblings = nodes.parents.iter().filter(|&&other| other == parent);
            let siblings = siblings.count();
            if siblings > 1 {
                return (depths[at + 1], siblings);
            }
        }
        panic!("the unsure place has two");
    };
    assert_eq!(branches(None, 1.0), (3, 4));
    assert_eq!(branches(Some(Forecast::Some), 1.0), (3, 4));
    assert_eq!(branches(Some(Forecast::Nothing), 1.0), (1, 2));
    // The chain of five goes on; the mark of the unsure token is not grown.
    assert_eq!(branches(Some(Forecast::Everything), 1.0), (3, 2));
    assert_eq!(branches(Some(Forecast::Nothing), 0.0), (3, 4));
}

/// Where no guess is to be verified, none is waited for.
#[test]
fn a_target_that_wants_no_guess_waits_for_none() {
    let mut cluster = Cluster::new(&Settings::new("lonely"), &[Role::Target, Role::Draft]);
    for tokens in 1..4 {
        grow(&mut cluster, &right);
        assert_eq!(verify(&mut cluster), []);
        assert_eq!(cluster.worker(TARGET).session.text(), plain(&TEXT, tokens));
    }
}

fn pyramid() -> Settings {
    Settings::new("pyramid")
        .with("draft", 3.0)
        .with("qualified", 6.0)
}

/// The qualifier judges three tokens at a time, its token replaces a wrong one, the draft goes on below that, and the target
/// is offered the qualified path.
#[test]
fn in_a_pyramid_the_target_verifies_what_the_qualifier_made_of_the_draft() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&pyramid(), &roles);
    let wrong = right_in_place(1, TEXT.len() + 1);
    let mut judged = Vec::new();
    for _ in 0..20 {
        grow(&mut cluster, &wrong);
        cluster.send(MS, QUALIFIER);
        if let Next::Step(plan) = cluster.worker(QUALIFIER).step(MS, 256) {
            judged.push(plan.rows.len());
        }
        cluster.collect(QUALIFIER);
        cluster.send(MS, DRAFT);
    }
    // The first three of the draft, of which the second is wrong; then its tip and three more.
    assert_eq!(judged[0], 3);
    assert!(judged.iter().all(|&rows| rows <= 1 + 3), "{judged:?}");
    let rows = verify(&mut cluster);
    assert_eq!(rows, plain(&TEXT, 6)[TEXT.len()..], "six qualified tokens");
    assert_eq!(cluster.worker(TARGET).session.text(), plain(&TEXT, 7));
}

/// A draft that is never right and far ahead each time fills the tree as fast as it can; the qualifier, which may depend on
/// whole chains, gets one each time.
#[test]
fn in_a_pyramid_there_is_room_for_a_whole_chain_behind_each_token_of_the_qualifier() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&Settings::new("pyramid"), &roles);
    let wrong = |_: &[u32], guesses: &mut Vec<Guess>| {
        for guess in guesses {
            guess.token = (guess.token + 1) % VOCAB;
        }
    };
    let mut judged = Vec::new();
    loop {
        grow(&mut cluster, &wrong);
        cluster.send(MS, QUALIFIER);
        let Next::Step(plan) = cluster.worker(QUALIFIER).step(MS, 256) else {
            break;
        };
        let tip = usize::from(!judged.is_empty());
        judged.push(plan.rows.len() - tip);
        cluster.collect(QUALIFIER);
        cluster.send(MS, DRAFT);
    }
    assert_eq!(judged, [5; 15]);
}

/// A draft may guess behind the end of the chain that a qualifier is just judging. Its guess is heard of later than the
/// qualifier's token, however sure the draft is of it, and leads nobody astray.
#[test]
fn in_a_pyramid_a_guess_that_comes_later_than_the_qualifiers_token_does_not_lead() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&pyramid(), &roles);
    let end = TEXT.len() + 3;
    let sure = |past: &[u32], guesses: &mut Vec<Guess>| {
        for guess in guesses {
            guess.weight = 1.0;
            guess.token = (guess.token + u32::from(past.len() == end)) % VOCAB;
        }
    };
    for _ in 0..3 {
        step(cluster.worker(DRAFT), &sure);
        cluster.collect(DRAFT);
    }
    cluster.send(MS, QUALIFIER);
    cluster.worker(QUALIFIER).step(MS, 256);
    step(cluster.worker(DRAFT), &sure);
    let report = cluster.collect(QUALIFIER).expect("it has advice");
    assert_eq!(report.picks, plain(&TEXT, 4)[TEXT.len()..]);
    let late = cluster.collect(DRAFT).expect("it has a guess");
    assert!(late.nodes.edges[0].to_f32() > 0.6, "it would lead");
    // The draft goes on below the qualifier's token, and the qualifier judges that.
    cluster.send(MS, DRAFT);
    grow(&mut cluster, &sure);
    cluster.send(MS, QUALIFIER);
    let plan = cluster.worker(QUALIFIER).plan(MS);
    assert_eq!(plan.rows.len(), 1 + 3, "its tip and a whole chain");
    let rows = verify(&mut cluster);
    assert_eq!(rows[..4], plain(&TEXT, 4)[TEXT.len()..]);
}

fn in_turns() -> Settings {
    pyramid().by(Rule::Fuzzy(Tolerance {
        draft: 0.4,
        qualifier: 0.5,
    }))
}

/// A target that has waited for its client longer than for any turn would go on without what was qualified.
#[test]
fn a_qualifier_that_takes_turns_has_its_own_while_the_target_waits_for_the_client() {
    let waiting = |strategy| {
        let mut spec = SessionSpec {
            strategy,
            duties: Duties::of(Duty::Advise),
            allowed_len: TEXT.len() as u32,
            ..spec(&TEXT)
        };
        spec.stopping.prompt_len -= 1;
        Worker::new(&spec, AMPLE).poll(MS, 256)
    };
    assert_eq!(waiting(pyramid()), Next::Parked);
    assert!(matches!(waiting(in_turns()), Next::Wait(Some(_))));
}

/// A qualifier waits for whole chains: a draft whose context has no room for one is of no use to it.
#[test]
fn a_draft_that_takes_turns_is_left_when_there_is_no_room_for_a_whole_chain() {
    let mut cluster = Cluster::new(&in_turns(), &[Role::Target]);
    let len = TEXT.len() as u32;
    let mut has = |context| {
        let short = Candidate {
            context,
            ..Candidate::new(Role::Draft)
        };
        cluster.relay.add_worker(DRAFT, short).is_some()
    };
    assert!(!has(len + 6 + 3));
    assert!(has(len + 6 + 3 + 1));
    assert!(!cluster.relay.is_outgrown(DRAFT));
    cluster.worker(TARGET).step(MS, 256);
    cluster.collect(TARGET);
    assert!(cluster.relay.is_outgrown(DRAFT));
}

/// How a prompt is divided among steps says nothing of whose turn it is: the target picks the first token by itself even
/// if only one row of it is left.
#[test]
fn a_target_that_takes_turns_picks_the_first_token_alone_whatever_is_left_of_the_prompt() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&in_turns(), &roles);
    for room in [TEXT.len() - 1, 256] {
        let next = cluster.worker(TARGET).step(MS, room);
        assert!(matches!(next, Next::Step(_)), "{next:?}");
    }
    let report = cluster.collect(TARGET).expect("it has a token");
    assert_eq!(report.picks.len(), 1);
    let next = cluster.worker(TARGET).poll(MS, 256);
    assert!(matches!(next, Next::Wait(Some(_))), "{next:?}");
}

#[test]
fn a_pyramid_without_its_middle_is_a_chain_and_ends() {
    let mut cluster = Cluster::new(&pyramid(), &[Role::Target, Role::Draft]);
    while cluster.relay.text().len() < 60 {
        grow(&mut cluster, &right);
        assert_eq!(verify(&mut cluster).len(), 6);
    }
    let text = cluster.relay.text().to_vec();
    assert_eq!(text, plain(&TEXT, text.len() - TEXT.len()));
}

/// A beam: every step expands the best of the newest level only, and all levels are offered together.
#[test]
fn a_serial_tree_is_grown_level_by_level() {
    let settings = Settings::new("serial-tree")
        .with("depth", 3.0)
        .with("width", 2.0)
        .with("rows", 6.0);
    let mut cluster = Cluster::new(&settings, &[Role::Target, Role::Draft]);
    let plans = grow(&mut cluster, &right);
    let levels: Vec<Vec<usize>> = (plans.iter())
        .map(|plan| plan.rows.iter().map(|row| row.path.len()).collect())
        .collect();
    assert_eq!(levels, [vec![], vec![1, 1], vec![2, 2]]);
    assert_eq!(
        verify(&mut cluster).len(),
        6,
        "of two, four and four guesses"
    );
}

/// Without `gamma` the chain ends where the draft is not sure, and `stop` says where that is.
#[test]
fn an_adaptive_chain_ends_where_the_draft_is_not_sure() {
    let lengths = |weight: f32| {
        let settings = Settings::new("serial").with("stop", 0.2);
        let mut cluster = Cluster::new(&settings, &[Role::Target, Role::Draft]);
        grow(&mut cluster, &|past, guesses| {
            let is_sure = past.len() < TEXT.len() + 6;
            guesses[0].weight = if is_sure { 0.99 } else { weight };
        })
        .len()
    };
    assert!(lengths(0.99) > 10, "{}", lengths(0.99));
    assert_eq!(lengths(0.01), 7, "six sure tokens and one that is not");
}
