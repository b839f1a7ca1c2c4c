//! What every worker does, as a picture: one band for each worker of each strategy, on one time line.

use laboratory::Outcome;
use speculation::Time;

use crate::bench::Contender;
use crate::trace::{Bar, Timeline, Track, draw_svg};

/// See the module documentation.
pub(super) struct Drawing {
    from: Time,
    until: Time,
    tracks: Vec<Track>,
}

impl Drawing {
    /// Of a time, without any strategy yet.
    pub(super) fn new((from, until): (Time, Time)) -> Self {
        Drawing {
            from,
            until,
            tracks: Vec::new(),
        }
    }

    /// One more strategy. Steps are cut to the time that is drawn.
    pub(super) fn add(&mut self, contender: &Contender, outcome: &Outcome) {
        let ns = |time: Time| {
            let time = time.clamp(self.from, self.until) - self.from;
            u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
        };
        let tracks = outcome.noted.iter().map(|worker| Track {
            service: worker.role.name().to_owned(),
            instance: contender.to_string(),
            lanes: 1,
            bars: (worker.steps.iter())
                .map(|step| Bar {
                    name: step.rows.to_string(),
                    start_ns: ns(step.begun),
                    end_ns: ns(step.ended),
                    lane: 0,
                    attributes: vec![
                        ("rows".to_owned(), step.rows.to_string()),
                        (
                            "offshoot.abandoned".to_owned(),
                            step.is_abandoned.to_string(),
                        ),
                    ],
                    walk: None,
                })
                .collect(),
        });
        self.tracks.extend(tracks);
    }

    /// The picture.
    pub(super) fn svg(self) -> String {
        let length = self.until - self.from;
        draw_svg(&Timeline {
            trace: "SIMULATED, steps with their rows".to_owned(),
            length_ns: u64::try_from(length.as_nanos()).unwrap_or(u64::MAX),
            tracks: self.tracks,
        })
    }
}
