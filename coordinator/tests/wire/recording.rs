//! What a coordinator records of the traffic, and for whom.

use proto::{inward, v1};
use speculation::recording::{Picked, Seen};
use tonic::Code;

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, request};
use crate::fakes::target::{FakeTarget, Pace};

async fn recorded(rig: &Rig) -> Result<Vec<v1::RecordedText>, tonic::Status> {
    let reply = rig.client.clone().recording(v1::RecordingRequest {}).await;
    reply.map(|reply| reply.into_inner().texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_recorded_unless_the_coordinator_was_told_to() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    rig.generate(request("ar", 8)).await.unwrap();
    let refused = recorded(&rig).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("--record"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_has_places_of_guesses_of_the_newest_completions() {
    let (target, draft) = (
        FakeTarget::start(Pace::OnGuess).await,
        FakeDraft::start().await,
    );
    let limits = Limits {
        record: 40,
        ..Limits::default()
    };
    let rig = Rig::limited(&[&target], &[&draft], limits).await;
    assert!(recorded(&rig).await.unwrap().is_empty());
    for _ in 0..3 {
        let asked = v1::GenerateRequest {
            temperature: 0.5,
            ..request("serial", 30)
        };
        rig.generate(asked).await.unwrap();
    }
    let texts = recorded(&rig).await.unwrap();
    let positions: usize = texts.iter().map(|text| text.positions.len()).sum();
    assert!((1..=40).contains(&positions), "{positions} positions");
    for text in texts {
        assert_eq!(text.temperature, 0.5);
        assert_eq!(text.positions.len() as u64 + text.unseen, 30);
        for position in text.positions {
            let Seen {
                place, picked, q, ..
            } = inward::seen(position).unwrap();
            // The fake guesses one token, which is always right; no qualifier says anything.
            assert_eq!((place, picked, q.len()), (Some(0), Picked::Nothing, 1));
        }
    }
}
