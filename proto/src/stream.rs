//! The two directions of a `Link` stream as a worker sees them.

use futures_core::Stream;
use prost::Message;
use speculation::message::{Addressed, DraftReport, LinkName, Relayed, VerifyReport};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use crate::{MAX_FRAME_BYTES, inward, outward, v1};

/// A frame that a kind of worker sends.
pub trait UpFrame: Message + Default {
    /// What it says about a session.
    type Report;

    /// Adds a report.
    fn report(&mut self, report: Addressed<Self::Report>);

    /// Adds a session that is given up, and why.
    fn fault(&mut self, fault: Addressed<String>);

    /// Adds everything another frame says.
    fn absorb(&mut self, other: Self);

    /// All the news there are, in frames that are small enough for a link: scores can make a report large.
    fn frames(news: Vec<Addressed<Result<Self::Report, String>>>) -> Vec<Self> {
        let mut frames: Vec<Self> = Vec::new();
        let mut bytes = 0;
        for Addressed {
            session,
            term,
            message,
        } in news
        {
            let mut one = Self::default();
            match message {
                Ok(message) => one.report(Addressed {
                    session,
                    term,
                    message,
                }),
                Err(message) => one.fault(Addressed {
                    session,
                    term,
                    message,
                }),
            }
            // Frames hold nothing but repeated messages, so their lengths add up.
            let more = one.encoded_len();
            match frames.last_mut() {
                Some(frame) if bytes + more <= MAX_FRAME_BYTES => {
                    frame.absorb(one);
                    bytes += more;
                }
                Some(_) | None => {
                    frames.push(one);
                    bytes = more;
                }
            }
        }
        frames
    }
}

impl UpFrame for v1::DraftFrame {
    type Report = DraftReport;

    fn report(&mut self, report: Addressed<DraftReport>) {
        self.reports.push(outward::draft_report(report));
    }

    fn fault(&mut self, fault: Addressed<String>) {
        self.faults.push(outward::fault(fault));
    }

    fn absorb(&mut self, other: Self) {
        self.reports.extend(other.reports);
        self.faults.extend(other.faults);
    }
}

impl UpFrame for v1::VerifyFrame {
    type Report = VerifyReport;

    fn report(&mut self, report: Addressed<VerifyReport>) {
        self.reports.push(outward::verify_report(report));
    }

    fn fault(&mut self, fault: Addressed<String>) {
        self.faults.push(outward::fault(fault));
    }

    fn absorb(&mut self, other: Self) {
        self.reports.extend(other.reports);
        self.faults.extend(other.faults);
    }
}

/// Reads who is calling from the first frame of a stream; gives that and everything the stream says.
///
/// # Errors
/// `INVALID_ARGUMENT` when the first frame does not name the stream, or the transport's own error.
pub async fn relayed(
    mut frames: Streaming<v1::RelayFrame>,
) -> Result<(LinkName, impl Stream<Item = Result<Relayed, String>> + Send), Status> {
    let first = frames.message().await?.unwrap_or_default();
    let name = inward::link_name(first.coordinator, first.incarnation)?;
    let frames = tokio_stream::once(Ok(first)).chain(frames).map(|frame| {
        let frame: v1::RelayFrame = frame.map_err(|status| status.to_string())?;
        let bytes = frame.encoded_len();
        if bytes > MAX_FRAME_BYTES {
            return Err(format!(
                "a frame of {bytes} bytes; at most {MAX_FRAME_BYTES} are allowed"
            ));
        }
        inward::relay_frame(frame).map_err(|error| error.to_string())
    });
    Ok((name, frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::message::{Scores, SessionId, Term, VerifyReport};

    fn scored(session: u64, tokens: usize) -> Addressed<Result<VerifyReport, String>> {
        let scores = Scores {
            logprobs: vec![-1.0; tokens],
            ranks: vec![1; tokens],
            top_n: 20,
            top_ids: vec![100_000; 20 * tokens],
            top_logprobs: vec![-1.0; 20 * tokens],
        };
        Addressed {
            session: SessionId(session),
            term: Term(1),
            message: Ok(VerifyReport {
                picks: vec![7; tokens],
                margins: vec![0; tokens],
                scores: Some(Box::new(scores)),
                ..VerifyReport::default()
            }),
        }
    }

    #[test]
    fn reports_that_do_not_fit_one_frame_go_in_several() {
        let mut news: Vec<_> = (0..40).map(|session| scored(session, 400)).collect();
        news.push(Addressed {
            session: SessionId(40),
            term: Term(1),
            message: Err("gone".to_owned()),
        });
        let frames = v1::VerifyFrame::frames(news);
        assert!((2..10).contains(&frames.len()), "{} frames", frames.len());
        let mut heard = Vec::new();
        for frame in frames {
            assert!(frame.encoded_len() <= MAX_FRAME_BYTES);
            let frame = inward::verify_frame(frame).expect("an honest frame");
            heard.extend(frame.reports.iter().map(|report| report.session.0));
            heard.extend(frame.faults.iter().map(|fault| fault.session.0));
        }
        assert_eq!(heard, (0..=40).collect::<Vec<_>>());
        let small: Vec<_> = (0..40).map(|session| scored(session, 1)).collect();
        assert_eq!(v1::VerifyFrame::frames(small).len(), 1);
        assert!(v1::VerifyFrame::frames(Vec::new()).is_empty());
    }
}
