//! Models from a hub: a small server on this machine plays it.

mod cache;
mod downloads;
mod faults;
mod models;
mod server;

use std::time::Duration;

use diffusion_core::weights::{HubOptions, OpenOptions};
use diffusion_tests::TestResult;
use server::{Repository, Server};
use tempfile::TempDir;

/// A hub with one model `owner/name`, and an empty cache.
struct Hub {
    server: Server,
    cache: TempDir,
}

impl Hub {
    fn start(repository: Repository) -> TestResult<Self> {
        Ok(Self {
            server: Server::start(&[("owner/name", repository)])?,
            cache: tempfile::tempdir()?,
        })
    }

    fn settings(&self) -> HubOptions {
        let mut settings = HubOptions::new(self.cache.path());
        settings.endpoint = self.server.address.clone();
        settings.timeout = Duration::from_secs(5);
        settings.retries = 2;
        settings
    }

    fn options(&self) -> OpenOptions {
        with(self.settings())
    }

    fn offline(&self) -> OpenOptions {
        let mut settings = self.settings();
        settings.offline = true;
        with(settings)
    }

    /// A file of the repository's folder in the cache.
    fn cached(&self, path: &str) -> std::path::PathBuf {
        self.cache.path().join("models--owner--name").join(path)
    }
}

fn with(hub: HubOptions) -> OpenOptions {
    OpenOptions {
        hub: Some(hub),
        ..Default::default()
    }
}

/// Bytes of no pattern that repeats.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    next.take(size).collect()
}
