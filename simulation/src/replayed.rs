//! Journals of targets: whatever has happened to a session, its steps commit the same when they are taken again.

use speculation::recording::Recording;
use speculation::replay::{Again, Replay};
use speculation::strategy::Registry;

/// Takes the recorded steps of a session again.
pub(crate) fn check(recording: &Recording, registry: &Registry) {
    for run in recording.runs() {
        let mut replay = Replay::new(run, registry).expect("its strategy is registered");
        for (number, step) in run.steps.iter().enumerate() {
            let again = replay.step(step).expect("an honest target has told it");
            let recorded = Again {
                submitted: step.submitted.into(),
                tokens: step.picks.len(),
            };
            assert_eq!(again, recorded, "step {number} of {:?}", run.strategy);
        }
    }
}
