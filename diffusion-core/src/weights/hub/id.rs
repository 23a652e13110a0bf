//! What names a model on a hub.

use std::fmt;

/// A model on a hub, or one file of it.
///
/// Written as diffusers takes it: `owner/name` for a model, `owner/name/folder/file.safetensors` for one file,
/// or the address of either's page, `https://huggingface.co/owner/name/blob/REVISION/file.safetensors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `owner/name`.
    pub repository: String,
    /// The branch, tag or commit of an address.
    pub revision: Option<String>,
    /// The path of one file in the repository.
    pub file: Option<String>,
}

/// What addresses of pages begin with.
const ADDRESSES: [&str; 4] = [
    "https://huggingface.co/",
    "https://hf.co/",
    "huggingface.co/",
    "hf.co/",
];

/// The endings of files that hold tensors.
const ENDINGS: [&str; 6] = ["safetensors", "ckpt", "pt", "pth", "bin", "gguf"];

impl HubId {
    /// Reads an id, or `None` if the text is not of that form: it is a path then.
    pub fn parse(text: &str) -> Option<Self> {
        let address = ADDRESSES.iter().find_map(|start| text.strip_prefix(start));
        let text = match address {
            Some(rest) => rest.split(['?', '#']).next()?.trim_end_matches('/'),
            None => text,
        };
        let mut parts: Vec<&str> = text.split('/').collect();
        let mut revision = None;
        if let [_, _, "blob" | "resolve" | "tree", given, ..] = parts[..]
            && address.is_some()
        {
            revision = Some(given.to_owned());
            parts.drain(2..4);
        }
        let (owner, name) = (parts.first()?, parts.get(1)?);
        let file = (parts.len() > 2).then(|| parts[2..].join("/"));
        // A path with a typing error should not become a request.
        let is_file = |path: &String| is_plain_path(path) && ending(path).is_some();
        let is_id = is_name(owner)
            && is_name(name)
            && ending(name).is_none()
            && file.as_ref().is_none_or(is_file);
        is_id.then(|| Self {
            repository: format!("{owner}/{name}"),
            revision,
            file,
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        match &self.file {
            Some(file) => write!(f, "/{file}"),
            None => Ok(()),
        }
    }
}

/// The ending of a file's path, if it is one of files that hold tensors.
pub(super) fn ending(path: &str) -> Option<&str> {
    let (_, ending) = path.rsplit_once('.')?;
    Some(ending).filter(|ending| ENDINGS.contains(ending))
}

/// Whether a path with `/` between its parts stays below the folder that it is joined to, on any system.
pub(super) fn is_plain_path(path: &str) -> bool {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', ':', '\0'])
            && !part.chars().any(char::is_control)
    };
    path.split('/').all(is_plain)
}

/// The hub's rule for the names of owners and repositories.
fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&name.len())
        && name.chars().all(is_allowed)
        && !name.starts_with(['-', '.'])
        && !name.ends_with(['-', '.'])
        && !name.contains("--")
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, Option<String>, Option<String>)> {
        HubId::parse(text).map(|id| (id.repository, id.revision, id.file))
    }

    #[test]
    fn models_files_and_addresses_are_ids() {
        let id = |repository: &str, revision: Option<&str>, file: Option<&str>| {
            let owned = |text: &str| text.to_owned();
            Some((owned(repository), revision.map(owned), file.map(owned)))
        };
        assert_eq!(parts("a/b"), id("a/b", None, None));
        assert_eq!(parts("a/sd-v1.5"), id("a/sd-v1.5", None, None));
        assert_eq!(parts("a/b/c/d.pt"), id("a/b", None, Some("c/d.pt")));
        assert_eq!(parts("https://hf.co/a/b/"), id("a/b", None, None));
        assert_eq!(
            parts("https://huggingface.co/a/b/blob/fp16/v/x.safetensors?download=true"),
            id("a/b", Some("fp16"), Some("v/x.safetensors"))
        );
        assert_eq!(parts("hf.co/a/b/tree/v1"), id("a/b", Some("v1"), None));
    }

    #[test]
    fn paths_are_not_ids() {
        for path in [
            "",
            "model",
            "model.safetensors",
            "models/sd15.safetensors",
            "examples/models/emoji",
            "./a/b",
            "../a",
            "/a/b",
            "a//b",
            "a/b/",
            "a/b/../c.bin",
            "a/b/c\\..\\d.bin",
            "a--b/c",
            "a/-b",
            "C:/models",
            "a b/c",
            "https://example.com/a/b",
        ] {
            assert_eq!(parts(path), None, "{path}");
        }
    }
}
