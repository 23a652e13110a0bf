//! A1111's form of a picture's provenance: the prompt, a negative prompt, and a line of settings.
//!
//! ```text
//! a red heart, flat style
//! Negative prompt: blue
//! Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU
//! ```

use serde_json::{Map, Value};

use super::LIBRARY;

/// What the settings call a request's fields, in their order.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("Steps", "num_steps"),
    ("CFG scale", "guidance_scale"),
    ("Seed", "seed"),
    ("Eta", "eta"),
    ("Denoising strength", "strength"),
    ("Clip skip", "clip_skip"),
];

/// The same of the fields of a variation.
pub(super) const VARIATION: [(&str, &str); 2] = [
    ("Variation seed", "seed"),
    ("Variation seed strength", "strength"),
];

/// What comes before the negative prompt.
const NEGATIVE: &str = "Negative prompt:";

/// Curves of noise levels, and what A1111 calls them.
const CURVES: &[(&str, &str)] = &[
    ("native", "Uniform"),
    ("karras", "Karras"),
    ("exponential", "Exponential"),
    ("polyexponential", "Polyexponential"),
    ("sgm_uniform", "SGM Uniform"),
    ("kl_optimal", "KL Optimal"),
    ("align_your_steps", "Align Your Steps"),
    ("simple", "Simple"),
    ("normal", "Normal"),
    ("ddim_uniform", "DDIM"),
    ("beta", "Beta"),
];

/// What the "Automatic" curve is; that of other samplers is the model's own.
const AUTOMATIC: &[(&str, &str)] = &[
    ("DPM++ 2M", "Karras"),
    ("DPM++ SDE", "Karras"),
    ("DPM++ 2M SDE", "Exponential"),
    ("DPM++ 2M SDE Heun", "Exponential"),
    ("DPM++ 2S a", "Karras"),
    ("DPM++ 3M SDE", "Exponential"),
    ("DPM2", "Karras"),
    ("DPM2 a", "Karras"),
    ("Restart", "Karras"),
];

/// As many settings make a line one of settings, not of a prompt.
const MIN_SETTINGS: usize = 3;

/// What A1111 calls a curve, if it has it; names of others stay as they are.
pub(super) fn curve_label(name: &str) -> Option<&'static str> {
    let mut known = CURVES.iter();
    known.find_map(|(own, label)| (*own == name).then_some(*label))
}

/// The curve of a sampler under "Automatic".
pub(super) fn automatic_curve(sampler: &str) -> &'static str {
    let mut known = AUTOMATIC.iter();
    let found = known.find_map(|(own, curve)| (*own == sampler).then_some(*curve));
    found.unwrap_or("Uniform")
}

/// A text in this form.
pub(super) fn write(
    request: &Map<String, Value>,
    (sampler, curve): &(String, Option<&'static str>),
    model: Option<&str>,
) -> String {
    let text = |field: &str| {
        request
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let mut lines = vec![text("prompt").to_owned()];
    if !text("negative_prompt").is_empty() {
        lines.push(format!("{NEGATIVE} {}", text("negative_prompt")));
    }
    let mut settings = Vec::new();
    let mut put = |key: &str, value: &str| settings.push(format!("{key}: {}", quote(value)));
    for (key, field) in FIELDS {
        if let Some(value) = request.get(*field) {
            put(key, &number(value));
        }
        if *key == "Steps" {
            put("Sampler", sampler);
            curve.iter().for_each(|curve| put("Schedule type", curve));
        }
    }
    if let (Some(width), Some(height)) = (request.get("width"), request.get("height")) {
        put("Size", &format!("{width}x{height}"));
    }
    let variation = request.get("variation").filter(|value| value.is_object());
    for (key, field) in VARIATION {
        if let Some(value) = variation.and_then(|variation| variation.get(field)) {
            put(key, &number(value));
        }
    }
    model.iter().for_each(|model| put("Model", model));
    // Which of A1111's generators the noise equals.
    put("RNG", "CPU");
    put("Version", LIBRARY);
    lines.push(settings.join(", "));
    lines.join("\n")
}

/// 7 for 7.0, as A1111 writes numbers.
fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => number.to_string(),
        _ => value.to_string(),
    }
}

/// A value that has a separator in it stands in quotes, as JSON writes them.
fn quote(value: &str) -> String {
    match value.contains([',', '\n', ':']) {
        true => Value::from(value).to_string(),
        false => value.to_owned(),
    }
}

/// What a text in this form says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Infotext {
    pub(super) prompt: String,
    pub(super) negative_prompt: String,
    pub(super) settings: Vec<(String, String)>,
}

/// Reads a text. One without settings is a prompt.
pub(super) fn parse(text: &str) -> Infotext {
    let mut lines: Vec<&str> = text.trim().split('\n').collect();
    let mut settings = lines
        .last()
        .map(|line| parse_settings(line))
        .unwrap_or_default();
    match settings.len() < MIN_SETTINGS {
        true => settings.clear(),
        false => drop(lines.pop()),
    }
    let lines: Vec<&str> = lines.into_iter().map(str::trim).collect();
    let negative = lines.iter().position(|line| line.starts_with(NEGATIVE));
    let (prompt, rest) = lines.split_at(negative.unwrap_or(lines.len()));
    let rest = rest.join("\n");
    Infotext {
        prompt: prompt.join("\n"),
        negative_prompt: rest
            .strip_prefix(NEGATIVE)
            .unwrap_or(&rest)
            .trim()
            .to_owned(),
        settings,
    }
}

/// The settings of a line: `key: value` between commas, values with separators in quotes. What fits nowhere is
/// stepped over.
fn parse_settings(line: &str) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let Some((key, behind)) = split_key(rest) else {
            // The next part between commas may be one.
            rest = rest.split_once(',').map_or("", |(_, rest)| rest);
            continue;
        };
        let (value, behind) = split_value(behind.trim_start());
        settings.push((key.to_owned(), value));
        rest = behind;
    }
    settings
}

/// A key, and what is behind its colon.
fn split_key(text: &str) -> Option<(&str, &str)> {
    let (key, rest) = text.trim_start().split_once(':')?;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let starts = key.starts_with(is_word) && key.chars().count() > 1;
    let fits = key
        .chars()
        .all(|c| is_word(c) || matches!(c, ' ' | '-' | '/'));
    (starts && fits).then_some((key, rest))
}

/// A value, and what is behind its comma.
fn split_value(text: &str) -> (String, &str) {
    if text.starts_with('"') {
        let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
        if let Some(Ok(value)) = strings.next() {
            let behind = &text[strings.byte_offset()..];
            if let Some(rest) = behind.strip_prefix(',').or(behind.is_empty().then_some("")) {
                return (value, rest);
            }
        }
    }
    let (value, rest) = text.split_once(',').unwrap_or((text, ""));
    (value.trim().to_owned(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        owned.collect()
    }

    #[test]
    fn texts_as_programs_write_them() {
        let text = "girl, ((detailed)),\nby the sea: dawn\nNegative prompt: ugly,\nSteps: 3, bad\n\
                    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, \
                    Size: 512x768, Lora hashes: \"style: 1a2b, eyes: \\\"3c\\\"\", Hires prompt: \"a\\nb\", \
                    Template: \"unended, Version: v1.10.1";
        let Infotext {
            prompt,
            negative_prompt,
            settings: found,
        } = parse(text);
        assert_eq!(prompt, "girl, ((detailed)),\nby the sea: dawn");
        assert_eq!(negative_prompt, "ugly,\nSteps: 3, bad");
        let expected = settings(&[
            ("Steps", "20"),
            ("Sampler", "DPM++ 2M"),
            ("Schedule type", "Karras"),
            ("CFG scale", "7.5"),
            ("Seed", "42"),
            ("Size", "512x768"),
            ("Lora hashes", "style: 1a2b, eyes: \"3c\""),
            ("Hires prompt", "a\nb"),
            ("Template", "\"unended"),
            ("Version", "v1.10.1"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_prompt_alone_and_nothing() {
        let alone = parse("a cat, style: flat\nwith: hat");
        assert_eq!(alone.prompt, "a cat, style: flat\nwith: hat");
        assert_eq!(alone.settings, []);
        assert_eq!(parse(""), Infotext::default());
        let none = parse("Negative prompt: blue\nSteps: 1, Seed: 2, CFG scale: 3");
        assert_eq!((&*none.prompt, &*none.negative_prompt), ("", "blue"));
        assert_eq!(none.settings.len(), 3);
    }

    #[test]
    fn what_is_written_is_read() {
        let request = serde_json::json!({
            "prompt": "猫, \"quoted\"\nsecond line", "negative_prompt": "blue,\nred", "num_steps": 20,
            "guidance_scale": 7.0, "seed": u64::MAX, "width": 512, "height": 768,
        });
        let request = request.as_object().cloned().unwrap_or_default();
        let sampler = ("DPM++ 2M".to_owned(), Some("Karras"));
        let text = write(&request, &sampler, Some("a, model: v2"));
        assert!(text.contains("CFG scale: 7, Seed: 18446744073709551615, Size: 512x768, "));
        let Infotext {
            prompt,
            negative_prompt,
            settings,
        } = parse(&text);
        assert_eq!(prompt, "猫, \"quoted\"\nsecond line");
        assert_eq!(negative_prompt, "blue,\nred");
        let keys: Vec<&str> = settings.iter().map(|(key, _)| &**key).collect();
        let expected = [
            "Steps",
            "Sampler",
            "Schedule type",
            "CFG scale",
            "Seed",
            "Size",
            "Model",
            "RNG",
            "Version",
        ];
        assert_eq!(keys, expected);
        assert_eq!(settings[6].1, "a, model: v2");
    }

    #[test]
    fn any_text_is_read_without_panic() {
        let mut rng = crate::rng::TorchRng::new(7);
        let alphabet: Vec<char> = "ab:, \"\\\nSteps猫-/{}[]0.5x".chars().collect();
        for _ in 0..2000 {
            let draws = rng.randn(64);
            let letters = draws
                .iter()
                .map(|x| alphabet[(x.abs() * 1e4) as usize % alphabet.len()]);
            let text: String = letters.collect();
            let _ = parse(&text);
            let _ = parse_settings(&text);
        }
    }
}
