//! A fake API server: it lists and watches EndpointSlices over plain HTTP as Kubernetes does, and does nothing else.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const TOKEN: &str = "a-token";
pub(crate) const NAMESPACE: &str = "ns";

/// What it does with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It answers.
    #[default]
    Answers,
    /// It says that it has failed.
    Fails,
    /// It says that this account has no such right.
    Forbids,
    /// What it says is no JSON.
    Babbles,
    /// It answers lists, and has never kept the version that a watch is to go on from.
    Forgets,
}

/// What is in the cluster, and what was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cluster {
    slices: BTreeMap<String, Value>,
    /// Grows with every change.
    version: u64,
    /// What watches say, by version.
    events: Vec<(u64, Value)>,
    /// Events before this version are no longer kept.
    oldest: u64,
    mode: Mode,
    /// How often watches were ended, as a server does after a time, and cut in the middle of an event.
    ended: u64,
    cut: u64,
    /// Requests that were answered.
    pub(crate) lists: u64,
    pub(crate) watches: u64,
    /// Requests of any kind.
    pub(crate) requests: u64,
}

/// See the module documentation. It ends when it is dropped.
pub(crate) struct FakeApiServer {
    addr: SocketAddr,
    pub(crate) cluster: watch::Sender<Cluster>,
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl FakeApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cluster = watch::Sender::new(Cluster {
            version: 1,
            ..Cluster::default()
        });
        let path = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices";
        let router = Router::new()
            .route(path, get(slices))
            .with_state(cluster.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        FakeApiServer {
            addr,
            cluster,
            folder: tempfile::tempdir().unwrap(),
            task,
        }
    }

    /// A kubeconfig with its address and a token that it knows.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let path = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": format!("http://{}", self.addr)}}],
            "users": [{"name": "fake", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}}],
        });
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// A service has this worker, in a slice of its own.
    pub(crate) fn put(&self, service: &str, worker: SocketAddr) {
        (self.cluster).send_modify(|cluster| cluster.put(service, worker, false));
    }

    /// The same worker, whose pod is to end.
    pub(crate) fn terminate(&self, service: &str, worker: SocketAddr) {
        (self.cluster).send_modify(|cluster| cluster.put(service, worker, true));
    }

    pub(crate) fn remove(&self, service: &str, worker: SocketAddr) {
        (self.cluster).send_modify(|cluster| cluster.remove(service, worker));
    }

    /// From now on. Watches that run are cut, or ended if lists are answered.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.cluster.send_modify(|cluster| {
            cluster.mode = mode;
            match mode {
                Mode::Answers => {}
                Mode::Forgets => cluster.ended += 1,
                Mode::Fails | Mode::Forbids | Mode::Babbles => cluster.cut += 1,
            }
        });
    }

    /// Ends all watches, as a server does after a time.
    pub(crate) fn end_watches(&self) {
        self.cluster.send_modify(|cluster| cluster.ended += 1);
    }

    /// Breaks the connections of all watches in the middle of an event.
    pub(crate) fn cut_watches(&self) {
        self.cluster.send_modify(|cluster| cluster.cut += 1);
    }
}

impl Cluster {
    pub(crate) fn put(&mut self, service: &str, worker: SocketAddr, is_terminating: bool) {
        let name = slice_name(service, worker);
        self.version += 1;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "resourceVersion": self.version.to_string(),
                "labels": {"kubernetes.io/service-name": service},
            },
            "endpoints": [{
                "addresses": [worker.ip()],
                "conditions": {"ready": !is_terminating, "serving": true, "terminating": is_terminating},
            }],
            "ports": [
                {"name": "grpc", "protocol": "TCP", "port": worker.port()},
                {"name": "admin", "protocol": "TCP", "port": 9},
            ],
        });
        let kind = match self.slices.insert(name, slice.clone()) {
            None => "ADDED",
            Some(_) => "MODIFIED",
        };
        (self.events).push((self.version, json!({"type": kind, "object": slice})));
    }

    pub(crate) fn remove(&mut self, service: &str, worker: SocketAddr) {
        let slice = self.slices.remove(&slice_name(service, worker)).unwrap();
        self.version += 1;
        (self.events).push((self.version, json!({"type": "DELETED", "object": slice})));
    }

    /// What was up to now is no longer kept; watches that run are told so.
    pub(crate) fn forget(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.events.clear();
    }
}

impl Drop for FakeApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn slice_name(service: &str, worker: SocketAddr) -> String {
    format!("{service}-{}", worker.port())
}

fn status(code: StatusCode, message: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code.as_u16(),
        "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""), "message": message,
    })
}

fn refusal(code: StatusCode, message: &str) -> Response {
    (code, status(code, message).to_string()).into_response()
}

async fn slices(
    State(cluster): State<watch::Sender<Cluster>>,
    Path(namespace): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    cluster.send_modify(|cluster| cluster.requests += 1);
    let authorization = headers.get("authorization").map(|value| value.as_bytes());
    if authorization != Some(format!("Bearer {TOKEN}").as_bytes()) {
        return refusal(StatusCode::UNAUTHORIZED, "who is this?");
    }
    let now = cluster.borrow().clone();
    match now.mode {
        Mode::Answers | Mode::Forgets => {}
        Mode::Fails => return refusal(StatusCode::INTERNAL_SERVER_ERROR, "etcd is not there"),
        Mode::Forbids => return refusal(StatusCode::FORBIDDEN, "endpointslices is forbidden"),
        Mode::Babbles => return "<html>".into_response(),
    }
    let query = query.unwrap_or_default();
    let parameter = |name: &str| {
        (query.split('&').filter_map(|pair| pair.split_once('=')))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.replace("%2F", "/").replace("%3D", "="))
    };
    let selector = parameter("labelSelector").unwrap_or_default();
    let Some(service) = selector.strip_prefix("kubernetes.io/service-name=") else {
        return refusal(StatusCode::BAD_REQUEST, "all slices of all services?");
    };
    if namespace != NAMESPACE {
        return refusal(StatusCode::FORBIDDEN, "another namespace");
    }
    if parameter("watch").as_deref() == Some("true") {
        let from = parameter("resourceVersion").and_then(|version| version.parse().ok());
        let Some(from) = from else {
            return refusal(StatusCode::BAD_REQUEST, "from which version?");
        };
        return watch_from(&cluster, service.to_owned(), from);
    }
    cluster.send_modify(|cluster| cluster.lists += 1);
    let items: Vec<_> = now
        .slices
        .values()
        .filter(|slice| is_of(slice, service))
        .collect();
    let list = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
        "metadata": {"resourceVersion": now.version.to_string()}, "items": items,
    });
    list.to_string().into_response()
}

fn is_of(slice: &Value, service: &str) -> bool {
    slice["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

/// A piece of what a watch says, or that its connection breaks.
type Chunk = Result<String, std::io::Error>;

/// Each event arrives in two pieces.
fn watch_from(cluster: &watch::Sender<Cluster>, service: String, from: u64) -> Response {
    let changes = cluster.subscribe();
    let (mut ended, mut cut) = (0, 0);
    // At once: whoever waits for this watch may end it in the next moment.
    cluster.send_modify(|cluster| {
        cluster.watches += 1;
        (ended, cut) = (cluster.ended, cluster.cut);
    });
    let pieces = stream::unfold(
        (changes, from, Vec::<Chunk>::new()),
        move |(mut changes, mut from, mut next)| {
            let service = service.clone();
            async move {
                loop {
                    if let Some(piece) = next.pop() {
                        return Some((piece, (changes, from, next)));
                    }
                    if from == u64::MAX {
                        return None;
                    }
                    let now = changes.borrow_and_update().clone();
                    if now.cut != cut {
                        from = u64::MAX;
                        // From the last to the first.
                        next.push(Err(std::io::Error::other("cut")));
                        next.push(Ok("{\"type\": \"ADDED\", \"obj".to_owned()));
                        continue;
                    }
                    if now.ended != ended {
                        return None;
                    }
                    let is_later = |(version, event): &(u64, Value)| {
                        *version > from && is_of(&event["object"], &service)
                    };
                    let event = if from < now.oldest || now.mode == Mode::Forgets {
                        from = u64::MAX;
                        let gone = status(StatusCode::GONE, "too old resource version");
                        json!({"type": "ERROR", "object": gone})
                    } else if let Some((version, event)) = now.events.into_iter().find(is_later) {
                        from = version;
                        event
                    } else {
                        changes.changed().await.ok()?;
                        continue;
                    };
                    let (start, end) = split(&event);
                    next.extend([Ok(end), Ok(start)]);
                }
            }
        },
    );
    Body::from_stream(pieces).into_response()
}

fn split(event: &Value) -> (String, String) {
    let line = format!("{event}\n");
    let (start, end) = line.split_at(line.len() / 2);
    (start.to_owned(), end.to_owned())
}
