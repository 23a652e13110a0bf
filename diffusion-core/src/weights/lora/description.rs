//! What a LoRA is, in words.

use std::collections::BTreeMap;
use std::fmt;

use super::merge::family;
use super::modules::is_cross_attention_key;
use super::{Lora, ModelPart};
use crate::weights::description::list;

impl fmt::Display for Lora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = BTreeMap::<&str, usize>::new();
        let mut parts = BTreeMap::<Option<ModelPart>, usize>::new();
        for (spelled, entry) in &self.modules {
            *kinds.entry(entry.adapter.kind()).or_default() += 1;
            *parts.entry(spelled.part).or_default() += 1;
        }
        let kinds: Vec<_> = kinds.keys().copied().collect();
        write!(f, "{}", kinds.join(", "))?;
        let width = self.modules.iter().find_map(|(spelled, entry)| {
            let reads_text = is_cross_attention_key(&spelled.name);
            reads_text.then(|| entry.adapter.input_width()).flatten()
        });
        if let Some(width) = width {
            write!(f, " for text of {}", family(width))?;
        }
        writeln!(f)?;
        for (part, count) in parts {
            match part {
                Some(part) => writeln!(f, "{part}: {count} modules")?,
                None => writeln!(f, "{count} modules of either part")?,
            }
        }
        for word in &self.embeddings {
            writeln!(f, "{word}")?;
        }
        list(f, "unused", &self.unused)
    }
}
