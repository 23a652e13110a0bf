//! A hub on this machine, well behaved or not.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use diffusion_tests::TestResult;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

/// What goes wrong with a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection closes after so many bytes, once.
    CutOnce(usize),
    /// As often as it is asked.
    CutAlways(usize),
    /// Other bytes of the same number.
    Damaged,
    /// All of the file is sent whatever part was asked for.
    NoRanges,
    /// More and more of it, and no length.
    Endless,
    /// Nothing, while the connection stays open.
    Silent,
    /// The server is busy, so often.
    Busy(u32),
}

/// A model and its files.
#[derive(Default, Clone)]
pub(crate) struct Repository {
    pub(crate) commit: String,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) is_gated: bool,
    pub(crate) faults: HashMap<String, Fault>,
    /// Sent in place of the list of files.
    pub(crate) listing: Option<String>,
    /// Sent as the etag of files.
    pub(crate) etag: Option<String>,
    /// Where it moved.
    pub(crate) new_name: Option<String>,
}

/// A request, and how many bytes of a file answered it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) is_storage: bool,
    pub(crate) bytes: usize,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) repositories: HashMap<String, Repository>,
    pub(crate) log: Vec<Asked>,
    storage: String,
}

/// The hub, and beside it the storage of large files under another address.
pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

/// Files of at least so many bytes are kept in the storage.
const LARGE: usize = 10_000;
/// A token that gated models open for.
pub(crate) const TOKEN: &str = "hf_secret";
/// The commit of all repositories.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Repository {
    /// The files below a folder.
    pub(crate) fn of_folder(folder: &Path) -> TestResult<Self> {
        let mut repository = Self::of_files(&[]);
        repository.add_folder(folder, "")?;
        Ok(repository)
    }

    pub(crate) fn of_files(files: &[(&str, &[u8])]) -> Self {
        let files = files
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()));
        Self {
            commit: COMMIT.into(),
            files: files.collect(),
            ..Self::default()
        }
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) -> TestResult {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().ok_or("no name")?.to_string_lossy();
            match path.is_dir() {
                true => self.add_folder(&path, &format!("{prefix}{name}/"))?,
                false => {
                    _ = self
                        .files
                        .insert(format!("{prefix}{name}"), std::fs::read(&path)?)
                }
            }
        }
        Ok(())
    }
}

/// git's name for small files, the hash of large ones.
pub(crate) fn etag(bytes: &[u8]) -> String {
    let (mut context, start) = match bytes.len() {
        ..LARGE => (
            Context::new(&SHA1_FOR_LEGACY_USE_ONLY),
            format!("blob {}\0", bytes.len()),
        ),
        _ => (Context::new(&SHA256), String::new()),
    };
    context.update(start.as_bytes());
    context.update(bytes);
    let digest = context.finish();
    digest
        .as_ref()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

impl Server {
    pub(crate) fn start(repositories: &[(&str, Repository)]) -> TestResult<Self> {
        let (hub, storage) = (listen()?, listen()?);
        let address = |listener: &TcpListener| -> TestResult<String> {
            Ok(format!("http://{}", listener.local_addr()?))
        };
        let repositories = repositories
            .iter()
            .map(|(name, repository)| ((*name).to_owned(), repository.clone()));
        let state = State {
            repositories: repositories.collect(),
            storage: address(&storage)?,
            log: Vec::new(),
        };
        let server = Self {
            address: address(&hub)?,
            state: Arc::new(Mutex::new(state)),
        };
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let state = server.state.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    // A client that hangs up is no error of the server's.
                    thread::spawn(move || _ = answer(&stream, &state, is_storage));
                }
            });
        }
        Ok(server)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    /// What was asked since the last call.
    pub(crate) fn take_log(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().log)
    }

    /// The lines of the requests since the last call.
    pub(crate) fn take_lines(&self) -> Vec<String> {
        self.take_log()
            .into_iter()
            .map(|asked| asked.line)
            .collect()
    }
}

fn listen() -> std::io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0")
}

/// Reads one request and answers it.
fn answer(mut stream: &TcpStream, state: &Mutex<State>, is_storage: bool) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap_or(Ok(String::new()))?;
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut parts = line.split(' ');
    let (method, target) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let asked = Asked {
        line: format!("{method} {target}"),
        range: headers.get("range").cloned(),
        token: headers.get("authorization").cloned(),
        is_storage,
        bytes: 0,
    };
    let (number, reply) = {
        let mut state = state.lock().expect("no thread panics");
        let number = state.log.len();
        let reply = match is_storage {
            true => state.file_of_storage(&asked, target),
            false => state.reply(&asked, target),
        };
        state.log.push(asked);
        (number, reply)
    };
    let Reply {
        status,
        mut headers,
        body,
        fault,
    } = reply;
    if fault == Some(Fault::Silent) {
        thread::sleep(Duration::from_secs(5));
        return Ok(());
    }
    if fault != Some(Fault::Endless) {
        headers.push(("Content-Length", body.len().to_string()));
    }
    let mut head = format!("HTTP/1.1 {status} Some\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    let sent = match fault {
        Some(Fault::CutOnce(n) | Fault::CutAlways(n)) => &body[..n.min(body.len())],
        _ => &body,
    };
    if let Some(asked) = state.lock().expect("no thread panics").log.get_mut(number) {
        asked.bytes = sent.len();
    }
    stream.write_all(sent)?;
    while fault == Some(Fault::Endless) {
        stream.write_all(&body)?;
    }
    Ok(())
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    fault: Option<Fault>,
}

impl Reply {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers,
            body: body.into(),
            fault: None,
        }
    }

    fn refusal(status: u16, code: &str) -> Self {
        Self::new(status, vec![("X-Error-Code", code.into())], "refused")
    }
}

impl State {
    fn reply(&mut self, asked: &Asked, target: &str) -> Reply {
        let target = target.replace("%2F", "/");
        let (path, is_api) = match target.strip_prefix("/api/models/") {
            Some(path) => (path, true),
            None => (target.trim_start_matches('/'), false),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let [owner, name, _, rest @ ..] = &parts[..] else {
            return Reply::refusal(404, "");
        };
        let name = format!("{owner}/{name}");
        let Some(repository) = self.repositories.get_mut(&name) else {
            return Reply::refusal(404, "RepoNotFound");
        };
        if let Some(new_name) = &repository.new_name {
            let location = target.replace(&name, new_name);
            return Reply::new(307, vec![("Location", location)], "");
        }
        let commit = repository.commit.clone();
        // Revisions of more than one part are only asked for by themselves.
        let (revision, file) = match is_api {
            true => (rest.join("/"), None),
            false => (rest[0].to_owned(), Some(rest[1..].join("/"))),
        };
        if !["main", "v1", "refs/pr/1", &commit].contains(&revision.as_str()) {
            return Reply::refusal(404, "RevisionNotFound");
        }
        let Some(file) = file else {
            return Reply::new(200, vec![], repository.list());
        };
        let has_token = asked.token.as_deref() == Some(&format!("Bearer {TOKEN}"));
        if repository.is_gated && !has_token {
            return Reply::refusal(401, "GatedRepo");
        }
        let Some(bytes) = repository.files.get(&file) else {
            return Reply::refusal(404, "EntryNotFound");
        };
        let etag = repository.etag.clone().unwrap_or_else(|| etag(bytes));
        if let Some(Fault::Busy(times @ 1..)) = repository.faults.get_mut(&file) {
            *times -= 1;
            return Reply::refusal(503, "");
        }
        let commit = ("X-Repo-Commit", commit);
        if bytes.len() >= LARGE {
            let headers = vec![
                commit,
                ("X-Linked-Etag", format!("\"{etag}\"")),
                ("X-Linked-Size", bytes.len().to_string()),
                ("Location", format!("{}/{name}/{file}?sign=1", self.storage)),
            ];
            return Reply::new(302, headers, "");
        }
        let mut reply = repository.bytes(asked, &file);
        reply
            .headers
            .extend([commit, ("ETag", format!("\"{etag}\""))]);
        if asked.line.starts_with("HEAD") {
            reply.fault = None;
        }
        reply
    }

    fn file_of_storage(&mut self, asked: &Asked, target: &str) -> Reply {
        let path = target.split('?').next().unwrap_or(target);
        let mut parts = path.trim_start_matches('/').splitn(3, '/');
        let (owner, name) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let repository = self.repositories.get_mut(&format!("{owner}/{name}"));
        match (repository, parts.next()) {
            (Some(repository), Some(file)) => repository.bytes(asked, file),
            _ => Reply::refusal(404, ""),
        }
    }
}

impl Repository {
    fn list(&self) -> String {
        if let Some(listing) = &self.listing {
            return listing.clone();
        }
        let files = self
            .files
            .keys()
            .map(|name| format!("{{\"rfilename\": \"{name}\"}}"));
        let files: Vec<_> = files.collect();
        format!(
            "{{\"sha\": \"{}\", \"siblings\": [{}]}}",
            self.commit,
            files.join(", ")
        )
    }

    /// A file or the part of it that was asked for, as its fault has it.
    fn bytes(&mut self, asked: &Asked, file: &str) -> Reply {
        let fault = self.faults.get(file).copied();
        if let Some(Fault::CutOnce(_)) = fault {
            // A question for the headers alone cuts nothing.
            if asked.line.starts_with("GET") {
                self.faults.remove(file);
            }
        }
        let mut bytes = self.files[file].clone();
        if fault == Some(Fault::Damaged) {
            bytes[0] ^= 1;
        }
        let size = bytes.len();
        let start = asked.range.as_deref().and_then(|range| {
            let start = range.strip_prefix("bytes=")?.strip_suffix('-')?;
            start.parse::<usize>().ok()
        });
        let mut reply = match start {
            Some(start) if fault != Some(Fault::NoRanges) && start < size => {
                let range = format!("bytes {start}-{}/{size}", size - 1);
                Reply::new(206, vec![("Content-Range", range)], &bytes[start..])
            }
            Some(start) if start >= size => Reply::new(416, vec![], ""),
            _ => Reply::new(200, vec![], bytes),
        };
        reply.fault = fault;
        reply
    }
}
