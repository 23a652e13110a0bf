//! Textual inversion: words that a model learned, as vectors.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::{ModelPart, TensorFile};
use crate::error::{Error, Result};
use crate::nn::TensorSource;

/// A word of one or more vectors for a text encoder, or for both of SDXL's.
///
/// Source: Gal et al., "An Image is Worth One Word", 2022.
#[derive(Debug, Clone)]
pub struct Embedding {
    token: String,
    /// The file's name, where the file states another inside.
    alias: Option<String>,
    parts: BTreeMap<ModelPart, Tensor>,
}

/// The names under which files hold vectors whose word is the file's name.
const UNNAMED: [&str; 3] = ["emb_params", "string_to_param.*", "*"];
/// A tensor that was saved without a dictionary around it, which pickles call so.
const BARE: [&str; 2] = ["", "tensor"];
/// SDXL's two.
const PAIR: [(&str, ModelPart); 2] = [
    ("clip_l", ModelPart::TextEncoder),
    ("clip_g", ModelPart::TextEncoder2),
];
/// What a file's free text calls the word.
const NAME: &str = "name";
/// What else the files of user interfaces hold.
const BESIDE: [&str; 4] = ["string_to_token", "sd_checkpoint", "step", "optimizer"];

impl Embedding {
    /// Reads a file, safetensors or of torch.save. `token` is the word that prompts use; default: the one that the
    /// file states, or else the file's name without its ending. The user interfaces state a `name` beside the
    /// vectors and yet go by the file's: prompts may then use either.
    ///
    /// # Errors
    /// As [`read`](Self::read), and if the file cannot be opened.
    pub fn open(path: impl AsRef<Path>, token: Option<&str>) -> Result<Self> {
        Self::read(&TensorFile::open(path)?, token)
    }

    /// Reads the vectors of any source: diffusers' `{token: tensor}`, the `string_to_param` or `emb_params`
    /// of the user interfaces, the pair `clip_l` and `clip_g` of SDXL, or a bare tensor.
    ///
    /// # Errors
    /// [`Error::Format`] if it is none of these, [`Error::InvalidArgument`] if it is a bare tensor and there
    /// is no `token`.
    pub fn read(source: &dyn TensorSource, token: Option<&str>) -> Result<Self> {
        let source_name = source.name();
        let path = Path::new(&source_name);
        let names: Vec<String> = source
            .tensor_names()
            .into_iter()
            .filter(|name| !BESIDE.iter().any(|part| name.starts_with(part)))
            .collect();
        let one_of = |parts: &[(&str, ModelPart)]| -> Result<_> {
            let mut found = BTreeMap::new();
            for (name, part) in parts {
                if source.shape(name).is_some() {
                    found.insert(*part, vectors(source, name)?);
                }
            }
            Ok(found)
        };
        let (parts, own_name) = match names.as_slice() {
            [name] if !PAIR.iter().any(|(half, _)| half == name) => {
                let is_bare = BARE.contains(&name.as_str());
                let own_name =
                    (!is_bare && !UNNAMED.contains(&name.as_str())).then(|| name.clone());
                if is_bare && token.is_none() {
                    let found = format!("{source_name}: a tensor without a name");
                    return Err(Error::argument("token", "a word for the embedding", found));
                }
                (one_of(&[(name, ModelPart::TextEncoder)])?, own_name)
            }
            names if names.len() <= PAIR.len() => (one_of(&PAIR)?, None),
            _ => (BTreeMap::new(), None),
        };
        if parts.len() != names.len() || parts.is_empty() {
            let mut names = names;
            names.sort();
            names.truncate(5);
            let reason = format!(
                "not an embedding: expected one tensor, {}, or clip_l and clip_g; found {}",
                UNNAMED.join(", "),
                names.join(", ")
            );
            return Err(Error::format(path, reason));
        }
        let stem = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned());
        let mut metadata = source.metadata();
        let stated = metadata.remove(NAME).filter(|name| !name.trim().is_empty());
        let (token, alias) = match (token.map(str::to_owned).or(own_name), stated) {
            (Some(token), _) => (token, None),
            (None, Some(stated)) => (stated, stem),
            (None, None) => (stem.unwrap_or_default(), None),
        };
        let embedding = Self::new(token, parts)?;
        let alias = alias.filter(|alias| *alias != embedding.token);
        Ok(Self { alias, ..embedding })
    }

    /// Joins a word and its vectors, `(count, width)` or `(width)` for each text encoder.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the word is empty or the shapes are others.
    pub fn new(token: impl Into<String>, parts: BTreeMap<ModelPart, Tensor>) -> Result<Self> {
        let token = token.into();
        if token.trim().is_empty() {
            return Err(Error::argument("token", "a word", format!("{token:?}")));
        }
        let parts = parts
            .into_iter()
            .map(|(part, tensor)| {
                let tensor = tensor.to_dtype(DType::F32)?;
                match tensor.dims() {
                    [_] => Ok((part, tensor.unsqueeze(0)?)),
                    [count, _] if *count > 0 => Ok((part, tensor)),
                    found => {
                        let found = format!("{token}: {found:?}");
                        Err(Error::argument(
                            "embedding",
                            "vectors (count, width)",
                            found,
                        ))
                    }
                }
            })
            .collect::<Result<BTreeMap<_, _>>>()?;
        let mut counts = parts.values().map(|tensor| tensor.dims()[0]);
        let first = counts.next();
        match counts.all(|count| Some(count) == first) {
            true => Ok(Self {
                token,
                alias: None,
                parts,
            }),
            false => {
                let expected = "as many vectors for either text encoder";
                Err(Error::argument(
                    "embedding",
                    expected,
                    format!("{token}: other counts"),
                ))
            }
        }
    }

    /// The word that prompts use.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// All words that prompts may use: [`token`](Self::token), and the file's name if the file states another.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        [self.token.as_str()]
            .into_iter()
            .chain(self.alias.as_deref())
    }

    /// How many vectors the word stands for.
    pub fn num_vectors(&self) -> usize {
        self.parts
            .values()
            .next()
            .map_or(0, |tensor| tensor.dims()[0])
    }

    /// The vectors for a text encoder, `(num_vectors, width)`, f32, if the word has any for it.
    pub fn vectors(&self, part: ModelPart) -> Option<&Tensor> {
        self.parts.get(&part)
    }

    /// Whether another word's vectors are the same.
    pub(crate) fn has_vectors_of(&self, other: &Self) -> Result<bool> {
        if !self.parts.keys().eq(other.parts.keys()) {
            return Ok(false);
        }
        for (ours, theirs) in self.parts.values().zip(other.parts.values()) {
            if ours.dims() != theirs.dims() || ours.to_vec2::<f32>()? != theirs.to_vec2::<f32>()? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl fmt::Display for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "word {:?}", self.token)?;
        if let Some(alias) = &self.alias {
            write!(f, " or {alias:?}")?;
        }
        write!(f, ":")?;
        for (i, (part, vectors)) in self.parts.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let (count, width) = (self.num_vectors(), vectors.dims()[1]);
            let plural = if count == 1 { "" } else { "s" };
            write!(
                f,
                "{comma} {count} vector{plural} of {width} channels for the {part}"
            )?;
        }
        Ok(())
    }
}

/// The words that a LoRA's file brings with it, and their keys.
#[derive(Default)]
pub(super) struct Embedded {
    pub(super) embeddings: Vec<Embedding>,
    pub(super) keys: HashSet<String>,
}

/// What cloneofsimo/lora writes in a file's free text for a tensor that is a word.
const MARK: &str = "<embed>";
/// In front of the words in kohya's files: `bundle_emb.WORD.string_to_param.*`.
const BUNDLE: &str = "bundle_emb.";

/// Finds the words of a LoRA's file.
pub(super) fn embedded(source: &dyn TensorSource) -> Result<Embedded> {
    let metadata = source.metadata();
    let mut words = BTreeMap::<String, BTreeMap<ModelPart, Tensor>>::new();
    let mut keys = HashSet::new();
    for key in source.tensor_names() {
        let marked = metadata.get(&key).is_some_and(|text| text == MARK);
        let found = match marked {
            true => Some((key.clone(), ModelPart::TextEncoder)),
            false => key.strip_prefix(BUNDLE).and_then(in_bundle),
        };
        if let Some((word, part)) = found {
            words
                .entry(word)
                .or_default()
                .insert(part, vectors(source, &key)?);
            keys.insert(key);
        }
    }
    let embeddings = words
        .into_iter()
        .map(|(word, parts)| Embedding::new(word, parts));
    Ok(Embedded {
        embeddings: embeddings.collect::<Result<_>>()?,
        keys,
    })
}

fn in_bundle(name: &str) -> Option<(String, ModelPart)> {
    let unnamed = UNNAMED
        .iter()
        .map(|ending| (*ending, ModelPart::TextEncoder));
    unnamed.chain(PAIR).find_map(|(ending, part)| {
        let word = name.strip_suffix(ending)?.strip_suffix('.')?;
        Some((word.to_owned(), part))
    })
}

fn vectors(source: &dyn TensorSource, name: &str) -> Result<Tensor> {
    source.load(name, DType::F32, &Device::Cpu)
}
