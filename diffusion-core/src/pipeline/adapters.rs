//! LoRAs and learned words, put in and taken out between runs.

use super::{Pipeline, PromptCache};
use crate::error::{Error, Result};
use crate::model::{TextEncoder, Tokenizer, UNet};
use crate::weights::{Embedding, Lora, LoraMode, LoraReport, LoraScale, ModelPart, merge_loras};

/// What a pipeline must know to take adapters out again.
#[derive(Debug, Clone, Default)]
pub(super) struct Adapters {
    /// The UNet without LoRAs, while there are any. It shares the memory of all weights that no LoRA changes.
    base_unet: Option<UNet>,
    loras: Vec<LoraReport>,
    words: Vec<String>,
}

/// One of the texts' encoders and what it needs.
#[derive(Debug, Clone, Default)]
pub(super) struct TextPart {
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) encoder: Option<TextEncoder>,
    /// The encoder without LoRAs, while there are any.
    base: Option<TextEncoder>,
}

/// What LoRAs and embeddings call the encoders of [`Pipeline::text`].
const TEXT_PARTS: [ModelPart; 2] = [ModelPart::TextEncoder, ModelPart::TextEncoder2];

impl TextPart {
    pub(super) fn new(tokenizer: Option<Tokenizer>, encoder: Option<TextEncoder>) -> Self {
        Self {
            tokenizer,
            encoder,
            base: None,
        }
    }

    /// The encoder with its tokenizer, where both are there.
    pub(super) fn whole(&self) -> Option<(&Tokenizer, &TextEncoder)> {
        self.tokenizer.as_ref().zip(self.encoder.as_ref())
    }

    fn without_loras(&self) -> Option<&TextEncoder> {
        self.base.as_ref().or(self.encoder.as_ref())
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
        let mut tokenizer = tokenizer.clone();
        let first_id = tokenizer.add_word(word, embedding.num_vectors())?;
        let with_word = |encoder: &TextEncoder| encoder.with_token_vectors(first_id, vectors);
        *self = Self {
            encoder: Some(with_word(encoder)?),
            base: self.base.as_ref().map(with_word).transpose()?,
            tokenizer: Some(tokenizer),
        };
        Ok(true)
    }
}

impl Pipeline {
    /// Puts LoRAs in place of those that were there before, each at its strength. Words that a file brings
    /// with it are added, and stay.
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
    /// As [`merge_loras`] and [`add_embedding`](Self::add_embedding); the LoRAs of before then stay in place.
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
        for word in loras.iter().flat_map(|(lora, _)| lora.embeddings()) {
            if !self
                .adapters
                .words
                .iter()
                .any(|known| known == word.token())
            {
                self.add_embedding(word)?;
            }
        }
        let scales: Vec<LoraScale> = loras
            .iter()
            .map(|(_, scale)| scale.clone().into())
            .collect();
        let pairs: Vec<_> = loras.iter().map(|(lora, _)| *lora).zip(&scales).collect();
        let unet = self
            .adapters
            .base_unet
            .as_ref()
            .unwrap_or(&self.unet)
            .clone();
        let mut parts = vec![(ModelPart::UNet, unet.weights())];
        for (part, text) in TEXT_PARTS.into_iter().zip(&self.text) {
            parts.extend(
                text.without_loras()
                    .map(|encoder| (part, encoder.weights())),
            );
        }
        let mut merged = merge_loras(&parts, &pairs, mode)?;
        let mut text = self.text.clone();
        for (part, text) in TEXT_PARTS.into_iter().zip(&mut text) {
            if let Some(base) = text.without_loras().cloned() {
                text.encoder = Some(base.with_changes(merged.take(part))?);
                text.base = Some(base);
            }
        }
        self.unet = unet.with_changes(merged.take(ModelPart::UNet))?;
        self.adapters.base_unet = Some(unet);
        self.text = text;
        self.prompts = PromptCache::default();
        self.adapters.loras = merged.reports;
        Ok(())
    }

    /// Takes all LoRAs out. The weights are then the base's, bit for bit; nothing is read again.
    pub fn clear_loras(&mut self) {
        if let Some(unet) = self.adapters.base_unet.take() {
            self.unet = unet;
        }
        for text in &mut self.text {
            if let Some(base) = text.base.take() {
                text.encoder = Some(base);
            }
        }
        self.prompts = PromptCache::default();
        self.adapters.loras.clear();
    }

    /// What became of the LoRAs that are in place: the modules that each changes, and its keys that change
    /// nothing.
    pub fn loras(&self) -> &[LoraReport] {
        &self.adapters.loras
    }

    /// Adds a learned word, which prompts and negative prompts then use by its name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it has no vectors for one of the text encoders or they are of another
    /// width, or if the vocabulary has the word; [`Error::Unsupported`] if the model has no text encoder.
    pub fn add_embedding(&mut self, embedding: &Embedding) -> Result<()> {
        let mut text = self.text.clone();
        let mut is_read = false;
        for (part, text) in TEXT_PARTS.into_iter().zip(&mut text) {
            is_read |= text.add_word(part, embedding)?;
        }
        if !is_read {
            let what = "a word for a model without text encoder";
            return Err(Error::unsupported(what, "leave it out"));
        }
        self.text = text;
        self.prompts = PromptCache::default();
        self.adapters.words.push(embedding.token().to_owned());
        Ok(())
    }
}
