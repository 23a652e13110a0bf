//! Hubs that refuse, lie or fall silent.

use std::io::ErrorKind as Io;
use std::time::{Duration, Instant};

use diffusion_core::weights::{Checkpoint, OpenOptions};
use diffusion_core::{Error, ErrorKind, Pipeline};
use diffusion_tests::{TestResult, model_path};

use crate::server::{COMMIT, Fault, Repository, Server, TOKEN};
use crate::{Hub, noise, with};

const FILE: &str = "model.safetensors";

fn one_file(fault: Option<Fault>, size: usize) -> TestResult<Hub> {
    let mut repository = Repository::of_files(&[(FILE, &noise(size))]);
    repository
        .faults
        .extend(fault.map(|fault| (FILE.to_owned(), fault)));
    Hub::start(repository)
}

fn io_kind(error: &Error) -> Option<Io> {
    match error {
        Error::Io { source, .. } => Some(source.kind()),
        _ => None,
    }
}

/// The error of opening the model; it must come within seconds.
fn failure(options: &OpenOptions) -> TestResult<Error> {
    let start = Instant::now();
    let error = options.locate("owner/name").err().ok_or("no error")?;
    assert!(start.elapsed() < Duration::from_secs(20), "{error}");
    Ok(error)
}

#[test]
fn gated_models_want_a_token() -> TestResult {
    let mut repository = Repository::of_folder(&model_path("sd15"))?;
    repository.is_gated = true;
    let hub = Hub::start(repository)?;
    let error = failure(&hub.options())?;
    assert_eq!(io_kind(&error), Some(Io::PermissionDenied));
    assert!(error.to_string().contains("gated"), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    let mut settings = hub.settings();
    settings.token = Some("wrong".into());
    assert_eq!(
        io_kind(&failure(&with(settings.clone()))?),
        Some(Io::PermissionDenied)
    );
    settings.token = Some(TOKEN.into());
    Checkpoint::open_with("owner/name", &with(settings))?;
    Ok(())
}

#[test]
fn what_does_not_exist_is_named() -> TestResult {
    let hub = one_file(None, 20_000)?;
    let error = hub
        .options()
        .locate("owner/other")
        .expect_err("no repository");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error
            .to_string()
            .starts_with("owner/other: not found; there is no such path"),
        "{error}"
    );

    let options = OpenOptions {
        revision: Some("v9".into()),
        ..hub.options()
    };
    let error = failure(&options)?;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().starts_with("owner/name@v9: not found"),
        "{error}"
    );

    let error = hub
        .options()
        .locate("owner/name/x.safetensors")
        .expect_err("no file");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error
            .to_string()
            .starts_with("owner/name/x.safetensors: not found"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_wrong_checksum_removes_the_file() -> TestResult {
    let hub = one_file(Some(Fault::Damaged), 20_000)?;
    let error = failure(&hub.options())?;
    assert_eq!(error.kind(), ErrorKind::Format);
    let text = error.to_string();
    assert!(
        text.starts_with("owner/name/model.safetensors") && text.contains("SHA-256"),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(hub.cached("blobs"))?.count(), 0);
    assert!(!hub.cached("snapshots").exists());
    hub.server
        .state()
        .repositories
        .get_mut("owner/name")
        .ok_or("no model")?
        .faults
        .clear();
    assert_eq!(
        std::fs::read(hub.options().locate("owner/name")?)?,
        noise(20_000)
    );
    Ok(())
}

#[test]
fn a_busy_server_is_asked_again_and_not_for_ever() -> TestResult {
    let hub = one_file(Some(Fault::Busy(2)), 20_000)?;
    hub.options().locate("owner/name")?;
    let hub = one_file(Some(Fault::Busy(100)), 20_000)?;
    let error = failure(&hub.options())?;
    assert!(error.to_string().contains("503"), "{error}");
    let asked = hub.server.take_lines();
    let heads = asked.iter().filter(|line| line.starts_with("HEAD")).count();
    assert_eq!(heads, 3, "one and two again");
    Ok(())
}

#[test]
fn a_cut_at_the_same_place_ends() -> TestResult {
    let hub = one_file(Some(Fault::CutAlways(0)), 20_000)?;
    let error = failure(&hub.options())?;
    assert_eq!(io_kind(&error), Some(Io::UnexpectedEof));
    assert!(
        error.to_string().contains("owner/name/model.safetensors"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_silent_server_ends() -> TestResult {
    let hub = one_file(Some(Fault::Silent), 20_000)?;
    let mut settings = hub.settings();
    settings.timeout = Duration::from_millis(200);
    settings.retries = 1;
    let error = failure(&with(settings))?;
    assert_eq!(error.kind(), ErrorKind::Io);
    Ok(())
}

#[test]
fn more_than_was_announced_is_not_read() -> TestResult {
    for size in [2000, 20_000] {
        let hub = one_file(Some(Fault::Endless), size)?;
        let error = failure(&hub.options())?;
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(error.to_string().contains("more than the"), "{error}");
    }
    Ok(())
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() -> TestResult {
    for name in [
        "../../../x.safetensors",
        "/tmp/x.safetensors",
        "a/../../x.safetensors",
        "..\\\\..\\\\x.safetensors",
        "C:x.safetensors",
    ] {
        let mut repository = Repository::of_files(&[]);
        repository.listing = Some(format!(
            r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{name}"}}]}}"#
        ));
        let hub = Hub::start(repository)?;
        let error = failure(&hub.options())?;
        assert!(error.to_string().contains("refused"), "{name}: {error}");
        assert_eq!(hub.server.take_lines().len(), 1, "{name}");
    }
    for etag in ["../../x", "a/b", "", "..", "a\\b", &"x".repeat(300)] {
        let mut repository = Repository::of_files(&[(FILE, b"bytes")]);
        repository.etag = Some(etag.into());
        let hub = Hub::start(repository)?;
        let error = failure(&hub.options())?;
        assert!(
            error.to_string().contains("expected an etag"),
            "{etag}: {error}"
        );
    }
    let hub = one_file(None, 20)?;
    for revision in ["../main", "", "/main"] {
        let options = OpenOptions {
            revision: Some(revision.into()),
            ..hub.options()
        };
        assert_eq!(failure(&options)?.kind(), ErrorKind::InvalidArgument);
    }
    assert!(hub.server.take_lines().is_empty());
    Ok(())
}

#[test]
fn answers_of_no_hub_are_errors() -> TestResult {
    for listing in [
        "",
        "<!doctype html>",
        "[]",
        "{",
        r#"{"sha": "../..", "siblings": []}"#,
        r#"{"sha": 1, "siblings": {}}"#,
        r#"{"siblings": [{"rfilename": 1}]}"#,
        "\u{0}\u{1}",
        &"[".repeat(100_000),
    ] {
        let mut repository = Repository::of_files(&[]);
        repository.listing = Some(listing.into());
        let hub = Hub::start(repository)?;
        let error = failure(&hub.options())?;
        assert!(
            error.to_string().contains("HF_ENDPOINT"),
            "{listing}: {error}"
        );
    }
    Ok(())
}

#[test]
fn a_model_that_moved_is_followed_and_a_circle_is_not() -> TestResult {
    let moved = Repository {
        new_name: Some("new/home".into()),
        ..Repository::of_files(&[])
    };
    let mut new = Repository::of_folder(&model_path("sd15"))?;
    new.is_gated = true;
    let hub = Hub {
        server: Server::start(&[("owner/name", moved.clone()), ("new/home", new)])?,
        cache: tempfile::tempdir()?,
    };
    let mut settings = hub.settings();
    settings.token = Some(TOKEN.into());
    Pipeline::builder()
        .weights("owner/name")
        .hub(settings)
        .build()?;

    let circle = Repository {
        new_name: Some("owner/name".into()),
        ..moved
    };
    let hub = Hub::start(circle)?;
    let error = failure(&hub.options())?;
    assert!(error.to_string().contains("ten redirects"), "{error}");
    assert_eq!(hub.server.take_lines().len(), 11);
    Ok(())
}

#[test]
fn settings_that_cannot_be_are_errors() -> TestResult {
    let hub = one_file(None, 20)?;
    for endpoint in [
        "",
        "hub.example",
        "ftp://hub.example",
        "file:///etc",
        "http://",
    ] {
        let mut settings = hub.settings();
        settings.endpoint = endpoint.into();
        let error = failure(&with(settings))?;
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Io),
            "{endpoint}: {error}"
        );
    }
    // This server speaks no TLS.
    let mut settings = hub.settings();
    settings.endpoint = settings.endpoint.replace("http://", "https://");
    assert_eq!(failure(&with(settings))?.kind(), ErrorKind::Io);
    let mut settings = hub.settings();
    settings.token = Some("secret\r\nHost: x".into());
    let error = failure(&with(settings))?;
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(!error.to_string().contains("secret"), "{error}");
    Ok(())
}
