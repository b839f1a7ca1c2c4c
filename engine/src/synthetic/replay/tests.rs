use std::collections::BTreeSet;

use super::*;
use crate::synthetic::Q_BUCKETS;

const VOCAB: u32 = 61;

fn gaps(nats: [f32; 3]) -> Vec<Gap> {
    nats.map(Gap::from_nats).to_vec()
}

/// Six positions of four guesses, every kind of place among them.
fn positions() -> Vec<Position> {
    let kinds = [
        (Some(0), QualifierPick::Targets),
        (Some(0), QualifierPick::Other),
        (Some(1), QualifierPick::Drafts(0)),
        (Some(3), QualifierPick::Targets),
        (None, QualifierPick::Drafts(2)),
        (None, QualifierPick::Targets),
    ];
    let position = |(draft, qualifier)| Position {
        draft,
        qualifier,
        qualifier_lead: Gap::from_nats(0.5),
        target_lead: Gap::from_nats(1.5),
        gaps: gaps([0.25, 1.0, 3.0]),
    };
    kinds.map(position).to_vec()
}

fn profile() -> Profile {
    let class = |temperature| Class {
        temperature,
        positions: positions(),
        q: (0..4)
            .map(|place| [0.4 / (place + 1) as f32; Q_BUCKETS])
            .collect(),
    };
    let classes = vec![class(0.0), class(1.0)];
    Profile::new("test".to_owned(), String::new(), 4, 2, classes).unwrap()
}

fn replay(member: Member) -> Replay {
    // Every fourth id is none of a text.
    let tokens = (0..VOCAB).filter(|id| id % 4 != 3).collect();
    Replay::new(profile(), member, tokens, VOCAB)
}

fn path(number: u32) -> Path {
    Path::EMPTY.with(number, 0, 2).with(7, 1, 2)
}

fn params(seed: u64) -> SamplingParams {
    SamplingParams {
        seed,
        ..SamplingParams::default()
    }
}

fn pick(replay: &Replay, number: u32, seed: u64) -> Pick {
    let ask = Ask::Pick { score: None };
    let Some(Answer::Pick(pick)) = replay.answer(ask, path(number), 2, &params(seed)) else {
        panic!("a pick answers a pick")
    };
    pick
}

fn guesses(replay: &Replay, number: u32, seed: u64, most: u16) -> Vec<Guess> {
    let Some(Answer::Guesses(guesses)) =
        replay.answer(Ask::Guesses(most), path(number), 2, &params(seed))
    else {
        panic!("guesses answer guesses")
    };
    guesses
}

fn score(replay: &Replay, number: u32, token: u32, top: u8) -> Score {
    let Some(Answer::Score(score)) =
        replay.answer(Ask::Score { token, top }, path(number), 2, &params(1))
    else {
        panic!("a score answers a score")
    };
    *score
}

#[test]
fn draft_and_qualifier_stand_to_the_target_as_the_profile_says() {
    let [target, qualifier, draft] = [Member::Target, Member::Qualifier, Member::Draft].map(replay);
    let mut met = BTreeSet::new();
    for number in 0..400 {
        let token = pick(&target, number, 1).token;
        let advised = pick(&qualifier, number, 1);
        let guessed = guesses(&draft, number, 1, 4);
        let place = guessed.iter().position(|guess| guess.token == token);
        let qualified = if advised.token == token {
            QualifierPick::Targets
        } else {
            (guessed
                .iter()
                .position(|guess| guess.token == advised.token))
            .map_or(QualifierPick::Other, |at| QualifierPick::Drafts(at as u8))
        };
        let kind = positions().iter().position(|position| {
            (position.draft.map(usize::from), position.qualifier) == (place, qualified)
        });
        met.insert(kind.expect("a position of the profile"));
        assert_eq!(advised.margin, 0.5);
        assert_eq!(pick(&draft, number, 1).token, guessed[0].token);
        assert_eq!(guesses(&target, number, 1, 3)[0].token, token);
        let listed = guesses(&qualifier, number, 1, 9);
        assert_eq!(listed[0].token, advised.token);
        for list in [&guessed, &listed] {
            let distinct: BTreeSet<u32> = list.iter().map(|guess| guess.token).collect();
            assert_eq!(distinct.len(), list.len(), "{list:?}");
            assert!(list.iter().all(|guess| guess.token % 4 != 3));
        }
    }
    assert_eq!(met, (0..6).collect());
}

#[test]
fn positions_of_a_block_follow_each_other() {
    let [target, draft] = [Member::Target, Member::Draft].map(replay);
    let place = |path: Path, position: usize| {
        let params = params(1);
        let Some(Answer::Pick(pick)) =
            target.answer(Ask::Pick { score: None }, path, position, &params)
        else {
            panic!("a pick answers a pick")
        };
        let Some(Answer::Guesses(guesses)) = draft.answer(Ask::Guesses(4), path, position, &params)
        else {
            panic!("guesses answer guesses")
        };
        guesses.iter().position(|guess| guess.token == pick.token)
    };
    let expected: Vec<_> = (positions().iter())
        .map(|position| position.draft.map(usize::from))
        .collect();
    let mut begun = BTreeSet::new();
    for number in 0..100 {
        let first = path(number);
        let found = (place(first, 2), place(first.with(9, 2, 2), 3));
        let follows = |at: &usize| found == (expected[*at], expected[(at + 1) % 6]);
        let at = (0..6)
            .find(follows)
            .expect("two positions of the profile, one after the other");
        begun.insert(at);
    }
    assert!(begun.len() > 3, "{begun:?}");
}

#[test]
fn guesses_have_the_margins_and_weights_of_a_sampler() {
    let draft = replay(Member::Draft);
    let found = guesses(&draft, 3, 0, 4);
    let margins: Vec<f32> = found.iter().map(|guess| guess.margin).collect();
    assert_eq!(margins, [0.25, -0.25, -1.0, -3.0]);
    let sum: f32 = found.iter().map(|guess| guess.weight).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let ratio = found[2].weight / found[0].weight;
    assert!((ratio - (-1.0_f32).exp()).abs() < 1e-6);
    let q: Vec<f32> = found.iter().map(|guess| guess.q).collect();
    assert_eq!(q, [0.4, 0.2, 0.4 / 3.0, 0.1]);
    // One guess has the weight that it has beside the second best.
    let only = guesses(&draft, 3, 0, 1);
    assert_eq!((only.len(), only[0].token), (1, found[0].token));
    assert!((only[0].weight - 1.0 / (1.0 + (-0.25_f32).exp())).abs() < 1e-6);
    // More than the profile has, and more than there are tokens.
    let more = guesses(&draft, 3, 0, 6);
    assert_eq!((more[4].margin, more[5].margin), (-3.25, -3.5));
    assert_eq!(guesses(&draft, 3, 0, 999).len(), draft.tokens.len() - 1);
    assert!(guesses(&draft, 3, 0, 0).is_empty());
}

#[test]
fn the_seed_decides_and_temperature_0_has_none() {
    let target = replay(Member::Target);
    let text = |seed| {
        (0..50)
            .map(|number| pick(&target, number, seed).token)
            .collect::<Vec<_>>()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
    let greedy = |seed| {
        let params = SamplingParams {
            temperature: 0.0,
            ..params(seed)
        };
        target.answer(Ask::Pick { score: None }, path(1), 2, &params)
    };
    assert_eq!(greedy(1), greedy(2));
    assert_eq!(target.answer(Ask::Nothing, path(1), 2, &params(0)), None);
}

#[test]
fn scores_are_a_distribution_over_the_vocabulary() {
    let target = replay(Member::Target);
    for number in 0..20 {
        let all: Vec<Score> = (0..VOCAB).map(|id| score(&target, number, id, 5)).collect();
        let mass: f64 = all.iter().map(|score| f64::from(score.logprob).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-4, "{mass}");
        let ranks: BTreeSet<u32> = all.iter().map(|score| score.rank).collect();
        assert_eq!(ranks, (1..=VOCAB).collect());
        let token = pick(&target, number, 1).token;
        assert_eq!(all[token as usize].rank, 1);
        for (at, &(id, logprob)) in all[0].top.iter().enumerate() {
            let listed = &all[id as usize];
            assert_eq!((listed.rank as usize, listed.logprob), (at + 1, logprob));
        }
        assert_eq!(score(&target, number, 0, u8::MAX).top.len(), VOCAB as usize);
    }
}

#[test]
fn the_inverse_undoes_a_stride() {
    for modulus in [2, 3, 7, 45, 64, 4096] {
        for stride in (1..modulus).filter(|&stride| gcd(stride, modulus) == 1) {
            assert_eq!(stride * inverse(stride, modulus) % modulus, 1 % modulus);
        }
    }
}
