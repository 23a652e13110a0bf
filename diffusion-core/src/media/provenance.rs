//! What a picture's file says about how the picture came about.

use std::io::Cursor;
use std::path::Path;

use image::{ImageDecoder, ImageFormat, ImageReader};

use super::exif;
use super::read::{MAX_PIXELS, read_file};
use crate::error::{Error, Result};

/// The keyword of a PNG's text in A1111's form.
const PARAMETERS: &str = "parameters";
/// The keyword of a PNG's text in this library's form.
const RECORD: &str = "diffusion";
/// The longest text that is read, in bytes; compressed texts may be larger than their file.
const MAX_TEXT: usize = 1 << 24;

/// How a picture came about, as text in its file. PNG has it in the text chunks `parameters` and `diffusion`, JPEG
/// and WebP in the EXIF tags `UserComment` and `MakerNote`.
///
/// [`Generated::provenance`](crate::Generated::provenance) writes it, and
/// [`Recalled`](crate::pipeline::Recalled) makes a request of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Provenance {
    /// A1111's form, which most programs read: the prompt, the negative prompt, a line of settings.
    pub parameters: Option<String>,
    /// This library's form: JSON with all that a request has.
    pub record: Option<String>,
}

impl Provenance {
    /// Both forms, or those that are there.
    pub fn new(parameters: Option<String>, record: Option<String>) -> Self {
        Self { parameters, record }
    }

    /// Reads it from a picture's file: PNG, JPEG, WebP or TIFF. Files that say nothing give an empty one.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::Io`] if the file cannot be read, [`Error::Format`] if it is not a picture,
    /// [`Error::InvalidArgument`] for files of more than 1 GiB.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::of_file(&read_file(path)?, path)
    }

    /// Reads it from the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Format`] if they are not those of a picture.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of_file(bytes, Path::new("picture"))
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_none() && self.record.is_none()
    }

    fn of_file(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |reason| Error::format(path, reason);
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        let reader = reader.map_err(|e| Error::io(path, e))?;
        let of_text = match reader.format() {
            Some(ImageFormat::Png) => Self::of_png(bytes),
            _ => Self::default(),
        };
        if !of_text.is_empty() {
            return Ok(of_text);
        }
        let mut decoder = reader.into_decoder().map_err(fail)?;
        let exif = decoder.exif_metadata().map_err(fail)?;
        Ok(exif.map(|exif| exif::read(&exif)).unwrap_or_default())
    }

    /// The texts of a PNG as far as it can be read: what is damaged behind them does not matter.
    fn of_png(bytes: &[u8]) -> Self {
        let limits = png::Limits {
            bytes: MAX_PIXELS as usize,
        };
        let decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
        let Ok(mut reader) = decoder.read_info() else {
            return Self::default();
        };
        // Texts may stand behind the pixels.
        let _damage_behind = reader.finish();
        let info = reader.info();
        let mut texts: Vec<(String, String)> = Vec::new();
        for chunk in &info.uncompressed_latin1_text {
            texts.push((chunk.keyword.clone(), chunk.text.clone()));
        }
        for mut chunk in info.compressed_latin1_text.iter().cloned() {
            let read = chunk.decompress_text_with_limit(MAX_TEXT);
            let text = read.and_then(|()| chunk.get_text());
            texts.extend(text.ok().map(|text| (chunk.keyword, text)));
        }
        for mut chunk in info.utf8_text.iter().cloned() {
            let read = chunk.decompress_text_with_limit(MAX_TEXT);
            let text = read.and_then(|()| chunk.get_text());
            texts.extend(text.ok().map(|text| (chunk.keyword, text)));
        }
        let text = |keyword: &str| {
            let mut found = texts.iter().filter(|(found, _)| found == keyword);
            found.next().map(|(_, text)| text.clone())
        };
        Self::new(text(PARAMETERS), text(RECORD))
    }

    /// Adds the texts to a PNG: as `tEXt` where Latin-1 can write them, as `iTXt` otherwise.
    pub(super) fn write_png(&self, info: &mut png::Info<'_>) {
        for (keyword, text) in [(PARAMETERS, &self.parameters), (RECORD, &self.record)] {
            let Some(text) = text else { continue };
            match text.chars().all(|c| c != '\0' && u32::from(c) < 256) {
                true => {
                    let chunk = png::text_metadata::TEXtChunk::new(keyword, text);
                    info.uncompressed_latin1_text.push(chunk);
                }
                false => {
                    let chunk = png::text_metadata::ITXtChunk::new(keyword, text);
                    info.utf8_text.push(chunk);
                }
            }
        }
    }
}
