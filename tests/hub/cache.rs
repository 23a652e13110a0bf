//! The cache, which Python's `huggingface_hub` shares.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion_core::{ErrorKind, Pipeline};
use diffusion_tests::{TestResult, golden_json, model_path};
use serde_json::Value;

use crate::server::{COMMIT, Repository};
use crate::{Hub, with};

/// Each path below a folder: where a link goes, or what a file holds if that is short, or its size.
fn tree(folder: &Path) -> TestResult<BTreeMap<String, String>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(&current)? {
            let path = entry?.path();
            let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
            if path.is_symlink() {
                let target = std::fs::read_link(&path)?;
                entries.insert(name, format!("-> {}", target.display()));
            } else if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = std::fs::read(&path)?;
                let text = match bytes.len() {
                    ..100 => String::from_utf8(bytes)?,
                    size => format!("{size} bytes"),
                };
                entries.insert(name, text);
            }
        }
    }
    Ok(entries)
}

/// What Python's cache of the tiny model holds.
fn python_tree() -> TestResult<BTreeMap<String, String>> {
    Ok(serde_json::from_value(
        golden_json("hub.json")?["tree"].take(),
    )?)
}

#[cfg(unix)]
#[test]
fn the_cache_is_pythons_to_the_last_link() -> TestResult {
    let hub = Hub::start(Repository::of_folder(&model_path("sd15"))?)?;
    Pipeline::builder()
        .weights("owner/name")
        .hub(hub.settings())
        .build()?;
    let mut ours = tree(hub.cache.path())?;
    // The one has its own form of what is left of a lock.
    ours.retain(|name, _| !name.starts_with(".locks/") && name != "CACHEDIR.TAG");
    assert_eq!(ours, python_tree()?);
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_cache_of_pythons_is_found() -> TestResult {
    let hub = Hub::start(Repository::of_folder(&model_path("sd15"))?)?;
    let contents = Repository::of_folder(&model_path("sd15"))?;
    let blobs: BTreeMap<_, _> = contents
        .files
        .values()
        .map(|bytes| (crate::server::etag(bytes), bytes))
        .collect();
    for (name, entry) in python_tree()? {
        let path = hub.cache.path().join(&name);
        std::fs::create_dir_all(path.parent().ok_or("no folder")?)?;
        let etag = path
            .file_name()
            .ok_or("no name")?
            .to_string_lossy()
            .into_owned();
        match (entry.strip_prefix("-> "), blobs.get(&etag)) {
            (Some(target), _) => std::os::unix::fs::symlink(target, &path)?,
            (None, Some(bytes)) => std::fs::write(&path, bytes)?,
            (None, None) => std::fs::write(&path, entry)?,
        }
    }
    let build = |settings| {
        Pipeline::builder()
            .weights("owner/name")
            .hub(settings)
            .build()
    };
    let mut offline = hub.settings();
    offline.offline = true;
    build(offline)?;
    assert!(hub.server.take_lines().is_empty());
    build(hub.settings())?;
    let asked = hub.server.take_lines();
    assert_eq!(asked, ["GET /api/models/owner/name/revision/main"]);
    let python: Vec<String> = serde_json::from_value(golden_json("hub.json")?["second"].take())?;
    assert!(asked.iter().all(|line| python.contains(line)), "{python:?}");
    Ok(())
}

#[test]
fn offline_the_cache_alone_is_used() -> TestResult {
    let hub = Hub::start(Repository::of_folder(&model_path("sd15"))?)?;
    let error = hub
        .offline()
        .locate("owner/name")
        .expect_err("nothing is there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("offline"), "{error}");
    assert!(hub.server.take_lines().is_empty());

    hub.options().locate("owner/name")?;
    hub.server.take_lines();
    Pipeline::builder()
        .weights("owner/name")
        .hub(hub.offline().hub.ok_or("no settings")?)
        .build()?;
    let vocab = hub.cached(&format!("snapshots/{COMMIT}/tokenizer/vocab.json"));
    std::fs::remove_file(vocab)?;
    std::fs::remove_file(hub.cached(&format!("snapshots/{COMMIT}/vae/config.json")))?;
    let error = hub
        .offline()
        .locate("owner/name")
        .expect_err("two files are gone");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(
        text.contains("vae/config.json") && text.contains("tokenizer/vocab.json"),
        "{text}"
    );
    let error = hub
        .offline()
        .locate("owner/name/x.ckpt")
        .expect_err("no such file");
    assert!(error.to_string().contains("x.ckpt"), "{error}");
    assert!(hub.server.take_lines().is_empty());

    // Online, links are made anew and nothing comes twice.
    hub.options().locate("owner/name")?;
    assert!(
        hub.server
            .take_lines()
            .iter()
            .all(|line| !line.starts_with("GET /owner"))
    );
    Ok(())
}

#[test]
fn a_hub_that_is_away_leaves_the_cache() -> TestResult {
    let hub = Hub::start(Repository::of_folder(&model_path("sd15"))?)?;
    let mut away = hub.settings();
    away.endpoint = "http://127.0.0.1:9".into();
    away.retries = 0;
    let error = with(away.clone())
        .locate("owner/name")
        .expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");

    hub.options().locate("owner/name")?;
    with(away).locate("owner/name")?;
    // A model that was taken down, too.
    hub.server.state().repositories.clear();
    hub.options().locate("owner/name")?;
    Ok(())
}

#[test]
fn a_new_commit_fetches_what_changed() -> TestResult {
    let hub = Hub::start(Repository::of_folder(&model_path("sd15"))?)?;
    hub.options().locate("owner/name")?;
    hub.server.take_lines();
    let next = "f".repeat(40);
    if let Some(model) = hub.server.state().repositories.get_mut("owner/name") {
        model.commit.clone_from(&next);
        let config = model.files.get_mut("vae/config.json").ok_or("no file")?;
        config.push(b'\n');
    }
    let path = hub.options().locate("owner/name")?;
    assert_eq!(path, hub.cached(&format!("snapshots/{next}")));
    let asked = hub.server.take_lines();
    let fetched: Vec<_> = asked
        .iter()
        .filter(|line| line.starts_with("GET /owner"))
        .collect();
    assert_eq!(
        fetched,
        [&format!("GET /owner/name/resolve/{next}/vae/config.json")]
    );
    let noted: Value = std::fs::read_to_string(hub.cached("refs/main"))?.into();
    assert_eq!(noted, next);
    Ok(())
}
