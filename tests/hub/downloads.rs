//! Progress, and downloads that were cut.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use diffusion_core::ErrorKind;
use diffusion_core::weights::HubProgress;
use diffusion_tests::TestResult;

use crate::server::{Asked, Fault, Repository, TOKEN, etag};
use crate::{Hub, noise, with};

const FILE: &str = "model.safetensors";
const SIZE: usize = 3 << 20;

fn hub(fault: Option<Fault>) -> TestResult<Hub> {
    let mut repository = Repository::of_files(&[(FILE, &noise(SIZE))]);
    repository
        .faults
        .extend(fault.map(|fault| (FILE.to_owned(), fault)));
    Hub::start(repository)
}

/// The requests for bytes that the storage answered.
fn stored(log: &[Asked]) -> Vec<&Asked> {
    log.iter().filter(|asked| asked.is_storage).collect()
}

#[test]
fn progress_is_of_bytes() -> TestResult {
    let hub = hub(None)?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let list = seen.clone();
    let settings = hub.settings().progress(move |p: &HubProgress<'_>| {
        let row = (p.file.to_owned(), p.bytes_done, p.bytes_total);
        list.lock().expect("no thread panics").push(row);
        ControlFlow::Continue(())
    });
    with(settings.clone()).locate("owner/name")?;
    let rows = std::mem::take(&mut *seen.lock().expect("no thread panics"));
    assert!(rows.iter().all(|row| row.0 == FILE && row.2 == SIZE as u64));
    let done: Vec<u64> = rows.iter().map(|row| row.1).collect();
    assert_eq!((done[0], done[done.len() - 1]), (0, SIZE as u64));
    assert!(
        done.is_sorted() && (4..=5).contains(&done.len()),
        "{done:?}"
    );
    with(settings).locate("owner/name")?;
    assert!(seen.lock().expect("no thread panics").is_empty());
    Ok(())
}

#[test]
fn a_cut_connection_resumes_by_itself() -> TestResult {
    let hub = hub(Some(Fault::CutOnce(1_234_567)))?;
    let path = hub.options().locate("owner/name")?;
    assert_eq!(std::fs::read(path)?, noise(SIZE));
    let log = hub.server.take_log();
    let stored = stored(&log);
    let ranges: Vec<_> = stored.iter().map(|asked| asked.range.as_deref()).collect();
    assert_eq!(ranges, [None, Some("bytes=1234567-")]);
    let sent: usize = stored.iter().map(|asked| asked.bytes).sum();
    assert_eq!(sent, SIZE, "no byte comes twice");
    Ok(())
}

#[test]
fn a_later_call_resumes_what_an_earlier_one_left() -> TestResult {
    let hub = hub(Some(Fault::CutAlways(1_000_000)))?;
    let mut settings = hub.settings();
    settings.retries = 0;
    let error = with(settings.clone())
        .locate("owner/name")
        .expect_err("cut");
    assert_eq!(error.kind(), ErrorKind::Io);
    let partial = hub.cached(&format!("blobs/{}.incomplete", etag(&noise(SIZE))));
    assert_eq!(std::fs::metadata(&partial)?.len(), 1_000_000);
    hub.server.take_log();

    hub.server
        .state()
        .repositories
        .get_mut("owner/name")
        .ok_or("no model")?
        .faults
        .clear();
    let first = Arc::new(Mutex::new(None));
    let seen = first.clone();
    let settings = settings.progress(move |p: &HubProgress<'_>| {
        seen.lock()
            .expect("no thread panics")
            .get_or_insert(p.bytes_done);
        ControlFlow::Continue(())
    });
    let path = with(settings).locate("owner/name")?;
    assert_eq!(std::fs::read(path)?, noise(SIZE));
    assert_eq!(*first.lock().expect("no thread panics"), Some(1_000_000));
    let log = hub.server.take_log();
    let [asked] = stored(&log)[..] else {
        return Err("one request for bytes".into());
    };
    assert_eq!(asked.range.as_deref(), Some("bytes=1000000-"));
    assert_eq!(asked.bytes, SIZE - 1_000_000);
    assert!(!partial.exists());
    Ok(())
}

#[test]
fn many_cuts_are_no_error_while_something_comes() -> TestResult {
    let hub = hub(Some(Fault::CutAlways(700_000)))?;
    let path = hub.options().locate("owner/name")?;
    assert_eq!(std::fs::read(path)?, noise(SIZE));
    let log = hub.server.take_log();
    assert_eq!(
        stored(&log).iter().map(|asked| asked.bytes).sum::<usize>(),
        SIZE
    );
    Ok(())
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() -> TestResult {
    let hub = hub(Some(Fault::NoRanges))?;
    let partial = hub.cached(&format!("blobs/{}.incomplete", etag(&noise(SIZE))));
    std::fs::create_dir_all(hub.cached("blobs"))?;
    std::fs::write(partial, &noise(SIZE)[..5000])?;
    let path = hub.options().locate("owner/name")?;
    assert_eq!(std::fs::read(path)?, noise(SIZE));
    let log = hub.server.take_log();
    assert_eq!(stored(&log)[0].range.as_deref(), Some("bytes=5000-"));
    Ok(())
}

#[test]
fn a_left_part_may_be_whole_too_long_or_of_another_file() -> TestResult {
    let good = noise(SIZE);
    let mut other = good[..9000].to_vec();
    other[0] ^= 1;
    for (left, works) in [
        (&good[..], true),
        (&[&good[..], b"more"].concat(), true),
        (&other, false),
    ] {
        let hub = hub(None)?;
        let partial = hub.cached(&format!("blobs/{}.incomplete", etag(&good)));
        std::fs::create_dir_all(hub.cached("blobs"))?;
        std::fs::write(&partial, left)?;
        match (hub.options().locate("owner/name"), works) {
            (Ok(path), true) => assert_eq!(std::fs::read(path)?, good),
            (Err(error), false) => assert_eq!(error.kind(), ErrorKind::Format),
            (result, _) => return Err(format!("{result:?}").into()),
        }
        // The next call begins anew.
        assert!(!partial.exists());
        assert_eq!(std::fs::read(hub.options().locate("owner/name")?)?, good);
    }
    Ok(())
}

#[test]
fn a_caller_may_cancel_and_go_on_later() -> TestResult {
    let hub = hub(None)?;
    let stop = hub
        .settings()
        .progress(|p: &HubProgress<'_>| match p.bytes_done {
            0..2_000_000 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
    let error = with(stop).locate("owner/name").expect_err("cancelled");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    hub.server.take_log();
    hub.options().locate("owner/name")?;
    let log = hub.server.take_log();
    assert!(stored(&log)[0].bytes < SIZE - 1_999_999);
    Ok(())
}

#[test]
fn the_token_goes_to_the_hub_alone() -> TestResult {
    let hub = hub(None)?;
    let mut settings = hub.settings();
    settings.token = Some(TOKEN.into());
    with(settings).locate("owner/name")?;
    let log = hub.server.take_log();
    let expected = Some(format!("Bearer {TOKEN}"));
    assert!(log.iter().any(|asked| asked.is_storage));
    for asked in &log {
        let expected = expected.as_ref().filter(|_| !asked.is_storage);
        assert_eq!(asked.token.as_ref(), expected, "{asked:?}");
    }
    Ok(())
}

#[test]
fn calls_at_the_same_time_fetch_once() -> TestResult {
    let hub = hub(None)?;
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    hub.options()
                        .locate("owner/name")
                        .map_err(|e| e.to_string())
                })
            })
            .collect();
        for call in calls {
            let path = call.join().map_err(|_| "a thread panicked")??;
            assert_eq!(std::fs::read(path)?, noise(SIZE));
        }
        TestResult::Ok(())
    })?;
    assert_eq!(stored(&hub.server.take_log()).len(), 1);
    Ok(())
}
