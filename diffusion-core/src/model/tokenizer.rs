//! CLIP's tokenizer.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{self, Lowercase, NFC, Replace};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, pre_tokenizers,
};

use crate::clip_vocab;
use crate::config::read_json;
use crate::error::{Error, Result};

/// CLIP's splitting rule: contractions, words, single digits, runs of anything else.
const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Start token, prompt, end token, padding: as many ids as [`Tokenizer::max_length`].
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit, as text, if any.
    pub truncated: Option<String>,
}

/// One token of a text, or the vectors of a learned word, which belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id; a learned word of several vectors has as many ids that follow each other.
    pub ids: Range<u32>,
    /// Where it begins in the text, in bytes.
    pub start: usize,
}

/// Byte-level BPE with CLIP's start, end and padding tokens.
///
/// Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
/// 2021, and the tokenizer published with it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
    max_length: usize,
    /// How many ids the words of several vectors stand for, by their first id.
    word_lengths: HashMap<u32, u32>,
}

impl Tokenizer {
    /// Opens a tokenizer folder: `vocab.json` and `merges.txt`, or `tokenizer.json`; with
    /// `tokenizer_config.json` and `special_tokens_map.json` where they are.
    ///
    /// # Errors
    /// [`Error::NotFound`] if neither form is there, [`Error::Format`] if a file is damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        let json = folder.join("tokenizer.json");
        let mut inner = if vocab.is_file() && merges.is_file() {
            from_vocab(&vocab, &merges)?
        } else if json.is_file() {
            let mut inner =
                tokenizers::Tokenizer::from_file(&json).map_err(|e| Error::format(&json, e))?;
            inner.with_padding(None);
            inner
                .with_truncation(None)
                .map_err(|e| Error::format(&json, e))?;
            inner
        } else {
            let hint = "a tokenizer folder has vocab.json and merges.txt, or tokenizer.json".into();
            return Err(Error::NotFound {
                path: folder.to_owned(),
                hint,
            });
        };
        let config = optional_json(&folder.join("tokenizer_config.json"))?;
        let special = optional_json(&folder.join("special_tokens_map.json"))?;
        add_tokens(&mut inner, folder, &config)?;
        // As transformers reads them: only a file that lists its added tokens speaks for itself.
        let (first, second) = match config["added_tokens_decoder"].is_object() {
            true => (&config, &special),
            false => (&special, &config),
        };
        let mut token = |name: &str, default: &str| -> Result<u32> {
            let text = token_text(&first[name])
                .or_else(|| token_text(&second[name]))
                .unwrap_or_else(|| default.to_owned());
            let id = inner.token_to_id(&text).ok_or_else(|| {
                Error::format(folder, format!("{name} {text:?} is not in the vocabulary"))
            })?;
            // Special tokens are found in prompts as they stand: with SD 2's padding "!", so is every
            // exclamation mark.
            let special = [AddedToken::from(text, true)];
            inner
                .add_special_tokens(special)
                .map_err(|e| Error::format(folder, e))?;
            Ok(id)
        };
        let bos = token("bos_token", "<|startoftext|>")?;
        let eos = token("eos_token", "<|endoftext|>")?;
        let pad = token("pad_token", "<|endoftext|>")?;
        // Some files state an "infinite" length of 10^30 for lack of a better one.
        let max_length = match config["model_max_length"].as_u64() {
            Some(length @ 2..=1_000_000) => length as usize,
            _ => 77,
        };
        Ok(Self {
            inner,
            bos,
            eos,
            pad,
            max_length,
            word_lengths: HashMap::new(),
        })
    }

    /// Adds a word that stands for `count` ids, as diffusers spells them: `word`, `word_1` and so on. Returns
    /// the first id; the others follow it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the vocabulary has one of them.
    pub fn add_word(&mut self, word: &str, count: usize) -> Result<u32> {
        let tokens: Vec<String> = (0..count.max(1))
            .map(|i| match i {
                0 => word.to_owned(),
                i => format!("{word}_{i}"),
            })
            .collect();
        if let Some(known) = tokens
            .iter()
            .find(|text| self.inner.token_to_id(text).is_some())
        {
            let expected =
                "a word that the vocabulary does not have; give the embedding another name";
            return Err(Error::argument("token", expected, format!("{known:?}")));
        }
        let added = tokens
            .iter()
            .map(|text| AddedToken::from(text.as_str(), false));
        self.inner.add_tokens(added).map_err(Error::Custom)?;
        let ids: Vec<u32> = tokens
            .iter()
            .filter_map(|text| self.inner.token_to_id(text))
            .collect();
        match ids.first() {
            Some(&first)
                if ids
                    .iter()
                    .zip(first..)
                    .all(|(id, expected)| *id == expected) =>
            {
                self.word_lengths.insert(first, ids.len() as u32);
                Ok(first)
            }
            _ => Err(Error::argument(
                "token",
                "a word of its own",
                format!("{word:?}"),
            )),
        }
    }

    /// CLIP's tokenizer as OpenAI published it, which SD 1.x and the first text encoder of SDXL have.
    ///
    /// # Errors
    /// [`Error::Custom`] if the tokenizer library refuses it.
    pub fn clip() -> Result<Self> {
        Self::published(clip_vocab::END)
    }

    /// The same with OpenCLIP's padding, the token `!`: that of SD 2.x and of SDXL's second text encoder.
    ///
    /// # Errors
    /// [`Error::Custom`] if the tokenizer library refuses it.
    pub fn open_clip() -> Result<Self> {
        Self::published(clip_vocab::OPEN_CLIP_PAD)
    }

    fn published(pad: &str) -> Result<Self> {
        let vocab: Vocab = clip_vocab::tokens().zip(0..).collect();
        let id = |text: &str| vocab.get(text).copied().unwrap_or(0);
        let (bos, eos, pad_id) = (id(clip_vocab::START), id(clip_vocab::END), id(pad));
        let pair = |(left, right): (&str, &str)| (left.to_owned(), right.to_owned());
        let merges = clip_vocab::merges().map(pair).collect();
        let builder = BPE::builder().vocab_and_merges(vocab, merges);
        let mut inner = with_clip_rules(builder).map_err(Error::Custom)?;
        let special = [clip_vocab::START, clip_vocab::END, pad]
            .map(|text| AddedToken::from(text.to_owned(), true));
        inner.add_special_tokens(special).map_err(Error::Custom)?;
        Ok(Self {
            inner,
            bos,
            eos,
            pad: pad_id,
            max_length: 77,
            word_lengths: Default::default(),
        })
    }

    /// The number of ids that the model takes, start and end token among them.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// How many ids of a text the model takes at once, start and end token not counted.
    pub fn room(&self) -> usize {
        self.max_length - 2
    }

    /// The tokens of a text of any length.
    ///
    /// # Errors
    /// [`Error::Custom`] if the tokenizer fails.
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>> {
        let encoded = self.inner.encode(text, false).map_err(Error::Custom)?;
        let starts = encoded.get_offsets().iter().map(|&(start, _)| start);
        let token = |(&id, start): (&u32, usize)| {
            let length = self.word_lengths.get(&id).copied().unwrap_or(1);
            Token {
                ids: id..id + length,
                start,
            }
        };
        Ok(encoded.get_ids().iter().zip(starts).map(token).collect())
    }

    /// At most [`room`](Self::room) ids between start and end token, padded to [`max_length`](Self::max_length).
    /// What does not fit is left out.
    pub fn framed(&self, ids: &[u32]) -> Vec<u32> {
        let mut framed = Vec::with_capacity(self.max_length);
        framed.push(self.bos);
        framed.extend(ids.iter().take(self.room()));
        framed.push(self.eos);
        framed.resize(self.max_length, self.pad);
        framed
    }

    /// The id of a token as the vocabulary spells it, with `</w>` at the end of words.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Encodes a prompt, cut or padded to [`max_length`](Self::max_length).
    ///
    /// # Errors
    /// [`Error::Custom`] if the tokenizer fails.
    pub fn encode(&self, prompt: &str) -> Result<Encoding> {
        let tokens = self.tokens(prompt)?;
        let with_start = |Token { ids, start }: Token| ids.map(move |id| (id, start));
        let all: Vec<(u32, usize)> = tokens.into_iter().flat_map(with_start).collect();
        let ids: Vec<u32> = all.iter().map(|(id, _)| *id).collect();
        let truncated = all.get(self.room()).map(|&(_, start)| {
            let rest = prompt.get(start..).unwrap_or_default();
            rest.to_owned()
        });
        Ok(Encoding {
            ids: self.framed(&ids),
            truncated,
        })
    }
}

fn from_vocab(vocab: &Path, merges: &Path) -> Result<tokenizers::Tokenizer> {
    let damaged = |e: tokenizers::Error| Error::format(vocab, e);
    let name = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::format(path, "the path is not UTF-8"))
    };
    let builder = BPE::from_file(&name(vocab)?, &name(merges)?);
    with_clip_rules(builder).map_err(damaged)
}

/// A byte-pair vocabulary with CLIP's way of cutting up text.
fn with_clip_rules(builder: BpeBuilder) -> tokenizers::Result<tokenizers::Tokenizer> {
    let bpe = builder
        .unk_token(clip_vocab::END.into())
        .end_of_word_suffix(clip_vocab::WORD_END.into())
        .build()?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let white_space = ReplacePattern::Regex(r"\s+".into());
    let white_space = Replace::new(white_space, " ")?;
    let normalizers = vec![
        NormalizerWrapper::NFC(NFC),
        white_space.into(),
        Lowercase.into(),
    ];
    let split = Split::new(
        SplitPattern::Regex(PATTERN.into()),
        SplitDelimiterBehavior::Removed,
        true,
    );
    let pre_tokenizers = vec![
        PreTokenizerWrapper::Split(split?),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
    ];
    inner
        .with_normalizer(Some(normalizers::Sequence::new(normalizers)))?
        .with_pre_tokenizer(Some(pre_tokenizers::sequence::Sequence::new(
            pre_tokenizers,
        )));
    Ok(inner)
}

/// Adds the tokens that a vocabulary was extended by: those of `added_tokens.json` and of the
/// configuration, in the order of their ids.
fn add_tokens(inner: &mut tokenizers::Tokenizer, folder: &Path, config: &Value) -> Result<()> {
    let list = optional_json(&folder.join("added_tokens.json"))?;
    let mut added: Vec<(u64, String)> = list
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(text, id)| Some((id.as_u64()?, text.clone())))
        .collect();
    for (id, token) in config["added_tokens_decoder"]
        .as_object()
        .into_iter()
        .flatten()
    {
        if let (Ok(id), Some(text)) = (id.parse(), token_text(token)) {
            added.push((id, text));
        }
    }
    added.sort();
    for (id, text) in added {
        if inner.token_to_id(&text).is_none() {
            let token = [AddedToken::from(text.as_str(), false)];
            inner
                .add_tokens(token)
                .map_err(|e| Error::format(folder, e))?;
        }
        let found = inner.token_to_id(&text).map(u64::from);
        if found != Some(id) {
            let reason = format!("added token {text:?}: expected id {id}, found {found:?}");
            return Err(Error::format(folder, reason));
        }
    }
    Ok(())
}

fn optional_json(path: &Path) -> Result<Value> {
    if path.exists() {
        read_json(path)
    } else {
        Ok(Value::Null)
    }
}

/// A special token is a string or an object with its text and flags.
fn token_text(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}
