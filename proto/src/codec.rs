//! Protobuf over gRPC, with a check of each message before anything is allocated for it.
//!
//! An empty sub-message takes two bytes on the wire and some two hundred in memory, so that a frame within its limit of
//! bytes could still ask for a hundred times as much. Before a message is decoded, its fields are therefore counted;
//! skipping from one to the next costs a few instructions each. Arrays of numbers are packed: one field, whatever their
//! length. Only the outermost fields are counted, so a sub-message must not hold a repeated sub-message of its own
//! unless its sender is trusted; maps count as repeated sub-messages, so they stand outermost.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Outermost fields of one message, at most; a frame has at most 256 sessions and a few other fields.
pub const MAX_FIELDS: usize = 4096;

/// The codec of all services.
#[derive(Clone, Debug)]
pub struct CountingCodec<T, U> {
    marker: PhantomData<(T, U)>,
}

impl<T, U> Default for CountingCodec<T, U> {
    fn default() -> Self {
        Self {
            marker: PhantomData,
        }
    }
}

impl<T, U> Codec for CountingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountingDecoder {
            inner: ProstCodec::<T, U>::default().decoder(),
        }
    }
}

/// Counts, then decodes.
#[derive(Debug)]
pub struct CountingDecoder<U> {
    inner: ProstDecoder<U>,
}

impl<U> Decoder for CountingDecoder<U>
where
    U: Message + Default + Send + 'static,
{
    type Item = U;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A message lies in one piece; the decoder reads the same bytes again.
        check(bytes.chunk())?;
        // What it refuses, such as a text that is not UTF-8, is the fault of the peer and no internal error.
        let decoded = self.inner.decode(bytes);
        decoded.map_err(|status| Status::invalid_argument(status.message()))
    }
}

/// Counts the outermost fields of an encoded message.
///
/// # Errors
/// OUT_OF_RANGE when there are more than [`MAX_FIELDS`], INVALID_ARGUMENT when the bytes are no message.
pub fn check(mut bytes: &[u8]) -> Result<(), Status> {
    let mut fields = 0;
    while bytes.has_remaining() {
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Status::out_of_range(format!(
                "a message has more than {MAX_FIELDS} fields"
            )));
        }
        let (tag, wire) = decode_key(&mut bytes).map_err(not_a_message)?;
        if wire == WireType::EndGroup {
            return Err(Status::invalid_argument(
                "not a message: a group ends that never began",
            ));
        }
        skip_field(wire, tag, &mut bytes, DecodeContext::default()).map_err(not_a_message)?;
    }
    Ok(())
}

fn not_a_message(error: prost::DecodeError) -> Status {
    Status::invalid_argument(format!("not a message: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::{MAX_SESSIONS_PER_FRAME, v1};
    use tonic::Code;

    #[test]
    fn the_largest_frame_passes() {
        let update = v1::SessionUpdate {
            session: u64::MAX,
            commit: vec![u32::MAX; 1024],
            ..v1::SessionUpdate::default()
        };
        let frame = v1::CoordinatorFrame {
            coordinator: 1,
            updates: vec![update; MAX_SESSIONS_PER_FRAME],
            closed_terms: vec![u32::MAX; MAX_SESSIONS_PER_FRAME],
            closed: vec![u64::MAX; MAX_SESSIONS_PER_FRAME],
            incarnation: u64::MAX,
        };
        check(&frame.encode_to_vec()).unwrap();
        check(&[]).unwrap();
    }

    #[test]
    fn many_empty_messages_are_refused_before_they_exist() {
        let frame = v1::CoordinatorFrame {
            updates: vec![v1::SessionUpdate::default(); MAX_FIELDS + 1],
            ..v1::CoordinatorFrame::default()
        };
        let status = check(&frame.encode_to_vec()).unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        // Field 0; a length beyond the end; a group that only ends; a number that never does.
        for bad in [&[0x02][..], &[0x0a, 0x7f, 0x00], &[0x0c], &[0x08, 0xff]] {
            let status = check(bad).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}");
        }
    }
}
