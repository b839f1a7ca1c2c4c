#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::VecDeque;

use tokio::time::Instant;

use super::*;

/// A source that says what it is told to, and then nothing more.
struct Scripted(VecDeque<Result<BTreeSet<Address>, std::io::Error>>);

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("script")
    }
}

impl Source for Scripted {
    type Error = std::io::Error;

    fn kind(&self) -> Kind {
        Kind::File
    }

    fn longest_pause(&self) -> Duration {
        Duration::from_secs(4)
    }

    async fn next(&mut self) -> Result<BTreeSet<Address>, std::io::Error> {
        match self.0.pop_front() {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }
}

fn set(ports: std::ops::Range<usize>) -> BTreeSet<Address> {
    ports
        .map(|port| Address::new(&format!("w:{port}")))
        .collect()
}

fn fails() -> Result<BTreeSet<Address>, std::io::Error> {
    Err(std::io::Error::other("no"))
}

/// Follows a script; what it says arrives on the channel.
fn followed(
    script: impl IntoIterator<Item = Result<BTreeSet<Address>, std::io::Error>>,
) -> mpsc::Receiver<Update> {
    let (sender, updates) = mpsc::channel(16);
    let source = Scripted(script.into_iter().collect());
    tokio::spawn(follow(source, (5, sender), Arc::default()));
    updates
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_asked_again_after_pauses_that_grow() {
    let mut updates = followed([
        fails(),
        fails(),
        fails(),
        fails(),
        Ok(set(1..2)),
        fails(),
        fails(),
    ]);
    let begun = Instant::now();
    let mut times = Vec::new();
    for _ in 0..7 {
        let update = updates.recv().await.unwrap();
        assert_eq!(update.source, 5);
        times.push((begun.elapsed().as_secs(), update.addresses.is_some()));
    }
    assert_eq!(
        times,
        [
            (0, false),
            (1, false),
            (3, false),
            (7, false),
            (11, true),
            (11, false),
            (12, false)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_source_gives_no_more_addresses_than_one_may() {
    let mut updates = followed([Ok(set(0..MAX_ADDRESSES + 3)), Ok(set(0..2))]);
    let first = updates.recv().await.unwrap().addresses.unwrap();
    assert_eq!(first.len(), MAX_ADDRESSES);
    assert_eq!(updates.recv().await.unwrap().addresses, Some(set(0..2)));
}
