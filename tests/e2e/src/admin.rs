//! Reads the admin ports of processes.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;

/// The page of metrics of one process.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Value by series, labels included as they are written.
    pub values: BTreeMap<String, f64>,
    /// Type by name: `counter`, `gauge` or `histogram`. Counters have their `_total`.
    pub types: BTreeMap<String, String>,
    /// Names with a description.
    pub described: Vec<String>,
}

impl Page {
    /// The value of a series.
    pub fn value(&self, series: &str) -> anyhow::Result<f64> {
        let value = self.values.get(series).copied();
        value.with_context(|| {
            let known: Vec<_> = self.values.keys().collect();
            format!("{series} is not among {known:?}")
        })
    }
}

/// Status and body of `GET path`.
pub fn get(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(addr)?;
    write!(
        tcp,
        "GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the response has no end of headers")?;
    let status = head
        .split(' ')
        .nth(1)
        .context("the response has no status")?
        .parse()?;
    Ok((status, body.to_owned()))
}

/// Reads the metrics of a process.
pub fn scrape(addr: SocketAddr) -> anyhow::Result<Page> {
    let (status, body) = get(addr, "/metrics")?;
    anyhow::ensure!(status == 200, "status {status}: {body}");
    let mut page = Page::default();
    for line in body.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').context("a type without a name")?;
            let name = match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            };
            page.types.insert(name, kind.to_owned());
        } else if let Some(line) = line.strip_prefix("# HELP ") {
            let name = line
                .split(' ')
                .next()
                .context("a description without a name")?;
            page.described.push(name.to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').context("a series without a value")?;
            page.values.insert(series.to_owned(), value.parse()?);
        }
    }
    Ok(page)
}
