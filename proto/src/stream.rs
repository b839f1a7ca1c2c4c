//! The two directions of a `Link` stream as a worker sees them.

use futures_core::Stream;
use prost::Message;
use speculation::message::{Addressed, DraftReport, Relayed, VerifyReport};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};

use crate::{MAX_FRAME_BYTES, inward, outward, v1};

/// A frame that a kind of worker sends.
pub trait UpFrame: Default {
    /// What it says about a session.
    type Report;

    /// Adds a report.
    fn report(&mut self, report: Addressed<Self::Report>);

    /// Adds a session that is given up, and why.
    fn fault(&mut self, fault: Addressed<String>);

    /// A frame with all the news there are.
    fn of(news: Vec<Addressed<Result<Self::Report, String>>>) -> Self {
        let mut frame = Self::default();
        for Addressed {
            session,
            term,
            message,
        } in news
        {
            match message {
                Ok(message) => frame.report(Addressed {
                    session,
                    term,
                    message,
                }),
                Err(message) => frame.fault(Addressed {
                    session,
                    term,
                    message,
                }),
            }
        }
        frame
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
}

impl UpFrame for v1::VerifyFrame {
    type Report = VerifyReport;

    fn report(&mut self, report: Addressed<VerifyReport>) {
        self.reports.push(outward::verify_report(report));
    }

    fn fault(&mut self, fault: Addressed<String>) {
        self.faults.push(outward::fault(fault));
    }
}

/// Reads who is calling from the first frame of a stream; gives that and everything the stream says.
///
/// # Errors
/// `INVALID_ARGUMENT` when the first frame names no coordinator, or the transport's own error.
pub async fn relayed(
    mut frames: Streaming<v1::RelayFrame>,
) -> Result<(u64, impl Stream<Item = Result<Relayed, String>> + Send), Status> {
    let first = frames.message().await?.unwrap_or_default();
    let coordinator = first.coordinator;
    if coordinator == 0 {
        return Err(Status::invalid_argument(
            "the first frame has to name the coordinator",
        ));
    }
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
    Ok((coordinator, frames))
}
