//! What tensors are called in the files of CompVis, OpenCLIP, TAESD and TencentARC, and what diffusers calls them.
//!
//! A [`KeyMap`] is a table of module names in both dialects. The numbers in them follow from a model's
//! layout, which the names of its tensors tell.

mod clip;
mod control;
mod tiny;
mod unet;
mod vae;

use std::collections::HashMap;
use std::fmt::Display;

pub use control::T2iAdapterLayout;
pub use unet::{UNetLayout, UNetLevel};

/// How a tensor of an original file lies, seen from diffusers' tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is there.
    Same,
    /// With rows and columns exchanged.
    Transposed,
    /// A 1x1 convolution in the original, a linear layer there. Vectors are the same.
    Pointwise,
    /// The original holds three such tensors one after another in its first dimension; this is the one of
    /// that index.
    Third(usize),
}

/// A tensor's place in the other dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its name there.
    pub name: String,
    /// How the original's numbers lie.
    pub form: Form,
}

/// One row of a [`KeyMap`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A module or tensor of the original file.
    pub original: String,
    /// The same in diffusers; what follows the module in a tensor's name is the same in both.
    pub diffusers: String,
    /// How the original's numbers lie.
    pub form: Form,
}

/// One component's names in two dialects. The row with the longest module that a name begins with counts.
#[derive(Debug, Clone, Default)]
pub struct KeyMap {
    rules: Vec<Rule>,
    by_original: HashMap<String, Vec<usize>>,
    by_diffusers: HashMap<String, usize>,
}

impl KeyMap {
    /// The map that changes no name.
    pub fn identity() -> Self {
        let mut map = Self::default();
        map.add("", "");
        map
    }

    /// All rows.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Where a tensor of the original file goes: nowhere, to one place, or in thirds to three.
    pub fn to_diffusers(&self, original: &str) -> Vec<Place> {
        let found = prefixes(original)
            .find_map(|(module, rest)| Some((self.by_original.get(module)?, rest)));
        let Some((indices, rest)) = found else {
            return Vec::new();
        };
        indices
            .iter()
            .map(|&i| Place {
                name: join(&self.rules[i].diffusers, rest),
                form: self.rules[i].form,
            })
            .collect()
    }

    /// Where a tensor of diffusers' comes from.
    pub fn to_original(&self, diffusers: &str) -> Option<Place> {
        prefixes(diffusers).find_map(|(module, rest)| {
            let rule = &self.rules[*self.by_diffusers.get(module)?];
            Some(Place {
                name: join(&rule.original, rest),
                form: rule.form,
            })
        })
    }

    fn add(&mut self, original: impl Display, diffusers: impl Display) {
        self.add_as(original, diffusers, Form::Same);
    }

    fn add_as(&mut self, original: impl Display, diffusers: impl Display, form: Form) {
        let rule = Rule {
            original: original.to_string(),
            diffusers: diffusers.to_string(),
            form,
        };
        let index = self.rules.len();
        let indices = self.by_original.entry(rule.original.clone()).or_default();
        indices.push(index);
        self.by_diffusers.insert(rule.diffusers.clone(), index);
        self.rules.push(rule);
    }

    /// Adds a table's rows below one module of each dialect.
    fn add_table(
        &mut self,
        original: impl Display,
        diffusers: impl Display,
        table: &[(&str, &str)],
    ) {
        for (inner, renamed) in table {
            self.add(
                format_args!("{original}.{inner}"),
                format_args!("{diffusers}.{renamed}"),
            );
        }
    }
}

/// A name cut in two at each of its dots, the longest front first, and the empty front last.
fn prefixes(name: &str) -> impl Iterator<Item = (&str, &str)> {
    let dots = name.rmatch_indices('.').map(|(at, _)| at);
    let cuts = dots.map(|at| (&name[..at], &name[at + 1..]));
    std::iter::once((name, "")).chain(cuts).chain([("", name)])
}

fn join(module: &str, rest: &str) -> String {
    match (module, rest) {
        ("", rest) => rest.to_owned(),
        (module, "") => module.to_owned(),
        (module, rest) => format!("{module}.{rest}"),
    }
}

/// Counts from 0 as long as there is such a tensor.
pub(super) fn count(has: impl Fn(usize) -> bool) -> usize {
    (0..).take_while(|&i| has(i)).count()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn assert_bijection(map: &KeyMap) {
        let mut seen = HashSet::new();
        for rule in map.rules() {
            assert!(seen.insert(&rule.diffusers), "{rule:?} twice");
            let leaf = join(&rule.diffusers, "weight");
            let original = map.to_original(&leaf).expect("its own name");
            let back = map.to_diffusers(&original.name);
            assert!(back.iter().any(|place| place.name == leaf), "{rule:?}");
            let thirds = match rule.form {
                Form::Third(_) => 3,
                _ => 1,
            };
            assert_eq!(back.len(), thirds, "{rule:?}");
        }
    }

    #[test]
    fn every_table_is_a_bijection() {
        let level = |depths: &[usize], resamples| UNetLevel {
            depths: depths.to_vec(),
            resamples,
        };
        for layout in [
            UNetLayout {
                down: vec![
                    level(&[1, 1], true),
                    level(&[1, 1], true),
                    level(&[0, 0], false),
                ],
                mid: Some(1),
                up: vec![
                    level(&[0, 0, 0], true),
                    level(&[1, 1, 1], true),
                    level(&[1, 1, 1], false),
                ],
            },
            UNetLayout {
                down: vec![level(&[0], true), level(&[2], false)],
                mid: None,
                up: vec![level(&[2, 3], true), level(&[0, 0], false)],
            },
        ] {
            assert_bijection(&layout.key_map());
            assert_bijection(&layout.control_net_key_map(8));
        }
        assert_bijection(&KeyMap::vae(4, 2));
        assert_bijection(&KeyMap::vae(1, 1));
        assert_bijection(&KeyMap::clip("text_model."));
        assert_bijection(&KeyMap::clip(""));
        assert_bijection(&KeyMap::open_clip(3));
        assert_bijection(&KeyMap::stable_diffusion_cpp());
        assert_bijection(&KeyMap::identity());
        assert_bijection(&KeyMap::former_vae());
        for is_light in [true, false] {
            assert_bijection(&KeyMap::t2i_adapter(&T2iAdapterLayout {
                levels: 4,
                blocks: 2,
                is_light,
            }));
        }
        assert_bijection(&KeyMap::tiny_encoder(15));
        assert_bijection(&KeyMap::tiny_decoder(19));
    }

    #[test]
    fn names_that_are_known_from_published_files() {
        let unet = UNetLayout {
            down: vec![
                UNetLevel {
                    depths: vec![1, 1],
                    resamples: true,
                },
                UNetLevel {
                    depths: vec![0, 0],
                    resamples: false,
                },
            ],
            mid: Some(1),
            up: vec![
                UNetLevel {
                    depths: vec![0, 0, 0],
                    resamples: true,
                },
                UNetLevel {
                    depths: vec![1, 1, 1],
                    resamples: false,
                },
            ],
        }
        .key_map();
        for (original, diffusers) in [
            ("input_blocks.0.0.weight", "conv_in.weight"),
            (
                "input_blocks.2.1.proj_in.bias",
                "down_blocks.0.attentions.1.proj_in.bias",
            ),
            (
                "input_blocks.3.0.op.bias",
                "down_blocks.0.downsamplers.0.conv.bias",
            ),
            (
                "input_blocks.4.0.skip_connection.bias",
                "down_blocks.1.resnets.0.conv_shortcut.bias",
            ),
            (
                "middle_block.2.emb_layers.1.bias",
                "mid_block.resnets.1.time_emb_proj.bias",
            ),
            (
                "output_blocks.2.1.conv.weight",
                "up_blocks.0.upsamplers.0.conv.weight",
            ),
            (
                "output_blocks.5.1.norm.weight",
                "up_blocks.1.attentions.2.norm.weight",
            ),
            ("out.2.weight", "conv_out.weight"),
        ] {
            assert_eq!(unet.to_diffusers(original)[0].name, diffusers);
        }
        let thirds = KeyMap::open_clip(2).to_diffusers("transformer.resblocks.1.attn.in_proj_bias");
        assert_eq!(
            thirds[2].name,
            "text_model.encoder.layers.1.self_attn.v_proj.bias"
        );
        assert_eq!(thirds[2].form, Form::Third(2));
        assert!(
            KeyMap::open_clip(2)
                .to_diffusers("transformer.resblocks.2.ln_1.bias")
                .is_empty()
        );
        let decoder = KeyMap::tiny_decoder(19).to_diffusers("3.conv.0.weight");
        assert_eq!(decoder[0].name, "decoder.layers.2.conv.0.weight");
    }
}
