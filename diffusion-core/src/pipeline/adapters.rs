//! LoRAs and learned words, put in and taken out between runs.

use super::{Pipeline, PromptCache};
use crate::error::{Error, Result};
use crate::model::{TextEncoder, Tokenizer, UNet};
use crate::nn::give_back;
use crate::weights::{Embedding, Lora, LoraMode, LoraReport, LoraScale, ModelPart, merge_loras};

/// What a pipeline must know to take adapters out again.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapters {
    /// The models without LoRAs and their words, while there are any.
    base: Option<Base>,
    loras: Vec<LoraReport>,
    /// The caller's own words.
    words: Vec<Embedding>,
}

/// What LoRAs change, as it was before. It shares the memory of all weights that no LoRA changes.
#[derive(Debug, Clone)]
struct Base {
    unet: UNet,
    text: [TextPart; 2],
}

/// One of the texts' encoders and what it needs.
#[derive(Debug, Clone, Default)]
pub(super) struct TextPart {
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) encoder: Option<TextEncoder>,
}

/// What LoRAs and embeddings call the encoders of [`Pipeline::text`].
const TEXT_PARTS: [ModelPart; 2] = [ModelPart::TextEncoder, ModelPart::TextEncoder2];

impl TextPart {
    pub(super) fn new(tokenizer: Option<Tokenizer>, encoder: Option<TextEncoder>) -> Self {
        Self { tokenizer, encoder }
    }

    /// The encoder with its tokenizer, where both are there.
    pub(super) fn whole(&self) -> Option<(&Tokenizer, &TextEncoder)> {
        self.tokenizer.as_ref().zip(self.encoder.as_ref())
    }

    /// Adds a word, and says whether there is an encoder to add it to.
    fn add_word(&mut self, part: ModelPart, embedding: &Embedding) -> Result<bool> {
        let Some((tokenizer, encoder)) = self.whole() else {
            return Ok(false);
        };
        let word = embedding.token();
        let vectors = embedding.vectors(part).ok_or_else(|| {
            let expected = format!("vectors for the {part}; it was made for another model");
            Error::argument("embedding", expected, format!("{word}: none"))
        })?;
        let (found, expected) = (vectors.dim(1)?, encoder.config().hidden_size);
        if found != expected {
            let expected = format!("vectors of {expected} channels, as the {part}'s");
            return Err(Error::argument(
                "embedding",
                expected,
                format!("{word}: {found}"),
            ));
        }
        let (mut tokenizer, mut encoder) = (tokenizer.clone(), encoder.clone());
        let mut refused = None;
        let mut is_added = false;
        // Of a word with two names one may be known already.
        for token in embedding.tokens() {
            match tokenizer.add_word(token, embedding.num_vectors()) {
                Ok(first_id) => {
                    encoder = encoder.with_token_vectors(first_id, vectors)?;
                    is_added = true;
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        if let (Some(error), false) = (refused, is_added) {
            return Err(error);
        }
        *self = Self {
            encoder: Some(encoder),
            tokenizer: Some(tokenizer),
        };
        Ok(true)
    }
}

/// The text encoders with one word more.
fn with_word(text: &[TextPart; 2], word: &Embedding) -> Result<[TextPart; 2]> {
    let mut text = text.clone();
    let mut is_read = false;
    for (part, text) in TEXT_PARTS.into_iter().zip(&mut text) {
        is_read |= text.add_word(part, word)?;
    }
    match is_read {
        true => Ok(text),
        false => Err(Error::unsupported(
            "a word for a model without text encoder",
            "leave it out",
        )),
    }
}

impl Pipeline {
    /// Puts LoRAs in place of those that were there before, each at its strength. The words that a file brings
    /// with it come and go with it; those of [`add_embedding`](Self::add_embedding) stay.
    ///
    /// ```no_run
    /// # use diffusion_core::{Pipeline, weights::Lora};
    /// # fn f(pipe: &mut Pipeline) -> diffusion_core::Result<()> {
    /// let (style, detail) = (Lora::open("style.safetensors")?, Lora::open("detail.safetensors")?);
    /// pipe.set_loras(&[(&style, 0.8), (&detail, 0.3)])?;
    /// pipe.clear_loras();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`merge_loras`] and, for words that do not fit, [`add_embedding`](Self::add_embedding), and
    /// [`Error::InvalidArgument`] for a word that is there with other vectors, of another of the LoRAs or the
    /// caller's own. The LoRAs of before then stay in place.
    pub fn set_loras<S: Clone + Into<LoraScale>>(&mut self, loras: &[(&Lora, S)]) -> Result<()> {
        self.set_loras_as(LoraMode::Merged, loras)
    }

    /// [`set_loras`](Self::set_loras), merged into the weights or applied where the layers run.
    ///
    /// # Errors
    /// As [`set_loras`](Self::set_loras).
    pub fn set_loras_as<S: Clone + Into<LoraScale>>(
        &mut self,
        mode: LoraMode,
        loras: &[(&Lora, S)],
    ) -> Result<()> {
        let base = self.adapters.base.clone().unwrap_or_else(|| Base {
            unet: self.unet.clone(),
            text: self.text.clone(),
        });
        let files: Vec<&Lora> = loras.iter().map(|(lora, _)| *lora).collect();
        let mut text = base.text.clone();
        for word in words_of(&files, &self.adapters.words)? {
            text = with_word(&text, word)?;
        }
        let scales: Vec<LoraScale> = loras
            .iter()
            .map(|(_, scale)| scale.clone().into())
            .collect();
        let pairs: Vec<_> = files.into_iter().zip(&scales).collect();
        let mut parts = vec![(ModelPart::UNet, base.unet.weights())];
        for (part, text) in TEXT_PARTS.into_iter().zip(&text) {
            parts.extend(
                text.encoder
                    .as_ref()
                    .map(|encoder| (part, encoder.weights())),
            );
        }
        let mut merged = merge_loras(&parts, &pairs, mode)?;
        for (part, text) in TEXT_PARTS.into_iter().zip(&mut text) {
            if let Some(encoder) = &mut text.encoder {
                *encoder = encoder.with_changes(merged.take(part))?;
            }
        }
        self.unet = base.unet.with_changes(merged.take(ModelPart::UNet))?;
        self.text = text;
        self.adapters.base = Some(base);
        self.prompts = PromptCache::default();
        self.adapters.loras = merged.reports;
        Ok(())
    }

    /// Gives the memory of the text encoders back. Prompts that were read before, by a run or by
    /// [`encode_plan`](Self::encode_plan), are known on, the last eight of them, until LoRAs or words change; others
    /// are then [`Error::Unsupported`].
    pub fn drop_text_encoders(&mut self) {
        let base = self
            .adapters
            .base
            .iter_mut()
            .flat_map(|base| &mut base.text);
        for part in self.text.iter_mut().chain(base) {
            part.encoder = None;
        }
        give_back();
    }

    /// Takes all LoRAs and their words out. The weights are then the base's, bit for bit; nothing is read again.
    pub fn clear_loras(&mut self) {
        if let Some(base) = self.adapters.base.take() {
            self.unet = base.unet;
            self.text = base.text;
        }
        self.prompts = PromptCache::default();
        self.adapters.loras.clear();
    }

    /// What became of the LoRAs that are in place: the modules that each changes, and its keys that change
    /// nothing.
    pub fn loras(&self) -> &[LoraReport] {
        &self.adapters.loras
    }

    /// The names of the learned words that were added.
    pub(super) fn words(&self) -> Vec<serde_json::Value> {
        let words = self.adapters.words.iter();
        words.map(|word| word.token().into()).collect()
    }

    /// Adds a learned word, which prompts and negative prompts then use by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it has no vectors for one of the text encoders or they are of another
    /// width, or if the vocabulary has the word; [`Error::Unsupported`] if the model has no text encoder.
    pub fn add_embedding(&mut self, embedding: &Embedding) -> Result<()> {
        let text = with_word(&self.text, embedding)?;
        if let Some(base) = &mut self.adapters.base {
            base.text = with_word(&base.text, embedding)?;
        }
        self.text = text;
        self.prompts = PromptCache::default();
        self.adapters.words.push(embedding.clone());
        Ok(())
    }
}

/// The words that LoRAs bring with them, each once and without those that the caller has.
fn words_of<'a>(loras: &[&'a Lora], own: &[Embedding]) -> Result<Vec<&'a Embedding>> {
    let mut known: Vec<(&Embedding, &str)> =
        own.iter().map(|word| (word, "the pipeline")).collect();
    let mut new = Vec::new();
    for lora in loras {
        for word in lora.embeddings() {
            match known
                .iter()
                .find(|(other, _)| other.token() == word.token())
            {
                None => {
                    known.push((word, lora.name()));
                    new.push(word);
                }
                Some((other, _)) if word.has_vectors_of(other)? => {}
                Some((_, owner)) => {
                    let found = format!("others of {owner} and of {}", lora.name());
                    let expected = format!("one set of vectors for the word {:?}", word.token());
                    return Err(Error::argument("loras", expected, found));
                }
            }
        }
    }
    Ok(new)
}
