//! HTTP with a hub: requests, redirections, tries.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use serde::Deserialize;
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};
use url::{Host, Url};

use crate::error::HubError;
use crate::name::{HubName, is_commit, is_hex, is_inside};
use crate::settings::Settings;

/// Tries of one request.
const TRIES: usize = 6;
/// The longest pause between two of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// The longest chain of redirections.
const MOST_REDIRECTIONS: usize = 5;
/// The longest list of files that is read.
const MOST_LIST_BYTES: u64 = 32 << 20;
/// Files of a repository, at most.
const MOST_FILES: usize = 100_000;
/// So many new bytes show that a connection works, and that it may be tried again as often as at the beginning.
pub(crate) const PROGRESS: u64 = 1 << 20;

/// Talks with one hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Url,
    token: Option<String>,
    pause: Duration,
}

/// Why a try failed.
pub(crate) enum Failure {
    /// Another one may do better.
    Again(String),
    /// None will.
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Failure {
        Failure::Final(error)
    }
}

/// How far redirections are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follow {
    /// To other places of the hub.
    Home,
    /// Anywhere.
    Anywhere,
}

/// The files of a revision.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The commit.
    pub(crate) commit: String,
    /// Names of files; each stays inside its folder.
    pub(crate) files: Vec<String>,
}

/// What a hub says about a file before it sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    /// Its checksum: SHA-256, or as Git names it.
    pub(crate) etag: String,
    /// Its length in bytes.
    pub(crate) size: u64,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Client, HubError> {
        let endpoint = settings.endpoint.clone();
        let is_here = is_loopback(&endpoint);
        if settings.token.is_some() && endpoint.scheme() != "https" && !is_here {
            return Err(HubError::Environment {
                variable: "HF_ENDPOINT",
                reason: format!(
                    "a token is not sent to {endpoint} in the clear; use https, or unset HF_TOKEN"
                ),
            });
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("offshoot/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .timeout_per_write(Some(settings.silence))
            // One that broke off is not used again.
            .max_idle_connections(0);
        if is_here {
            config = config.proxy(None);
        }
        if endpoint.scheme() == "https" {
            config = config.tls_config(tls()?);
        }
        Ok(Client {
            agent: config.build().new_agent(),
            endpoint,
            token: settings.token.as_ref().map(|token| token.header()),
            pause: settings.pause,
        })
    }

    /// The files of a revision.
    pub(crate) fn list(&self, name: &HubName) -> Result<Listing, HubError> {
        let url = self.url(&["api", "models"], name, &["revision", name.revision()]);
        let content = self.tries(&url, |_| {
            let response = self.get(&url, None, Follow::Home)?;
            self.check(&response, name, None)?;
            let mut content = Vec::new();
            let mut body = response.into_body().into_reader().take(MOST_LIST_BYTES + 1);
            body.read_to_end(&mut content).map_err(again)?;
            Ok(content)
        })?;
        let wrong = |reason: String| HubError::Answer {
            url: url.to_string(),
            reason,
        };
        if content.len() as u64 > MOST_LIST_BYTES {
            return Err(wrong("a list that is too long".to_owned()));
        }
        let info: Info = serde_json::from_slice(&content)
            .map_err(|error| wrong(format!("no list of files ({error})")))?;
        if !is_commit(&info.sha) {
            return Err(wrong(format!(
                "the commit {}, which is none",
                quoted(&info.sha)
            )));
        }
        if info.siblings.len() > MOST_FILES {
            return Err(wrong(format!("{} files", info.siblings.len())));
        }
        let files: Vec<String> = info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .collect();
        match files.iter().find(|file| !is_inside(file)) {
            Some(file) => Err(wrong(format!(
                "the file name {}, which is none",
                quoted(file)
            ))),
            None => Ok(Listing {
                commit: info.sha,
                files,
            }),
        }
    }

    /// What the hub says about a file of a commit.
    pub(crate) fn describe(
        &self,
        name: &HubName,
        commit: &str,
        file: &str,
    ) -> Result<Described, HubError> {
        let url = self.file_url(name, commit, file);
        self.tries(&url, |_| {
            let response = self.head(&url)?;
            let headers = response.headers();
            // The answer may be a redirection to where the bytes are; what it says about them is the hub's own word.
            if !response.status().is_redirection() {
                self.check(&response, name, Some(file))?;
            }
            let described = described(headers).map_err(|reason| HubError::Answer {
                url: url.to_string(),
                reason,
            });
            Ok(described?)
        })
    }

    /// The bytes of a file from a place on; as a second answer whether it is from there, or from the beginning.
    pub(crate) fn fetch(
        &self,
        url: &Url,
        name: &HubName,
        file: &str,
        from: u64,
    ) -> Result<(impl Read + use<>, bool), Failure> {
        let response = self.get(url, Some(from).filter(|&from| from > 0), Follow::Anywhere)?;
        if from > 0 && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(Failure::Again("it has no such part".to_owned()));
        }
        self.check(&response, name, Some(file))?;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        let begin = text(response.headers(), "content-range")
            .and_then(|range| range.strip_prefix("bytes "))
            .and_then(|range| range.split('-').next())
            .and_then(|begin| begin.trim().parse::<u64>().ok());
        if is_part && begin != Some(from) {
            return Err(Failure::Again(
                "it sent another part than was asked for".to_owned(),
            ));
        }
        Ok((response.into_body().into_reader(), is_part))
    }

    /// Where a file of a commit is.
    pub(crate) fn file_url(&self, name: &HubName, commit: &str, file: &str) -> Url {
        let mut parts = vec!["resolve", commit];
        parts.extend(file.split('/'));
        self.url(&[], name, &parts)
    }

    fn url(&self, before: &[&str], name: &HubName, after: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .expect("an address with a host has a path")
            .pop_if_empty()
            .extend(before)
            .extend(name.repository.split('/'))
            .extend(after);
        url
    }

    /// Tries until it works, or it is of no use. The work is told how many tries failed since something arrived, and may say
    /// that something did.
    pub(crate) fn tries<T>(
        &self,
        url: &Url,
        mut work: impl FnMut(&mut bool) -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let pauses = || {
            ExponentialBuilder::default()
                .with_min_delay(self.pause)
                .with_max_delay(LONGEST_PAUSE)
                .with_max_times(TRIES - 1)
                .build()
        };
        let mut left = pauses();
        loop {
            let mut progressed = false;
            let reason = match work(&mut progressed) {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(reason)) => reason,
            };
            if progressed {
                left = pauses();
            }
            let Some(pause) = left.next() else {
                return Err(HubError::Unreachable {
                    url: url.to_string(),
                    reason,
                });
            };
            tracing::debug!(%url, reason, ?pause, "trying again");
            std::thread::sleep(pause);
        }
    }

    fn get(&self, url: &Url, from: Option<u64>, follow: Follow) -> Result<Response<Body>, Failure> {
        self.follow(url, follow, |url, token| {
            let mut request = self
                .agent
                .get(url.as_str())
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, token);
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            request.call()
        })
    }

    fn head(&self, url: &Url) -> Result<Response<Body>, Failure> {
        self.follow(url, Follow::Home, |url, token| {
            let mut request = self
                .agent
                .head(url.as_str())
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, token);
            }
            request.call()
        })
    }

    /// Sends a request, and sends it again to where it is redirected. Only the hub itself gets the token.
    fn follow(
        &self,
        url: &Url,
        follow: Follow,
        send: impl Fn(&Url, Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTIONS {
            let is_home = url.origin() == self.endpoint.origin();
            let token = self.token.as_deref().filter(|_| is_home);
            let response = send(&url, token).map_err(|error| Failure::Again(error.to_string()))?;
            let location =
                text(response.headers(), "location").filter(|_| response.status().is_redirection());
            let Some(location) = location else {
                return Ok(response);
            };
            let wrong = |why: &str| HubError::Answer {
                url: url.to_string(),
                reason: format!("a redirection to {}, {why}", quoted(location)),
            };
            let next = url
                .join(location)
                .map_err(|_| wrong("which is no address"))?;
            let is_safe = match next.scheme() {
                "https" => true,
                "http" => url.scheme() == "http",
                _ => false,
            };
            if !is_safe {
                return Err(wrong("which is not encrypted").into());
            }
            if follow == Follow::Home && next.origin() != self.endpoint.origin() {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Final(HubError::Answer {
            url: url.to_string(),
            reason: "one redirection after another".to_owned(),
        }))
    }

    /// What a status means.
    fn check(
        &self,
        response: &Response<Body>,
        name: &HubName,
        file: Option<&str>,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let model = name.to_string();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        Err(match status.as_u16() {
            401 | 403 => Failure::Final(HubError::Denied {
                model,
                status: status.as_u16(),
                advice: match (code, &self.token) {
                    ("GatedRepo", Some(_)) => {
                        "accept the model's conditions on its page, with the account that the token is of"
                    }
                    ("GatedRepo", None) => {
                        "accept the model's conditions on its page, and set HF_TOKEN to a token of your account"
                    }
                    (_, Some(_)) => {
                        "check the name, and whether the token of HF_TOKEN is valid and may read this model"
                    }
                    (_, None) => {
                        "check the name; if the model is private or gated set HF_TOKEN to a token that may read it"
                    }
                },
            }),
            404 => Failure::Final(match file {
                Some(file) => HubError::NoFile {
                    model,
                    reason: format!("the hub lists {file}, but does not have it"),
                    there: Vec::new(),
                },
                None => HubError::Missing { model },
            }),
            408 | 425 | 429 | 500..=599 => Failure::Again(format!("the hub answers {status}")),
            _ => Failure::Final(HubError::Answer {
                url: self.endpoint.to_string(),
                reason: format!("the status {status}"),
            }),
        })
    }
}

fn again(error: io::Error) -> Failure {
    Failure::Again(error.to_string())
}

/// Certificates of the system, with ring, as everywhere in this process.
fn tls() -> Result<TlsConfig, HubError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(HubError::Environment {
            variable: "SSL_CERT_FILE",
            reason: "there are no root certificates on this machine; install them (ca-certificates), or name a file".to_owned(),
        });
    }
    let roots: Vec<_> = found
        .certs
        .iter()
        .map(|der| ureq::tls::Certificate::from_der(der).to_owned())
        .collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .unversioned_rustls_crypto_provider(provider)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .build())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The checksum and the length that headers name: those of the file itself if it lies elsewhere.
fn described(headers: &HeaderMap) -> Result<Described, String> {
    let etag = text(headers, "x-linked-etag")
        .or_else(|| text(headers, "etag"))
        .unwrap_or_default();
    let plain = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    if !(matches!(plain.len(), 40 | 64) && is_hex(plain)) {
        return Err(format!("the ETag {}, which is no checksum", quoted(etag)));
    }
    let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
    match size.and_then(|size| size.parse().ok()) {
        Some(size) => Ok(Described {
            etag: plain.to_owned(),
            size,
        }),
        None => Err("no length of the file".to_owned()),
    }
}

/// A text of the hub's in a message.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn only_checksums_are_checksums() {
        let read = |etag: &str, size: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("etag", etag.parse().unwrap());
            headers.insert("content-length", size.parse().unwrap());
            described(&headers)
        };
        let git = "0123456789abcdef0123456789abcdef01234567";
        for etag in [git.to_owned(), format!("\"{git}\""), format!("W/\"{git}\"")] {
            let found = read(&etag, "7").unwrap();
            assert_eq!((found.etag.as_str(), found.size), (git, 7));
        }
        for etag in [
            "",
            "\"abc\"",
            "../../../../../../../../../etc/passwd/xxxxx",
            &git.to_uppercase(),
        ] {
            assert!(
                read(etag, "7").unwrap_err().contains("no checksum"),
                "{etag}"
            );
        }
        assert!(read(git, "-1").unwrap_err().contains("no length"));
    }

    #[test]
    fn the_word_of_the_hub_counts_more_than_that_of_a_store() {
        let mut headers = HeaderMap::new();
        headers.insert("etag", "\"store\"".parse().unwrap());
        headers.insert(
            "x-linked-etag",
            format!("\"{}\"", "a".repeat(64)).parse().unwrap(),
        );
        headers.insert("content-length", "0".parse().unwrap());
        headers.insert("x-linked-size", "5".parse().unwrap());
        assert_eq!(
            described(&headers).unwrap(),
            Described {
                etag: "a".repeat(64),
                size: 5
            }
        );
    }
}
