//! One file from the hub to the disk.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use super::HubProgress;
use super::cache::{Cache, is_sha256};
use super::client::{Attempts, Client, Failure, FileInfo};
use crate::error::{Error, Result};

/// Bytes that are read at once.
const PIECE: usize = 128 << 10;
/// Bytes between two calls of the progress function.
const REPORT_EVERY: u64 = 1 << 20;

/// A file of a repository that is to become a blob.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a Cache,
    pub(super) revision: &'a str,
    pub(super) file: &'a str,
    pub(super) info: &'a FileInfo,
}

/// Why a download stopped.
enum Stop {
    /// The progress function said so.
    Cancelled,
    Failed(Failure),
    Disk(io::Error),
}

/// What of the file is on the disk.
struct Partial {
    file: File,
    size: u64,
    hash: Context,
}

impl Partial {
    /// Opens what an earlier download left. Without a hash to check it by, that is begun anew.
    fn open(path: &Path, info: &FileInfo) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        let size = file.metadata()?.len();
        let hash = Context::new(&SHA256);
        let mut partial = Self { file, size, hash };
        match is_sha256(&info.etag) && size <= info.size {
            true => partial.hash_all()?,
            false => partial.clear()?,
        }
        Ok(partial)
    }

    fn hash_all(&mut self) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            match self.file.read(&mut piece)? {
                0 => return Ok(()),
                n => self.hash.update(&piece[..n]),
            }
        }
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.size = 0;
        self.hash = Context::new(&SHA256);
        Ok(())
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        self.hash.update(piece);
        self.size += piece.len() as u64;
        Ok(())
    }
}

impl Download<'_> {
    /// Brings the file into the cache and returns its path in the snapshot of `commit`.
    ///
    /// # Errors
    /// [`Error::Cancelled`] with how many of one file are done, which is none; [`Error::Io`]; [`Error::Format`]
    /// if the bytes are not those that the hub announced.
    pub(super) fn run(&self, commit: &str) -> Result<PathBuf> {
        let etag = &self.info.etag;
        let blob = self.cache.blob(etag);
        let partial_path = self.cache.blob(&format!("{etag}.incomplete"));
        let lock = self.cache.lock(etag, || self.report(0))?;
        if lock.is_none() {
            return Err(cancelled());
        }
        if !blob.is_file() {
            super::cache::create_parent(&blob)?;
            let disk = |e| Error::io(&partial_path, e);
            let mut partial = Partial::open(&partial_path, self.info).map_err(disk)?;
            self.fill(&mut partial).map_err(|stop| match stop {
                Stop::Cancelled => cancelled(),
                Stop::Failed(failure) => self.client.error(failure, Some(self.file)),
                Stop::Disk(e) => disk(e),
            })?;
            let Partial { file, hash, .. } = partial;
            // Windows renames no open file.
            drop(file);
            self.check(hash, &partial_path)?;
            fs::rename(&partial_path, &blob).map_err(|e| Error::io(&blob, e))?;
        }
        self.cache.link(etag, commit, self.file)
    }

    fn fill(&self, partial: &mut Partial) -> Result<(), Stop> {
        let mut attempts = Attempts::new(self.client.options.retries);
        let mut most = partial.size;
        self.report_or_stop(partial.size)?;
        while partial.size < self.info.size {
            match self.fill_once(partial) {
                Err(Stop::Failed(Failure::Passing(reason))) => {
                    // A server that always begins anew brings nothing new.
                    if partial.size > most {
                        attempts = Attempts::new(self.client.options.retries);
                        most = partial.size;
                    }
                    let again = attempts.pause(reason);
                    again.map_err(|reason| Stop::Failed(Failure::Passing(reason)))?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// One request for the rest of the file.
    fn fill_once(&self, partial: &mut Partial) -> Result<(), Stop> {
        let response = self.client.get(self.revision, self.file, partial.size);
        let mut response = response.map_err(Stop::Failed)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, partial.size) => {}
            StatusCode::OK => {
                // The server may send all of it whatever was asked.
                if partial.size > 0 {
                    partial.clear().map_err(Stop::Disk)?;
                }
            }
            status => {
                partial.clear().map_err(Stop::Disk)?;
                let reason = format!("the server answers a request for a range with {status}");
                return Err(passing(ErrorKind::InvalidData, reason));
            }
        }
        let missing = self.info.size - partial.size;
        if response
            .body()
            .content_length()
            .is_some_and(|length| length > missing)
        {
            return Err(self.too_long());
        }
        let mut body = response.body_mut().as_reader();
        let mut piece = vec![0; PIECE];
        let mut reported = partial.size;
        loop {
            let read = match body.read(&mut piece) {
                Ok(0) if partial.size < self.info.size => {
                    let reason = "the connection was closed before the end of the file";
                    return Err(passing(ErrorKind::UnexpectedEof, reason.into()));
                }
                Ok(0) => return Ok(()),
                Ok(read) => &piece[..read],
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(Stop::Failed(Failure::Passing(e))),
            };
            if read.len() as u64 > self.info.size - partial.size {
                return Err(self.too_long());
            }
            partial.write(read).map_err(Stop::Disk)?;
            let is_done = partial.size == self.info.size;
            if is_done || partial.size - reported >= REPORT_EVERY {
                reported = partial.size;
                self.report_or_stop(reported)?;
            }
        }
    }

    fn report(&self, bytes_done: u64) -> ControlFlow<()> {
        match &self.client.options.progress {
            Some(progress) => progress(&HubProgress {
                file: self.file,
                bytes_done,
                bytes_total: self.info.size,
            }),
            None => ControlFlow::Continue(()),
        }
    }

    fn report_or_stop(&self, bytes_done: u64) -> Result<(), Stop> {
        match self.report(bytes_done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Cancelled),
        }
    }

    fn too_long(&self) -> Stop {
        let reason = format!(
            "the server sends more than the {} bytes that it announced",
            self.info.size
        );
        let path = self.client.path_of(self.file);
        Stop::Failed(Failure::Refused(Error::format(&path, reason)))
    }

    /// Removes what is not the file that the hub announced.
    fn check(&self, hash: Context, path: &Path) -> Result<()> {
        let etag = &self.info.etag;
        let digest = hash.finish();
        let found: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        if !is_sha256(etag) || found == *etag {
            return Ok(());
        }
        fs::remove_file(path).map_err(|e| Error::io(path, e))?;
        let reason = format!(
            "what was downloaded is damaged and was removed: expected the SHA-256 {etag}, found {found}; try again"
        );
        Err(Error::format(&self.client.path_of(self.file), reason))
    }
}

fn passing(kind: ErrorKind, reason: String) -> Stop {
    Stop::Failed(Failure::Passing(io::Error::new(kind, reason)))
}

fn cancelled() -> Error {
    Error::Cancelled {
        step: 0,
        num_steps: 1,
    }
}

/// Whether a part of a file begins where it was asked to.
fn starts_at(response: &Response<Body>, position: u64) -> bool {
    let range = response.headers().get("content-range");
    let range = range.and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    start.and_then(|start| start.parse().ok()) == Some(position)
}
