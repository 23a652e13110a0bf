//! EXIF, as far as a picture's provenance needs it: two tags of a TIFF structure.

use super::Provenance;

/// Points from the first directory to that of EXIF.
const EXIF_DIRECTORY: u16 = 0x8769;
/// The producer's own data: this library's record.
const MAKER_NOTE: u16 = 0x927c;
/// Free text: A1111's form.
const USER_COMMENT: u16 = 0x9286;
/// The type of both tags, bytes that a reader leaves alone.
const UNDEFINED: u16 = 7;
const LONG: u16 = 4;

/// What a user comment begins with says how its letters are written.
const UNICODE: &[u8] = b"UNICODE\0";
const ENCODING_LEN: usize = 8;
/// What the record begins with.
const RECORD: &[u8] = b"diffusion\0";
/// What some programs leave in front of the structure.
const MARKER: &[u8] = b"Exif\0\0";
/// Bytes of a directory's entry.
const ENTRY_LEN: usize = 12;

/// The structure with what is there of a provenance, in little endian.
pub(super) fn write(provenance: &Provenance) -> Vec<u8> {
    let mut tags: Vec<(u16, Vec<u8>)> = Vec::new();
    if let Some(record) = &provenance.record {
        tags.push((MAKER_NOTE, [RECORD, record.as_bytes()].concat()));
    }
    if let Some(text) = &provenance.parameters {
        // Big endian whatever the structure is, as A1111 writes and reads it.
        let units = text.encode_utf16().flat_map(u16::to_be_bytes);
        tags.push((USER_COMMENT, UNICODE.iter().copied().chain(units).collect()));
    }
    let mut bytes = b"II\x2a\0\x08\0\0\0".to_vec();
    let first = bytes.len() + 2 + ENTRY_LEN + 4;
    let mut directory = |entries: &[(u16, u16, usize, usize)]| {
        bytes.extend((entries.len() as u16).to_le_bytes());
        for &(tag, kind, count, value) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend((count as u32).to_le_bytes());
            bytes.extend((value as u32).to_le_bytes());
        }
        bytes.extend([0; 4]);
    };
    directory(&[(EXIF_DIRECTORY, LONG, 1, first)]);
    let mut offset = first + 2 + ENTRY_LEN * tags.len() + 4;
    let mut entries = Vec::new();
    for (tag, data) in &tags {
        entries.push((*tag, UNDEFINED, data.len(), offset));
        offset += data.len();
    }
    directory(&entries);
    for (_, data) in tags {
        bytes.extend(data);
    }
    bytes
}

/// What a structure says of a provenance; damaged ones say nothing.
pub(super) fn read(bytes: &[u8]) -> Provenance {
    let bytes = bytes.strip_prefix(MARKER).unwrap_or(bytes);
    let directory = Tiff::open(bytes).and_then(|(tiff, first)| {
        let (_, at) = tiff.entry(first, EXIF_DIRECTORY)?;
        Some((tiff, tiff.u32(at)? as usize))
    });
    let Some((tiff, directory)) = directory else {
        return Provenance::default();
    };
    let record = tiff.data(directory, MAKER_NOTE).and_then(|data| {
        let text = data.strip_prefix(RECORD)?;
        std::str::from_utf8(text).ok().map(str::to_owned)
    });
    let parameters = tiff.data(directory, USER_COMMENT).map(comment);
    Provenance::new(parameters.filter(|text| !text.is_empty()), record)
}

/// The text of a user comment.
fn comment(data: &[u8]) -> String {
    let text = data.get(ENCODING_LEN..).unwrap_or_default();
    let text = match data.starts_with(UNICODE) {
        true => {
            let pairs = || text.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
            // The standard leaves the order open; the settings' ASCII letters show it.
            let big = pairs().filter(|pair| pair[0] == 0).count();
            let little = pairs().filter(|pair| pair[1] == 0).count();
            let units: Vec<u16> = match little > big {
                true => pairs().map(u16::from_le_bytes).collect(),
                false => pairs().map(u16::from_be_bytes).collect(),
            };
            String::from_utf16_lossy(&units)
        }
        false => String::from_utf8_lossy(text).into_owned(),
    };
    text.trim_matches(['\0', '\u{feff}']).to_owned()
}

/// A TIFF structure, read with its bounds in mind.
#[derive(Clone, Copy)]
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
}

impl<'a> Tiff<'a> {
    /// The structure, and where its first directory is.
    fn open(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let is_big_endian = match bytes.get(..4)? {
            b"II\x2a\0" => false,
            b"MM\0\x2a" => true,
            _ => return None,
        };
        let tiff = Self {
            bytes,
            is_big_endian,
        };
        Some((tiff, tiff.u32(4)? as usize))
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut array: [u8; N] = self.bytes.get(at..at.checked_add(N)?)?.try_into().ok()?;
        if self.is_big_endian {
            array.reverse();
        }
        Some(array)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// How many values a tag of a directory has, and where its four bytes of value are.
    fn entry(&self, directory: usize, tag: u16) -> Option<(usize, usize)> {
        let count = usize::from(self.u16(directory)?);
        let entries = (0..count).map(|i| directory + 2 + i * ENTRY_LEN);
        let mut found = entries.filter(|&at| self.u16(at) == Some(tag));
        let at = found.next()?;
        Some((self.u32(at + 4)? as usize, at + 8))
    }

    /// The bytes of a tag whose values are of one byte each.
    fn data(&self, directory: usize, tag: u16) -> Option<&'a [u8]> {
        let (count, at) = self.entry(directory, tag)?;
        let start = match count {
            // So few stand in place of the offset.
            ..=4 => at,
            _ => self.u32(at)? as usize,
        };
        self.bytes.get(start..start.checked_add(count)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        let parameters = "eine Katze, 猫 🐈\nSteps: 20, Sampler: Euler".to_owned();
        Provenance::new(Some(parameters), Some(r#"{"version": 1}"#.to_owned()))
    }

    #[test]
    fn there_and_back() {
        let whole = provenance();
        let text = Provenance::new(whole.parameters.clone(), None);
        let record = Provenance::new(None, whole.record.clone());
        for provenance in [whole, text, record, Provenance::default()] {
            let bytes = write(&provenance);
            assert_eq!(read(&bytes), provenance);
            assert_eq!(read(&[MARKER, &bytes].concat()), provenance);
        }
    }

    #[test]
    fn comments_in_either_order_and_in_ascii() {
        let text = "猫\nSteps: 20";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(comment(&[UNICODE, &little].concat()), text);
        assert_eq!(comment(&[UNICODE, &big].concat()), text);
        assert_eq!(comment(b"ASCII\0\0\0Steps: 20\0\0"), "Steps: 20");
        assert_eq!(comment(b"ASC"), "");
    }

    #[test]
    fn damage_says_nothing() {
        let whole = write(&provenance());
        for len in 0..whole.len() {
            let _ = read(&whole[..len]);
        }
        for at in 0..whole.len().min(80) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = read(&bytes);
            }
        }
    }
}
