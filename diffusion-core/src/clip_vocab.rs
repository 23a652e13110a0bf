//! CLIP's vocabulary, as OpenAI published it: the byte-pair merges of which all tokens follow.
//!
//! Every Stable Diffusion model has it, and those that come as one file come without it.

use serde_json::json;

/// Number of tokens.
pub(crate) const SIZE: usize = 49408;
/// The token before a prompt.
pub(crate) const START: &str = "<|startoftext|>";
/// The token behind a prompt, and behind that OpenAI's padding.
pub(crate) const END: &str = "<|endoftext|>";
/// OpenCLIP's padding: the token of id 0.
pub(crate) const OPEN_CLIP_PAD: &str = "!";
/// What marks the last piece of a word.
pub(crate) const WORD_END: &str = "</w>";

const MERGES: &str = include_str!("../data/clip/merges.txt");

/// The pairs that are joined, the most frequent first.
pub(crate) fn merges() -> impl Iterator<Item = (&'static str, &'static str)> {
    // The first line is the format's version.
    MERGES
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
}

/// All tokens in the order of their ids: bytes, bytes at a word's end, joined pairs, special ones.
pub(crate) fn tokens() -> impl Iterator<Item = String> {
    let bytes = || byte_characters().map(String::from);
    bytes()
        .chain(bytes().map(|byte| byte + WORD_END))
        .chain(merges().map(|(left, right)| format!("{left}{right}")))
        .chain([START, END].map(String::from))
}

/// The characters that stand for bytes. Those that print stand for themselves and come first; the rest take
/// the code points from 256 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let printable = || (33..=126u8).chain(161..=172).chain(174..=255);
    let rest = 256 - printable().count() as u32;
    printable()
        .map(char::from)
        .chain((256..256 + rest).filter_map(char::from_u32))
}

/// The files of a tokenizer folder, as transformers writes them.
pub(crate) fn files(pad: &str) -> [(&'static str, String); 4] {
    let ids: serde_json::Map<_, _> = tokens().zip(0..).map(|(t, id)| (t, json!(id))).collect();
    let special = json!({
        "bos_token": START,
        "eos_token": END,
        "pad_token": pad,
        "unk_token": END,
    });
    let config = json!({
        "add_prefix_space": false,
        "bos_token": START,
        "do_lower_case": true,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    });
    [
        ("vocab.json", json!(ids).to_string()),
        ("merges.txt", MERGES.to_owned()),
        ("special_tokens_map.json", format!("{special:#}\n")),
        ("tokenizer_config.json", format!("{config:#}\n")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ids() {
        let tokens: Vec<String> = tokens().collect();
        assert_eq!(tokens.len(), SIZE);
        for (id, token) in [
            (0, "!"),
            (256, "!</w>"),
            (320, "a</w>"),
            (2368, "cat</w>"),
            (49406, START),
            (49407, END),
        ] {
            assert_eq!(tokens[id], token);
        }
    }
}
