//! One session looked at closely: a relay and its workers, dice that say who acts next, and peers that say what no
//! correct peer would. Whatever they do, the committed text is the plain text.

mod faults;
mod fuzz;
mod worker;
mod world;

use proptest::prelude::*;
use speculation::strategy::Settings;

use self::world::{Case, Client, Clock, Ends, Faults, Outcome, World};

/// A strategy with these knobs.
fn settings<const N: usize>(name: &str, knobs: [(&str, u16); N]) -> Settings {
    let set = |settings: Settings, (knob, value)| settings.with(knob, f64::from(value));
    knobs.into_iter().fold(Settings::new(name), set)
}

fn ar() -> impl Strategy<Value = Settings> {
    Just(settings("ar", []))
}

fn serial() -> impl Strategy<Value = Settings> {
    (0u16..=6).prop_map(|gamma| settings("serial", [("gamma", gamma)]))
}

fn serial_tree() -> impl Strategy<Value = Settings> {
    (0u16..=4, 1u16..=4, 1u16..=12).prop_map(|(depth, width, rows)| {
        settings(
            "serial-tree",
            [("depth", depth), ("width", width), ("rows", rows)],
        )
    })
}

fn auto() -> impl Strategy<Value = Settings> {
    (1u16..=8, 1u16..=16, 1u16..=6, 1u16..=8).prop_map(|(width, rows, depth, ahead)| {
        let knobs = [
            ("width", width),
            ("rows", rows),
            ("depth", depth),
            ("ahead", ahead),
        ];
        settings("auto", knobs)
    })
}

fn parallel() -> impl Strategy<Value = Settings> {
    (0u16..=5).prop_map(|gamma| settings("parallel", [("gamma", gamma)]))
}

fn ssd() -> impl Strategy<Value = Settings> {
    (0u16..=5, 1u16..=9)
        .prop_map(|(gamma, outcomes)| settings("ssd", [("gamma", gamma), ("outcomes", outcomes)]))
}

fn branch() -> impl Strategy<Value = Settings> {
    (0u16..=5, 1u16..=8, 0u16..=10, 0u16..=1).prop_map(|(gamma, branches, eps, hrad)| {
        let knobs = [("gamma", gamma), ("branches", branches), ("hrad", hrad)];
        settings("branch", knobs).with("eps", f64::from(eps) / 10.0)
    })
}

fn pyramid() -> impl Strategy<Value = Settings> {
    (1u16..=5, 1u16..=9).prop_map(|(draft, qualified)| {
        settings("pyramid", [("draft", draft), ("qualified", qualified)])
    })
}

/// Every strategy that drafts take part in.
fn any_strategy() -> impl Strategy<Value = Settings> {
    prop_oneof![
        serial(),
        serial_tree(),
        parallel(),
        ssd(),
        branch(),
        pyramid(),
        auto(),
    ]
}

fn faults() -> impl Strategy<Value = Faults> {
    let chance = || prop_oneof![2 => Just(0u32), 1 => 1u32..20];
    (chance(), chance(), chance(), chance(), chance()).prop_map(
        |(lost, lost_target, duplicated, stale, garbage)| Faults {
            lost,
            lost_target: lost_target / 3,
            duplicated,
            stale,
            garbage,
        },
    )
}

fn case(strategy: impl Strategy<Value = Settings>) -> impl Strategy<Value = Case> {
    let workers = (0usize..=3, 0usize..=2, 0u32..=100, 0u32..=100);
    let ends = prop_oneof![
        Just(Ends::Length),
        Just(Ends::Context),
        Just(Ends::StopToken)
    ];
    let text = (1usize..24, 1u32..40, ends);
    let room = prop_oneof![2usize..6, Just(64usize)];
    let client = prop_oneof![Just(Client::Prompt), Just(Client::Slow)];
    let clock = prop_oneof![1 => Just(Clock::Paced), 3 => Just(Clock::Random)];
    let rest = (room, client, clock, faults());
    (any::<u64>(), strategy, workers, text, rest).prop_map(
        |(
            seed,
            strategy,
            workers,
            (prompt_len, new_tokens, ends),
            (room, client, clock, faults),
        )| {
            Case {
                seed,
                strategy,
                drafts: workers.0,
                qualifiers: workers.1,
                agreement: (workers.2, workers.3),
                prompt_len,
                new_tokens,
                ends,
                room,
                client,
                clock,
                faults,
            }
        },
    )
}

fn run(case: &Case) -> Outcome {
    let outcome = World::new(case).run();
    let stats = &outcome.stats;
    let walks = stats.walks;
    assert!(walks.steps > 0 && walks.hits + walks.misses == walks.steps);
    assert!(walks.guesses_accepted <= walks.guesses_submitted);
    assert!(walks.chain_accepted <= walks.chain_submitted);
    assert!(walks.starved_steps <= walks.steps);
    assert!((0.0..=1.0).contains(&stats.waste()));
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn plain_decoding_is_a_true_bypass(case in case(ar())) {
        let outcome = run(&case);
        let walks = outcome.stats.walks;
        assert_eq!((walks.guesses_submitted, walks.starved_steps), (0, 0));
        assert_eq!((walks.tokens, outcome.stats.drafted_nodes), (walks.steps, 0));
    }

    #[test]
    fn a_serial_chain_gives_the_plain_text(case in case(serial())) {
        run(&case);
    }

    #[test]
    fn a_serial_tree_gives_the_plain_text(case in case(serial_tree())) {
        run(&case);
    }

    #[test]
    fn a_chain_that_is_never_paused_gives_the_plain_text(case in case(parallel())) {
        run(&case);
    }

    #[test]
    fn prepared_outcomes_give_the_plain_text(case in case(ssd())) {
        run(&case);
    }

    #[test]
    fn branches_give_the_plain_text(case in case(branch())) {
        run(&case);
    }

    #[test]
    fn a_pyramid_gives_the_plain_text(case in case(pyramid())) {
        run(&case);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6000))]

    #[test]
    fn the_free_running_tree_gives_the_plain_text(case in case(auto())) {
        run(&case);
    }
}

/// A cluster without faults, timed by its paces: 20 ms a target step, 7 ms a qualifier's, 2 ms a draft's.
fn paced(strategy: Settings, seed: u64, agreement: u32) -> Case {
    Case {
        seed,
        strategy,
        drafts: 1,
        qualifiers: 0,
        agreement: (agreement, agreement),
        prompt_len: 8,
        new_tokens: 60,
        ends: Ends::Length,
        room: 64,
        client: Client::Prompt,
        clock: Clock::Paced,
        faults: Faults::default(),
    }
}

/// How well a strategy does over many texts.
struct Yield {
    /// Tokens per target step.
    per_step: f64,
    /// Tokens per second of virtual time.
    per_second: f64,
}

fn measure(case: impl Fn(u64) -> Case) -> Yield {
    let (mut tokens, mut steps, mut seconds) = (0, 0, 0.0);
    for seed in 0..40 {
        let outcome = run(&case(seed));
        tokens += outcome.stats.walks.tokens;
        steps += outcome.stats.walks.steps;
        seconds += outcome.elapsed.as_secs_f64();
    }
    Yield {
        per_step: tokens as f64 / steps as f64,
        per_second: tokens as f64 / seconds,
    }
}

fn free_running() -> Settings {
    settings("auto", [("depth", 24)])
}

fn chain() -> Settings {
    settings("serial", [("gamma", 4)])
}

#[test]
fn good_drafts_pay_and_more_where_nobody_waits() {
    let measured = |strategy: Settings| measure(|seed| paced(strategy.clone(), seed, 80));
    let plain = measured(settings("ar", []));
    let chain = measured(chain());
    let auto = measured(free_running());
    assert!((plain.per_step - 1.0).abs() < 1e-9);
    assert!(chain.per_step > 2.2, "{}", chain.per_step);
    // A pipeline that never hits would still get a first guess or two out of its short waits.
    assert!(auto.per_step > 2.4, "{}", auto.per_step);
    let (chain, auto) = (chain.per_second, auto.per_second);
    assert!(auto > 1.1 * chain, "{auto} free-running, {chain} by turns");
    assert!(chain > 1.3 * plain.per_second);
}

#[test]
fn hopeless_drafts_gain_nothing() {
    let hopeless = measure(|seed| paced(chain(), seed, 0));
    assert!(hopeless.per_step < 1.1, "{}", hopeless.per_step);
}

#[test]
fn a_qualifier_changes_the_rows_and_not_the_text() {
    let bare = |seed| paced(free_running(), seed, 30);
    let advised = |seed| Case {
        qualifiers: 1,
        agreement: (30, 95),
        ..bare(seed)
    };
    // `run` has compared the text of every one of them with the plain text.
    let (without, with) = (measure(bare).per_step, measure(advised).per_step);
    assert!(
        with > without + 0.1,
        "{with} with advice, {without} without"
    );
}

#[test]
fn a_slow_client_parks_the_session_and_it_goes_on() {
    for (seed, strategy) in [
        (1, settings("ar", [])),
        (2, settings("serial", [("gamma", 3)])),
        (3, settings("auto", [("depth", 4)])),
    ] {
        let outcome = run(&Case {
            new_tokens: 700,
            client: Client::Slow,
            ..paced(strategy, seed, 90)
        });
        assert!(
            outcome.parked_for_credit > 0,
            "the credit was never used up"
        );
    }
}

/// Without drafts nobody ends a round: the target has to go on by its deadline or at once.
#[test]
fn turn_taking_survives_the_loss_of_every_draft() {
    for seed in 0..200 {
        let outcome = run(&Case {
            faults: Faults {
                lost: 30,
                ..Faults::default()
            },
            ..paced(settings("serial", [("gamma", 5)]), seed, 80)
        });
        assert_eq!(outcome.targets, 1);
    }
}
