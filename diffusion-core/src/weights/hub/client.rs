//! Asking the hub.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use super::HubOptions;
use super::cache::{is_blob_name, is_commit};
use crate::error::{Error, Result};

/// Redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Bytes of an answer that is not a file.
const MAX_ANSWER: u64 = 32 << 20;
/// How long such an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The first pause before a request is repeated; each further one is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(8);

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection broke, or the server has no time: it may go better again.
    Passing(io::Error),
    /// The server answers, and there is no such revision or file.
    Missing(Error),
    /// It will not go better.
    Refused(Error),
}

/// What a repository has at a commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

/// What a server says of a file.
pub(super) struct FileInfo {
    pub(super) commit: Option<String>,
    pub(super) etag: String,
    pub(super) size: u64,
}

/// A hub, and the repository that it is asked for.
pub(super) struct Client<'a> {
    agent: Agent,
    endpoint: &'a str,
    repository: &'a str,
    pub(super) options: &'a HubOptions,
}

/// Counts the attempts of a request.
pub(super) struct Attempts {
    left: u32,
    pause: Duration,
}

impl Attempts {
    pub(super) fn new(retries: u32) -> Self {
        Self {
            left: retries,
            pause: FIRST_PAUSE,
        }
    }

    /// Pauses before another attempt; gives the reason back if it was the last.
    pub(super) fn pause(&mut self, reason: io::Error) -> io::Result<()> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(reason);
        };
        self.left = left;
        std::thread::sleep(self.pause);
        self.pause = LAST_PAUSE.min(self.pause * 2);
        Ok(())
    }
}

impl<'a> Client<'a> {
    /// # Errors
    /// [`Error::InvalidArgument`] if the address or the token cannot be ones.
    pub(super) fn new(options: &'a HubOptions, repository: &'a str) -> Result<Self> {
        let endpoint = options.endpoint.trim_end_matches('/');
        let is_https = endpoint.starts_with("https://");
        if !is_https && !endpoint.starts_with("http://") || endpoint.parse::<Uri>().is_err() {
            let expected = "an address that begins with https:// or http://";
            return Err(Error::argument("endpoint", expected, endpoint));
        }
        let token = options.token.as_deref().unwrap_or_default();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let expected = "letters, digits and signs of ASCII";
            return Err(Error::argument("token", expected, "others"));
        }
        let config = Agent::config_builder()
            .user_agent(concat!("diffusion-core/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .https_only(is_https)
            .http_status_as_error(false)
            // Redirects are followed here, where the token is kept from other hosts.
            .max_redirects(0)
            .timeout_resolve(Some(options.timeout))
            .timeout_connect(Some(options.timeout))
            .timeout_send_request(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            endpoint,
            repository,
            options,
        })
    }

    /// The commit that a revision stands for, and its files.
    pub(super) fn listing(&self, revision: &str, retries: u32) -> Result<Listing, Failure> {
        let api = format!("{}/api/models/{}", self.endpoint, self.repository);
        let url = format!("{api}/revision/{}", encode(revision, ""));
        let answer = self.repeat(retries, || {
            let mut response = self.send(&Method::GET, &url, None, |_| false)?;
            self.check(&response, revision, None)?;
            let body = response.body_mut().with_config().limit(MAX_ANSWER);
            body.read_to_vec().map_err(|e| self.broken(&url, e))
        })?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let files = answer["siblings"].as_array().map(|files| {
            let names = files.iter().filter_map(|file| file["rfilename"].as_str());
            names.map(str::to_owned).collect()
        });
        match (answer["sha"].as_str(), files) {
            (Some(commit), Some(files)) if is_commit(commit) => Ok(Listing {
                commit: commit.to_owned(),
                files,
            }),
            _ => Err(self.no_hub(&url, "a JSON object with sha and siblings")),
        }
    }

    /// What the server says of a file, without the file.
    pub(super) fn info(
        &self,
        revision: &str,
        file: &str,
        retries: u32,
    ) -> Result<FileInfo, Failure> {
        let url = self.file_url(revision, file);
        // A redirect to where large files lie says already what they are.
        let says_all = |headers: &HeaderMap| headers.contains_key("x-linked-etag");
        let response = self.repeat(retries, || {
            let response = self.send(&Method::HEAD, &url, None, says_all)?;
            self.check(&response, revision, Some(file))?;
            Ok(response)
        })?;
        let headers = response.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        match (etag, size.and_then(|size| size.parse().ok())) {
            (Some(etag), Some(size)) if is_blob_name(etag) => Ok(FileInfo {
                commit: text(headers, "x-repo-commit")
                    .filter(|commit| is_commit(commit))
                    .map(str::to_owned),
                etag: etag.to_owned(),
                size,
            }),
            _ => Err(self.no_hub(&url, "an etag and a length")),
        }
    }

    /// A file from a byte on.
    pub(super) fn get(
        &self,
        revision: &str,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>, Failure> {
        let url = self.file_url(revision, file);
        let response = self.send(&Method::GET, &url, Some(from), |_| false)?;
        if response.status() != StatusCode::RANGE_NOT_SATISFIABLE {
            self.check(&response, revision, Some(file))?;
        }
        Ok(response)
    }

    /// What errors call a file.
    pub(super) fn path_of(&self, file: &str) -> PathBuf {
        Path::new(self.repository).join(file)
    }

    fn file_url(&self, revision: &str, file: &str) -> String {
        let Self {
            endpoint,
            repository,
            ..
        } = self;
        let (revision, file) = (encode(revision, ""), encode(file, "/"));
        format!("{endpoint}/{repository}/resolve/{revision}/{file}")
    }

    fn repeat<T>(
        &self,
        retries: u32,
        mut request: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut attempts = Attempts::new(retries);
        loop {
            match request() {
                Err(Failure::Passing(reason)) => {
                    attempts.pause(reason).map_err(Failure::Passing)?;
                }
                other => return other,
            }
        }
    }

    /// Sends a request and follows redirects until `is_enough`.
    fn send(
        &self,
        method: &Method,
        url: &str,
        from: Option<u64>,
        is_enough: impl Fn(&HeaderMap) -> bool,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&url);
            if let Some(token) = &self.options.token
                && is_same_origin(&url, self.endpoint)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from @ 1..) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|e| self.broken(&url, e.into()))?;
            let request = self.agent.configure_request(request);
            let request = match from {
                Some(_) => request,
                None => request.timeout_global(Some(ANSWER_TIME)),
            };
            let response = self.agent.run(request.build());
            let response = response.map_err(|e| self.broken(&url, e))?;
            let target = text(response.headers(), "location");
            match target {
                Some(target)
                    if response.status().is_redirection() && !is_enough(response.headers()) =>
                {
                    url = resolve(&url, target);
                }
                _ => return Ok(response),
            }
        }
        Err(self.no_hub(&url, "an answer within ten redirects"))
    }

    /// Sorts the errors of the connection.
    fn broken(&self, url: &str, error: ureq::Error) -> Failure {
        use ureq::Error as E;
        match error {
            // A certificate that is not believed will not be believed later.
            E::Io(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData) => {
                Failure::Refused(Error::io(Path::new(url), e))
            }
            E::Io(e) => Failure::Passing(e),
            E::Timeout(_) => Failure::Passing(io::Error::new(ErrorKind::TimedOut, error)),
            E::HostNotFound | E::ConnectionFailed | E::BodyStalled => {
                Failure::Passing(io::Error::new(ErrorKind::NotConnected, error))
            }
            error => Failure::Refused(Error::io(Path::new(url), io::Error::other(error))),
        }
    }

    /// An answer that no hub gives.
    fn no_hub(&self, url: &str, expected: &str) -> Failure {
        let reason =
            format!("expected {expected}, as the Hugging Face Hub answers; check HF_ENDPOINT");
        Failure::Refused(Error::format(Path::new(url), reason))
    }

    /// Sorts answers that are errors.
    fn check(
        &self,
        response: &Response<Body>,
        revision: &str,
        file: Option<&str>,
    ) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let repository = self.repository;
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        let said = text(response.headers(), "x-error-message").unwrap_or_default();
        let missing = |path: PathBuf, hint: String| Error::NotFound { path, hint };
        let failure = match (status.as_u16(), code) {
            (401 | 403, "GatedRepo") => self.forbidden(format!(
                "access to this model is gated: accept its conditions at {}/{repository}, then set HF_TOKEN \
                 or HubOptions::token",
                self.endpoint
            )),
            (404, "RevisionNotFound") => Failure::Missing(missing(
                format!("{repository}@{revision}").into(),
                "the repository has no such branch, tag or commit".into(),
            )),
            (401 | 403, _) => self.forbidden(format!(
                "{} does not show such a repository: it does not exist, or it is private and the token \
                 (HF_TOKEN, HubOptions::token) may not read it{}{said}",
                self.endpoint,
                if said.is_empty() { "" } else { "; it says: " }
            )),
            (404, code) => match file.filter(|_| code != "RepoNotFound") {
                Some(file) => Failure::Missing(missing(
                    self.path_of(file),
                    format!("the repository has no such file at the revision {revision}"),
                )),
                None => Failure::Refused(missing(
                    repository.into(),
                    format!(
                        "there is no such path here and no such repository at {}",
                        self.endpoint
                    ),
                )),
            },
            (408 | 429 | 500..=599, _) => {
                Failure::Passing(io::Error::other(format!("the server answers {status}")))
            }
            _ => Failure::Refused(Error::io(
                Path::new(repository),
                io::Error::other(format!("the server answers {status} {said}")),
            )),
        };
        Err(failure)
    }

    fn forbidden(&self, reason: String) -> Failure {
        let reason = io::Error::new(ErrorKind::PermissionDenied, reason);
        Failure::Refused(Error::io(Path::new(self.repository), reason))
    }

    /// The error at last, of a request for a file or for the repository.
    pub(super) fn error(&self, failure: Failure, file: Option<&str>) -> Error {
        match failure {
            Failure::Passing(reason) => {
                let asked = match file {
                    Some(file) => format!("{}/{}/{file}", self.endpoint, self.repository),
                    None => format!("{}/{}", self.endpoint, self.repository),
                };
                Error::io(Path::new(&asked), reason)
            }
            Failure::Missing(error) | Failure::Refused(error) => error,
        }
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Escapes what an address has another meaning for, but not the bytes of `kept`.
fn encode(text: &str, kept: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte.into());
            }
            _ if kept.as_bytes().contains(&byte) => escaped.push(byte.into()),
            _ => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

/// Where a redirect leads (RFC 3986, section 5.2, for what servers send).
fn resolve(base: &str, target: &str) -> String {
    let (scheme, rest) = base.split_once("://").unwrap_or(("https", base));
    if target.contains("://") {
        return target.to_owned();
    }
    if target.starts_with("//") {
        return format!("{scheme}:{target}");
    }
    let host = rest.split('/').next().unwrap_or(rest);
    if target.starts_with('/') {
        return format!("{scheme}://{host}{target}");
    }
    let path = base.split(['?', '#']).next().unwrap_or(base);
    match path.rsplit_once('/') {
        Some((folder, _)) if folder.len() > scheme.len() + 2 => format!("{folder}/{target}"),
        _ => format!("{base}/{target}"),
    }
}

/// Whether two addresses have one scheme, host and port.
fn is_same_origin(a: &str, b: &str) -> bool {
    let origin = |url: &str| {
        let url: Uri = url.parse().ok()?;
        let scheme = url.scheme_str()?.to_ascii_lowercase();
        let default = if scheme == "https" { 443 } else { 80 };
        let port = url.port_u16().unwrap_or(default);
        Some((scheme, url.host()?.to_ascii_lowercase(), port))
    };
    origin(a).is_some_and(|a| Some(a) == origin(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = "https://hub.example/a/b?c=d/e";
        for (target, expected) in [
            ("http://other/x", "http://other/x"),
            ("//other/x", "https://other/x"),
            ("/x", "https://hub.example/x"),
            ("x", "https://hub.example/a/x"),
        ] {
            assert_eq!(resolve(base, target), expected);
        }
        assert_eq!(resolve("http://hub.example", "x"), "http://hub.example/x");
    }

    #[test]
    fn a_token_stays_with_scheme_host_and_port() {
        let same = |url| is_same_origin(url, "https://hub.example");
        assert!(same("https://HUB.example:443/x"));
        assert!(!same("http://hub.example/x"));
        assert!(!same("https://hub.example:444/x"));
        assert!(!same("https://hub.example.evil/x"));
        assert!(!same("https://hub.example@evil/x"));
        assert!(!same("not an address"));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(encode("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/ü#.bin", "/"), "a%20b/%C3%BC%23.bin");
    }
}
