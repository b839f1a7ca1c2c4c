//! The two directions of a `Link` stream as a worker sees them.

use futures_core::Stream;
use prost::Message;
use speculation::message::{Addressed, CoordinatorFrame, FromWorker, StreamName};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use crate::{MAX_FRAME_BYTES, inward, outward, v1};

/// A worker's messages, in frames that are small enough for a stream: scores can make a report large.
pub fn worker_frames(messages: Vec<Addressed<FromWorker>>) -> Vec<v1::WorkerFrame> {
    let mut frames: Vec<v1::WorkerFrame> = Vec::new();
    let mut bytes = 0;
    for message in messages {
        let one = worker_frame(message);
        // Frames hold nothing but repeated messages, so their lengths add up.
        let more = one.encoded_len();
        match frames.last_mut() {
            Some(frame) if bytes + more <= MAX_FRAME_BYTES => {
                frame.reports.extend(one.reports);
                frame.faults.extend(one.faults);
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

fn worker_frame(message: Addressed<FromWorker>) -> v1::WorkerFrame {
    let Addressed {
        session,
        term,
        message,
    } = message;
    let mut frame = v1::WorkerFrame::default();
    match message {
        FromWorker::Report(message) => frame.reports.push(outward::report(Addressed {
            session,
            term,
            message,
        })),
        FromWorker::Fault(message) => frame.faults.push(outward::fault(Addressed {
            session,
            term,
            message,
        })),
        FromWorker::Preempted => frame.faults.push(outward::preempted(session, term)),
    }
    frame
}

/// Reads who is calling from the first frame of a stream; returns that and the frames of the stream.
///
/// # Errors
/// `INVALID_ARGUMENT` when the first frame does not name the stream, or the transport's own error.
pub async fn coordinator_frames(
    mut frames: Streaming<v1::CoordinatorFrame>,
) -> Result<
    (
        StreamName,
        impl Stream<Item = Result<CoordinatorFrame, String>> + Send,
    ),
    Status,
> {
    let first = frames.message().await?.unwrap_or_default();
    let name = inward::stream_name(first.coordinator, first.incarnation)?;
    let frames = tokio_stream::once(Ok(first)).chain(frames).map(|frame| {
        let frame: v1::CoordinatorFrame = frame.map_err(|status| status.to_string())?;
        let bytes = frame.encoded_len();
        if bytes > MAX_FRAME_BYTES {
            return Err(format!(
                "a frame of {bytes} bytes; at most {MAX_FRAME_BYTES} are allowed"
            ));
        }
        inward::coordinator_frame(frame).map_err(|error| error.to_string())
    });
    Ok((name, frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use decode::Scores;
    use speculation::message::{Margin, Report, SessionId, Term};

    fn scored(session: u64, tokens: usize) -> Addressed<FromWorker> {
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
            message: FromWorker::Report(Report {
                picks: vec![7; tokens],
                margins: vec![Margin(0); tokens],
                scores: Some(Box::new(scores)),
                ..Report::default()
            }),
        }
    }

    #[test]
    fn reports_that_do_not_fit_one_frame_go_in_several() {
        let mut messages: Vec<_> = (0..40).map(|session| scored(session, 400)).collect();
        messages.push(Addressed {
            session: SessionId(40),
            term: Term(1),
            message: FromWorker::Fault("gone".to_owned()),
        });
        let frames = worker_frames(messages);
        assert!((2..10).contains(&frames.len()), "{} frames", frames.len());
        let mut received = Vec::new();
        for frame in frames {
            assert!(frame.encoded_len() <= MAX_FRAME_BYTES);
            let reports = inward::worker_frame(frame).expect("an honest frame");
            received.extend(reports.iter().map(|report| report.session.0));
        }
        assert_eq!(received, (0..=40).collect::<Vec<_>>());
        let small: Vec<_> = (0..40).map(|session| scored(session, 1)).collect();
        assert_eq!(worker_frames(small).len(), 1);
        assert!(worker_frames(Vec::new()).is_empty());
    }
}
