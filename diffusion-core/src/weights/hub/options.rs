//! How the hub is reached, and where its cache is.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the Hugging Face Hub is.
const ENDPOINT: &str = "https://huggingface.co";

/// How the hub is reached. [`from_env`](Self::from_env) reads the variables that Python's `huggingface_hub` reads.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use diffusion_core::Pipeline;
/// use diffusion_core::weights::{HubOptions, HubProgress};
///
/// let hub = HubOptions::from_env().progress(|p: &HubProgress<'_>| {
///     println!("{}: {} of {} bytes", p.file, p.bytes_done, p.bytes_total);
///     ControlFlow::Continue(()) // or Break, which cancels
/// });
/// let pipe = Pipeline::builder()
///     .weights("stable-diffusion-v1-5/stable-diffusion-v1-5")
///     .variant("fp16")
///     .hub(hub)
///     .build()?;
/// # Ok::<(), diffusion_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The hub's address, without a path.
    pub endpoint: String,
    /// The folder with a `models--owner--name` for each repository.
    pub cache: PathBuf,
    /// Sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Whether the cache alone is used.
    pub offline: bool,
    /// How long to wait for a connection, and for each piece of an answer.
    pub timeout: Duration,
    /// How often in a row a request is repeated that brought nothing new.
    pub retries: u32,
    /// Told of each download at its beginning, every mebibyte and at its end.
    pub progress: Option<HubProgressFn>,
}

/// A function that is told of downloads; `Break` cancels. What is already there of a file is kept.
pub type HubProgressFn = Arc<dyn Fn(&HubProgress<'_>) -> ControlFlow<()> + Send + Sync>;

/// How far the download of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HubProgress<'a> {
    /// The file's path in its repository.
    pub file: &'a str,
    /// Bytes that are here, with those that an earlier, cut download left.
    pub bytes_done: u64,
    /// Bytes of the whole file.
    pub bytes_total: u64,
}

impl HubOptions {
    /// The public hub without a token, whatever the environment says.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.into(),
            cache: cache.into(),
            token: None,
            offline: false,
            timeout: Duration::from_secs(10),
            retries: 5,
            progress: None,
        }
    }

    /// What the environment says: `HF_ENDPOINT`; `HF_HUB_CACHE`, else `hub` below `HF_HOME`, else below
    /// `XDG_CACHE_HOME` or `~/.cache`; `HF_TOKEN`, else the file `HF_TOKEN_PATH` or `HF_HOME/token`, which
    /// `hf auth login` writes; `HF_HUB_OFFLINE`; `HF_HUB_DOWNLOAD_TIMEOUT` in seconds.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| in_home(&value));
        let is_true = |name: &str| {
            let value = set(name).map(|value| value.to_ascii_uppercase());
            value.is_some_and(|value| matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| in_home("~/.cache"));
            caches.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let token = match is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => token.or_else(|| std::fs::read_to_string(token_path).ok()),
        };
        let token = token.map(|token| token.trim().to_owned());
        let mut options = Self::new(cache.unwrap_or_else(|| home.join("hub")));
        options.token = token.filter(|token| !token.is_empty());
        options.offline = is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE");
        if let Some(endpoint) = set("HF_ENDPOINT") {
            options.endpoint = endpoint;
        }
        let seconds = set("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|value| value.parse().ok());
        if let Some(seconds @ 1..=86_400) = seconds {
            options.timeout = Duration::from_secs(seconds);
        }
        options
    }

    /// Sets [`progress`](Self#structfield.progress).
    pub fn progress(
        mut self,
        progress: impl Fn(&HubProgress<'_>) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }
}

/// The token is not shown.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

/// A path, with the user's folder for a `~` at its beginning.
fn in_home(path: &str) -> PathBuf {
    let home = std::env::home_dir();
    match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => Path::new(path).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        let cache = |variables: &[(&str, &str)]| options(variables).cache;
        assert_eq!(cache(&[]), in_home("~/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        let home = ("HF_HOME", "/h");
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x"), home]),
            Path::new("/h/hub")
        );
        assert_eq!(cache(&[home, ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        assert_eq!(cache(&[("HF_HUB_CACHE", "~/c")]), in_home("~/c"));
    }

    #[test]
    fn tokens_come_from_the_environment_or_the_file() -> std::io::Result<()> {
        let folder = std::env::temp_dir().join(format!("diffusion-token-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("token"), "from-file\n")?;
        let text = folder.to_string_lossy();
        let home = ("HF_HOME", &*text);
        assert_eq!(options(&[home]).token.as_deref(), Some("from-file"));
        let both = options(&[home, ("HF_TOKEN", " from-env ")]);
        assert_eq!(both.token.as_deref(), Some("from-env"));
        assert!(!format!("{both:?}").contains("from-env"));
        let none = options(&[home, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]);
        assert_eq!(none.token, None);
        std::fs::remove_dir_all(folder)
    }

    #[test]
    fn switches_and_addresses() {
        assert!(!options(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(options(&[("HF_HUB_OFFLINE", "true")]).offline);
        let given = options(&[
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
        ]);
        assert_eq!(given.endpoint, "https://mirror.example/");
        assert_eq!(given.timeout, Duration::from_secs(30));
    }
}
