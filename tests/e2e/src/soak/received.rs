//! What has arrived of a request, held against what plain decoding gave.

use std::collections::BTreeMap;

use proto::v1::generate_event::Event;
use proto::v1::{GenerateEvent, GenerateRequest, Started};

use super::jobs::Job;
use crate::client::Completion;

/// One completion as far as it has arrived, over all attempts.
#[derive(Clone, Debug, Default)]
struct Part {
    completion: Completion,
    is_finished: bool,
}

/// The completions of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    /// The first event of any of them; they all name the seed and the prompt.
    started: Option<Started>,
    parts: BTreeMap<u32, Part>,
    pub(super) events: usize,
}

impl Received {
    /// Generated tokens of all completions.
    pub(super) fn tokens(&self) -> usize {
        let parts = self.parts.values();
        parts.map(|part| part.completion.ids.len()).sum()
    }

    /// The requests for what has not arrived: the whole, or each completion that is not finished on its own.
    pub(super) fn missing(&self, request: &GenerateRequest) -> Vec<GenerateRequest> {
        let Some(started) = &self.started else {
            return vec![request.clone()];
        };
        let none = Part::default();
        (0..request.n.max(1))
            .map(|choice| (choice, self.parts.get(&choice).unwrap_or(&none)))
            .filter(|(_, part)| !part.is_finished)
            .map(|(choice, part)| {
                proto::outward::resume(request.clone(), started, &part.completion.ids, choice)
            })
            .collect()
    }

    /// Takes what has arrived.
    pub(super) fn take(&mut self, event: GenerateEvent) {
        self.events += 1;
        let part = self.parts.entry(event.choice).or_default();
        let completion = &mut part.completion;
        match event.event {
            Some(Event::Started(started)) => {
                // A resumed stream scores the prompt again.
                completion.prompt_scores = crate::client::Scores::default();
                self.started.get_or_insert(started);
            }
            Some(Event::Tokens(tokens)) => {
                completion.text.push_str(&tokens.text);
                completion.ids.extend(tokens.token_ids);
                completion.scores.take(tokens.scores);
            }
            Some(Event::PromptScores(prompt)) => completion.prompt_scores.take(prompt.scores),
            Some(Event::Finished(finished)) => {
                completion.text.push_str(&finished.text);
                completion.reason = finished.reason;
                completion.stop_text = finished.stop_text;
                part.is_finished = true;
            }
            None => {}
        }
    }

    /// How it differs from plain decoding, as far as it goes. Empty: it does not.
    pub(super) fn differences(&self, job: &Job) -> Vec<String> {
        let of = |(choice, part): (&u32, &Part)| match job.expected.get(choice) {
            Some(expected) => difference(part, expected).map(|what| format!("{choice}: {what}")),
            None => Some(format!("{choice} was not asked for")),
        };
        self.parts.iter().filter_map(of).collect()
    }
}

fn difference(part: &Part, expected: &Completion) -> Option<String> {
    let got = &part.completion;
    let same = got
        .ids
        .iter()
        .zip(&expected.ids)
        .take_while(|(a, b)| a == b);
    let same = same.count();
    if same < got.ids.len() {
        let (is, was) = (got.ids[same], expected.ids.get(same));
        return Some(format!("token {same} is {is}, expected is {was:?}"));
    }
    if !expected.text.starts_with(&got.text) {
        return Some(format!(
            "the text {:?} is no part of {:?}",
            got.text, expected.text
        ));
    }
    let scored = got.scores.len();
    let ranks = expected.scores.ranks.get(..scored);
    let logprobs = expected.scores.logprobs.get(..scored);
    let top = expected.scores.top.get(..got.scores.top.len());
    let (is, was) = (&got.scores, (ranks, logprobs, top));
    if was
        != (
            Some(&is.ranks[..]),
            Some(&is.logprobs[..]),
            Some(&is.top[..]),
        )
    {
        return Some(format!("scores of {scored} tokens differ"));
    }
    if !part.is_finished {
        return None;
    }
    let all = |of: &Completion| {
        let Completion {
            ids,
            text,
            reason,
            scores,
            prompt_scores,
            stop_text,
            ..
        } = of.clone();
        (ids, text, reason, scores, prompt_scores, stop_text)
    };
    let (is, was) = (all(got), all(expected));
    (is != was).then(|| format!("it ended as {is:?}, expected is {was:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use proto::v1::{Finished, TokenIds, TokenScores, Tokens};

    use super::*;

    fn event(choice: u32, event: Event) -> GenerateEvent {
        GenerateEvent {
            event: Some(event),
            choice,
        }
    }

    fn tokens(ids: &[u32], text: &str, logprobs: &[f32]) -> Event {
        Event::Tokens(Tokens {
            text: text.to_owned(),
            token_ids: ids.to_vec(),
            scores: Some(TokenScores {
                logprobs: logprobs.to_vec(),
                ranks: vec![0; logprobs.len()],
                ..TokenScores::default()
            }),
        })
    }

    fn finished(text: &str, reason: i32) -> Event {
        Event::Finished(Finished {
            text: text.to_owned(),
            reason,
            ..Finished::default()
        })
    }

    fn received(events: &[(u32, Event)]) -> Received {
        let mut received = Received::default();
        for (choice, of) in events {
            received.take(event(*choice, of.clone()));
        }
        received
    }

    /// Two completions: 5 6 7 "abc", and 8 "d".
    fn job() -> Job {
        let whole = received(&[
            (0, tokens(&[5, 6], "ab", &[-0.5, -0.25])),
            (0, tokens(&[7], "", &[-1.0])),
            (0, finished("c", 2)),
            (1, tokens(&[8], "d", &[0.0])),
            (1, finished("", 2)),
        ]);
        Job {
            request: GenerateRequest {
                n: 2,
                ..GenerateRequest::default()
            },
            expected: (whole.parts.into_iter())
                .map(|(choice, part)| (choice, part.completion))
                .collect(),
        }
    }

    #[test]
    fn every_part_of_the_right_text_is_right() {
        let job = job();
        let part = received(&[(0, tokens(&[5], "a", &[-0.5]))]);
        assert_eq!(part.differences(&job), Vec::<String>::new());
        let whole = received(&[
            (0, tokens(&[5, 6, 7], "ab", &[-0.5, -0.25, -1.0])),
            (0, finished("c", 2)),
        ]);
        assert_eq!(whole.differences(&job), Vec::<String>::new());
        assert_eq!(Received::default().differences(&job), Vec::<String>::new());
    }

    #[test]
    fn whatever_differs_is_seen() {
        let job = job();
        let all = [-0.5, -0.25, -1.0];
        let wrong: [&[(u32, Event)]; 8] = [
            &[(0, tokens(&[5, 7], "ab", &[-0.5, -0.25]))],
            &[(0, tokens(&[5, 6, 7, 8], "ab", &all))],
            &[(0, tokens(&[5, 6], "ax", &all[..2]))],
            &[(0, tokens(&[5, 6], "ab", &[-0.5, -0.5]))],
            &[(0, tokens(&[5, 6], "ab", &all[..2])), (0, finished("c", 2))],
            &[(0, tokens(&[5, 6, 7], "ab", &all)), (0, finished("c", 1))],
            &[(0, tokens(&[5, 6, 7], "ab", &all)), (0, finished("", 2))],
            &[(2, tokens(&[5], "a", &all[..1]))],
        ];
        for events in wrong {
            assert_eq!(received(events).differences(&job).len(), 1, "{events:?}");
        }
    }

    #[test]
    fn what_is_missing_is_asked_for_completion_by_completion() {
        let job = job();
        let asked = Received::default().missing(&job.request);
        assert_eq!(asked, vec![job.request.clone()]);
        let started = Event::Started(Started {
            seed: 9,
            system_fingerprint: "n".to_owned(),
            prompt_token_ids: vec![1, 2],
            ..Started::default()
        });
        let mut part = received(&[(0, started), (0, tokens(&[5], "a", &[-0.5]))]);
        let asked = part.missing(&job.request);
        let resumed = |of: &GenerateRequest| of.resume.clone().unwrap();
        assert_eq!(resumed(&asked[0]).token_ids, [5]);
        assert_eq!((resumed(&asked[1]).choice, asked[1].n), (1, 0));
        assert!(resumed(&asked[1]).token_ids.is_empty());
        let ids = vec![1, 2];
        let prompt = proto::v1::generate_request::Prompt::Tokens(TokenIds { ids });
        assert_eq!(asked[1].prompt, Some(prompt));
        part.take(event(0, finished("", 2)));
        assert_eq!(part.missing(&job.request).len(), 1);
    }
}
