//! What the environment says about hubs, under the names that Hugging Face's own tools read.

use std::env::VarError;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::error::HubError;

/// Where a hub is, who asks, and where its files are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `HF_ENDPOINT`.
    pub endpoint: Url,
    /// `HF_TOKEN`, else what is in the file that `HF_TOKEN_PATH` names, else in `token` of the folder of `HF_HOME`.
    pub token: Option<Token>,
    /// `HF_HUB_CACHE`, else `hub` of the folder that `HF_HOME` names, else of `huggingface` in the user's caches.
    pub cache: PathBuf,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// `HF_HUB_DOWNLOAD_TIMEOUT`: how long a connection may be silent.
    pub silence: Duration,
    /// The pause before the second try; each further one is twice as long.
    pub pause: Duration,
}

/// A secret, which no message shows.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes a secret.
    ///
    /// # Errors
    /// When it is nothing that can stand in a header.
    pub fn new(text: &str) -> Result<Token, HubError> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("HF_TOKEN", "it has characters that no token has"));
        }
        Ok(Token(text.to_owned()))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

const HUB: &str = "https://huggingface.co";
const SILENCE_S: u64 = 30;
const PAUSE: Duration = Duration::from_millis(500);

fn wrong(variable: &'static str, reason: impl Into<String>) -> HubError {
    HubError::Environment {
        variable,
        reason: reason.into(),
    }
}

/// What reads a variable.
pub(crate) type Read<'a> = &'a dyn Fn(&str) -> Result<String, VarError>;

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// [`HubError::Environment`] for a variable that cannot be used.
    pub fn from_env() -> Result<Settings, HubError> {
        Settings::read(&|name| std::env::var(name), std::env::home_dir())
    }

    fn read(variables: Read<'_>, home: Option<PathBuf>) -> Result<Settings, HubError> {
        // One that is empty counts as not set.
        let read = |name: &'static str| match variables(name) {
            Ok(value) if value.trim().is_empty() => Ok(None),
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err(wrong(name, "it is not UTF-8")),
        };
        let folder = |name| -> Result<Option<PathBuf>, HubError> {
            Ok(
                read(name)?.map(|value| match (value.strip_prefix("~/"), &home) {
                    (Some(rest), Some(home)) => home.join(rest),
                    _ => PathBuf::from(value),
                }),
            )
        };
        let own = match folder("HF_HOME")? {
            Some(own) => own,
            None => {
                let caches = match (folder("XDG_CACHE_HOME")?, &home) {
                    (Some(caches), _) => caches,
                    (None, Some(home)) => home.join(".cache"),
                    (None, None) => {
                        return Err(wrong(
                            "HF_HOME",
                            "there is no home directory; set it to a folder",
                        ));
                    }
                };
                caches.join("huggingface")
            }
        };
        let token = match read("HF_TOKEN")? {
            Some(token) => Some(token),
            None => {
                let path = folder("HF_TOKEN_PATH")?.unwrap_or_else(|| own.join("token"));
                let text = fs::read_to_string(path).unwrap_or_default();
                Some(text.trim().to_owned()).filter(|text| !text.is_empty())
            }
        };
        let endpoint = read("HF_ENDPOINT")?.unwrap_or_else(|| HUB.to_owned());
        let endpoint = Url::parse(endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
            .ok_or_else(|| {
                wrong(
                    "HF_ENDPOINT",
                    format!("{endpoint:?} is no address; write https://HOST"),
                )
            })?;
        let offline = match read("HF_HUB_OFFLINE")?
            .map(|value| value.to_ascii_lowercase())
            .as_deref()
        {
            None | Some("0" | "false" | "no" | "off") => false,
            Some("1" | "true" | "yes" | "on") => true,
            Some(_) => return Err(wrong("HF_HUB_OFFLINE", "write 1 or 0")),
        };
        let silence = match read("HF_HUB_DOWNLOAD_TIMEOUT")? {
            None => SILENCE_S,
            Some(text) => (text.parse().ok())
                .filter(|seconds| (1..=86_400).contains(seconds))
                .ok_or_else(|| wrong("HF_HUB_DOWNLOAD_TIMEOUT", "write a number of seconds"))?,
        };
        Ok(Settings {
            endpoint,
            token: token.as_deref().map(Token::new).transpose()?,
            cache: folder("HF_HUB_CACHE")?.unwrap_or_else(|| own.join("hub")),
            offline,
            silence: Duration::from_secs(silence),
            pause: PAUSE,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found
                .map(|(_, value)| (*value).to_owned())
                .ok_or(VarError::NotPresent)
        };
        Settings::read(&find, Some("/users/u".into()))
    }

    #[test]
    fn folders_are_those_of_the_other_tools() {
        for (variables, cache) in [
            (&[][..], "/users/u/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/c")], "/h/hub"),
            (&[("HF_HOME", "~/h")], "/users/u/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/x")], "/x"),
            (&[("HF_HOME", " ")], "/users/u/.cache/huggingface/hub"),
        ] {
            assert_eq!(
                read(variables).unwrap().cache,
                PathBuf::from(cache),
                "{variables:?}"
            );
        }
    }

    #[test]
    fn tokens_come_from_a_variable_or_a_file_and_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let home = ("HF_HOME", dir.path().to_str().unwrap());
        let token = |variables: &[(&str, &str)]| read(variables).unwrap().token;
        assert_eq!(token(&[home]).unwrap().header(), "Bearer hf_file");
        assert_eq!(
            token(&[home, ("HF_TOKEN", "hf_own")]).unwrap().header(),
            "Bearer hf_own"
        );
        assert!(token(&[("HF_HOME", "/none")]).is_none());
        let settings = read(&[("HF_TOKEN", "hf_own")]).unwrap();
        assert!(!format!("{settings:?}").contains("hf_own"));
        assert!(read(&[("HF_TOKEN", "a\r\nHost: b")]).is_err());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (name, value) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "ftp://x"),
            ("HF_HUB_OFFLINE", "maybe"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        assert!(read(&[("HF_HUB_OFFLINE", "ON")]).unwrap().offline);
        assert_eq!(
            read(&[("HF_ENDPOINT", "http://127.0.0.1:1/")])
                .unwrap()
                .endpoint
                .port(),
            Some(1)
        );
    }
}
