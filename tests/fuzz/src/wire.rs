//! Bytes from the network become domain types or an error.

use prost::Message;
use proto::{MAX_SESSIONS_PER_FRAME, codec, inward, v1};
use speculation::limits::MAX_NODES_PER_UPDATE;
use speculation::message::FromWorker;

use crate::dice::Dice;
use crate::messages::{self, About, Context};

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
            if let Ok(frame) = v1::CoordinatorFrame::decode(bytes.as_slice()) {
                from_coordinator(frame);
            }
        }
        2 | 3 => {
            if let Ok(frame) = v1::WorkerFrame::decode(bytes.as_slice()) {
                from_worker(frame);
            }
        }
        _ => {
            // A hello is compared by who receives it, after this.
            let _ = v1::HelloRequest::decode(bytes.as_slice());
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
            let duties = messages::duties(dice);
            messages::open(dice, &duties).encode_to_vec()
        }
        1 => v1::CoordinatorFrame {
            coordinator: dice.total(),
            updates: (0..count)
                .map(|_| messages::update(dice, context))
                .collect(),
            closed: (0..dice.below(4)).map(|_| dice.total()).collect(),
            closed_terms: (0..dice.below(4)).map(|_| dice.near(1)).collect(),
            incarnation: dice.total(),
        }
        .encode_to_vec(),
        kind => v1::WorkerFrame {
            reports: (0..count)
                .map(|_| {
                    let about = match kind {
                        2 => About::Guesses,
                        3 => About::Picks,
                        _ => About::Both,
                    };
                    messages::report(dice, context, about)
                })
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
            preempted: dice.chance(64),
        })
        .collect()
}

fn opened(request: v1::OpenRequest) {
    let tokens = request.text.len();
    if let Ok((spec, _)) = inward::open(request) {
        assert_eq!(spec.text.len(), tokens);
        assert!(spec.stopping.prompt_len as usize <= tokens);
        assert!(tokens <= spec.stopping.max_len as usize);
        assert!(spec.stopping.prompt_len < spec.stopping.max_len);
        assert!(spec.shard.index < spec.shard.count);
    }
}

fn from_coordinator(frame: v1::CoordinatorFrame) {
    if let Ok(frame) = inward::coordinator_frame(frame) {
        assert!(frame.updates.len() <= MAX_SESSIONS_PER_FRAME);
        assert!(frame.closed.len() <= MAX_SESSIONS_PER_FRAME);
        for update in frame.updates {
            let shard = update.message.shard.unwrap_or_default();
            assert!(shard.index < shard.count, "{shard:?}");
            assert!(update.message.nodes.len() <= MAX_NODES_PER_UPDATE);
        }
    }
}

fn from_worker(frame: v1::WorkerFrame) {
    if let Ok(messages) = inward::worker_frame(frame) {
        assert!(messages.len() <= 2 * MAX_SESSIONS_PER_FRAME);
        for message in messages {
            match message.message {
                FromWorker::Report(report) => {
                    let nodes = report.nodes;
                    assert!(nodes.len() <= MAX_NODES_PER_UPDATE);
                    assert!([0, nodes.len()].contains(&nodes.origins.len()));
                }
                FromWorker::Preempted => {}
                FromWorker::Fault(why) => assert!(why.len() <= 1024, "{} bytes", why.len()),
            }
        }
    }
}
