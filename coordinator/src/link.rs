//! One incarnation of the stream to one worker, as sessions and the registry see it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use dashmap::DashMap;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use proto::inward::Addressed;
use proto::v1::draft_client::DraftClient;
use proto::v1::verify_client::VerifyClient;
use proto::{MAX_FRAME_BYTES, MAX_SESSIONS_PER_FRAME, outward, v1};
use runtime::outbox::Outbox;
use speculation::ferry::Said;
use speculation::message::{LinkName, ReplicaUpdate, SessionId, Term};
use speculation::relay::{LinkKey, Role};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::hello::Hello;
use crate::news::News;
use crate::seat::Seat;
use crate::tally::Tally;

/// What a worker is told about one session.
#[derive(Debug)]
pub(crate) enum Down {
    /// The newest state.
    Update(Term, ReplicaUpdate),
    /// Forget the session that was opened under this term.
    Close(Term),
}

/// The calls of a worker, by the service it offers.
#[derive(Clone, Debug)]
pub(crate) enum Client {
    Draft(DraftClient<Channel>),
    Verify(VerifyClient<Channel>),
}

impl Client {
    pub(crate) fn new(role: Role, channel: Channel) -> Self {
        match role {
            Role::Draft => {
                Client::Draft(DraftClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES))
            }
            Role::Qualifier | Role::Target => Client::Verify(
                VerifyClient::new(channel).max_decoding_message_size(MAX_FRAME_BYTES),
            ),
        }
    }
}

/// A session's seat, and the pages it needs in the worker's cache.
#[derive(Debug)]
struct Seated {
    seat: Arc<Seat>,
    pages: u32,
}

/// A stream that is up, or was. Sessions that hold a lost one let it go as soon as they look.
#[derive(Debug)]
pub(crate) struct Link {
    /// The worker's number in the registry, which names it within every session.
    pub(crate) key: LinkKey,
    /// What the stream is called on both its ends.
    pub(crate) name: LinkName,
    pub(crate) role: Role,
    pub(crate) address: Arc<str>,
    pub(crate) hello: Hello,
    pub(crate) client: Client,
    /// What each session tells this worker; taken by the writer.
    pub(crate) outbox: Outbox<SessionId, Down>,
    /// Who hears what this worker says.
    seats: DashMap<SessionId, Seated>,
    /// Pages of its cache that those need, as far as this coordinator knows.
    pages: AtomicU32,
    /// Cancelled when the stream is lost; never reset.
    pub(crate) lost: CancellationToken,
    /// The worker takes no new sessions any more; those it has go on.
    retired: AtomicBool,
    /// Told whenever a seat becomes free, so that requests that wait for one look again.
    vacancies: News,
    /// Where what sessions report of this worker is added up.
    tally: Arc<Tally>,
}

impl Link {
    pub(crate) fn new(
        (key, name): (LinkKey, LinkName),
        role: Role,
        address: Arc<str>,
        hello: Hello,
        client: Client,
        vacancies: News,
        tally: Arc<Tally>,
    ) -> Self {
        Link {
            key,
            name,
            role,
            address,
            hello,
            client,
            outbox: Outbox::default(),
            seats: DashMap::new(),
            pages: AtomicU32::new(0),
            lost: CancellationToken::new(),
            retired: AtomicBool::new(false),
            vacancies,
            tally,
        }
    }

    /// Sessions on this link.
    pub(crate) fn sessions(&self) -> usize {
        self.seats.len()
    }

    /// Whether a session whose text may take so many positions has room besides the others.
    pub(crate) fn has_room(&self, positions: u32) -> bool {
        let pages = self.pages.load(Ordering::SeqCst) + self.pages_of(positions);
        self.sessions() < self.hello.max_sessions && pages <= self.hello.kv_pages
    }

    fn pages_of(&self, positions: u32) -> u32 {
        (positions.min(self.hello.max_context)).div_ceil(self.hello.kv_page)
    }

    /// From now on the session hears this worker; its text may take so many positions.
    pub(crate) fn join(&self, session: SessionId, seat: Arc<Seat>, positions: u32) {
        let pages = self.pages_of(positions);
        self.pages.fetch_add(pages, Ordering::SeqCst);
        let seated = Seated {
            seat: Arc::clone(&seat),
            pages,
        };
        if let Some(before) = self.seats.insert(session, seated) {
            self.pages.fetch_sub(before.pages, Ordering::SeqCst);
        }
        // The order of insert and look matches `lose`: either it finds the seat, or we find it lost.
        if self.lost.is_cancelled() {
            seat.lose();
        }
    }

    /// The session hears this worker no more, and the worker is told to free everything.
    pub(crate) fn leave(&self, session: SessionId) {
        if let Some((_, seated)) = self.seats.remove(&session) {
            self.pages.fetch_sub(seated.pages, Ordering::SeqCst);
            (self.outbox).put(session, Down::Close(seated.seat.term()));
            self.vacancies.tell();
        }
    }

    /// The worker has said that it is shutting down: no new session is given to it.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.vacancies.tell();
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Passes on what the worker said; a session that has left hears nothing.
    pub(crate) fn hear(&self, session: SessionId, term: Term, said: Said) {
        if let Some(seated) = self.seats.get(&session) {
            self.tally.note(&seated.seat.totals, &said);
            seated.seat.hear(term, said);
        }
    }

    /// The stream is gone, and with it this link, for every session.
    pub(crate) fn lose(&self) {
        self.lost.cancel();
        for seated in &self.seats {
            seated.seat.lose();
        }
        self.vacancies.tell();
    }

    /// What the worker is sent, for as long as the stream is read: first who is calling, then whatever the slots
    /// hold. It never waits for the reading half.
    pub(crate) fn frames(self: Arc<Self>) -> impl Stream<Item = v1::RelayFrame> + Send + 'static {
        let writer = Writer {
            link: Arc::clone(&self),
            first: Some(outward::greeting(self.name)),
            taken: VecDeque::new(),
        };
        stream::unfold(writer, |mut writer| async move {
            let frame = writer.next().await;
            Some((frame, writer))
        })
        // Without this a lost link and its connection would live for as long as nobody has anything to say.
        .take_until(self.lost.clone().cancelled_owned())
    }
}

struct Writer {
    link: Arc<Link>,
    first: Option<v1::RelayFrame>,
    /// Taken from the slots and not yet sent, because the last frame was full.
    taken: VecDeque<(SessionId, Down)>,
}

impl Writer {
    async fn next(&mut self) -> v1::RelayFrame {
        if let Some(first) = self.first.take() {
            return first;
        }
        if self.taken.is_empty() {
            self.taken = self.link.outbox.take(MAX_SESSIONS_PER_FRAME).await.into();
            for (session, _) in &self.taken {
                if let Some(seated) = self.link.seats.get(session) {
                    seated.seat.taken();
                }
            }
        }
        let mut frame = v1::RelayFrame::default();
        let mut bytes = 0;
        // One update is far below half of what a frame may have, so a frame that is not half full has room for it.
        while bytes < MAX_FRAME_BYTES / 2
            && let Some((session, down)) = self.taken.pop_front()
        {
            match down {
                Down::Close(term) => {
                    frame.closed.push(session.0);
                    frame.closed_terms.push(term.0);
                }
                Down::Update(term, message) => {
                    let update = outward::update(Addressed {
                        session,
                        term,
                        message,
                    });
                    bytes += update.encoded_len();
                    frame.updates.push(update);
                }
            }
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::seat::SeatMaker;
    use futures::StreamExt;
    use speculation::message::{NodeBatch, Prob16};
    use tokio::sync::mpsc;
    use tonic::transport::Endpoint;

    const NAME: LinkName = LinkName {
        coordinator: 77,
        incarnation: 3,
    };

    fn link() -> Arc<Link> {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let hello = Hello {
            model: String::new(),
            numerics_id: String::new(),
            max_context: 8,
            max_sessions: 2,
            eos_ids: Vec::new(),
            kv_pages: 3,
            kv_page: 4,
        };
        Arc::new(Link::new(
            (LinkKey(0), NAME),
            Role::Draft,
            "127.0.0.1:1".into(),
            hello,
            Client::new(Role::Draft, channel),
            News::new(),
            Arc::default(),
        ))
    }

    fn seat() -> Arc<Seat> {
        let (inbox, _) = mpsc::channel(1);
        let wake = Arc::default();
        SeatMaker { inbox, wake }.seat(LinkKey(0))
    }

    /// An update as large as they get.
    fn largest() -> Down {
        let nodes = NodeBatch {
            first_id: u32::MAX - 1024,
            parents: vec![u32::MAX; 512],
            tokens: vec![u32::MAX; 512],
            edges: vec![Prob16(u16::MAX); 512],
            owners: vec![255; 512],
        };
        let update = ReplicaUpdate {
            commit: vec![u32::MAX; 1024],
            nodes,
            rescored: vec![(u32::MAX, Prob16(u16::MAX)); 1024],
            ..ReplicaUpdate::default()
        };
        Down::Update(Term(1), update)
    }

    #[tokio::test]
    async fn frames_stay_below_their_limit_and_lose_nothing() {
        let link = link();
        for session in 0..MAX_SESSIONS_PER_FRAME as u64 {
            link.outbox.put(SessionId(session), largest());
        }
        link.outbox.put(SessionId(u64::MAX), Down::Close(Term(3)));
        let mut frames = Box::pin(Arc::clone(&link).frames());
        assert_eq!(frames.next().await.unwrap(), outward::greeting(NAME));
        let mut sessions = Vec::new();
        let mut count = 0;
        loop {
            let frame = frames.next().await.unwrap();
            assert!(frame.encoded_len() <= MAX_FRAME_BYTES);
            count += 1;
            sessions.extend(frame.updates.iter().map(|update| update.session));
            if !frame.closed.is_empty() {
                assert_eq!(
                    (frame.closed, frame.closed_terms),
                    (vec![u64::MAX], vec![3])
                );
                break;
            }
        }
        assert!(
            count > 2,
            "{count} frames: the updates were too small to prove anything"
        );
        assert_eq!(
            sessions,
            (0..MAX_SESSIONS_PER_FRAME as u64).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn a_lost_link_tells_all_seats_also_those_that_come_later() {
        let link = link();
        let (early, late) = (seat(), seat());
        link.join(SessionId(1), Arc::clone(&early), 8);
        assert!(!early.is_gone());
        link.lose();
        assert!(early.is_gone());
        link.join(SessionId(2), Arc::clone(&late), 1);
        assert!(late.is_gone());
        assert!(!link.has_room(1), "two sessions are all it takes");
    }

    #[tokio::test]
    async fn pages_are_counted_and_given_back() {
        let link = link();
        assert!(
            link.has_room(u32::MAX),
            "no text is longer than the context"
        );
        link.join(SessionId(1), seat(), 5);
        assert!(link.has_room(4) && !link.has_room(5));
        link.leave(SessionId(1));
        link.leave(SessionId(1));
        assert!(link.has_room(8));
    }

    #[tokio::test]
    async fn leaving_closes_once() {
        let link = link();
        link.join(SessionId(1), seat(), 8);
        link.outbox.put(SessionId(1), largest());
        link.leave(SessionId(1));
        link.leave(SessionId(1));
        assert_eq!(link.sessions(), 0);
        let taken = link.outbox.take(8).await;
        assert!(
            matches!(taken[..], [(SessionId(1), Down::Close(_))]),
            "{taken:?}"
        );
    }
}
