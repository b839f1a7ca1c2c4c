//! Bytes from the network become domain types or an error.

use prost::Message;
use proto::{MAX_SESSIONS_PER_FRAME, codec, inward, v1};
use speculation::limits::MAX_NODES_PER_UPDATE;

use crate::dice::Dice;
use crate::messages::{self, Context};

/// Even first bytes: the rest is a message as it stands. Odd ones: the rest says how to write one.
pub fn run(input: &[u8]) {
    let mut dice = Dice::new(input);
    let choice = dice.byte();
    let bytes = if choice.is_multiple_of(2) {
        dice.bytes(usize::MAX).to_vec()
    } else {
        written(choice, &mut dice)
    };
    if codec::check(&bytes).is_err() {
        return;
    }
    match (choice / 2) % 5 {
        0 => {
            if let Ok(request) = v1::OpenRequest::decode(bytes.as_slice()) {
                opened(request);
            }
        }
        1 => {
            if let Ok(frame) = v1::RelayFrame::decode(bytes.as_slice()) {
                relayed(frame);
            }
        }
        2 => {
            if let Ok(Ok(reported)) =
                v1::DraftFrame::decode(bytes.as_slice()).map(inward::draft_frame)
            {
                assert!(reported.reports.len() <= MAX_SESSIONS_PER_FRAME);
                assert!(reported.faults.len() <= MAX_SESSIONS_PER_FRAME);
                for report in reported.reports {
                    assert!(report.message.nodes.len() <= MAX_NODES_PER_UPDATE);
                }
            }
        }
        3 => {
            if let Ok(Ok(reported)) =
                v1::VerifyFrame::decode(bytes.as_slice()).map(inward::verify_frame)
            {
                assert!(reported.reports.len() <= MAX_SESSIONS_PER_FRAME);
                for fault in reported.faults {
                    assert!(fault.message.len() <= 1024, "{} bytes", fault.message.len());
                }
            }
        }
        _ => {
            // A hello is compared by the coordinator, after this.
            let _ = v1::HelloReply::decode(bytes.as_slice());
        }
    }
}

/// A message of the kind that the choice will decode, damaged or not.
fn written(choice: u8, dice: &mut Dice<'_>) -> Vec<u8> {
    let context = Context {
        text: &[1, 2, 3],
        next_id: 1,
        term: 1,
    };
    let count = dice.below(4);
    let mut bytes = match (choice / 2) % 5 {
        0 => {
            let task = if dice.chance(128) {
                messages::grow(dice)
            } else {
                messages::commit_or_advise(dice)
            };
            messages::open(dice, task).encode_to_vec()
        }
        1 => v1::RelayFrame {
            coordinator: dice.total(),
            updates: (0..count)
                .map(|_| messages::update(dice, context))
                .collect(),
            closed: (0..dice.below(4)).map(|_| dice.total()).collect(),
            closed_terms: (0..dice.below(4)).map(|_| dice.near(1)).collect(),
            incarnation: dice.total(),
        }
        .encode_to_vec(),
        2 => v1::DraftFrame {
            reports: (0..count)
                .map(|_| messages::draft_report(dice, context))
                .collect(),
            faults: faults(dice),
        }
        .encode_to_vec(),
        _ => v1::VerifyFrame {
            reports: (0..count)
                .map(|_| messages::verify_report(dice, context))
                .collect(),
            faults: faults(dice),
        }
        .encode_to_vec(),
    };
    for _ in 0..dice.below(4) {
        if !bytes.is_empty() {
            let at = dice.any() as usize % bytes.len();
            bytes[at] = dice.byte();
        }
    }
    bytes
}

fn faults(dice: &mut Dice<'_>) -> Vec<v1::Fault> {
    (0..dice.below(3))
        .map(|_| v1::Fault {
            session: 1,
            term: dice.near(1),
            message: "ä".repeat(dice.below(4) * 300),
        })
        .collect()
}

fn opened(request: v1::OpenRequest) {
    let tokens = request.text.len();
    if let Ok((spec, _)) = inward::open(request) {
        assert_eq!(spec.text.len(), tokens);
        assert!(spec.stopping.prompt_len as usize <= tokens);
        assert!(tokens < spec.stopping.max_len as usize);
    }
}

fn relayed(frame: v1::RelayFrame) {
    if let Ok(relayed) = inward::relay_frame(frame) {
        assert!(relayed.updates.len() <= MAX_SESSIONS_PER_FRAME);
        assert!(relayed.closed.len() <= MAX_SESSIONS_PER_FRAME);
        for update in relayed.updates {
            let shard = update.message.shard.unwrap_or_default();
            assert!(shard.index < shard.count, "{shard:?}");
            assert!(update.message.nodes.len() <= MAX_NODES_PER_UPDATE);
        }
    }
}
