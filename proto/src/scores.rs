//! Scores and the requests for them, in both directions.

use decode::scores::MAX_TOP_SCORES;
use decode::{Basis, PromptScoring, Scores, Scoring};

use crate::inward::{WireError, at_most, range};
use crate::v1;

/// For an open call.
pub(crate) fn asked(scoring: Scoring) -> v1::Scoring {
    let basis = match scoring.basis {
        Basis::Raw => v1::scoring::Basis::Raw,
        Basis::Processed => v1::scoring::Basis::Processed,
        Basis::Tempered => v1::scoring::Basis::Tempered,
    };
    v1::Scoring {
        picks: scoring.picks.map(u32::from),
        basis: basis.into(),
        prompt: scoring.prompt.map(|prompt| prompt.top.into()),
        prompt_first: scoring.prompt.map_or(0, |prompt| prompt.first),
    }
}

/// For a report, and for clients.
pub fn sent(scores: Scores) -> v1::TokenScores {
    v1::TokenScores {
        logprobs: scores.logprobs,
        ranks: scores.ranks,
        top_n: scores.top_n.into(),
        top_ids: scores.top_ids,
        top_logprobs: scores.top_logprobs,
    }
}

fn top(field: &'static str, value: u32) -> Result<u8, WireError> {
    match u8::try_from(value) {
        Ok(top) if top <= MAX_TOP_SCORES => Ok(top),
        Ok(_) | Err(_) => Err(range(field, value, "0..=20")),
    }
}

/// What an open call asks for, about a prompt of `prompt_len` tokens.
pub(crate) fn scoring(scoring: Option<v1::Scoring>, prompt_len: u32) -> Result<Scoring, WireError> {
    let Some(scoring) = scoring else {
        return Ok(Scoring::default());
    };
    let prompt = match scoring.prompt {
        None => None,
        Some(_) if !(1..=prompt_len).contains(&scoring.prompt_first) => {
            let allowed = "1 to the length of the prompt";
            return Err(range("scoring.prompt_first", scoring.prompt_first, allowed));
        }
        Some(most) => Some(PromptScoring {
            top: top("scoring.prompt", most)?,
            first: scoring.prompt_first,
        }),
    };
    let picks = scoring.picks.map(|most| top("scoring.picks", most));
    Ok(Scoring {
        picks: picks.transpose()?,
        basis: match scoring.basis() {
            v1::scoring::Basis::Raw => Basis::Raw,
            v1::scoring::Basis::Processed => Basis::Processed,
            v1::scoring::Basis::Tempered => Basis::Tempered,
            v1::scoring::Basis::Unspecified => return Err(WireError::Missing("scoring.basis")),
        },
        prompt,
    })
}

/// Scores of at most `most` tokens.
pub(crate) fn scores(
    field: &'static str,
    sent: v1::TokenScores,
    most: usize,
) -> Result<Scores, WireError> {
    let top_n = top("top_n", sent.top_n)?;
    let tokens = sent.logprobs.len();
    at_most(field, tokens, most, "no more than there are tokens")?;
    let tops = tokens * usize::from(top_n);
    let whole =
        sent.ranks.len() == tokens && sent.top_ids.len() == tops && sent.top_logprobs.len() == tops;
    if !whole {
        let value = format!(
            "{tokens} logprobs, {} ranks, {} and {} top entries",
            sent.ranks.len(),
            sent.top_ids.len(),
            sent.top_logprobs.len()
        );
        return Err(range(field, value, "a rank and top_n entries for each"));
    }
    let mut logprobs = sent.logprobs.iter().chain(&sent.top_logprobs);
    if let Some(&odd) = logprobs.find(|&&logprob| logprob.is_nan() || logprob > 0.0) {
        return Err(range(field, odd, "log-probabilities of at most 0"));
    }
    if sent.ranks.contains(&0) {
        return Err(range(field, "rank 0", "ranks from 1"));
    }
    Ok(Scores {
        logprobs: sent.logprobs,
        ranks: sent.ranks,
        top_n,
        top_ids: sent.top_ids,
        top_logprobs: sent.top_logprobs,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn two() -> v1::TokenScores {
        v1::TokenScores {
            logprobs: vec![-0.5, -2.0],
            ranks: vec![1, 3],
            top_n: 2,
            top_ids: vec![4, 9, 4, 8],
            top_logprobs: vec![-0.5, -1.0, f32::NEG_INFINITY, -0.0],
        }
    }

    #[test]
    fn scores_survive_the_wire() {
        let domain = scores("scores", two(), 2).unwrap();
        assert_eq!(sent(domain), two());
    }

    #[test]
    fn scores_no_target_would_send_are_refused_by_name() {
        type Change = fn(&mut v1::TokenScores);
        let cases: [(Change, &str); 9] = [
            (|s| s.ranks.truncate(1), "2 logprobs, 1 ranks"),
            (|s| s.ranks[1] = 0, "rank 0"),
            (|s| s.top_n = 21, "top_n is 21"),
            (|s| s.top_n = u32::MAX, "top_n"),
            (|s| s.top_ids.push(1), "5 and 4 top entries"),
            (|s| s.top_logprobs.truncate(3), "4 and 3 top entries"),
            (|s| s.logprobs[0] = f32::NAN, "NaN"),
            (|s| s.top_logprobs[1] = 0.1, "0.1"),
            (
                |s| {
                    *s = v1::TokenScores {
                        logprobs: vec![0.0; 3],
                        ..two()
                    }
                },
                "scores is 3",
            ),
        ];
        for (change, part) in cases {
            let mut bad = two();
            change(&mut bad);
            let error = scores("scores", bad, 2).unwrap_err().to_string();
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn what_is_asked_survives_the_wire_and_is_checked() {
        let full = Scoring {
            picks: Some(0),
            basis: Basis::Processed,
            prompt: Some(PromptScoring { top: 20, first: 7 }),
        };
        for scored in [Scoring::default(), full] {
            assert_eq!(scoring(Some(asked(scored)), 7).unwrap(), scored);
        }
        assert_eq!(scoring(None, 7).unwrap(), Scoring::default());
        let wrong = [
            v1::Scoring {
                picks: Some(21),
                ..asked(full)
            },
            v1::Scoring {
                prompt: Some(300),
                ..asked(full)
            },
            v1::Scoring {
                prompt_first: 0,
                ..asked(full)
            },
            v1::Scoring {
                prompt_first: 8,
                ..asked(full)
            },
            v1::Scoring {
                basis: 0,
                ..asked(full)
            },
        ];
        for wrong in wrong {
            assert!(scoring(Some(wrong), 7).is_err(), "{wrong:?}");
        }
    }
}
