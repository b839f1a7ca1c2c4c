//! A small DNS server on loopback, whose records a test changes while it runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long its records are valid, seconds.
const TTL: u32 = 1;

/// What it does with queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It answers from its records.
    #[default]
    Answers,
    /// It answers that it has failed.
    Fails,
    /// It says nothing.
    Silent,
}

#[derive(Debug, Default)]
struct Zone {
    records: BTreeMap<String, Vec<RData>>,
    mode: Mode,
}

/// See the module documentation. It ends when it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    /// Where it listens, UDP only.
    pub addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    queries: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl DnsServer {
    /// Starts one without records.
    pub async fn start() -> std::io::Result<DnsServer> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let addr = socket.local_addr()?;
        let zone = Arc::new(Mutex::new(Zone::default()));
        let (counter, queries) = watch::channel(0);
        let task = tokio::spawn(serve(socket, Arc::clone(&zone), counter));
        Ok(DnsServer {
            addr,
            zone,
            queries,
            task,
        })
    }

    /// The name, which ends with a dot, has these addresses and no other records.
    pub fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        let record = |&address: &IpAddr| match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        self.set(name, addresses.iter().map(record).collect());
    }

    /// The name has these hosts and ports and no other records.
    pub fn set_service(&self, name: &str, endpoints: &[(&str, u16)]) {
        let record = |&(host, port): &(&str, u16)| {
            let host = Name::from_ascii(host).expect("tests give names");
            RData::SRV(SRV::new(0, 0, port, host))
        };
        self.set(name, endpoints.iter().map(record).collect());
    }

    /// There is no such name.
    pub fn remove(&self, name: &str) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.records.remove(name);
    }

    /// From now on it does this.
    pub fn set_mode(&self, mode: Mode) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.mode = mode;
    }

    /// Resolves when this many more queries have come.
    pub async fn asked(&self, more: u64) {
        let mut queries = self.queries.clone();
        let enough = *queries.borrow() + more;
        // It counts as long as this exists.
        let _ = queries.wait_for(|&queries| queries >= enough).await;
    }

    fn set(&self, name: &str, records: Vec<RData>) {
        let mut zone = self.zone.lock().unwrap_or_else(PoisonError::into_inner);
        zone.records.insert(name.to_owned(), records);
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>, queries: watch::Sender<u64>) {
    let mut buffer = [0; 1500];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        let reply = answer(&buffer[..len], &zone);
        queries.send_modify(|queries| *queries += 1);
        if let Some(reply) = reply {
            // Who does not get an answer asks again.
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

fn answer(query: &[u8], zone: &Mutex<Zone>) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let asked = query.queries.first()?;
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.add_query(asked.clone());
    reply.metadata.authoritative = true;
    let zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
    let name = asked.name().to_lowercase();
    match (zone.mode, zone.records.get(&name.to_string())) {
        (Mode::Silent, _) => return None,
        (Mode::Fails, _) => reply.metadata.response_code = ResponseCode::ServFail,
        (Mode::Answers, None) => reply.metadata.response_code = ResponseCode::NXDomain,
        (Mode::Answers, Some(records)) => {
            let fits = |data: &&RData| data.record_type() == asked.query_type();
            for data in records.iter().filter(fits) {
                reply.add_answer(Record::from_rdata(name.clone(), TTL, data.clone()));
            }
        }
    }
    reply.to_vec().ok()
}
