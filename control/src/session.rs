//! What the task of one request decides at a coordinator: who serves it, what each worker is told and when, and what
//! becomes of it when one is lost.
//!
//! A [`Ferry`] has the [`Relay`], the seats and the memory of lost targets. Its owner has the links, the open calls and
//! the clock, and acts for it as its [`Shore`]. Feed it with `handle_*` and call [`Ferry::poll`] after every input.

use crate::Time;
use crate::limits::{MAX_COMMIT, MAX_NODES_PER_UPDATE};
use crate::message::{
    Addressed, DraftReport, Finish, PromptScores, ReplicaUpdate, Scores, SessionSpec, Term,
    VerifyReport,
};
use crate::relay::{LinkKey, Relay, RelayError, Role};
use crate::replay::{Hope, Replays, Wish};

/// What a worker says about one session.
#[derive(Clone, Debug)]
pub enum Said {
    /// A draft has grown something.
    Drafted(DraftReport),
    /// A verifier has picked.
    Verified(VerifyReport),
    /// The worker gives the session up.
    Fault(String),
}

/// Which workers a session wants besides a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Drafts, at most.
    pub drafts: usize,
    /// Qualifiers, at most.
    pub qualifiers: usize,
}

impl Wanted {
    /// What is still wanted by a session that has these already.
    pub fn besides(self, present: impl Iterator<Item = Role>) -> Wanted {
        present.fold(self, |left, role| match role {
            Role::Draft => Wanted {
                drafts: left.drafts.saturating_sub(1),
                ..left
            },
            Role::Qualifier => Wanted {
                qualifiers: left.qualifiers.saturating_sub(1),
                ..left
            },
            Role::Target => left,
        })
    }
}

/// What is new for the client.
#[derive(Debug)]
pub struct Fresh {
    /// Committed tokens.
    pub tokens: Vec<u32>,
    /// Their scores, if they were asked for.
    pub scores: Option<Scores>,
    /// Scores of the prompt.
    pub prompt: Option<PromptScores>,
    /// The text is complete.
    pub is_last: bool,
}

/// What an answer to an open call asks of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Nothing.
    Noted,
    /// It was carried out although the session has left that worker since: it is to be closed once more.
    CloseAgain,
}

/// A place on a worker, as the owner holds it.
pub trait Seat {
    /// Names the worker within the session.
    fn key(&self) -> LinkKey;
    /// What the worker does.
    fn role(&self) -> Role;
}

/// What the owner of a [`Ferry`] does for it.
pub trait Shore {
    /// A place on a worker.
    type Seat: Seat;
    /// Why a worker is let go before the end.
    type Parting;
    /// What is remembered of a lost target.
    type Loss;
    /// Why the session fails.
    type Failure;

    /// Why a seat is of no use any more, if so: its link is lost, or the session fell behind its reports.
    fn gone(&self, seat: &Self::Seat) -> Option<Self::Parting>;
    /// The worker said what no correct worker says.
    fn broken(&self, error: RelayError) -> Self::Parting;
    /// The worker has given the session up.
    fn fault(&self, message: String) -> Self::Parting;

    /// Whether the last update was taken. If not, the owner calls [`Ferry::poll`] again once it is.
    fn is_vacant(&mut self, seat: &Self::Seat) -> bool;
    /// Sends an update. When it `goes_on` the owner calls [`Ferry::poll`] again once it was taken.
    fn tell(&mut self, seat: &Self::Seat, term: Term, update: ReplicaUpdate, goes_on: bool);
    /// Makes the open call; its answer goes to [`Ferry::handle_answer`].
    fn open(&mut self, seat: &mut Self::Seat, spec: SessionSpec);
    /// The session leaves the worker, which is told to free everything.
    fn leave(&mut self, seat: Self::Seat);
    /// A worker serves the session.
    fn serves(&mut self, role: Role);

    /// Hands the client what is new. Gives how many tokens it has taken, of these and earlier ones.
    fn deliver(&mut self, fresh: Fresh) -> u32;
    /// Whether the client has all it wants although the text could go on.
    fn is_satisfied(&self) -> bool;

    /// A seat on another target.
    fn find_target(&mut self, wish: &Wish<'_, Self::Loss>) -> Option<Self::Seat>;
    /// Seats on other drafts and qualifiers, at most as many as are wanted.
    fn find_contributors(&mut self, wanted: Wanted, present: &[Self::Seat]) -> Vec<Self::Seat>;

    /// The session goes on without a draft or qualifier.
    fn bypassed(&mut self, seat: &Self::Seat, why: Self::Parting);
    /// The target is lost behind so many generated tokens. What is to be remembered of it, and hoped for.
    ///
    /// # Errors
    /// When no other target could serve the session.
    fn lost(
        &mut self,
        seat: &Self::Seat,
        why: Self::Parting,
        tokens: usize,
    ) -> Result<(Hope, Self::Loss), Self::Failure>;
    /// So many targets were lost one after the other without a new token.
    fn fruitless(&self, lost: u32, loss: Self::Loss) -> Self::Failure;
    /// No target took over in time.
    fn abandoned(&self, loss: Self::Loss) -> Self::Failure;
}

/// See the module documentation. `P` is a place on a worker; the target's comes first, so that it is told first. `L` is
/// what is remembered of a lost target.
#[derive(Debug)]
pub struct Ferry<P, L> {
    relay: Relay,
    seats: Vec<P>,
    replays: Replays<L>,
    wanted: Wanted,
    prompt_len: usize,
}

impl<P: Seat, L> Ferry<P, L> {
    /// A session without any worker; `prompt_len` tokens of its text are not generated.
    pub fn new(relay: Relay, wanted: Wanted, prompt_len: usize) -> Self {
        Ferry {
            relay,
            seats: Vec::new(),
            replays: Replays::default(),
            wanted,
            prompt_len,
        }
    }

    /// The merged state.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// The workers that have the session or are asked to take it; the target first.
    pub fn seats(&self) -> &[P] {
        &self.seats
    }

    /// Gives up the seats, so that the owner can leave them.
    pub fn take_seats(&mut self) -> Vec<P> {
        std::mem::take(&mut self.seats)
    }

    /// Tokens behind the prompt, a stop token included.
    pub fn generated(&self) -> usize {
        self.relay.text().len() - self.prompt_len
    }

    /// Whether a target is looked for, so that every vacancy is a reason to poll.
    pub fn is_seeking(&self) -> bool {
        self.replays.is_seeking()
    }

    /// When to poll although nothing has changed. A target is looked for for `patience`.
    pub fn wake(&self, now: Time, patience: Time) -> Option<Time> {
        self.replays.wake(now, patience)
    }

    /// Does everything there is to do now. `Some` when the text is complete.
    ///
    /// # Errors
    /// When the session cannot go on.
    pub fn poll<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        patience: Time,
    ) -> Result<Option<Finish>, S::Failure> {
        let gone = |seat: &P, shore: &S| Some((seat.key(), shore.gone(seat)?));
        while let Some((key, why)) = self.seats.iter().find_map(|seat| gone(seat, shore)) {
            self.part(shore, now, key, why)?;
        }
        self.seek(shore, now, patience)?;
        self.hand_out(shore);
        if shore.is_satisfied() && self.relay.is_prompt_done() {
            return Ok(Some(Finish::Stop));
        }
        if let Some(finish) = self.relay.finish() {
            return Ok(Some(finish));
        }
        self.tell(shore);
        Ok(None)
    }

    /// The session has a seat: opens it there, if the strategy has a use for it.
    pub fn handle_seat<S: Shore<Seat = P, Loss = L>>(&mut self, shore: &mut S, mut seat: P) {
        let role = seat.role();
        match self.relay.add_link(seat.key(), role) {
            None => shore.leave(seat),
            Some(spec) => {
                shore.open(&mut seat, spec);
                match role {
                    Role::Target => self.seats.insert(0, seat),
                    Role::Draft | Role::Qualifier => self.seats.push(seat),
                }
            }
        }
    }

    /// Workers have become ready: takes those that the session still wants.
    pub fn handle_arrivals<S: Shore<Seat = P, Loss = L>>(&mut self, shore: &mut S) {
        let wanted = self.wanted.besides(self.seats.iter().map(Seat::role));
        for seat in shore.find_contributors(wanted, &self.seats) {
            self.handle_seat(shore, seat);
        }
    }

    /// An open call that was made under this term has ended. `Err` says how to understand a refusal; it is asked only
    /// for one that still means something.
    ///
    /// # Errors
    /// When the session cannot go on.
    pub fn handle_answer<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        (key, term): (LinkKey, Term),
        answer: Result<(), impl FnOnce(&mut S, &P) -> S::Parting>,
    ) -> Result<Answered, S::Failure> {
        let seat = self.seats.iter().find(|seat| seat.key() == key);
        if self.relay.term_of(key) != Some(term) {
            // An answer from before the session parted with that worker. It says nothing of a call made since.
            return Ok(match (answer, seat) {
                (Ok(()), None) => Answered::CloseAgain,
                _ => Answered::Noted,
            });
        }
        let Some(seat) = seat else {
            return Ok(Answered::Noted);
        };
        match answer {
            Ok(()) => {
                let role = seat.role();
                if role == Role::Target {
                    self.replays.handle_served();
                }
                self.relay.handle_opened(key);
                shore.serves(role);
            }
            Err(understood) => {
                let why = understood(shore, seat);
                self.part(shore, now, key, why)?;
            }
        }
        Ok(Answered::Noted)
    }

    /// A worker has said something. What it said under another term than its own changes nothing.
    ///
    /// # Errors
    /// When the session cannot go on.
    pub fn handle_said<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        (key, term): (LinkKey, Term),
        said: Said,
    ) -> Result<(), S::Failure> {
        if self.seats.iter().all(|seat| seat.key() != key) {
            return Ok(());
        }
        let taken = match said {
            Said::Drafted(report) => self.relay.handle_draft(key, term, &report),
            Said::Verified(report) => self.relay.handle_verify(key, term, &report),
            Said::Fault(_) if self.relay.term_of(key) != Some(term) => Ok(()),
            Said::Fault(message) => {
                let why = shore.fault(message);
                return self.part(shore, now, key, why);
            }
        };
        match taken {
            Ok(()) => Ok(()),
            Err(error) => {
                let why = shore.broken(error);
                self.part(shore, now, key, why)
            }
        }
    }

    /// Goes on without this worker; if it is the target, with another one.
    fn part<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        key: LinkKey,
        why: S::Parting,
    ) -> Result<(), S::Failure> {
        self.relay.handle_lost(key);
        let Some(at) = self.seats.iter().position(|seat| seat.key() == key) else {
            return Ok(());
        };
        let seat = self.seats.remove(at);
        let parted = match seat.role() {
            Role::Target => self.lose_target(shore, now, &seat, why),
            Role::Draft | Role::Qualifier => {
                shore.bypassed(&seat, why);
                Ok(())
            }
        };
        shore.leave(seat);
        parted
    }

    fn lose_target<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        seat: &P,
        why: S::Parting,
    ) -> Result<(), S::Failure> {
        let tokens = self.generated();
        let (hope, loss) = shore.lost(seat, why, tokens)?;
        if let Err(lost) = self.replays.handle_lost(tokens, hope) {
            return Err(shore.fruitless(lost, loss));
        }
        self.replays.seek(now, seat.key(), hope, loss);
        Ok(())
    }

    /// Gives the session to another target, if one is sought and there is one; fails when it was sought for too long.
    fn seek<S: Shore<Seat = P, Loss = L>>(
        &mut self,
        shore: &mut S,
        now: Time,
        patience: Time,
    ) -> Result<(), S::Failure> {
        let wish = self.replays.poll_wish(now, patience);
        if let Some(seat) = wish.and_then(|wish| shore.find_target(&wish)) {
            self.replays.handle_seated();
            self.handle_seat(shore, seat);
            return Ok(());
        }
        match self.replays.poll_failure(now, patience) {
            Some(loss) => Err(shore.abandoned(loss)),
            None => Ok(()),
        }
    }

    /// Hands the client what is new, and the relay what the client has taken.
    fn hand_out<S: Shore<Seat = P, Loss = L>>(&mut self, shore: &mut S) {
        let (tokens, scores) = self.relay.poll_text();
        let fresh = Fresh {
            tokens,
            scores,
            prompt: self.relay.poll_prompt_scores(),
            is_last: self.relay.finish().is_some(),
        };
        let taken = shore.deliver(fresh);
        self.relay.handle_consumed(taken);
    }

    /// Tells every worker whose slot is vacant what is new to it.
    fn tell<S: Shore<Seat = P, Loss = L>>(&mut self, shore: &mut S) {
        for seat in &self.seats {
            if !shore.is_vacant(seat) {
                continue;
            }
            if let Some(Addressed { term, message, .. }) = self.relay.poll_update(seat.key()) {
                let goes_on = may_go_on(&message);
                shore.tell(seat, term, message, goes_on);
            }
        }
    }
}

/// Whether an update may have left something out because it was full. The rest is told when it was taken.
fn may_go_on(update: &ReplicaUpdate) -> bool {
    update.commit.len() >= MAX_COMMIT || update.nodes.len() >= MAX_NODES_PER_UPDATE / 2
}
