//! Two peers that send each other their trees: what is received is what was sent.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use speculation::limits::{MAX_NODES_PER_UPDATE, MAX_TREE};
use speculation::message::{NodeBatch, NodeNumber, Origin, Prob16};
use speculation::numbering::{Inbound, Outbound, PeerError};
use speculation::tree::{Graft, Grafted, NodeId, Tree};

const VOCAB: u32 = 3;

/// The text as it will be; peers commit it piece by piece.
fn truth(position: usize) -> u32 {
    (position * position / 3 + position / 5) as u32 % VOCAB
}

#[derive(Clone, Debug)]
struct Message {
    text: Vec<u32>,
    nodes: NodeBatch,
    rescored: Vec<(NodeNumber, Prob16)>,
}

#[derive(Debug)]
struct Peer {
    tree: Tree<()>,
    text: Vec<u32>,
    inbound: Inbound,
    outbound: Outbound,
    /// The whole text of every node this peer has received or made.
    received: BTreeSet<Vec<u32>>,
}

impl Peer {
    fn new() -> Self {
        let text: Vec<u32> = (0..2).map(truth).collect();
        Peer {
            tree: Tree::new(2),
            text,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            received: BTreeSet::new(),
        }
    }

    fn extend(&mut self, tokens: &[u32]) {
        self.text.extend_from_slice(tokens);
        let committed = self.tree.commit(tokens);
        self.inbound.committed(&committed);
        self.outbound.committed(&self.tree);
    }

    fn whole(&self, id: NodeId) -> Vec<u32> {
        [&self.text[..], &self.tree.tokens_to(id)].concat()
    }

    fn nth(&self, at: usize) -> Option<NodeId> {
        let nodes: Vec<NodeId> = self.tree.iter().map(|(id, _)| id).collect();
        (!nodes.is_empty()).then(|| nodes[at % nodes.len()])
    }

    fn change(&mut self, change: &Change) {
        match *change {
            Change::Graft { below, token, edge } => {
                let parent = if below % 4 == 0 {
                    None
                } else {
                    self.nth(below)
                };
                let graft = Graft {
                    token,
                    edge,
                    owner: 0,
                    payload: (),
                };
                let id = self.tree.graft(parent, graft).expect("a live parent").id();
                self.received.insert(self.whole(id));
            }
            Change::SetEdge { node, edge } => {
                if let Some(id) = self.nth(node) {
                    self.tree.set_edge(id, edge);
                }
            }
            Change::Commit(tokens) => {
                let from = self.text.len();
                let tokens: Vec<u32> = (from..from + tokens).map(truth).collect();
                self.extend(&tokens);
            }
        }
    }

    fn send(&mut self, min_path: f32, room: usize) -> Option<Message> {
        let (nodes, rescored) = self.outbound.diff(&self.tree, min_path, room, None);
        assert!(nodes.len() <= room);
        let is_new = !nodes.is_empty() || !rescored.is_empty();
        is_new.then(|| Message {
            text: self.text.clone(),
            nodes,
            rescored,
        })
    }

    fn receive(&mut self, message: &Message, sender: &BTreeSet<Vec<u32>>) {
        if let Some(fresh) = message.text.get(self.text.len()..) {
            self.extend(fresh);
        }
        let named = self
            .inbound
            .receive(
                &mut self.tree,
                &self.text,
                VOCAB,
                message.text.len() as u32,
                &message.nodes,
                |_, _| (),
            )
            .expect("a correct peer's message");
        for (at, grafted) in named {
            let edge = message.nodes.edges[at];
            let id = grafted.id();
            let whole = self.whole(id);
            assert!(sender.contains(&whole), "{whole:?} was never sent");
            self.received.insert(whole);
            if let Grafted::Existing(id) = grafted {
                self.tree.set_edge(id, edge.to_f32());
            }
            self.outbound.received(id, edge);
        }
        for &(number, edge) in &message.rescored {
            if let Some(id) = self.inbound.node(number) {
                self.tree.set_edge(id, edge.to_f32());
                self.outbound.received(id, edge);
            }
        }
    }

    /// Whether `other`, at the same text, knows every node of this tree worth sending, with edges as close as they are
    /// sent.
    fn check_known_to(&self, other: &Peer, min_path: f32, edges: Edges) {
        for (id, node) in self.tree.iter().filter(|(_, node)| node.path() >= min_path) {
            let tokens = self.tree.tokens_to(id);
            let there = other.tree.descend(&tokens);
            assert_eq!(
                there.len(),
                tokens.len(),
                "{tokens:?} is not known over there"
            );
            if edges == Edges::Agree {
                let edge = other.tree.get(there[there.len() - 1]).unwrap().edge();
                assert!(
                    (edge - node.edge()).abs() < 0.026,
                    "{edge} there, {} here",
                    node.edge()
                );
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Edges {
    Agree,
    MayDiffer,
}

#[derive(Clone, Debug)]
enum Change {
    Graft { below: usize, token: u32, edge: f32 },
    SetEdge { node: usize, edge: f32 },
    Commit(usize),
}

#[derive(Clone, Debug)]
enum Event {
    First(Change),
    Second(Change),
    FirstSends(usize),
    SecondSends(usize),
    FirstReceives,
    SecondReceives,
}

fn graft() -> impl Strategy<Value = Change> {
    (any::<usize>(), 0..VOCAB, 0.05f32..=1.0).prop_map(|(below, token, edge)| Change::Graft {
        below,
        token,
        edge,
    })
}

fn commit() -> impl Strategy<Value = Change> {
    (1usize..4).prop_map(Change::Commit)
}

fn set_edge() -> impl Strategy<Value = Change> {
    (any::<usize>(), 0.05f32..=1.0).prop_map(|(node, edge)| Change::SetEdge { node, edge })
}

fn events(both_guess: bool) -> impl Strategy<Value = Vec<Event>> {
    let second = if both_guess { 6 } else { 0 };
    let event = prop_oneof![
        8 => graft().prop_map(Event::First),
        2 => set_edge().prop_map(Event::First),
        1 => commit().prop_map(Event::First),
        1 => commit().prop_map(Event::Second),
        second => graft().prop_map(Event::Second),
        4 => (1usize..12).prop_map(Event::FirstSends),
        4 => (1usize..12).prop_map(Event::SecondSends),
        4 => Just(Event::FirstReceives),
        4 => Just(Event::SecondReceives),
    ];
    prop::collection::vec(event, 1..80)
}

/// Two peers and what is under way between them.
struct Pair {
    first: Peer,
    second: Peer,
    there: VecDeque<Message>,
    back: VecDeque<Message>,
    min_path: f32,
}

impl Pair {
    fn new(min_path: f32) -> Self {
        Pair {
            first: Peer::new(),
            second: Peer::new(),
            there: VecDeque::new(),
            back: VecDeque::new(),
            min_path,
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::First(change) => self.first.change(change),
            Event::Second(change) => self.second.change(change),
            Event::FirstSends(room) => self.there.extend(self.first.send(self.min_path, *room)),
            Event::SecondSends(room) => self.back.extend(self.second.send(self.min_path, *room)),
            Event::FirstReceives => {
                if let Some(message) = self.back.pop_front() {
                    self.first.receive(&message, &self.second.received);
                }
            }
            Event::SecondReceives => {
                if let Some(message) = self.there.pop_front() {
                    self.second.receive(&message, &self.first.received);
                }
            }
        }
    }

    /// Brings both to the same text and exchanges messages until there are none; counts the messages back.
    fn settle(&mut self) -> usize {
        let len = self.first.text.len().max(self.second.text.len());
        for peer in [&mut self.first, &mut self.second] {
            let rest: Vec<u32> = (peer.text.len()..len).map(truth).collect();
            peer.extend(&rest);
        }
        let mut back = 0;
        for _ in 0..1000 {
            self.happen(&Event::FirstSends(5));
            self.happen(&Event::SecondSends(5));
            back += self.back.len();
            if self.there.is_empty() && self.back.is_empty() {
                return back;
            }
            while !self.there.is_empty() || !self.back.is_empty() {
                self.happen(&Event::SecondReceives);
                self.happen(&Event::FirstReceives);
            }
        }
        panic!("they never stop talking");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn what_one_guesses_the_other_knows_and_does_not_tell_back(
        events in events(false),
        min_path in prop_oneof![Just(0.0f32), Just(0.1)],
    ) {
        let mut pair = Pair::new(min_path);
        for event in &events {
            pair.happen(event);
            assert!(pair.back.is_empty(), "an echo");
        }
        assert_eq!(pair.settle(), 0, "an echo");
        pair.first.check_known_to(&pair.second, min_path, Edges::Agree);
    }

    #[test]
    fn what_both_guess_both_know(events in events(true), min_path in prop_oneof![Just(0.0f32), Just(0.1)]) {
        let mut pair = Pair::new(min_path);
        for event in &events {
            pair.happen(event);
        }
        pair.settle();
        pair.first.check_known_to(&pair.second, min_path, Edges::MayDiffer);
        pair.second.check_known_to(&pair.first, min_path, Edges::MayDiffer);
    }

    /// Arrays as a fuzzer would fill them are refused as a whole or taken within the caps.
    #[test]
    fn any_batch_is_refused_or_fits(
        batches in prop::collection::vec(
            (0u32..60, prop::collection::vec((0u32..70, 0u32..31, any::<u16>()), 0..12), 0usize..40, 0u32..12),
            1..12,
        ),
    ) {
        let mut tree: Tree<()> = Tree::new(4);
        let text = [0, 1, 2, 0];
        let mut inbound = Inbound::default();
        let mut watermark = 0;
        for (first_id, nodes, flaw, sender_len) in batches {
            let mut batch = NodeBatch {
                first_id,
                parents: nodes.iter().map(|node| node.0).collect(),
                tokens: nodes.iter().map(|node| node.1 % (VOCAB + u32::from(flaw == 1))).collect(),
                edges: nodes.iter().map(|node| Prob16(node.2)).collect(),
                owners: nodes.iter().map(|_| 0).collect(),
                origins: match flaw {
                    2 => vec![Origin::default(); nodes.len() + 1],
                    3..20 => vec![Origin::default(); nodes.len()],
                    _ => Vec::new(),
                },
                groups: Vec::new(),
                surprisals: Vec::new(),
            };
            if flaw == 0 {
                batch.owners.push(0);
            }
            let sender_len = sender_len.min(5);
            let before = tree.len();
            let taken = inbound.receive(&mut tree, &text, VOCAB, sender_len, &batch, |_, _| ());
            let known = |(at, parent): (usize, &u32)| {
                *parent <= watermark || (*parent >= first_id && *parent < first_id + at as u32)
            };
            let sound = batch.owners.len() == nodes.len()
                && (batch.origins.is_empty() || batch.origins.len() == nodes.len())
                && (batch.is_empty() || first_id > watermark)
                && batch.tokens.iter().all(|&token| token < VOCAB)
                && batch.parents.iter().enumerate().all(known)
                && sender_len <= 4;
            prop_assert_eq!(taken.is_ok(), sound, "{:?}", taken);
            if sound && !batch.is_empty() {
                watermark = first_id + batch.len() as u32 - 1;
            }
            if !sound {
                prop_assert_eq!(tree.len(), before);
            }
        }
    }
}

fn flat(first_id: u32, n: usize, tokens: impl Fn(usize) -> u32) -> NodeBatch {
    NodeBatch {
        first_id,
        parents: vec![0; n],
        tokens: (0..n).map(tokens).collect(),
        edges: vec![Prob16(1); n],
        owners: vec![0; n],
        origins: Vec::new(),
        groups: Vec::new(),
        surprisals: Vec::new(),
    }
}

#[test]
fn the_caps_hold() {
    let mut tree: Tree<()> = Tree::new(0);
    let mut inbound = Inbound::default();
    let mut send = |tree: &mut Tree<()>, batch: &NodeBatch| {
        inbound
            .receive(tree, &[], u32::MAX, 0, batch, |_, _| ())
            .map(|named| named.len())
    };
    let n = MAX_NODES_PER_UPDATE;
    let over = flat(1, n + 1, |at| at as u32);
    assert_eq!(send(&mut tree, &over), Err(PeerError::TooManyNodes(n + 1)));
    let mut next = 1;
    for round in 0..4 {
        let batch = flat(next, n, |at| (round * n + at) as u32);
        let room = (MAX_TREE - tree.len()).min(n);
        assert_eq!(
            send(&mut tree, &batch),
            Ok(room),
            "nodes beyond the cap are left out"
        );
        next += n as u32;
    }
    assert_eq!(tree.len(), MAX_TREE);
    // The numbers are used up all the same, and a child of a node that was left out is left out silently.
    let again = flat(1, 1, |_| 0);
    assert!(matches!(
        send(&mut tree, &again),
        Err(PeerError::ReusedId { .. })
    ));
    let mut orphan = flat(next, 1, |_| 0);
    orphan.parents[0] = next - 1;
    assert_eq!(send(&mut tree, &orphan), Ok(0));
    let last = flat(u32::MAX, 2, |at| at as u32);
    assert!(matches!(
        send(&mut tree, &last),
        Err(PeerError::ReusedId { .. })
    ));
}
