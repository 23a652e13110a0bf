//! What an id stands for, from the cache or from the hub.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::cache::{Cache, is_commit};
use super::client::{Client, Failure};
use super::download::Download;
use super::id::is_plain_path;
use super::plan::{INDEX, Plan, lora_files, single_file};
use super::{HubId, HubOptions, Wanted};
use crate::config::read_json;
use crate::error::{Error, Result};
use crate::weights::OpenOptions;
use crate::weights::folder::shards;

/// A repository at a commit.
struct Repository<'a> {
    id: &'a HubId,
    cache: &'a Cache,
    commit: String,
    /// The files of the repository or, without a client, of the cache.
    listing: BTreeSet<String>,
    client: Option<&'a Client<'a>>,
}

/// The path of what `id` stands for.
pub(super) fn fetch(
    id: &HubId,
    options: &OpenOptions,
    settings: &HubOptions,
    wanted: Wanted,
) -> Result<PathBuf> {
    let revision = options.revision.as_deref().or(id.revision.as_deref());
    let revision = revision.unwrap_or("main");
    if !is_plain_path(revision) {
        return Err(Error::argument(
            "revision",
            "a branch, a tag or a commit",
            format!("{revision:?}"),
        ));
    }
    let cache = Cache::new(&settings.cache, &id.repository);
    let cached = cache.commit_of(revision).map(|commit| Repository {
        id,
        cache: &cache,
        listing: cache.files(&commit),
        commit,
        client: None,
    });
    if settings.offline {
        let Some(cached) = cached else {
            return Err(Error::NotFound {
                path: format!("{}@{revision}", id.repository).into(),
                hint: format!(
                    "offline, and {} has nothing of it; download it once while online",
                    cache.folder().display()
                ),
            });
        };
        return cached.fetch(options, wanted, true);
    }
    let from_cache = |any_variant| {
        let cached = cached.as_ref()?;
        cached.fetch(options, wanted, any_variant).ok()
    };
    // What is there of a commit never changes, so nobody needs to be asked.
    if is_commit(revision)
        && let Some(path) = from_cache(false)
    {
        return Ok(path);
    }
    // A hub that is away, or that took a model down, leaves what is here, and is not waited for then.
    let substitute = from_cache(true);
    let retries = match substitute {
        Some(_) => 0,
        None => settings.retries,
    };
    let client = Client::new(settings, &id.repository)?;
    let online = match &id.file {
        Some(file) => fetch_file(&client, &cache, revision, file, retries),
        None => client.listing(revision, retries).map(|listing| {
            let found = Repository {
                id,
                cache: &cache,
                commit: listing.commit,
                listing: listing.files,
                client: Some(&client),
            };
            let path = found.fetch(options, wanted, true)?;
            // Last, so that whoever is offline after a cut still has what was whole before.
            cache.note_revision(revision, &found.commit)?;
            Ok(path)
        }),
    };
    match online {
        Ok(result) => result,
        Err(Failure::Missing(error)) => Err(error),
        Err(failure) => substitute.ok_or_else(|| client.error(failure, None)),
    }
}

/// One file, at the commit that a revision has now. The outer result is of the first question.
fn fetch_file(
    client: &Client<'_>,
    cache: &Cache,
    revision: &str,
    file: &str,
    retries: u32,
) -> Result<Result<PathBuf>, Failure> {
    let info = client.info(revision, file, retries)?;
    let commit = info.commit.as_deref();
    let Some(commit) = commit.or_else(|| Some(revision).filter(|r| is_commit(r))) else {
        return Err(Failure::Refused(Error::format(
            file.as_ref(),
            "the server does not say of which commit it is; check HF_ENDPOINT",
        )));
    };
    let download = Download {
        client,
        cache,
        revision: commit,
        file,
        info: &info,
    };
    let found = cache.find(commit, file).map(Ok);
    let path = found.unwrap_or_else(|| download.run(commit));
    Ok(path.and_then(|path| {
        cache.note_revision(revision, commit)?;
        Ok(path)
    }))
}

impl Repository<'_> {
    /// The path of what the id stands for. `any_variant` allows weights of another variant than asked for.
    fn fetch(&self, options: &OpenOptions, wanted: Wanted, any_variant: bool) -> Result<PathBuf> {
        if let Some(file) = &self.id.file {
            return self.file(file);
        }
        let files = match wanted {
            Wanted::Lora => lora_files(&self.listing),
            Wanted::Model if self.listing.contains(INDEX) => {
                return self.folder(options, any_variant);
            }
            Wanted::Model => single_file(&self.listing).map(|file| vec![file]),
        };
        let files = files.map_err(|candidates| self.not_one(&candidates))?;
        let paths = files.iter().map(|file| self.file(file));
        let paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
        // The settings that a file may have beside it come behind it.
        paths.into_iter().next().ok_or_else(|| self.not_one(&[]))
    }

    /// The snapshot, with what is needed of a model in the diffusers layout.
    fn folder(&self, options: &OpenOptions, any_variant: bool) -> Result<PathBuf> {
        let index_path = self.file(INDEX)?;
        let plan = Plan::new(&self.listing, &read_json(&index_path)?, options);
        let is_without = options.variant.is_some() && !plan.has_variant;
        if let Some(variant) = options.variant.as_ref().filter(|_| is_without) {
            return Err(Error::NotFound {
                path: self.id.to_string().into(),
                hint: format!(
                    "{} no weights of the variant {variant:?}; leave it out",
                    self.has()
                ),
            });
        }
        if !plan.missing.is_empty() || plan.has_substitutes && !any_variant {
            return Err(self.lacks(&plan.missing));
        }
        for file in &plan.files {
            let path = self.file(file)?;
            if let (true, Some((folder, _))) = (file.contains(".index."), file.rsplit_once('/')) {
                let shards = shards(&path)?;
                let shards: Vec<_> = shards
                    .iter()
                    .map(|name| format!("{folder}/{name}"))
                    .collect();
                let missing = shards.iter().filter(|path| !self.listing.contains(*path));
                let missing: Vec<String> = missing.cloned().collect();
                if !missing.is_empty() {
                    return Err(self.lacks(&missing));
                }
                for shard in &shards {
                    self.file(shard)?;
                }
            }
        }
        Ok(self.cache.snapshot(&self.commit))
    }

    /// One file, downloaded if it is not there.
    fn file(&self, file: &str) -> Result<PathBuf> {
        if !is_plain_path(file) {
            let reason = format!("the hub lists {file:?}, which is no path in a folder; refused");
            return Err(Error::format(self.id.repository.as_ref(), reason));
        }
        if let Some(path) = self.cache.find(&self.commit, file) {
            return Ok(path);
        }
        let Some(client) = self.client else {
            return Err(self.lacks(&[file.to_owned()]));
        };
        let info = client.info(&self.commit, file, client.options.retries);
        let info = info.map_err(|failure| client.error(failure, Some(file)))?;
        let download = Download {
            client,
            cache: self.cache,
            revision: &self.commit,
            file,
            info: &info,
        };
        download.run(&self.commit)
    }

    /// The beginning of a sentence on what is not there.
    fn has(&self) -> String {
        match self.client {
            Some(_) => "the repository has".into(),
            None => format!(
                "offline, and {} has",
                self.cache.snapshot(&self.commit).display()
            ),
        }
    }

    fn lacks(&self, files: &[String]) -> Error {
        let advice = match self.client {
            Some(_) => "is the model whole?",
            None => "download it once while online",
        };
        Error::NotFound {
            path: self.id.to_string().into(),
            hint: format!("{} no {}; {advice}", self.has(), files.join(", no ")),
        }
    }

    fn not_one(&self, candidates: &[String]) -> Error {
        let hint = match candidates {
            [] => format!("{} neither {INDEX} nor a file of tensors", self.has()),
            [first, ..] => format!(
                "{} no {INDEX} and several files of tensors: {}; name one, as in {}/{first}",
                self.has(),
                candidates.join(", "),
                self.id.repository
            ),
        };
        Error::NotFound {
            path: self.id.to_string().into(),
            hint,
        }
    }
}
