//! The cache's layout, as `huggingface_hub` keeps it.
//!
//! Below `models--owner--name` the contents of files are `blobs/ETAG`, `refs/REVISION` holds a commit, and
//! `snapshots/COMMIT/path` links to a blob. Parts of downloads are `blobs/ETAG.incomplete`, and
//! `.locks/models--owner--name/ETAG.lock` keeps two processes from the same one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fs4::{FileExt, TryLockError};

use super::id::is_plain_path;
use crate::error::{Error, Result};

/// The part of a cache that belongs to one repository.
pub(super) struct Cache {
    root: PathBuf,
    /// `models--owner--name`.
    folder_name: String,
}

/// How often to ask whether another process is done with a file.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// What tells programs that make backups to leave a folder out; <https://bford.info/cachedir/>.
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n";

impl Cache {
    pub(super) fn new(root: &Path, repository: &str) -> Self {
        Self {
            root: root.to_owned(),
            folder_name: format!("models--{}", repository.replace('/', "--")),
        }
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(&self.folder_name)
    }

    /// The commit that a revision stood for when it was last seen; a commit stands for itself.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let noted = fs::read_to_string(self.folder().join("refs").join(revision)).ok()?;
        Some(noted.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(super) fn note_revision(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        self.create_root()?;
        write_whole(&self.folder().join("refs").join(revision), commit)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// The path of a file in a snapshot, if it is there.
    pub(super) fn find(&self, commit: &str, file: &str) -> Option<PathBuf> {
        Some(self.snapshot(commit).join(file)).filter(|path| path.is_file())
    }

    /// The files of a snapshot that are there.
    pub(super) fn files(&self, commit: &str) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        collect_files(&self.snapshot(commit), "", &mut files);
        files
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Waits until no other process downloads this blob; the lock ends with the file that is returned. A file
    /// system without locks has none: then the last of two downloads of the same bytes is kept.
    ///
    /// # Errors
    /// `None` if `wait` breaks.
    pub(super) fn lock(
        &self,
        etag: &str,
        mut wait: impl FnMut() -> ControlFlow<()>,
    ) -> Result<Option<File>> {
        self.create_root()?;
        let path = self.root.join(".locks").join(&self.folder_name);
        let path = path.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|e| Error::io(&path, e))?;
        loop {
            match FileExt::try_lock(&file) {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Some(file));
                }
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
            if wait().is_break() {
                return Ok(None);
            }
            std::thread::sleep(LOCK_WAIT);
        }
    }

    /// Makes a blob a file of a snapshot and returns its path there.
    pub(super) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        let up = "../".repeat(file.split('/').count() + 1);
        let target = format!("{up}blobs/{etag}");
        // A new link goes over an old one in one step, so that no reader finds none.
        let new = unique_beside(&path);
        let made = symlink(Path::new(&target), &new)
            // Windows gives the right to make links to few.
            .or_else(|_| fs::copy(self.blob(etag), &new).map(|_| ()));
        let moved = made.and_then(|()| fs::rename(&new, &path));
        moved.map_err(|e| Error::io(&path, e))?;
        Ok(path)
    }

    fn create_root(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(|e| Error::io(&self.root, e))?;
        let tag = self.root.join("CACHEDIR.TAG");
        match tag.exists() {
            true => Ok(()),
            false => write_whole(&tag, CACHEDIR_TAG),
        }
    }
}

/// Whether a revision is a commit's whole hash, which never changes.
pub(super) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

/// Whether a blob's name is the SHA-256 of what is in it, as that of each large file is.
pub(super) fn is_sha256(etag: &str) -> bool {
    is_hex(etag, 64)
}

fn is_hex(text: &str, length: usize) -> bool {
    let is_digit = |c| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    text.len() == length && text.bytes().all(is_digit)
}

/// Whether a server's name for a blob can be a file's.
pub(super) fn is_blob_name(etag: &str) -> bool {
    (1..=200).contains(&etag.len()) && is_plain_path(etag) && !etag.contains(['/', ' ', '"'])
}

pub(super) fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io(parent, e))
}

/// Writes a small file so that readers find the old one or all of the new one.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    create_parent(path)?;
    let new = unique_beside(path);
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| Error::io(path, e))
}

/// A path in the same folder that nobody else uses.
fn unique_beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    name.into()
}

fn collect_files(folder: &Path, prefix: &str, files: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Folders are the cache's own, files are links: one that goes to a folder is none of it.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                collect_files(&entry.path(), &format!("{prefix}{name}/"), files);
            }
            _ if entry.path().is_file() => _ = files.insert(format!("{prefix}{name}")),
            _ => {}
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target.to_string_lossy().replace('/', "\\"), link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
