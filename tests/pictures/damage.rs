//! Files that are cut off, changed or made up.

use std::fs;
use std::path::PathBuf;

use diffusion_core::media::{self, Provenance};
use diffusion_core::{Error, ErrorKind};
use diffusion_tests::{TestResult, golden_path};

/// A stream of numbers that is the same in each run (xorshift64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }
}

fn files() -> TestResult<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for folder in ["pictures", "pictures/texts"] {
        for entry in fs::read_dir(golden_path(folder))? {
            let path = entry?.path();
            if path.is_file() {
                files.push((path.clone(), fs::read(path)?));
            }
        }
    }
    files.sort();
    assert!(files.len() > 40);
    Ok(files)
}

/// Reads whatever it is: a picture or an error of the right kinds.
fn try_read(bytes: &[u8]) -> Result<(), Error> {
    let _ = Provenance::from_bytes(bytes);
    let Err(error) = media::decode_with_alpha(bytes) else {
        return Ok(());
    };
    use ErrorKind::{Format, InvalidArgument, Unsupported};
    assert!(
        matches!(error.kind(), Format | Unsupported | InvalidArgument),
        "{error}"
    );
    Err(error)
}

#[test]
fn files_that_are_cut_off() -> TestResult {
    for (path, whole) in files()? {
        let name = path.display();
        try_read(&whole).map_err(|e| format!("{name}: {e}"))?;
        let mut refused = 0;
        for part in 0..64 {
            refused += usize::from(try_read(&whole[..whole.len() * part / 64]).is_err());
        }
        // What is cut off may be text or other frames alone, which are most of a few of these files.
        assert!(refused >= 10, "{name}: only {refused} of 64 refused");
    }
    Ok(())
}

#[test]
fn files_with_other_bytes_in_them() -> TestResult {
    let mut random = Random(11);
    for (_, whole) in files()? {
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(4) {
                // Half of the changes are in the header.
                let end = if random.below(2) == 0 {
                    bytes.len().min(64)
                } else {
                    bytes.len()
                };
                let at = random.below(end);
                bytes[at] = random.below(256) as u8;
            }
            let _ = try_read(&bytes);
        }
    }
    Ok(())
}

#[test]
fn bytes_of_no_file() {
    let mut random = Random(5);
    let signatures: [&[u8]; 8] = [
        b"",
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
        b"\xff\xd8\xff\xe0",
        b"RIFF\x40\0\0\0WEBPVP8L",
        b"GIF89a",
        b"BM",
        b"II\x2a\0\x08\0\0\0",
        b"MM\0\x2a\0\0\0\x08",
    ];
    for signature in signatures {
        for _ in 0..300 {
            let len = random.below(200);
            let mut bytes = signature.to_vec();
            bytes.extend((0..len).map(|_| random.below(256) as u8));
            assert!(try_read(&bytes).is_err());
        }
    }
}

/// Small files that say that they are huge.
#[test]
fn bombs_ask_for_no_memory() -> TestResult {
    let changed = |name: &str, at: usize, side: &[u8]| -> TestResult<Vec<u8>> {
        let mut bytes = fs::read(golden_path("pictures").join(name))?;
        bytes[at..at + side.len()].copy_from_slice(side);
        Ok(bytes)
    };
    // 60,000 pixels squared, as each format writes it.
    let mut png = changed("rgb.png", 16, &[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60])?;
    let sum = crc(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    let gif = changed("palette.gif", 6, &[0x60, 0xea, 0x60, 0xea])?;
    let bmp = changed("rgb.bmp", 18, &[0x60, 0xea, 0, 0, 0x60, 0xea, 0, 0])?;
    for (name, bytes) in [("png", png), ("gif", gif), ("bmp", bmp)] {
        match media::decode(&bytes) {
            Err(Error::InvalidArgument { found, .. }) => {
                assert!(found.contains("60000"), "{found}")
            }
            other => return Err(format!("{name}: {:?}", other.map(|_| ())).into()),
        }
    }
    // 16,380 of them.
    let mut webp = media::to_webp(&media::read(golden_path("pictures/rgb.png"))?, None)?;
    webp[21..25].copy_from_slice(&[0xfb, 0xff, 0xfe, 0x0f]);
    match media::decode(&webp) {
        Err(Error::InvalidArgument { .. }) => Ok(()),
        other => Err(format!("webp: {:?}", other.map(|_| ())).into()),
    }
}

/// The checksum of a PNG's chunk.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ (0xedb8_8320 * (crc & 1))
        })
    };
    !bytes.iter().fold(!0, step)
}
