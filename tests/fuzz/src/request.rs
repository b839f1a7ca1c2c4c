//! A client's request, from its bytes to the point where it would wait for its place.

use prost::Message;
use proto::{codec, v1};

use crate::VOCAB;

/// The input is the request as it arrives.
pub fn run(input: &[u8]) {
    if codec::check(input).is_err() {
        return;
    }
    let Ok(request) = v1::GenerateRequest::decode(input) else {
        return;
    };
    let sent = request.clone();
    if coordinator::check_request(request, VOCAB as usize).is_ok() {
        let ids = &sent.stop_token_ids;
        assert!(ids.iter().all(|&id| id < VOCAB), "{ids:?}");
        assert!(sent.temperature.is_finite() && sent.temperature >= 0.0);
        assert!(sent.prompt.is_some(), "taken without a prompt");
    }
}
