//! A fake of a Hugging Face hub on loopback, which can be made to fail, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// The commit of everything that it has.
pub const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// What is wrong with the bytes of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections end after so many bytes, so many times.
    Cut(usize, usize),
    /// Connections fall silent after so many bytes, so many times.
    Silence(usize, usize),
    /// The answer is this status, so many times.
    Status(u16, usize),
    /// One byte is another one.
    Damage,
    /// More bytes come than were announced.
    Excess,
    /// Parts are not sent, only whole files, and connections end after so many bytes.
    NoParts(usize),
    /// ETags are this.
    Etag(&'static str),
    /// The list of files names this one too.
    Lists(&'static str),
    /// The commit is this.
    Commit(&'static str),
    /// Large files are at a second address, to which the first one redirects.
    Elsewhere,
    /// Whoever shows another token, or none, is refused.
    Token(&'static str),
}

/// A request that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whether it came to the second address.
    pub elsewhere: bool,
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path, without what stands behind a question mark.
    pub path: String,
    /// The headers `Range` and `Authorization`.
    pub range: Option<String>,
    /// See `range`.
    pub authorization: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    repository: String,
    files: Vec<(String, Vec<u8>)>,
    faults: Vec<Fault>,
    asked: Vec<Asked>,
    elsewhere: Option<SocketAddr>,
}

/// A hub with one repository. It serves until the process ends.
#[derive(Clone, Debug)]
pub struct FakeHub {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl FakeHub {
    /// A hub whose repository `owner/name` has these files.
    pub fn start(repository: &str, files: Vec<(String, Vec<u8>)>) -> std::io::Result<FakeHub> {
        let (own, second) = (listen()?, listen()?);
        let hub = FakeHub {
            addr: own.local_addr()?,
            state: Arc::new(Mutex::new(State {
                repository: repository.to_owned(),
                files,
                elsewhere: Some(second.local_addr()?),
                ..State::default()
            })),
        };
        for (listener, elsewhere) in [(own, false), (second, true)] {
            let hub = hub.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let hub = hub.clone();
                    // One that has gone is no concern of the next.
                    std::thread::spawn(move || hub.serve(stream, elsewhere));
                }
            });
        }
        Ok(hub)
    }

    /// A hub whose repository has the files of a folder, without those in folders within.
    pub fn of_folder(repository: &str, folder: &Path) -> std::io::Result<FakeHub> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.path().is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                files.push((name, std::fs::read(entry.path())?));
            }
        }
        FakeHub::start(repository, files)
    }

    /// Its address, for `HF_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From now on these are wrong, and nothing else.
    pub fn break_by(&self, faults: &[Fault]) {
        self.with(|state| state.faults = faults.to_vec());
    }

    /// What it was asked since it was last asked this.
    #[must_use]
    pub fn take_asked(&self) -> Vec<Asked> {
        self.with(|state| std::mem::take(&mut state.asked))
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn serve(&self, stream: TcpStream, elsewhere: bool) -> Option<()> {
        let asked = read(&stream, elsewhere)?;
        self.with(|state| state.asked.push(asked.clone()));
        let answer = self.with(|state| state.answer(&asked));
        answer.send(stream, asked.method == "HEAD")
    }
}

fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn read(stream: &TcpStream, elsewhere: bool) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut asked = Asked {
        elsewhere,
        method,
        path: path.split('?').next()?.to_owned(),
        range: None,
        authorization: None,
    };
    loop {
        let line = lines.next()?.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            return Some(asked);
        };
        let value = Some(value.trim().to_owned());
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = value,
            "authorization" => asked.authorization = value,
            _ => {}
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Of the body, how much is sent before the connection ends, or falls silent.
    ends_after: Option<usize>,
    silent_after: Option<usize>,
    /// The length that is announced, if it is another.
    announced: Option<usize>,
}

impl Answer {
    fn status(status: u16) -> Answer {
        Answer {
            status,
            ..Answer::default()
        }
    }

    fn send(mut self, mut stream: TcpStream, only_head: bool) -> Option<()> {
        let length = self.announced.unwrap_or(self.body.len());
        let mut head = format!(
            "HTTP/1.1 {} Fake\r\nConnection: close\r\nContent-Length: {length}\r\n",
            self.status
        );
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if only_head {
            return Some(());
        }
        if let Some(most) = self.ends_after.or(self.silent_after) {
            self.body.truncate(most);
        }
        stream.write_all(&self.body).ok()?;
        if self.silent_after.is_some() {
            // Until the other side has had enough.
            let _ = stream.read(&mut [0]);
        }
        Some(())
    }
}

impl State {
    /// A fault that happens so many times is one time nearer to its end.
    fn spend(&mut self, of: impl Fn(&mut Fault) -> Option<&mut usize>) -> Option<Fault> {
        for fault in &mut self.faults {
            let copy = fault.clone();
            if let Some(left) = of(fault)
                && *left > 0
            {
                *left -= 1;
                return Some(copy);
            }
        }
        None
    }

    fn find<T>(&self, of: impl FnMut(&Fault) -> Option<T>) -> Option<T> {
        self.faults.iter().find_map(of)
    }

    fn answer(&mut self, asked: &Asked) -> Answer {
        let token = self.find(|fault| match fault {
            Fault::Token(token) => Some(*token),
            _ => None,
        });
        if let Some(token) = token
            && !asked.elsewhere
            && asked.authorization.as_deref() != Some(&format!("Bearer {token}"))
        {
            return Answer {
                headers: vec![("X-Error-Code", "GatedRepo".to_owned())],
                ..Answer::status(401)
            };
        }
        let failing = self.spend(|fault| match fault {
            Fault::Status(_, left) => Some(left),
            _ => None,
        });
        if let Some(Fault::Status(status, _)) = failing {
            return Answer::status(status);
        }
        let list = format!("/api/models/{}/revision/", self.repository);
        if let Some(revision) = asked.path.strip_prefix(&list) {
            return match revision {
                "main" | COMMIT => self.list(),
                _ => Answer::status(404),
            };
        }
        let file = format!("/{}/resolve/{COMMIT}/", self.repository);
        let name = asked
            .path
            .strip_prefix(&file)
            .or_else(|| asked.path.strip_prefix("/store/"));
        match name.and_then(|name| self.files.iter().find(|(known, _)| known == name)) {
            Some((name, content)) => {
                let (name, content) = (name.clone(), content.clone());
                self.file(asked, &name, content)
            }
            None => Answer::status(404),
        }
    }

    fn list(&self) -> Answer {
        let commit = self.find(|fault| match fault {
            Fault::Commit(commit) => Some(*commit),
            _ => None,
        });
        let more = self.faults.iter().filter_map(|fault| match fault {
            Fault::Lists(name) => Some(*name),
            _ => None,
        });
        let names = self.files.iter().map(|(name, _)| name.as_str()).chain(more);
        let siblings: Vec<_> = names
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        let list = serde_json::json!({"id": self.repository, "sha": commit.unwrap_or(COMMIT), "siblings": siblings});
        Answer {
            body: list.to_string().into_bytes(),
            ..Answer::status(200)
        }
    }

    fn file(&mut self, asked: &Asked, name: &str, content: Vec<u8>) -> Answer {
        let is_large = [".safetensors", ".gguf"]
            .iter()
            .any(|ending| name.ends_with(ending));
        let etag = self.find(|fault| match fault {
            Fault::Etag(etag) => Some((*etag).to_owned()),
            _ => None,
        });
        let etag = format!(
            "\"{}\"",
            etag.unwrap_or_else(|| checksum(&content, is_large))
        );
        if is_large && !asked.elsewhere && self.faults.contains(&Fault::Elsewhere) {
            let elsewhere = self.elsewhere.expect("it listens there");
            return Answer {
                headers: vec![
                    ("Location", format!("http://{elsewhere}/store/{name}")),
                    ("X-Linked-Etag", etag),
                    ("X-Linked-Size", content.len().to_string()),
                ],
                ..Answer::status(302)
            };
        }
        let mut answer = Answer {
            headers: vec![("ETag", etag)],
            body: content,
            ..Answer::status(200)
        };
        if asked.method == "HEAD" {
            return answer;
        }
        let whole = answer.body.len();
        let only_whole = self.find(|fault| match fault {
            Fault::NoParts(cut) => Some(*cut),
            _ => None,
        });
        let from = asked
            .range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes="));
        let from = from
            .and_then(|range| range.strip_suffix('-'))
            .and_then(|from| from.parse::<usize>().ok());
        if let Some(from) = from.filter(|_| only_whole.is_none()) {
            if from >= whole {
                return Answer::status(416);
            }
            answer.status = 206;
            answer.body.drain(..from);
            answer.headers.push((
                "Content-Range",
                format!("bytes {from}-{}/{whole}", whole - 1),
            ));
        }
        answer.ends_after = only_whole;
        if !is_large {
            return answer;
        }
        if self.faults.contains(&Fault::Damage)
            && let Some(byte) = answer.body.last_mut()
        {
            *byte ^= 1;
        }
        if self.faults.contains(&Fault::Excess) {
            answer.body.extend_from_slice(b"more");
        }
        let failing = self.spend(|fault| match fault {
            Fault::Cut(_, left) | Fault::Silence(_, left) => Some(left),
            _ => None,
        });
        answer.announced = Some(answer.body.len());
        match failing {
            Some(Fault::Cut(after, _)) => answer.ends_after = Some(after),
            Some(Fault::Silence(after, _)) => answer.silent_after = Some(after),
            _ => {}
        }
        answer
    }
}

/// SHA-256 of a large file, the name that Git has for a small one.
fn checksum(content: &[u8], is_large: bool) -> String {
    let mut context = match is_large {
        true => Context::new(&SHA256),
        false => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {}\0", content.len()).as_bytes());
            context
        }
    };
    context.update(content);
    context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
