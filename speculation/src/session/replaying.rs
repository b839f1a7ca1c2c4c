//! What a target's session does beside its usual life when its steps are taken again.

use decode::{Forecast, NodeId};

use super::{Agent, Session};
use crate::journal::Arrived;
use crate::stats::WalkStats;

use super::verify::Verifier;

impl Session {
    fn target(&mut self) -> Option<&mut Verifier> {
        match &mut self.agent {
            Agent::Proposer(_) => None,
            Agent::Verifier(verifier) => Some(verifier),
        }
    }

    /// A recorded guess comes, exactly as it was. `None` where it cannot have been so.
    pub(crate) fn graft_recorded(
        &mut self,
        parent: Option<NodeId>,
        token: u32,
        arrived: Arrived,
    ) -> Option<NodeId> {
        self.target()?.graft_recorded(parent, token, arrived)
    }

    /// A recorded guess has another estimate.
    pub(crate) fn rescore_recorded(&mut self, id: NodeId, edge: f32) {
        if let Some(target) = self.target() {
            target.rescore_recorded(id, edge);
        }
    }

    /// The rows of text that the next step computes in any case.
    pub(crate) fn base_rows(&mut self) -> usize {
        self.target().map_or(0, Verifier::base_rows)
    }

    /// What the target expected of its next step.
    pub(crate) fn set_forecast(&mut self, forecast: Option<Forecast>) {
        if let Some(target) = self.target() {
            target.set_forecast(forecast);
        }
    }

    /// What its walks have counted.
    pub(crate) fn walks(&mut self) -> WalkStats {
        self.target()
            .map_or_else(WalkStats::default, |target| target.walks())
    }
}
