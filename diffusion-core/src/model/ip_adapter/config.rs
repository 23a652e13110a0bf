//! What an IP-Adapter is, by its tensors.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use super::HEAD_WIDTH;
use crate::error::{Error, Result};
use crate::model::{ClipVisionConfig, CrossAttention};
use crate::nn::TensorSource;

/// How an adapter makes tokens of what the image encoder says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProjection {
    /// A layer that splits the projected embedding.
    Linear {
        /// Tokens of a picture.
        tokens: usize,
    },
    /// "Full": two layers for each patch, which is a token then.
    EachPatch {
        /// Channels between the two.
        inner: usize,
    },
    /// "Plus": learned queries that look at the patches.
    Resampler {
        /// Queries, the tokens of a picture.
        tokens: usize,
        /// Channels of a query.
        hidden: usize,
        /// Width of all heads together.
        inner: usize,
        /// Channels inside the feed-forward layers.
        feed_forward: usize,
        /// Number of layers.
        layers: usize,
    },
}

impl ImageProjection {
    /// Whether it takes the vectors of the patches (the encoder's penultimate hidden state), not the projected
    /// embedding of the whole picture.
    pub fn takes_patches(&self) -> bool {
        !matches!(self, Self::Linear { .. })
    }
}

/// What an IP-Adapter's tensors say of it. Its `Display` is a line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IpAdapterConfig {
    /// How it makes tokens.
    pub projection: ImageProjection,
    /// Channels of what it takes from the image encoder.
    pub image_embed_dim: usize,
    /// Channels of the tokens, those of the UNet's text conditioning.
    pub cross_attention_dim: usize,
    /// Cross-attention layers that it has keys and values for.
    pub num_layers: usize,
    /// Tensors that are of no IP-Adapter.
    pub unused: Vec<String>,
}

/// What the names of an adapter's two parts begin with.
const PARTS: [&str; 2] = ["image_proj.", "ip_adapter."];

/// Adapters that take faces, and a tensor that they alone have.
const FACE_ID: [(&str, &str); 2] = [
    (
        "image_proj.perceiver_resampler.proj_in.weight",
        "FaceID Plus",
    ),
    ("image_proj.proj.2.weight", "FaceID"),
];

impl IpAdapterConfig {
    /// Whether these are the tensors of an IP-Adapter, of any kind.
    pub fn describes(source: &dyn TensorSource) -> bool {
        let names = source.tensor_names();
        let has = |part: &&str| names.iter().any(|name| name.starts_with(*part));
        PARTS.iter().all(has)
    }

    /// Finds out what an adapter is. Read are the original files, with the names `image_proj.*` and
    /// `ip_adapter.N.*`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the FaceID kinds, [`Error::Format`] if the tensors are not those of an
    /// IP-Adapter.
    pub fn from_tensors(source: &dyn TensorSource) -> Result<Self> {
        let tensors = Shapes(source);
        if !Self::describes(source) {
            let [first, second] = PARTS;
            let reason = format!("not an IP-Adapter: expected tensors {first}* and {second}*");
            return Err(tensors.error(reason));
        }
        let (projection, image_embed_dim, cross_attention_dim) = tensors.projection()?;
        let names = source.tensor_names();
        let numbers: BTreeSet<&str> = names
            .iter()
            .filter_map(|name| name.strip_prefix(PARTS[1])?.split('.').next())
            .collect();
        let mut unused: Vec<String> = names
            .iter()
            .filter(|name| !PARTS.iter().any(|part| name.starts_with(part)))
            .cloned()
            .collect();
        unused.sort();
        Ok(Self {
            projection,
            image_embed_dim,
            cross_attention_dim,
            num_layers: numbers.len(),
            unused,
        })
    }

    /// Checks that the adapter is made for a UNet with these layers.
    pub(super) fn check_layers(&self, name: &str, layers: &[CrossAttention]) -> Result<()> {
        let dim = self.cross_attention_dim;
        if let Some(other) = layers.iter().find(|layer| layer.context != dim) {
            let expected = format!(
                "an adapter for {}, as the UNet's text conditioning",
                channels(other.context)
            );
            let found = format!("{name}: one for {}", channels(dim));
            return Err(Error::argument("ip_adapter", expected, found));
        }
        if layers.len() != self.num_layers {
            let expected = format!("an adapter for {} cross-attention layers", layers.len());
            let found = format!("{name}: one for {}", self.num_layers);
            return Err(Error::argument("ip_adapter", expected, found));
        }
        Ok(())
    }

    /// Checks that an image encoder says what the adapter takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if its embeddings are of another width.
    pub fn check_encoder(&self, encoder: &ClipVisionConfig) -> Result<()> {
        let found = match self.projection.takes_patches() {
            true => encoder.hidden_size,
            false => encoder.projection_dim,
        };
        if found == self.image_embed_dim {
            return Ok(());
        }
        let found = match encoder.published_name() {
            Some(name) => format!("{found}, by {name}"),
            None => found.to_string(),
        };
        Err(Error::argument(
            "image_encoder",
            format!("one whose {}", self.wanted()),
            found,
        ))
    }

    /// What the adapter takes of the image encoder.
    fn wanted(&self) -> String {
        let (patches, dim) = (self.projection.takes_patches(), self.image_embed_dim);
        let what = match patches {
            true => "patches have",
            false => "projection has",
        };
        let usual = match (patches, dim) {
            (false, 1024) | (true, 1280) => ", as those of CLIP ViT-H (models/image_encoder)",
            (false, 1280) | (true, 1664) => {
                ", as those of CLIP ViT-bigG (sdxl_models/image_encoder)"
            }
            _ => "",
        };
        format!("{what} {dim} channels{usual}")
    }
}

/// The width of a text conditioning and whose it is.
fn channels(width: usize) -> String {
    let family = match width {
        768 => " (Stable Diffusion 1.x)",
        1024 => " (Stable Diffusion 2.x)",
        1280 => " (SDXL's refiner)",
        2048 => " (SDXL)",
        _ => "",
    };
    format!("{width} channels{family}")
}

impl fmt::Display for IpAdapterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, tokens) = match self.projection {
            ImageProjection::Linear { tokens } => ("IP-Adapter", Some(tokens)),
            ImageProjection::Resampler { tokens, .. } => ("IP-Adapter Plus", Some(tokens)),
            ImageProjection::EachPatch { .. } => ("IP-Adapter Full", None),
        };
        write!(f, "{name}, ")?;
        match tokens {
            Some(tokens) => write!(f, "{tokens} tokens a picture")?,
            None => write!(f, "a token a patch")?,
        }
        write!(
            f,
            " of {}, {} cross-attention layers; takes an image encoder whose {}",
            channels(self.cross_attention_dim),
            self.num_layers,
            self.wanted()
        )
    }
}

/// The shapes of a file's tensors.
struct Shapes<'a>(&'a dyn TensorSource);

impl Shapes<'_> {
    fn error(&self, reason: impl fmt::Display) -> Error {
        Error::format(Path::new(&self.0.name()), reason)
    }

    fn has(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }

    fn matrix(&self, name: &str) -> Result<(usize, usize)> {
        match self.0.shape(name).as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            found => Err(self.error(format!("{name}: expected a matrix, found {found:?}"))),
        }
    }

    /// The kind, the channels that it takes and those that it makes.
    fn projection(&self) -> Result<(ImageProjection, usize, usize)> {
        if self.has("image_proj.latents") {
            return self.resampler();
        }
        if self.has("image_proj.proj.weight") {
            let (rows, input) = self.matrix("image_proj.proj.weight")?;
            let norm = self.0.shape("image_proj.norm.weight");
            let output = norm.and_then(|dims| dims.first().copied()).unwrap_or(0);
            if output == 0 || rows == 0 || rows % output != 0 {
                let reason = format!("{rows} numbers do not make tokens of {output} channels");
                return Err(self.error(reason));
            }
            let tokens = rows / output;
            return Ok((ImageProjection::Linear { tokens }, input, output));
        }
        if self.has("image_proj.proj.3.weight") {
            let (inner, input) = self.matrix("image_proj.proj.0.weight")?;
            let (output, _) = self.matrix("image_proj.proj.2.weight")?;
            return Ok((ImageProjection::EachPatch { inner }, input, output));
        }
        match FACE_ID.iter().find(|(tensor, _)| self.has(tensor)) {
            Some((_, kind)) => Err(Error::unsupported(
                format!("{}: an IP-Adapter {kind}", self.0.name()),
                "it sees by a network that recognises faces, which is not here; take one that sees by CLIP, \
                 such as ip-adapter-plus-face",
            )),
            None => Err(self.error("the tensors image_proj.* are of no known IP-Adapter")),
        }
    }

    fn resampler(&self) -> Result<(ImageProjection, usize, usize)> {
        let (tokens, hidden) = match self.0.shape("image_proj.latents").as_deref() {
            Some(&[1, tokens, hidden]) if tokens > 0 => (tokens, hidden),
            found => {
                let reason =
                    format!("image_proj.latents: expected (1, tokens, channels), found {found:?}");
                return Err(self.error(reason));
            }
        };
        let (_, input) = self.matrix("image_proj.proj_in.weight")?;
        let (output, _) = self.matrix("image_proj.proj_out.weight")?;
        let (inner, _) = self.matrix("image_proj.layers.0.0.to_q.weight")?;
        let (feed_forward, _) = self.matrix("image_proj.layers.0.1.1.weight")?;
        if inner == 0 || inner % HEAD_WIDTH != 0 {
            let reason =
                format!("its attention has {inner} channels, expected heads of {HEAD_WIDTH}");
            return Err(self.error(reason));
        }
        let layer = |i: usize| self.has(&format!("image_proj.layers.{i}.0.to_q.weight"));
        let projection = ImageProjection::Resampler {
            tokens,
            hidden,
            inner,
            feed_forward,
            layers: (0..).take_while(|&i| layer(i)).count(),
        };
        Ok((projection, input, output))
    }
}
