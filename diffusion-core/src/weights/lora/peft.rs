//! The scales that PEFT keeps beside its tensors.

use std::collections::BTreeMap;
use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::ModelPart;
use super::adapter::{DefaultAlpha, Reason};
use super::keys::Spelled;
use crate::config::parse_json;

/// The name under which diffusers writes an adapter's settings into the header of its file.
const METADATA_KEY: &str = "lora_adapter_metadata";
/// No file of PEFT's has as many expressions; names of modules are not counted.
const MAX_EXPRESSIONS: usize = 256;
/// What all expressions together may take in memory, compiled.
const MAX_EXPRESSION_BYTES: usize = 16 << 20;

/// `adapter_config.json`, or what diffusers has in its place: the same names behind the part's name and a dot.
pub(super) struct PeftSettings {
    config: Settings,
    metadata: Settings,
}

type Settings = BTreeMap<String, Setting>;

/// What a setting may be, as far as it counts here.
enum Setting {
    Flag(bool),
    Number(f64),
    /// Numbers for the modules that patterns fit; of several that fit the first counts.
    Patterns(Vec<(Pattern, f64)>),
}

/// A pattern of module names.
enum Pattern {
    /// A name without signs of regular expressions but the dot, which is any letter.
    Name(String),
    Expression(Regex),
}

impl PeftSettings {
    /// `config` is the text of `adapter_config.json`, which may be null.
    pub(super) fn new(metadata: &BTreeMap<String, String>, config: &str) -> Result<Self, Reason> {
        let metadata = metadata.get(METADATA_KEY).map_or("null", String::as_str);
        Ok(Self {
            config: read(config).map_err(|reason| format!("PEFT's settings: {reason}"))?,
            metadata: read(metadata).map_err(|reason| format!("{METADATA_KEY}: {reason}"))?,
        })
    }

    /// The `alpha` of a module whose tensors have none beside them.
    pub(super) fn default_alpha(&self, module: &Spelled) -> Option<DefaultAlpha> {
        let part = match module.part {
            Some(ModelPart::UNet) => "unet.",
            Some(ModelPart::TextEncoder) => "text_encoder.",
            Some(ModelPart::TextEncoder2) => "text_encoder_2.",
            None => "",
        };
        let setting = |name: &str| {
            let of_part = self.metadata.get(&format!("{part}{name}"));
            of_part.or_else(|| self.config.get(name))
        };
        let number = |name| match setting(name) {
            Some(Setting::Number(number)) => Some(*number),
            _ => None,
        };
        let of_module = |name| match setting(name) {
            Some(Setting::Patterns(patterns)) => patterns
                .iter()
                .find(|(pattern, _)| pattern.fits(&module.name))
                .map(|(_, number)| *number),
            _ => None,
        };
        // LoRA's setting has another name than that of LoHa and LoKr.
        let alpha = of_module("alpha_pattern")
            .or_else(|| number("lora_alpha"))
            .or_else(|| number("alpha"))?;
        Some(DefaultAlpha {
            alpha,
            rank: of_module("rank_pattern").or_else(|| number("r")),
            rank_stabilised: matches!(setting("use_rslora"), Some(Setting::Flag(true))),
        })
    }
}

impl Pattern {
    fn new(text: String, max_bytes: usize) -> Result<Self, Reason> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if text.chars().all(is_name) {
            return Ok(Self::Name(text));
        }
        // As in PEFT: it fits a whole name, or its end behind a dot.
        RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .size_limit(max_bytes)
            .dfa_size_limit(max_bytes)
            .build()
            .map(Self::Expression)
            .map_err(|e| format!("{text:?} is no pattern of module names that can be read: {e}"))
    }

    fn fits(&self, module: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(module),
            Self::Name(name) => {
                let (module, name) = (module.as_bytes(), name.as_bytes());
                let Some(before) = module.len().checked_sub(name.len()) else {
                    return false;
                };
                let same = |(a, b): (&u8, &u8)| *b == b'.' || a == b;
                (before == 0 || module[before - 1] == b'.')
                    && module[before..].iter().zip(name).all(same)
            }
        }
    }
}

/// JSON's value of a setting. Patterns are in the file's order, which a map of `serde_json` loses.
#[derive(Deserialize)]
#[serde(untagged)]
enum Json {
    Flag(bool),
    Number(f64),
    Patterns(Numbers),
    Other(IgnoredAny),
}

/// An object of numbers, in the order of the text.
struct Numbers(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    numbers.push(entry);
                }
                Ok(Numbers(numbers))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// The settings of a text that is an object or null.
fn read(text: &str) -> Result<Settings, Reason> {
    let fields: Option<BTreeMap<String, Json>> = parse_json(text).map_err(|e| e.to_string())?;
    let mut settings = Settings::new();
    for (name, value) in fields.into_iter().flatten() {
        let is_pattern = name.ends_with("alpha_pattern") || name.ends_with("rank_pattern");
        let setting = match value {
            Json::Flag(flag) => Setting::Flag(flag),
            Json::Number(number) => Setting::Number(number),
            Json::Patterns(numbers) if is_pattern => {
                let patterns = patterns(numbers).map_err(|reason| format!("{name}: {reason}"))?;
                Setting::Patterns(patterns)
            }
            Json::Patterns(_) | Json::Other(_) => continue,
        };
        settings.insert(name, setting);
    }
    Ok(settings)
}

fn patterns(Numbers(numbers): Numbers) -> Result<Vec<(Pattern, f64)>, Reason> {
    let mut patterns = Vec::with_capacity(numbers.len());
    let mut expressions = 0;
    for (text, number) in numbers {
        let pattern = Pattern::new(text, MAX_EXPRESSION_BYTES / MAX_EXPRESSIONS)?;
        expressions += usize::from(matches!(pattern, Pattern::Expression(_)));
        if expressions > MAX_EXPRESSIONS {
            return Err(format!("more than {MAX_EXPRESSIONS} regular expressions"));
        }
        patterns.push((pattern, number));
    }
    Ok(patterns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alpha(patterns: &str, module: &str) -> Result<Option<f64>, Reason> {
        let config = format!(r#"{{"r": 2, "lora_alpha": 3, "alpha_pattern": {patterns}}}"#);
        let settings = PeftSettings::new(&BTreeMap::new(), &config)?;
        let (part, name) = (None, module.to_owned());
        let found = settings.default_alpha(&Spelled { part, name });
        Ok(found.map(|found| found.alpha))
    }

    #[test]
    fn the_first_pattern_of_the_file_counts() -> Result<(), Reason> {
        for (patterns, module, expected) in [
            (r#"{"to_q": 5, "attn2.to_q": 8}"#, "x.attn2.to_q", 5.0),
            (r#"{"b.*": 5, "a.*": 8}"#, "a.b", 5.0),
            (r#"{"attn2.to_q": 8, "to_q": 5}"#, "x.attn2.to_q", 8.0),
            (r#"{"to_q": 5}"#, "x.not_to_q", 3.0),
            (r#"{"to_q": 5}"#, "to_q", 5.0),
            (r#"{"a.to_q": 5}"#, "b.a_to_q", 5.0),
            (r#"{".*attn2.*to_q": 5}"#, "x.attn2.y.to_q", 5.0),
            (r#"{"attn2": 5}"#, "x.attn2.to_q", 3.0),
            (r#"{"^x.attn\\d.to_q": 5}"#, "x.attn2.to_q", 5.0),
            (r#"{"^attn\\d.to_q": 5}"#, "x.attn2.to_q", 3.0),
            (r#"{"to_k|to_q": 5}"#, "x.to_q", 5.0),
        ] {
            assert_eq!(alpha(patterns, module)?, Some(expected), "{patterns}");
        }
        Ok(())
    }

    #[test]
    fn patterns_that_cannot_be_read_are_errors() {
        for patterns in [
            r#"{"(to_q": 5}"#.to_owned(),
            r#"{"(to_q)\\1": 5}"#.to_owned(),
            r#"{"((to_q{999}){999}){999}": 5}"#.to_owned(),
            format!(
                "{{{}}}",
                (0..300)
                    .map(|i| format!(r#""a{i}+": 1"#))
                    .collect::<Vec<_>>()
                    .join(",")
            ),
        ] {
            assert!(alpha(&patterns, "to_q").is_err(), "{patterns}");
        }
    }
}
