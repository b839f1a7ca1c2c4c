//! Which rows the next step of a worker computes, over all its sessions.
//!
//! Every session offers [`Work`]: rows that it needs to go on at all (its *base*: the last token of the text, a prompt),
//! and guesses, best first, each with what it is worth. A step takes the bases of running texts first, then as many rows of
//! waiting prompts as the texts can bear. Then it takes guesses, whoever's they are, as long as another one raises the tokens
//! that the texts are expected to yield per time, by measured step times. So speculation shrinks as sessions come, and ends
//! where a row costs more than a guess is worth. Where somebody else would wait for them, guesses have what prompts leave of the
//! time that such a step may take with plain decoding: no first token comes later for them, and no pause grows longer.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Reverse;

use crate::cost::CostModel;

/// What a session could do in the next step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Work {
    /// Rows that come before any guess.
    pub base: usize,
    /// Tokens expected of the base alone.
    pub base_value: f64,
    /// Tokens expected of each further row, best first.
    pub values: Vec<f64>,
    /// Who says how many of the further rows are computed.
    pub choice: Choice,
}

/// How the number of guesses in a step is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// All that are offered are computed, if there is room.
    #[default]
    All,
    /// As many as pay for their time, in competition with those of other sessions.
    WhileTheyPay,
}

/// The share of one session in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Rows of its base. Fewer than it has are a part of a prompt, which yields no token yet.
    pub base: usize,
    /// Guesses.
    pub guesses: usize,
}

impl Share {
    /// Rows of both.
    pub fn rows(self) -> usize {
        self.base + self.guesses
    }
}

/// The rows that a step may have.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of all sessions together.
    pub rows: usize,
    /// How many times as long as one of plain decoding in which all prompts are done a step may last, for prompts and for
    /// guesses, when several texts are running or one runs beside prompts; at least 1.
    pub prompt_stretch: f64,
}

/// A base of more rows than this is a prompt: it may come in parts.
pub const PROMPT: usize = 16;

/// Divides the next step among sessions, in turn: an earlier one is served first where there is not room for all.
pub fn allocate(cost: &CostModel, room: Room, offers: &[&Work]) -> Vec<Share> {
    let mut shares = alloc::vec![Share::default(); offers.len()];
    let mut rows = 0;
    let mut value = 0.0;
    let running = |work: &Work| work.base <= PROMPT;
    // However many texts are running, a prompt gets on when it has its turn.
    let reserved = match offers.first() {
        Some(first) if !running(first) => PROMPT,
        _ => 0,
    };
    let most = room.rows.saturating_sub(reserved);
    for (share, work) in shares.iter_mut().zip(offers) {
        if running(work) && rows + work.base <= most {
            share.base = work.base;
            rows += work.base;
            value += work.base_value;
        }
    }
    // A text without its rows has its turn later; its guesses would have nothing to hang from.
    let is_in = |share: &Share, work: &Work| running(work) && share.base == work.base;
    let waiting = (offers.iter()).filter(|work| !running(work)).count();
    let most = match waiting {
        0 => room.rows,
        _ => room.rows.saturating_sub(PROMPT).max(rows),
    };
    for (share, work) in shares.iter_mut().zip(offers) {
        if work.choice == Choice::All && is_in(share, work) {
            share.guesses = work.values.len().min(most - rows);
            rows += share.guesses;
            value += work.values[..share.guesses].iter().sum::<f64>();
        }
    }
    let competing = shares.iter().zip(offers).enumerate();
    let competing = competing.filter(|(_, (share, work))| {
        work.choice == Choice::WhileTheyPay && is_in(share, work) && !work.values.is_empty()
    });
    let best_first = merge(offers, competing.map(|(at, _)| at), most - rows);
    let values: Vec<f64> = (best_first.iter()).map(|&(_, value)| value).collect();
    // By the rate of texts alone: prompts make no guess cheaper.
    let pay = cost.best_prefix(rows, value, &values);
    let wanted = (offers.iter().filter(|work| !running(work)))
        .fold(0_usize, |sum, work| sum.saturating_add(work.base));
    let texts =
        (shares.iter().zip(offers)).filter(|(share, work)| share.base > 0 && is_in(share, work));
    let (take, mut prompts) = if rows == 0 || waiting == 0 && texts.count() == 1 {
        // Nobody has to wait for the guesses of another.
        (pay, prompt_rows(cost, room, rows + pay, waiting))
    } else {
        let prompts = prompt_rows(cost, room, rows, waiting);
        let limit_us = limit_us(cost, room, rows, waiting);
        let before = rows + prompts.min(wanted);
        let most = pay.min(room.rows - before);
        let take = most_that(most, |take| cost.estimate_us(before + take) <= limit_us);
        (take, prompts)
    };
    for &(at, _) in &best_first[..take] {
        shares[at].guesses += 1;
    }
    for (share, work) in shares.iter_mut().zip(offers) {
        if !running(work) {
            share.base = work.base.min(prompts);
            prompts -= share.base;
        }
    }
    shares
}

/// Rows for `waiting` prompts in a step that has `texts` rows of running texts: any number if there are none, otherwise as
/// many as keep the step within its limit, and always a few, so that no prompt waits for ever.
fn prompt_rows(cost: &CostModel, room: Room, texts: usize, waiting: usize) -> usize {
    let vacant = room.rows - texts;
    if texts == 0 {
        return vacant;
    }
    let limit_us = limit_us(cost, room, texts, waiting);
    let least = PROMPT.min(vacant);
    least
        + most_that(vacant - least, |more| {
            cost.estimate_us(texts + least + more) <= limit_us
        })
}

/// How long a step with `texts` rows of running texts may last while `waiting` prompts wait, microseconds.
///
/// The stretch is of the step once the prompts are done. By that of the texts that run now, the more prompts wait,
/// the fewer rows of them a step would have.
fn limit_us(cost: &CostModel, room: Room, texts: usize, waiting: usize) -> f64 {
    cost.estimate_us(texts + waiting) * room.prompt_stretch.max(1.0)
}

/// The largest number up to `most` that fits, if all smaller ones do; 0 if none does.
fn most_that(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut least, mut most) = (0, most);
    while least < most {
        let middle = (least + most).div_ceil(2);
        if fits(middle) {
            least = middle;
        } else {
            most = middle - 1;
        }
    }
    least
}

/// The guesses of the sessions `of`, best first, at most `room`; ties go to the earlier session.
fn merge(offers: &[&Work], of: impl Iterator<Item = usize>, room: usize) -> Vec<(usize, f64)> {
    let entry = |at: usize, next: usize| {
        let value = *offers[at].values.get(next)?;
        Some((Ordered(value), Reverse(at), next))
    };
    let mut heap: BinaryHeap<_> = of.filter_map(|at| entry(at, 0)).collect();
    let mut merged = Vec::new();
    while merged.len() < room
        && let Some((Ordered(value), Reverse(at), next)) = heap.pop()
    {
        merged.push((at, value));
        heap.extend(entry(at, next + 1));
    }
    merged
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Ordered(f64);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Time;

    /// Steps take `fixed_us` and `row_us` for each row.
    fn steps_of(fixed_us: u64, row_us: u64) -> CostModel {
        let mut cost = CostModel::new(Time::ZERO);
        for step in 0..200 {
            let rows = 1 + step % 64;
            cost.observe(rows, Time::from_micros(fixed_us + row_us * rows as u64));
        }
        cost
    }

    fn text(values: &[f64]) -> Work {
        Work {
            base: 1,
            base_value: 1.0,
            values: values.to_vec(),
            choice: Choice::WhileTheyPay,
        }
    }

    fn prompt(rows: usize) -> Work {
        Work {
            base: rows,
            base_value: 1.0,
            ..Work::default()
        }
    }

    const ROOM: Room = Room {
        rows: 64,
        prompt_stretch: 2.0,
    };

    fn guesses(cost: &CostModel, offers: &[Work]) -> Vec<usize> {
        let offers: Vec<&Work> = offers.iter().collect();
        let shares = allocate(cost, ROOM, &offers);
        shares.iter().map(|share| share.guesses).collect()
    }

    #[test]
    fn what_is_worth_taking_alone_is_not_taken_when_many_share_the_step() {
        let cost = steps_of(1000, 200);
        let values = [0.8, 0.6, 0.3, 0.2];
        let alone = guesses(&cost, &[text(&values)])[0];
        assert!(alone >= 3, "{alone}");
        let crowd = vec_of(40, &values);
        assert_eq!(guesses(&cost, &crowd).iter().sum::<usize>(), 0);
        let free = steps_of(1000, 0);
        let taken: usize = guesses(&free, &crowd).iter().sum();
        assert_eq!(taken, 24, "the room that is left");
    }

    fn vec_of(sessions: usize, values: &[f64]) -> Vec<Work> {
        (0..sessions).map(|_| text(values)).collect()
    }

    #[test]
    fn rows_go_to_the_guesses_that_are_worth_most_whoever_offers_them() {
        let cost = steps_of(2000, 700);
        let sure = text(&[0.95, 0.9, 0.85]);
        let unsure = text(&[0.2, 0.1]);
        let taken = guesses(&cost, &[unsure, sure]);
        assert_eq!(taken, [0, 3]);
    }

    #[test]
    fn every_text_has_its_row_before_any_prompt_and_any_guess() {
        let cost = steps_of(10, 0);
        let offers = [text(&[0.9; 40]), text(&[0.9; 40]), prompt(500)];
        let offers: Vec<&Work> = offers.iter().collect();
        let room = Room { rows: 2, ..ROOM };
        let shares = allocate(&cost, room, &offers);
        let rows: Vec<usize> = shares.iter().map(|share| share.rows()).collect();
        assert_eq!(rows, [1, 1, 0]);
    }

    #[test]
    fn a_prompt_that_has_its_turn_is_not_kept_out_by_running_texts() {
        let cost = steps_of(10, 0);
        let prompt = prompt(500);
        let texts = vec_of(100, &[0.9; 40]);
        let offers: Vec<&Work> = [&prompt].into_iter().chain(&texts).collect();
        let shares = allocate(&cost, ROOM, &offers);
        assert_eq!(shares[0].base, PROMPT);
        let rows: usize = shares.iter().map(|share| share.rows()).sum();
        assert_eq!(rows, ROOM.rows);
    }

    #[test]
    fn a_prompt_stretches_the_step_of_running_texts_no_further_than_it_may() {
        let cost = steps_of(1000, 50);
        let both = [prompt(500), text(&[])];
        let shares = allocate(&cost, ROOM, &both.iter().collect::<Vec<_>>());
        // 1100 us once both run, so 2200 us at most: 23 rows by the exact cost, 22 by what was measured of it.
        assert!((22..=23).contains(&shares[0].base), "{shares:?}");
        let waiting = [prompt(500), prompt(500), prompt(500), text(&[])];
        let shares = allocate(&cost, ROOM, &waiting.iter().collect::<Vec<_>>());
        let more: usize = shares.iter().map(|share| share.base).sum();
        assert!(
            (27..=28).contains(&more),
            "more prompts, more of them: {shares:?}"
        );
        let shares = allocate(&cost, ROOM, &[&prompt(500)]);
        assert_eq!(shares[0].base, 64, "nobody else is there");
        let dear = steps_of(10, 1000);
        let shares = allocate(&dear, ROOM, &both.iter().collect::<Vec<_>>());
        assert_eq!(shares[0].base, PROMPT, "it gets on all the same");
    }

    #[test]
    fn guesses_have_what_waiting_prompts_leave_of_the_time_of_plain_decoding() {
        let cost = steps_of(1000, 50);
        let values = [0.9, 0.8, 0.7, 0.6, 0.5];
        let (plain, guessing) = (vec_of(8, &[]), vec_of(8, &values));
        let beside = |texts: &[Work], rows: usize| {
            let prompt = prompt(rows);
            let offers: Vec<&Work> = texts.iter().chain([&prompt]).collect();
            let shares = allocate(&cost, Room { rows: 256, ..ROOM }, &offers);
            let guesses: usize = shares.iter().map(|share| share.guesses).sum();
            (guesses, shares[8].base)
        };
        let alone: usize = guesses(&cost, &guessing).iter().sum();
        let (_, in_plain) = beside(&plain, 500);
        assert_eq!(beside(&guessing, 500), (0, in_plain), "a long prompt");
        // Such a step may last 2900 us: 38 rows, of which 28 are neither a text's nor a prompt's first few.
        let (taken, short) = beside(&guessing, 17);
        assert_eq!(short, 17);
        assert!((0..alone).contains(&taken), "{taken} of {alone}");
        assert!((11..=13).contains(&taken), "{taken}");
    }

    #[test]
    fn who_offers_a_fixed_number_gets_it_while_there_is_room() {
        let fixed = Work {
            choice: Choice::All,
            ..text(&[0.0; 40])
        };
        let taken = guesses(&steps_of(100, 1000), &[fixed.clone(), fixed]);
        assert_eq!(taken, [40, 22]);
    }
}
