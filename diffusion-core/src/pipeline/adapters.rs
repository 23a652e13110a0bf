//! LoRAs and learned words, put in and taken out between runs.

use super::Pipeline;
use crate::error::{Error, Result};
use crate::model::{TextEncoder, UNet};
use crate::weights::{Embedding, Lora, LoraReport, LoraScale, ModelPart, merge_loras};

/// What a pipeline must know to take adapters out again.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    /// The models without LoRAs, while there are any. They share the memory of all weights that no LoRA
    /// changes.
    base: Option<Base>,
    loras: Vec<LoraReport>,
    words: Vec<String>,
}

#[derive(Debug)]
struct Base {
    unet: UNet,
    text_encoder: Option<TextEncoder>,
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
        let base = Base {
            unet: self.base_unet().clone(),
            text_encoder: self.base_text_encoder().cloned(),
        };
        let mut parts = vec![(ModelPart::UNet, base.unet.weights())];
        if let Some(text_encoder) = &base.text_encoder {
            parts.push((ModelPart::TextEncoder, text_encoder.weights()));
        }
        let mut merged = merge_loras(&parts, &pairs)?;
        let unet = base.unet.with_tensors(merged.take(ModelPart::UNet))?;
        let in_text = merged.take(ModelPart::TextEncoder);
        let text_encoder = base
            .text_encoder
            .as_ref()
            .map(|encoder| encoder.with_tensors(in_text))
            .transpose()?;
        self.unet = unet;
        self.text_encoder = text_encoder;
        self.adapters.base = Some(base);
        self.adapters.loras = merged.reports;
        Ok(())
    }

    /// Takes all LoRAs out. The weights are then the base's, bit for bit; nothing is read again.
    pub fn clear_loras(&mut self) {
        if let Some(base) = self.adapters.base.take() {
            self.unet = base.unet;
            self.text_encoder = base.text_encoder;
        }
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
    /// [`Error::InvalidArgument`] if its vectors are of another width than the text encoder's, or if the
    /// vocabulary has the word; [`Error::Unsupported`] if the model has no text encoder.
    pub fn add_embedding(&mut self, embedding: &Embedding) -> Result<()> {
        let no_text =
            || Error::unsupported("a word for a model without text encoder", "leave it out");
        let base = self.base_text_encoder().ok_or_else(no_text)?;
        let mut tokenizer = self.tokenizer.clone().ok_or_else(no_text)?;
        let vectors = embedding.vectors(ModelPart::TextEncoder).ok_or_else(|| {
            let found = format!("{}: one for the second of two alone", embedding.token());
            Error::argument("embedding", "vectors for the text encoder", found)
        })?;
        let (found, expected) = (vectors.dim(1)?, base.config().hidden_size);
        if found != expected {
            let expected = format!("vectors of {expected} channels, as the text encoder's");
            let found = format!("{}: {found}", embedding.token());
            return Err(Error::argument("embedding", expected, found));
        }
        let first_id = tokenizer.add_word(embedding.token(), embedding.num_vectors())?;
        let with_word = |encoder: &TextEncoder| encoder.with_token_vectors(first_id, vectors);
        let text_encoder = self.text_encoder.as_ref().map(with_word).transpose()?;
        if let Some(base) = &mut self.adapters.base {
            base.text_encoder = base.text_encoder.as_ref().map(with_word).transpose()?;
        }
        self.text_encoder = text_encoder;
        self.tokenizer = Some(tokenizer);
        self.adapters.words.push(embedding.token().to_owned());
        Ok(())
    }

    fn base_unet(&self) -> &UNet {
        self.adapters
            .base
            .as_ref()
            .map_or(&self.unet, |base| &base.unet)
    }

    fn base_text_encoder(&self) -> Option<&TextEncoder> {
        match &self.adapters.base {
            Some(base) => base.text_encoder.as_ref(),
            None => self.text_encoder.as_ref(),
        }
    }
}
